//! ICMP errors (RFC 792): each quotes the packet that it is about, and both are translated.
//!
//! The quoted packet is the one that its receiver saw. Turned around, it is the packet with which the receiver would
//! have answered; so an error takes the way of that answer, under the same flow, and what is quoted is rewritten the
//! other way round. In the end the sender reads about exactly the packet that it has sent.
//!
//! Errors neither open flows nor keep them alive nor end them. They are rare: their functions are not inlined and read
//! the packet once more, so that the walk of all others has neither their code nor their stack.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::address::is_service_or_instance;
use dataplane_ebpf::checksum::Difference;
use dataplane_ebpf::encapsulation::{INNER_OFFSET, OVERHEAD};
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_LENGTH, IPV4_LENGTH, IPV4_OFFSET_MASK,
    IcmpEcho, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, is_icmp_error,
};
use dataplane_ebpf::tables::{Flow, FlowKey, Instance, THIS_NODE};
use dataplane_ebpf::verdict::{DropReason, Hook};

use super::{Outcome, Packed, admit, deliver, encap, flow, maps, packet, parse};

/// Offset of the checksum in an ICMP header.
const CHECKSUM: usize = 2;
/// Offset in an IPv4 header of the checksum, which the addresses follow.
const IPV4_CHECKSUM: usize = 10;
/// Bytes of the quoted transport header that every error has (RFC 792).
const QUOTED: usize = 8;

/// What an error is about.
#[derive(Default)]
pub struct Quote {
    /// The flow of the packet that would answer the quoted one.
    pub key: FlowKey,
    /// Where the ICMP header begins.
    error: u32,
    /// Where the quoted transport header begins.
    transport: u32,
    /// Where the error ends.
    end: u32,
    /// The checksum of the quoted IPv4 header.
    checksum: [u8; 2],
}

