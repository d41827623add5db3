//! What is told to whoever watches: drops, misses and new flows, as they happen.
//!
//! Only these rare paths look whether somebody does. Nothing waits: what exceeds a CPU's rate, or finds no room in the
//! ring, is left out and counted.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::encapsulation::INNER_OFFSET;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, IPV4_LENGTH,
    IPV4_OFFSET_MASK, IcmpEcho, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
};
use dataplane_ebpf::tables::{Event, Flow, FlowKey, event_kind};
use dataplane_ebpf::verdict::Hook;

use super::maps::{self, EVENT_RATE, EVENTS, SETTINGS};
use super::{packet, parse};

/// Tells how the walk of a packet ended: the row of its counter.
#[inline(always)]
pub fn ended(ctx: &TcContext, hook: Hook, row: u32) {
    if SETTINGS.get(0).is_some_and(|settings| settings.watching != 0) {
        tell_end(ctx.skb.skb, hook as u32, row);
    }
}

/// Tells that a flow has begun.
#[inline(always)]
pub fn begun(forward: &FlowKey, entry: &Flow) {
    if SETTINGS.get(0).is_some_and(|settings| settings.watching != 0) {
        tell_flow(forward, entry.instance);
    }
}

#[inline(never)]
fn tell_end(skb: *mut __sk_buff, hook: u32, row: u32) {
    let Some(mut entry) = take() else { return };
    let event = entry.write(Event::default());
    let ctx = TcContext::new(skb);
    // SAFETY: the helper takes no argument.
    event.time = unsafe { bpf_ktime_get_ns() };
    event.kind = event_kind::END;
    event.hook = hook as u8;
    event.row = row as u8;
    event.length = ctx.len();
    event.interface = packet::interface(&ctx);
    describe(&ctx, event, hook == Hook::FromUplink as u32);
    entry.submit(0);
}

#[inline(never)]
fn tell_flow(forward: &FlowKey, instance: u32) {
    let Some(mut entry) = take() else { return };
    let event = entry.write(Event::default());
    // SAFETY: the helper takes no argument.
    event.time = unsafe { bpf_ktime_get_ns() };
    event.kind = event_kind::FLOW;
    event.source = forward.source;
    event.destination = forward.destination;
    event.source_port = forward.source_port;
    event.destination_port = forward.destination_port;
    event.protocol = forward.protocol;
    event.instance = instance;
    if let Some(instance) = maps::instance(instance) {
        event.instance_address = instance.address;
    }
    entry.submit(0);
}

/// Room for an event, unless this CPU has told enough in this window or the ring is full.
#[inline(always)]
fn take() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<Event>> {
    let limit = SETTINGS.get(0)?.events_per_window;
    let rate = EVENT_RATE.get_ptr_mut(0)?;
    // SAFETY: a value of this CPU alone, and a program is not preempted by another on the same map's CPU.
    let rate = unsafe { &mut *rate };
    let window = maps::coarse_time();
    if rate.window != window {
        rate.window = window;
        rate.passed = 0;
    }
    if rate.passed < limit
        && let Some(entry) = EVENTS.reserve::<Event>(0)
    {
        rate.passed += 1;
        return Some(entry);
    }
    rate.left_out += 1;
    None
}

/// Enters whose packet it is: the inner one of a tunnel datagram, with the sender of the datagram.
#[inline(always)]
fn describe(ctx: &TcContext, event: &mut Event, from_uplink: bool) {
    let is_ipv4 = ctx
        .load::<Ethernet>(0)
        .is_ok_and(|ethernet| ethernet.ethertype == ETHERTYPE_IPV4);
    if !is_ipv4 {
        return;
    }
    let Some(outer) = header(ctx, ETHERNET_LENGTH) else {
        return;
    };
    enter(ctx, event, ETHERNET_LENGTH, &outer);
    let is_tunnel = from_uplink
        && outer.protocol == PROTOCOL_UDP
        && event.destination_port == maps::tunnel_port()
        && parse::header_length(&outer) == IPV4_LENGTH;
    if is_tunnel && let Some(inner) = header(ctx, INNER_OFFSET) {
        event.peer = outer.source;
        event.source_port = [0; 2];
        event.destination_port = [0; 2];
        enter(ctx, event, INNER_OFFSET, &inner);
    }
}

/// An IPv4 header, wherever its bytes lie.
#[inline(always)]
fn header(ctx: &TcContext, offset: usize) -> Option<Ipv4> {
    ctx.load::<Ipv4>(offset)
        .ok()
        .filter(|ip| ip.version_and_length >> 4 == 4)
}

#[inline(always)]
fn enter(ctx: &TcContext, event: &mut Event, offset: usize, ip: &Ipv4) {
    event.source = ip.source;
    event.destination = ip.destination;
    event.protocol = ip.protocol;
    if parse::fragment_word(ip) & IPV4_OFFSET_MASK != 0 {
        return;
    }
    let transport = offset + parse::header_length(ip);
    match ip.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => {
            if let Some((source, destination)) = parse::udp_ports(ctx, transport) {
                event.source_port = source;
                event.destination_port = destination;
            }
        }
        PROTOCOL_ICMP => {
            if let Ok(echo) = ctx.load::<IcmpEcho>(transport) {
                match echo.kind {
                    ICMP_ECHO_REQUEST => event.source_port = echo.identifier,
                    ICMP_ECHO_REPLY => event.destination_port = echo.identifier,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}
