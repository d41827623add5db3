//! The walk of a packet that an endpoint or the node itself sends.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::address::{in_overlay, is_service_or_instance};
use dataplane_ebpf::header::{ETHERNET_LENGTH, IPV4_OFFSET_MASK, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{Endpoint, FlowKey, Instance, THIS_NODE, delivery, endpoint_flags, state};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::flow::Decision;
use super::maps::Direction;
use super::parse::{Part, Transport};
use super::{
    Outcome, admit, arp, balance, deliver, encap, flow, fragment, maps, packet, parse, published, redirect,
    reset, translate,
};

/// The congestion bits of the type of service (RFC 3168).
const ECN: u8 = 0x03;

/// Where a packet goes that is not dropped on the spot.
enum Destination {
    /// This decision, and the instance it names.
    Instance(Decision, Instance),
    /// Nobody here knows the address.
    Unknown,
    /// The packet belongs to no flow, and may not begin one to this address.
    Refused,
}

/// From the endpoint's frame to a delivered or tunnelled one. What is not ours passes unchanged.
#[inline(always)]
pub fn walk(ctx: &mut TcContext, hook: Hook) -> Outcome {
    // A tag would carry the frame past the checks below, into the stack or onto a VLAN of the wire.
    if matches!(hook, Hook::FromEndpoint) && packet::vlan(ctx).is_some() {
        return Err(DropReason::VlanTagged);
    }
    if !parse::is_ipv4(ctx) {
        if matches!(hook, Hook::FromEndpoint) && arp::asks_for_gateway(ctx) {
            return arp::answer(ctx);
        }
        return Ok(Action::Pass);
    }
    let ip = parse::ipv4(ctx)?;
    if matches!(hook, Hook::FromOak0)
        && !in_overlay(ip.destination)
        && let Some(action) = admit::written_back(ctx, &ip)?
    {
        return Ok(action);
    }
    let endpoint = match source(ctx, hook, &ip)? {
        Some(endpoint) => endpoint,
        // The node's own, out of an interface that leads to NetManager only: nobody here speaks to a tunnel.
        None if packet::ingress_interface(ctx) == 0 => return not_ours(ctx, &ip),
        None => return Ok(Action::Pass),
    };
    if !is_service_or_instance(ip.destination) {
        if matches!(hook, Hook::FromEndpoint)
            && endpoint.flags & endpoint_flags::PUBLISHES != 0
            && let Some(action) = published::answer(ctx, hook, &ip)?
        {
            return Ok(action);
        }
        if in_overlay(ip.destination) {
            return to_oneself(ctx, hook, &ip);
        }
        if matches!(hook, Hook::FromEndpoint)
            && let Some(action) = published::enter(ctx, hook, &ip)?
        {
            return Ok(action);
        }
        return not_ours(ctx, &ip);
    }
    let mut transport = Transport::default();
    if parse::is_plain(&ip) {
        transport = parse::transport(
            ctx,
            ETHERNET_LENGTH,
            &ip,
            DropReason::Short,
            DropReason::Malformed,
        )?;
    } else {
        fragment::transport(ctx, ETHERNET_LENGTH, &ip, &mut transport)?;
        if transport.part == Part::Early {
            return fragment::wait(hook, &ip);
        }
        if transport.part == Part::First && fragment::enter(hook, &ip, &transport) {
            return fragment::hand_up(hook);
        }
    }
    let key = parse::flow_key(&ip, &transport);

    match destination(&key, &transport)? {
        Destination::Instance(decision, instance) => {
            forward(ctx, hook, &ip, &transport, &key, &endpoint, &decision, &instance)
        }
        Destination::Unknown => match hook {
            Hook::FromOak0 => Err(DropReason::Unresolved),
            Hook::FromHost => Ok(Action::Park),
            Hook::FromEndpoint | Hook::FromUplink | Hook::FromLoopback => {
                redirect::out(maps::oak0_interface())?;
                Ok(Action::Park)
            }
        },
        Destination::Refused if ip.protocol == PROTOCOL_TCP && transport.part != Part::Later => {
            reset::answer(ctx, &ip, &endpoint)
        }
        Destination::Refused => Err(DropReason::NoFlow),
    }
}

/// The endpoint that the packet comes from. An endpoint may use its own address only; what comes through
/// `oak0` was checked before it was parked, or is the node's own. `None`: a packet that only passes through.
#[inline(always)]
fn source(ctx: &TcContext, hook: Hook, ip: &Ipv4) -> Result<Option<Endpoint>, DropReason> {
    let endpoint = maps::endpoint(ip.source);
    match hook {
        Hook::FromEndpoint => match endpoint {
            Some(endpoint) if endpoint.interface == packet::interface(ctx) => Ok(Some(endpoint)),
            _ => Err(DropReason::Spoofed),
        },
        // What the node itself sent, and what came straight from an endpoint, on its way to NetManager. What others
        // would route into the overlay has no place in it, whatever its source says.
        Hook::FromHost => match endpoint {
            Some(endpoint) if endpoint.delivery == delivery::HOST && packet::ingress_interface(ctx) == 0 => {
                Ok(Some(endpoint))
            }
            Some(endpoint) if endpoint.interface == packet::ingress_interface(ctx) => Ok(None),
            _ if in_overlay(ip.destination) => Err(DropReason::Spoofed),
            _ => Ok(None),
        },
        // A delivery to the node comes with the source that the node is to see.
        Hook::FromOak0 | Hook::FromUplink | Hook::FromLoopback => match endpoint {
            None if is_service_or_instance(ip.destination) => Err(DropReason::Spoofed),
            endpoint => Ok(Some(endpoint.unwrap_or_default())),
        },
    }
}

/// Leaves the packet alone, unless it would pass for a tunnel datagram of this node.
#[inline(always)]
fn not_ours(ctx: &TcContext, ip: &Ipv4) -> Outcome {
    if ip.protocol == PROTOCOL_UDP
        && parse::fragment_word(ip) & IPV4_OFFSET_MASK == 0
        && let Some((_, port)) = parse::udp_ports(ctx, ETHERNET_LENGTH + parse::header_length(ip))
        && maps::is_any_tunnel(ip.destination, port)
    {
        return Err(DropReason::TunnelFromEndpoint);
    }
    Ok(Action::Pass)
}

/// A namespace address is nobody's to send to, except for what the data plane itself delivers to the node.
#[inline(always)]
fn to_oneself(ctx: &TcContext, hook: Hook, ip: &Ipv4) -> Outcome {
    let is_host = maps::endpoint(ip.destination).is_some_and(|endpoint| endpoint.delivery == delivery::HOST);
    if matches!(hook, Hook::FromOak0) && is_host {
        deliver::as_received(ctx)?;
        return Ok(Action::DeliverHost);
    }
    Err(DropReason::NotAService)
}

/// The flow's decision, entered now if the packet may begin a flow.
#[inline(always)]
fn destination(key: &FlowKey, transport: &Transport) -> Result<Destination, DropReason> {
    let mut has_ended = false;
    if let Some(decision) = flow::known(key) {
        let restarts = transport.begins && transport.tcp_flags != 0 && decision.state & state::CLOSING != 0;
        match maps::instance(decision.instance) {
            Some(instance) if instance.incarnation == decision.incarnation && !restarts => {
                flow::note_sent(key, transport.tcp_flags, &decision);
                return Ok(Destination::Instance(decision, *instance));
            }
            // The flow ended with its instance, or the client begins anew with the ports of an ended one.
            found => {
                let address = found.map_or([0; 4], |instance| instance.address);
                flow::forget(key, &flow::reverse_key(key, address, decision.port));
                has_ended = true;
            }
        }
    }
    if has_ended && !transport.begins {
        // What goes on with a flow that has ended is told so, rather than left waiting.
        return Ok(Destination::Refused);
    }
    let (index, service) = match balance::service(key.destination) {
        // Takes no turn: a stray segment between two connections would otherwise send both to one instance.
        Some(_) if !transport.begins => return Ok(Destination::Refused),
        Some(service) => {
            let (index, service) = balance::next(service, key.destination)?;
            (index, Some(service))
        }
        None => match maps::instance_index(key.destination) {
            Some(index) => (index, None),
            None => return Ok(Destination::Unknown),
        },
    };
    let Some(instance) = maps::instance(index) else {
        return Err(DropReason::NoBackend);
    };
    let decision = flow::open(
        key,
        index,
        instance,
        service,
        service.is_some() || transport.begins,
    )?;
    if decision.instance == index {
        return Ok(Destination::Instance(decision, *instance));
    }
    let Some(instance) = maps::instance(decision.instance) else {
        return Err(DropReason::InstanceGone);
    };
    Ok(Destination::Instance(decision, *instance))
}

/// Sends the packet on its decided way.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined: what the walk knows, kept in registers"
)]
fn forward(
    ctx: &TcContext,
    hook: Hook,
    ip: &Ipv4,
    transport: &Transport,
    key: &FlowKey,
    endpoint: &Endpoint,
    decision: &Decision,
    instance: &Instance,
) -> Outcome {
    let place = instance.place;
    maps::count_service(decision.service, Direction::Sent, u64::from(ctx.len()));
    let mut sent = FlowKey {
        source: endpoint.instance_address,
        destination: place.address(),
        source_port: decision.port,
        destination_port: key.destination_port,
        protocol: key.protocol,
        zero: [0; 3],
    };
    if place.node() == THIS_NODE {
        let receiver = maps::endpoint(sent.destination).ok_or(DropReason::EndpointGone)?;
        deliver::refuse_tunnel_port(&receiver, &sent)?;
        if let Some((decision, _)) = flow::answered(&sent, transport)? {
            show(ctx, &mut sent, transport, &decision);
        }
        translate::rewrite(ctx, ETHERNET_LENGTH, transport, key, &sent)?;
        return deliver::to_endpoint(ctx, hook, &receiver);
    }
    let node = encap::path(place.node())?;
    let inner_length = parse::total_length(ip);
    encap::fits(ctx, node, inner_length, transport)?;
    translate::rewrite(ctx, ETHERNET_LENGTH, transport, key, &sent)?;
    // Without the inner packet's congestion bits: nobody would carry a mark that the outer packet got back inside
    // (RFC 6040, compatibility mode).
    encap::send(ctx, node, &sent, ip.type_of_service & !ECN, inner_length)
}

/// Applies a reverse entry, so that an answer comes from where the receiver sent to, and notes in the flow what
/// the answer says about it.
#[inline(always)]
pub fn show(ctx: &TcContext, received: &mut FlowKey, transport: &Transport, decision: &Decision) {
    flow::note_received(received, transport.tcp_flags, decision);
    maps::count_service(decision.service, Direction::Received, u64::from(ctx.len()));
    received.source = decision.shown;
    received.destination_port = decision.port;
}
