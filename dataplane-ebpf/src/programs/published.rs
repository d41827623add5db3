//! Published ports: what is sent to a port at one of the node's own addresses reaches the endpoint that has
//! published it, and the answers come from where the client sent to.
//!
//! | client | comes in by | source that the server sees | answers leave by |
//! |---|---|---|---|
//! | another host | `from_uplink` | the client's | the interface that the client came in by |
//! | the node itself | `from_loopback` | the node's namespace address | ingress of `lo` |
//! | another endpoint of the node | `from_endpoint` | the client's namespace address | the client's link |
//! | the endpoint itself | `from_endpoint` | the node's namespace address | its own link |
//!
//! Only a SYN, a datagram, or what belongs to a flow that was begun so is translated. All else with the number of a
//! published port passes unchanged: it may be an answer to a connection that the node, or somebody it masquerades,
//! has made from that port. So do later fragments that come before their first, because nobody knows their ports.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::address::in_overlay;
use dataplane_ebpf::header::{ETHERNET_LENGTH, Ethernet, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{Flow, FlowKey, Instance, LOOPBACK, Published, THIS_NODE, state};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::flow::{Decision, Opening};
use super::parse::{Part, Transport};
use super::{Outcome, deliver, flow, fragment, maps, packet, parse, redirect, translate};

/// The address by which the node's own processes reach the node, besides those of its interfaces.
const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

/// The walk of a frame that the node sends to itself.
#[inline(always)]
pub fn from_loopback(ctx: &TcContext) -> Outcome {
    if !parse::is_ipv4(ctx) {
        return Ok(Action::Pass);
    }
    let Ok(ip) = parse::ipv4(ctx) else {
        return Ok(Action::Pass);
    };
    Ok(enter(ctx, Hook::FromLoopback, &ip)?.unwrap_or(Action::Pass))
}

/// Delivers a packet that belongs to a published port; `None` for every other one, which is unchanged.
#[inline(always)]
pub fn enter(ctx: &TcContext, hook: Hook, ip: &Ipv4) -> Result<Option<Action>, DropReason> {
    let Some(published) = port(ctx, ip) else {
        return Ok(None);
    };
    if !is_own(hook, ip.destination) || !may_be_client(hook, ip.source) {
        return Ok(None);
    }
    let Some(transport) = transport(ctx, ip) else {
        return Ok(None);
    };
    let key = parse::flow_key(ip, &transport);
    let (decision, instance) = match known(hook, &key, &transport) {
        Some(known) => {
            flow::note_sent(&key, transport.tcp_flags, &known.0);
            known
        }
        None if transport.begins => match begin(ctx, hook, &key, &published)? {
            Some(begun) => begun,
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    let sent = FlowKey {
        source: decision.address,
        destination: instance.place.address(),
        source_port: decision.port,
        destination_port: decision.other_port,
        protocol: key.protocol,
        zero: [0; 3],
    };
    let receiver = maps::endpoint(sent.destination).ok_or(DropReason::EndpointGone)?;
    if transport.part == Part::First {
        fragment::enter(hook, ip, &transport);
    }
    translate::rewrite(ctx, ETHERNET_LENGTH, &transport, &key, &sent)?;
    deliver::to_endpoint(ctx, hook, &receiver)?;
    Ok(Some(Action::Publish))
}

/// Sends an endpoint's packet back to the client of a published port that it answers; `None` for every other one,
/// which is unchanged.
#[inline(always)]
pub fn answer(ctx: &TcContext, hook: Hook, ip: &Ipv4) -> Result<Option<Action>, DropReason> {
    let Some(transport) = transport(ctx, ip) else {
        return Ok(None);
    };
    let key = parse::flow_key(ip, &transport);
    let Some(decision) = flow::known(&key) else {
        return Ok(None);
    };
    if decision.state & state::PUBLISHED == 0 || decision.state & state::REVERSE == 0 {
        return Ok(None);
    }
    if current(&decision).is_none() {
        // Of another endpoint that had this address before.
        flow::remove(&key);
        return Ok(None);
    }
    flow::note_received(&key, transport.tcp_flags, &decision);
    let sent = FlowKey {
        source: decision.shown,
        destination: decision.address,
        source_port: decision.other_port,
        destination_port: decision.port,
        protocol: key.protocol,
        zero: [0; 3],
    };
    // No client asks from there; who seems to would have the endpoint speak to a tunnel in the name of this node.
    if key.protocol == PROTOCOL_UDP && maps::is_any_tunnel(sent.destination, sent.destination_port) {
        return Err(DropReason::TunnelFromEndpoint);
    }
    if transport.part == Part::First {
        fragment::enter(hook, ip, &transport);
    }
    translate::rewrite(ctx, ETHERNET_LENGTH, &transport, &key, &sent)?;
    if decision.state & state::FROM_NODE != 0 {
        to_node(ctx)?;
    } else if in_overlay(sent.destination) {
        let client = maps::endpoint(sent.destination).ok_or(DropReason::EndpointGone)?;
        deliver::to_endpoint(ctx, hook, &client)?;
    } else {
        redirect::out_by_neighbour(decision.interface)?;
    }
    Ok(Some(Action::PublishAnswer))
}

/// The endpoint that has published the packet's destination port. Most packets of a wire end here.
#[inline(always)]
fn port(ctx: &TcContext, ip: &Ipv4) -> Option<Published> {
    if !matches!(ip.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
        return None;
    }
    let (_, port) = if fragment::is_later(ip) {
        fragment::ports(ip)?
    } else {
        // Both have their ports at the same place.
        parse::udp_ports(ctx, ETHERNET_LENGTH + parse::header_length(ip))?
    };
    maps::published(ip.protocol, port)
}

/// The transport header of what can be translated: TCP or UDP, and of a later fragment the first is known.
#[inline(always)]
fn transport(ctx: &TcContext, ip: &Ipv4) -> Option<Transport> {
    if !matches!(ip.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
        return None;
    }
    if parse::is_plain(ip) {
        return parse::transport(ctx, ETHERNET_LENGTH, ip, DropReason::Short, DropReason::Malformed).ok();
    }
    let mut transport = Transport::default();
    match fragment::transport(ctx, ETHERNET_LENGTH, ip, &mut transport) {
        Ok(()) if transport.part != Part::Early => Some(transport),
        Ok(()) | Err(_) => None,
    }
}

/// Whether the address is one by which the client reaches this node.
#[inline(always)]
fn is_own(hook: Hook, address: [u8; 4]) -> bool {
    maps::is_local(address) || matches!(hook, Hook::FromLoopback) && address == LOCALHOST
}

/// Whether packets of this source may come in there. An endpoint's source was checked already; a wire brings neither
/// addresses of the overlay nor any that no other host can have.
#[inline(always)]
fn may_be_client(hook: Hook, source: [u8; 4]) -> bool {
    match hook {
        Hook::FromEndpoint | Hook::FromLoopback => true,
        Hook::FromUplink | Hook::FromOak0 | Hook::FromHost => {
            !in_overlay(source) && source[0] != 0 && source[0] != LOCALHOST[0] && source[0] < 224
        }
    }
}

/// The instance that a decision names, while it is the one that was meant.
#[inline(always)]
fn current(decision: &Decision) -> Option<&'static Instance> {
    maps::instance(decision.instance).filter(|instance| instance.incarnation == decision.incarnation)
}

/// The flow of the packet, if there is one and it goes on.
#[inline(always)]
fn known(hook: Hook, key: &FlowKey, transport: &Transport) -> Option<(Decision, &'static Instance)> {
    let decision = flow::known(key)?;
    // A wire does not speak in the name of the node itself.
    let from_node = decision.state & state::FROM_NODE != 0;
    if decision.state & state::PUBLISHED == 0 || from_node != matches!(hook, Hook::FromLoopback) {
        return None;
    }
    let Some(instance) = current(&decision) else {
        flow::remove(key);
        return None;
    };
    // With the ports of an ended connection: what is known of that one's end is not to be held against this one.
    if transport.begins && transport.tcp_flags != 0 && decision.state & state::CLOSING != 0 {
        flow::forget(key, &flow::answers(key, &decision, instance));
        return None;
    }
    Some((decision, instance))
}

/// Begins a flow to the endpoint that has published the port; `None` when it is gone.
#[inline(always)]
fn begin(
    ctx: &TcContext,
    hook: Hook,
    key: &FlowKey,
    published: &Published,
) -> Result<Option<(Decision, &'static Instance)>, DropReason> {
    let Some(instance) = maps::instance(published.instance) else {
        return Ok(None);
    };
    let place = instance.place;
    if instance.incarnation != published.incarnation || place.node() != THIS_NODE {
        return Ok(None);
    }
    if matches!(hook, Hook::FromUplink) && maps::is_local(key.source) {
        return Ok(None);
    }
    let server = place.address();
    // Where the client's own address would not lead the answers back to the data plane, or would be refused by the
    // endpoint as its own, the node stands in for it.
    let from_node = matches!(hook, Hook::FromLoopback);
    let client = if from_node || server == key.source {
        maps::host_address()
    } else {
        key.source
    };
    let entry = Flow {
        incarnation: instance.incarnation,
        instance: published.instance,
        last_seen: maps::coarse_time(),
        shown: key.destination,
        interface: packet::interface(ctx),
        state: state::PUBLISHED | if from_node { state::FROM_NODE } else { 0 },
        ..Flow::default()
    };
    let opening = Opening {
        forward: Flow {
            address: client,
            other_port: published.port,
            ..entry
        },
        reverse: Flow {
            address: key.source,
            port: key.source_port,
            other_port: key.destination_port,
            state: entry.state | state::REVERSE,
            ..entry
        },
        answers: FlowKey {
            source: server,
            destination: client,
            source_port: published.port,
            destination_port: key.source_port,
            protocol: key.protocol,
            zero: [0; 3],
        },
    };
    let decision = flow::enter(key, &opening, true)?;
    if decision.instance == published.instance && decision.state & state::PUBLISHED != 0 {
        return Ok(Some((decision, instance)));
    }
    Err(DropReason::InstanceGone)
}

/// Hands a packet to the node's own stack, as if `lo` had received it: with the addresses that `lo` has.
#[inline(always)]
fn to_node(ctx: &TcContext) -> Result<(), DropReason> {
    let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe {
        (*ethernet).destination = [0; 6];
        (*ethernet).source = [0; 6];
    }
    redirect::into_ingress(LOOPBACK)
}
