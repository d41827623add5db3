//! The last step on a node: into the endpoint.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::header::{Ethernet, PROTOCOL_UDP};
use dataplane_ebpf::tables::{Endpoint, FlowKey, delivery};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::{Outcome, maps, packet, redirect};

/// `PACKET_HOST` of the kernel: addressed to the interface that received it.
const PACKET_HOST: u32 = 0;

/// Delivers the frame, whose inner packet is already the one that the endpoint is to see.
#[inline(always)]
pub fn to_endpoint(ctx: &TcContext, hook: Hook, endpoint: &Endpoint) -> Outcome {
    match (endpoint.delivery, hook) {
        (delivery::PEER, Hook::FromEndpoint | Hook::FromOak0 | Hook::FromUplink) => {
            as_received(ctx)?;
            redirect::into_peer(endpoint.interface)?;
            Ok(Action::Deliver)
        }
        // `bpf_redirect_peer` works on ingress only; what the node itself sends goes out of the interface.
        (delivery::PEER | delivery::REDIRECT, _) => {
            let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::Short)?;
            // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
            unsafe { (*ethernet).destination = endpoint.mac };
            redirect::out(endpoint.interface)?;
            Ok(Action::Deliver)
        }
        // There already: up the stack.
        (delivery::HOST, Hook::FromOak0) => {
            as_received(ctx)?;
            Ok(Action::DeliverHost)
        }
        (delivery::HOST, _) => {
            redirect::into_ingress(endpoint.interface)?;
            Ok(Action::DeliverHost)
        }
        _ => Err(DropReason::EndpointGone),
    }
}

/// Refuses what would reach the node's own tunnel socket through the overlay: nothing but the data plane speaks
/// to a tunnel port. `key` is the packet's as the receiver would see it.
#[inline(always)]
pub fn refuse_tunnel_port(receiver: &Endpoint, key: &FlowKey) -> Result<(), DropReason> {
    if receiver.delivery == delivery::HOST
        && key.protocol == PROTOCOL_UDP
        && key.destination_port == maps::tunnel_port()
    {
        return Err(DropReason::TunnelFromEndpoint);
    }
    Ok(())
}

/// Marks the frame as received by its interface, whatever its Ethernet destination says: otherwise the stack
/// takes it for somebody else's.
#[inline(always)]
pub fn as_received(ctx: &TcContext) -> Result<(), DropReason> {
    // SAFETY: the kernel hands a valid context to the program.
    if unsafe { (*ctx.skb.skb).pkt_type } == PACKET_HOST {
        return Ok(());
    }
    match ctx.change_type(PACKET_HOST) {
        Ok(()) => Ok(()),
        Err(_) => Err(DropReason::KernelRefused),
    }
}
