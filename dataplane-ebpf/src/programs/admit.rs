//! The walk of a packet from the wire: who may enter the overlay.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::address::{in_overlay, is_service_or_instance};
use dataplane_ebpf::encapsulation::{INNER_OFFSET, OVERHEAD};
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, IPV4_FRAGMENT_MASK, IPV4_LENGTH, IPV4_OFFSET_MASK, Ipv4, PROTOCOL_UDP, UDP_LENGTH, Udp,
};
use dataplane_ebpf::tables::{Endpoint, FlowKey, THIS_NODE};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::maps::NODES;
use super::parse::{Part, Transport};
use super::{
    Outcome, Stop, Walked, balance, deliver, encap, flow, fragment, maps, outbound, packet, parse, probe,
    published, translate,
};

/// From a frame on the wire to one that an endpoint receives. What is neither a tunnel datagram for this node, nor
/// for a published port, nor addressed to the overlay passes unchanged.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> Walked {
    // A frame of another VLAN belongs to the interface of that VLAN, which has this program too.
    if packet::vlan(ctx).is_some_and(|identifier| identifier != 0) || !parse::is_ipv4(ctx) {
        return Ok(Action::Pass);
    }
    let Ok(outer) = parse::ipv4(ctx) else {
        return Ok(Action::Pass);
    };
    if in_overlay(outer.destination) {
        return Err(DropReason::Unencapsulated.into());
    }
    if parse::fragment_word(&outer) & IPV4_FRAGMENT_MASK != 0 && outer.protocol == PROTOCOL_UDP {
        outer_fragment(ctx, &outer)?;
    } else if is_tunnel(ctx, &outer) {
        return tunnelled(ctx, &outer);
    }
    Err(Stop::Elsewhere)
}

/// What is not a tunnel datagram: for a published port, or none of ours.
#[inline(always)]
pub fn elsewhere(ctx: &TcContext) -> Outcome {
    let Ok(ip) = parse::ipv4(ctx) else {
        return Ok(Action::Pass);
    };
    Ok(published::enter(ctx, Hook::FromUplink, ip.protocol)?.unwrap_or(Action::Pass))
}

/// Lets a fragment through that may belong to a tunnel datagram of a peer: the kernel puts the datagram together,
/// NetManager takes it at the socket of the tunnel port, and `from_oak0` admits it. Of a later fragment nobody
/// knows the port, so only where it comes from is checked: of all fragments of a datagram that the kernel puts
/// together in a peer's name, none may come from where no peer is.
#[inline(always)]
fn outer_fragment(ctx: &TcContext, outer: &Ipv4) -> Result<(), DropReason> {
    if !fragment::is_later(outer) && !is_tunnel(ctx, outer) || !maps::is_local(outer.destination) {
        return Ok(());
    }
    match maps::peer(outer.source) {
        Some(peer) if peer.interface != packet::interface(ctx) => Err(DropReason::WrongInterface),
        None if !fragment::is_later(outer) => Err(DropReason::OuterFragment),
        _ => Ok(()),
    }
}

/// A tunnel datagram off a wire.
#[inline(always)]
fn tunnelled(ctx: &TcContext, outer: &Ipv4) -> Walked {
    let inner_length = inner_length(ctx, outer)?;
    let Some(peer) = maps::peer(outer.source) else {
        // A probe has no inner source by which NetManager could find out who it is from.
        if probe::is_probe(ctx, inner_length) {
            return Err(DropReason::UnknownPeer.into());
        }
        // NetManager owns the socket of the tunnel port: it may learn of a new peer this way.
        return if maps::may_hand_up_stranger() {
            Ok(Action::Stranger)
        } else {
            Err(DropReason::UnknownPeer.into())
        };
    };
    // Where a container of somebody else's bridge could send, no peer is.
    if peer.interface != packet::interface(ctx) {
        return Err(DropReason::WrongInterface.into());
    }
    let walked = carried(ctx, Hook::FromUplink, inner_length, peer.group);
    // Nothing of the frame was touched. A packet is not kept waiting by the question whether it is a probe.
    if matches!(walked, Err(Stop::Dropped(DropReason::InnerVersion))) && probe::is_probe(ctx, inner_length) {
        return Ok(probe::take(ctx, inner_length, peer.group)?);
    }
    walked
}

/// A tunnel datagram of a peer that NetManager writes back: it has put its fragments together, or has held it until
/// the first fragment of the inner datagram had come. Where it arrived was checked before. `None`: something else.
#[inline(always)]
pub fn written_back(ctx: &TcContext, outer: &Ipv4) -> Result<Option<Action>, Stop> {
    if !is_tunnel(ctx, outer) {
        return Ok(None);
    }
    let Some(peer) = maps::peer(outer.source) else {
        return Ok(None);
    };
    let inner_length = inner_length(ctx, outer)?;
    carried(ctx, Hook::FromOak0, inner_length, peer.group).map(Some)
}