/// The fields of an IPv4 header that translation changes, as they follow each other.
#[repr(C, align(2))]
struct Addresses {
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// What the ICMP error at `ip_offset` quotes. `None` when it is not an error that is translated, is itself about an
/// error, quotes a later fragment, or too little of the packet.
#[inline(always)]
pub fn quote(ctx: &TcContext, ip_offset: usize, ip: &Ipv4) -> Option<Quote> {
    let mut quote = Quote::default();
    read(ctx, ip_offset, ip, &mut quote).then_some(quote)
}

/// Fills in the quote; whether there is one. See [`flow::open`] about memory that was initialised before.
#[inline(never)]
fn read(ctx: &TcContext, ip_offset: usize, ip: &Ipv4, quote: &mut Quote) -> bool {
    match try_read(ctx, ip_offset, ip) {
        Some(found) => {
            *quote = found;
            true
        }
        None => false,
    }
}

#[inline(always)]
fn try_read(ctx: &TcContext, ip_offset: usize, ip: &Ipv4) -> Option<Quote> {
    let error = ip_offset + parse::header_length(ip);
    let end = ip_offset + parse::total_length(ip);
    let kind: u8 = ctx.load(error).ok()?;
    if !is_icmp_error(kind) {
        return None;
    }
    let quoted: Ipv4 = ctx.load(error + ICMP_LENGTH).ok()?;
    let header_length = parse::header_length(&quoted);
    let transport = error + ICMP_LENGTH + header_length;
    let is_whole = quoted.version_and_length >> 4 == 4
        && header_length >= IPV4_LENGTH
        && parse::fragment_word(&quoted) & IPV4_OFFSET_MASK == 0
        && transport + QUOTED <= end;
    if !is_whole {
        return None;
    }
    let (source_port, destination_port) = match quoted.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => parse::udp_ports(ctx, transport)?,
        PROTOCOL_ICMP => {
            let echo: IcmpEcho = ctx.load(transport).ok()?;
            match (echo.kind, echo.code) {
                (ICMP_ECHO_REQUEST, 0) => (echo.identifier, [0; 2]),
                (ICMP_ECHO_REPLY, 0) => ([0; 2], echo.identifier),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(Quote {
        key: FlowKey {
            source: quoted.destination,
            destination: quoted.source,
            source_port: destination_port,
            destination_port: source_port,
            protocol: quoted.protocol,
            zero: [0; 3],
        },
        error: error as u32,
        transport: transport as u32,
        end: end as u32,
        checksum: quoted.checksum,
    })
}

/// The flow of this key, and its instance, while it is the one that was meant.
#[inline(always)]
pub fn current(key: &FlowKey) -> Option<(&'static Flow, &'static Instance)> {
    let flow = flow::peek(key)?;
    let instance = maps::instance(flow.instance)?;
    (instance.incarnation == flow.incarnation).then_some((flow, instance))
}

/// An error that an endpoint or the node itself sends: only to who has sent it something, and only about that.
#[inline(always)]
pub fn outbound(ctx: &TcContext, hook: Hook) -> Outcome {
    outward(ctx, hook).unpack()
}

#[inline(never)]
fn outward(ctx: &TcContext, hook: Hook) -> Packed {
    Packed::new(try_outward(ctx, hook))
}

#[inline(always)]
fn try_outward(ctx: &TcContext, hook: Hook) -> Outcome {
    let ip = parse::ipv4(ctx)?;
    let endpoint = maps::endpoint(ip.source).ok_or(DropReason::Spoofed)?;
    let quote = quote(ctx, ETHERNET_LENGTH, &ip).ok_or(DropReason::IcmpError)?;
    let key = &quote.key;
    if key.source != ip.source || key.destination != ip.destination {
        return Err(DropReason::IcmpError);
    }
    let (instance, port) = match flow::peek(key) {
        Some(_) => {
            let (decision, instance) = current(key).ok_or(DropReason::InstanceGone)?;
            (instance, decision.port)
        }
        // Who has only received has no flow. Towards an instance there is nothing to choose, and whether it has
        // sent what is quoted, its own node knows.
        None => {
            let index = maps::instance_index(ip.destination).ok_or(DropReason::IcmpError)?;
            let instance = maps::instance(index).ok_or(DropReason::IcmpError)?;
            (instance, key.source_port)
        }
    };
    let place = instance.place;
    let mut sent = FlowKey {
        source: endpoint.instance_address,
        destination: place.address(),
        source_port: port,
        ..*key
    };
    if place.node() == THIS_NODE {
        let receiver = maps::endpoint(sent.destination).ok_or(DropReason::EndpointGone)?;
        let (decision, _) = current(&sent).ok_or(DropReason::IcmpError)?;
        sent.source = decision.shown;
        sent.destination_port = decision.port;
        rewrite(ctx, &ip, &quote, sent.source, &sent)?;
        return deliver::to_endpoint(ctx, hook, &receiver);
    }
    let node = encap::path(place.node())?;
    let length = parse::total_length(&ip);
    if length + OVERHEAD > node.mtu as usize {
        return Err(DropReason::TooBig);
    }
    rewrite(ctx, &ip, &quote, sent.source, &sent)?;
    encap::send(
        ctx,
        node,
        &sent,
        encap::without_congestion(ip.type_of_service),
        length,
    )
}

/// An error out of the tunnel, from a peer: about what the receiver has sent, and from who it has sent
/// it to.
#[inline(always)]
pub fn inbound(ctx: &TcContext, hook: Hook) -> Outcome {
    inward(ctx, hook).unpack()
}

#[inline(never)]
fn inward(ctx: &TcContext, hook: Hook) -> Packed {
    Packed::new(try_inward(ctx, hook))
}

#[inline(always)]
fn try_inward(ctx: &TcContext, hook: Hook) -> Outcome {
    let outer = parse::ipv4(ctx)?;
    let group = maps::peer(outer.source).ok_or(DropReason::UnknownPeer)?.group;
    let inner = packet::read::<Ipv4>(ctx, INNER_OFFSET).ok_or(DropReason::InnerShort)?;
    let quote = quote(ctx, INNER_OFFSET, &inner).ok_or(DropReason::IcmpError)?;
    let receiver = maps::endpoint(inner.destination).ok_or(DropReason::DestinationNotLocal)?;
    if !is_service_or_instance(inner.source) {
        return Err(DropReason::SourceNotOverlay);
    }
    admit::may_come_from(inner.source, group)?;
    if quote.key.source != inner.source || quote.key.destination != inner.destination {
        return Err(DropReason::IcmpError);
    }
    let (decision, instance) = current(&quote.key).ok_or(DropReason::IcmpError)?;
    admit::lives_with(instance.place.node(), group)?;
    let shown = FlowKey {
        source: decision.shown,
        destination_port: decision.port,
        ..quote.key
    };
    rewrite(ctx, &inner, &quote, shown.source, &shown)?;
    encap::remove(ctx)?;
    deliver::to_endpoint(ctx, hook, &receiver)
}

/// Rewrites the error so that it comes from `from` and what it quotes is answered by `new`.
///
/// Everything quoted is covered by the error's own checksum. The quoted transport checksum follows where it was not
/// cut off; one that was unfinished when the packet was quoted is of no use to anybody.
#[inline(never)]
pub fn rewrite(
    ctx: &TcContext,
    ip: &Ipv4,
    quote: &Quote,
    from: [u8; 4],
    new: &FlowKey,
) -> Result<(), DropReason> {
    let old = &quote.key;
    let addresses = Difference::default()
        .address(old.source, new.source)
        .address(old.destination, new.destination);
    let header = Addresses {
        checksum: addresses.apply(quote.checksum),
        source: new.destination,
        destination: new.source,
    };
    let mut covered = addresses.word(quote.checksum, header.checksum);
    store(ctx, quote.error as usize + ICMP_LENGTH + IPV4_CHECKSUM, &header)?;

    let ports = Difference::default()
        .word(old.source_port, new.source_port)
        .word(old.destination_port, new.destination_port);
    covered = covered.and(ports);
    let (offset, sum) = match old.protocol {
        PROTOCOL_TCP => (16, addresses.and(ports)),
        PROTOCOL_UDP => (6, addresses.and(ports)),
        _ => (2, ports),
    };
    if old.protocol == PROTOCOL_ICMP {
        // One of the two is the identifier, the other is zero in both flows.
        let identifier = if new.source_port == [0; 2] {
            new.destination_port
        } else {
            new.source_port
        };
        store(ctx, quote.transport as usize + 4, &identifier)?;
    } else {
        store(
            ctx,
            quote.transport as usize,
            &[new.destination_port, new.source_port],
        )?;
    }
    let offset = quote.transport as usize + offset;
    if offset + 2 <= quote.end as usize
        && let Ok(before) = ctx.load::<[u8; 2]>(offset)
        && (old.protocol != PROTOCOL_UDP || before != [0; 2])
    {
        let mut after = sum.apply(before);
        // Zero would say that the sender computed none (RFC 768).
        if old.protocol == PROTOCOL_UDP && after == [0; 2] {
            after = [0xff; 2];
        }
        covered = covered.word(before, after);
        store(ctx, offset, &after)?;
    }

    let offset = quote.error as usize + CHECKSUM;
    let Ok(before) = ctx.load::<[u8; 2]>(offset) else {
        return Err(DropReason::KernelRefused);
    };
    store(ctx, offset, &covered.apply(before))?;

    let header = Addresses {
        checksum: Difference::default()
            .address(ip.source, from)
            .address(ip.destination, new.destination)
            .apply(ip.checksum),
        source: from,
        destination: new.destination,
    };
    store(
        ctx,
        quote.error as usize - parse::header_length(ip) + IPV4_CHECKSUM,
        &header,
    )
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), DropReason> {
    match ctx.store(offset, value, 0) {
        Ok(()) => Ok(()),
        Err(_) => Err(DropReason::KernelRefused),
    }
}
