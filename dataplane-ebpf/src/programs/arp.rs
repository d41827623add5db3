//! ARP for the gateway (RFC 826), which no host has: whoever is attached before its first instruction has no permanent
//! entry that says where the gateway is, and asks.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::address::{GATEWAY, GATEWAY_MAC};
use dataplane_ebpf::header::{
    ARP_IPV4_OVER_ETHERNET, ARP_REPLY, ARP_REQUEST, Arp, ETHERNET_LENGTH, ETHERTYPE_ARP, Ethernet,
};
use dataplane_ebpf::verdict::{Action, DropReason};

use super::{Outcome, packet, redirect};

/// Whether the frame asks where the gateway is. Nothing else of ARP is answered here.
#[inline(always)]
pub fn asks_for_gateway(ctx: &TcContext) -> bool {
    let is_arp = packet::read::<Ethernet>(ctx, 0).is_some_and(|ethernet| ethernet.ethertype == ETHERTYPE_ARP);
    is_arp
        && packet::read::<Arp>(ctx, ETHERNET_LENGTH).is_some_and(|arp| {
            arp.kind == ARP_IPV4_OVER_ETHERNET && arp.operation == ARP_REQUEST && arp.target == GATEWAY
        })
}

/// Turns the request around as the answer and sends it back by the link that it came from, whoever it says it is from:
/// nobody else is at the other end.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> Outcome {
    let arp = packet::at::<Arp>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Short)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    let asker = unsafe {
        let asker = (*arp).sender_mac;
        (*arp).operation = ARP_REPLY;
        (*arp).target_mac = asker;
        (*arp).target = (*arp).sender;
        (*arp).sender_mac = GATEWAY_MAC;
        (*arp).sender = GATEWAY;
        asker
    };
    let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::Short)?;
    // SAFETY: as above.
    unsafe {
        (*ethernet).destination = asker;
        (*ethernet).source = GATEWAY_MAC;
    }
    redirect::out(packet::interface(ctx))?;
    Ok(Action::AnswerGateway)
}