/// From what a peer's datagram carries to a frame that an endpoint receives.
#[inline(always)]
fn carried(ctx: &TcContext, hook: Hook, inner_length: usize, group: u32) -> Walked {
    let inner = inner(ctx, inner_length)?;
    let mut transport = Transport::default();
    if parse::is_plain(&inner) {
        transport = match parse::transport(
            ctx,
            INNER_OFFSET,
            &inner,
            DropReason::InnerShort,
            DropReason::InnerMalformed,
        ) {
            Err(DropReason::IcmpError) => return Err(Stop::InnerIcmpError),
            transport => transport?,
        };
    } else {
        match fragment::transport(ctx, INNER_OFFSET, &inner, &mut transport) {
            Err(DropReason::IcmpError) => return Err(Stop::InnerIcmpError),
            read => read?,
        }
    }
    let receiver = maps::endpoint(inner.destination).ok_or(DropReason::DestinationNotLocal)?;
    if !is_service_or_instance(inner.source) {
        return Err(DropReason::SourceNotOverlay.into());
    }
    if transport.part == Part::Early {
        may_come_from(inner.source, group)?;
        return Ok(fragment::wait(hook, &inner)?);
    }
    let key = parse::flow_key(&inner, &transport);
    deliver::refuse_tunnel_port(&receiver, &key)?;
    let shown = admit(ctx, &key, &transport, group)?;
    if transport.part == Part::First && fragment::enter(hook, &inner, &transport) {
        return Ok(fragment::hand_up(hook)?);
    }
    Ok(enter(ctx, hook, &transport, &key, &shown, &receiver)?)
}

/// Whether the packet is for the tunnel port at one of this node's own addresses.
#[inline(always)]
fn is_tunnel(ctx: &TcContext, outer: &Ipv4) -> bool {
    outer.protocol == PROTOCOL_UDP
        && parse::fragment_word(outer) & IPV4_OFFSET_MASK == 0
        && parse::udp_ports(ctx, ETHERNET_LENGTH + parse::header_length(outer))
            .is_some_and(|(_, port)| port == maps::tunnel_port())
        && maps::is_local(outer.destination)
}

/// Bytes of the datagram's payload, its outer headers checked against each other.
#[inline(always)]
fn inner_length(ctx: &TcContext, outer: &Ipv4) -> Result<usize, DropReason> {
    if parse::fragment_word(outer) & IPV4_FRAGMENT_MASK != 0 {
        return Err(DropReason::OuterFragment);
    }
    if parse::header_length(outer) != IPV4_LENGTH || parse::total_length(outer) < OVERHEAD {
        return Err(DropReason::OuterMalformed);
    }
    let udp = packet::read::<Udp>(ctx, ETHERNET_LENGTH + IPV4_LENGTH).ok_or(DropReason::OuterMalformed)?;
    let length = u16::from_be_bytes(udp.length) as usize;
    if length != parse::total_length(outer) - IPV4_LENGTH {
        return Err(DropReason::OuterMalformed);
    }
    Ok(length - UDP_LENGTH)
}

/// The inner header: IPv4, as long as the datagram says.
#[inline(always)]
fn inner(ctx: &TcContext, inner_length: usize) -> Result<Ipv4, DropReason> {
    if inner_length == 0 {
        return Err(DropReason::InnerShort);
    }
    let version = packet::read::<u8>(ctx, INNER_OFFSET).ok_or(DropReason::InnerShort)?;
    if version >> 4 != 4 {
        return Err(DropReason::InnerVersion);
    }
    if inner_length < IPV4_LENGTH {
        return Err(DropReason::InnerShort);
    }
    let inner = packet::read::<Ipv4>(ctx, INNER_OFFSET).ok_or(DropReason::InnerShort)?;
    if parse::header_length(&inner) < IPV4_LENGTH || parse::total_length(&inner) != inner_length {
        return Err(DropReason::InnerMalformed);
    }
    Ok(inner)
}

/// Whether the inner source lives with this group of nodes, or is not known yet; and what the receiver is shown.
/// A flow that is known names the instance, which saves its look-up.
#[inline(always)]
fn admit(ctx: &TcContext, key: &FlowKey, transport: &Transport, group: u32) -> Result<FlowKey, DropReason> {
    let mut shown = *key;
    if let Some((decision, instance)) = flow::answered(key, transport)? {
        lives_with(instance.place.node(), group)?;
        outbound::show(ctx, &mut shown, transport, &decision);
        return Ok(shown);
    }
    may_come_from(key.source, group)?;
    Ok(shown)
}

/// Whether the instance with this address lives with this group of nodes, or is not known yet.
#[inline(always)]
pub fn may_come_from(source: [u8; 4], group: u32) -> Result<(), DropReason> {
    match maps::instance_index(source).and_then(maps::instance) {
        Some(instance) => lives_with(instance.place.node(), group),
        // No packet on a wire comes from a service: its instances show their own addresses.
        None if balance::service(source).is_some() => Err(DropReason::SourceNotOnNode),
        None => Ok(()),
    }
}

/// Whether the node with this index is of the group.
#[inline(always)]
pub fn lives_with(node: u32, group: u32) -> Result<(), DropReason> {
    match NODES.get(node) {
        Some(path) if node != THIS_NODE && path.group == group => Ok(()),
        _ => Err(DropReason::SourceNotOnNode),
    }
}

/// Translates the inner packet, takes the outer headers off and delivers.
#[inline(always)]
fn enter(
    ctx: &TcContext,
    hook: Hook,
    transport: &Transport,
    key: &FlowKey,
    shown: &FlowKey,
    receiver: &Endpoint,
) -> Outcome {
    if shown != key {
        translate::rewrite(ctx, INNER_OFFSET, transport, key, shown)?;
    }
    encap::remove(ctx)?;
    deliver::to_endpoint(ctx, hook, receiver)
}
