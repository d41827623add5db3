//! ICMP errors about what a published port exchanges with its clients, in both directions.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::header::ETHERNET_LENGTH;
use dataplane_ebpf::tables::{FlowKey, state};
use dataplane_ebpf::verdict::{DropReason, Hook};

use super::published::Otherwise;
use super::{deliver, icmp, maps, parse, published};

/// Delivers an error about what a published endpoint has answered; [`Otherwise::Pass`] for everything else, which is unchanged.
/// From a wire it may come from any router on the way; everybody else speaks about its own packets only.
#[inline(never)]
pub fn enter(ctx: &TcContext, hook: Hook) -> Result<(), Otherwise> {
    let Ok(ip) = parse::ipv4(ctx) else {
        return Err(Otherwise::Pass);
    };
    if !published::is_own(hook, ip.destination)
        || !published::may_be_client(hook, ip.source)
        || !parse::is_plain(&ip)
    {
        return Err(Otherwise::Pass);
    }
    let Some(quote) = icmp::quote(ctx, ETHERNET_LENGTH, &ip) else {
        return Err(Otherwise::Pass);
    };
    let is_client = quote.key.source == ip.source;
    let is_router = matches!(hook, Hook::FromUplink) && !maps::is_local(ip.source);
    // Nor may a wire speak about what the node's own endpoints do.
    if quote.key.destination != ip.destination
        || !is_client && !is_router
        || !published::may_be_client(hook, quote.key.source)
    {
        return Err(Otherwise::Pass);
    }
    let Some((decision, instance)) = icmp::current(&quote.key) else {
        return Err(Otherwise::Pass);
    };
    let from_node = decision.state & state::FROM_NODE != 0;
    if decision.state & (state::PUBLISHED | state::REVERSE) != state::PUBLISHED
        || from_node != matches!(hook, Hook::FromLoopback)
    {
        return Err(Otherwise::Pass);
    }
    let new = FlowKey {
        source: decision.address,
        destination: instance.place.address(),
        source_port: decision.port,
        destination_port: decision.other_port,
        ..quote.key
    };
    let receiver = maps::endpoint(new.destination).ok_or(DropReason::EndpointGone)?;
    let from = if is_client { new.source } else { ip.source };
    icmp::rewrite(ctx, &ip, &quote, from, &new)?;
    deliver::to_endpoint(ctx, hook, &receiver)?;
    Ok(())
}

/// Sends an endpoint's error about a client's packet back to that client; [`Otherwise::Pass`] for everything else, which is
/// unchanged.
#[inline(never)]
pub fn answer(ctx: &TcContext, hook: Hook) -> Result<(), Otherwise> {
    let Ok(ip) = parse::ipv4(ctx) else {
        return Err(Otherwise::Pass);
    };
    if !parse::is_plain(&ip) {
        return Err(Otherwise::Pass);
    }
    let Some(quote) = icmp::quote(ctx, ETHERNET_LENGTH, &ip) else {
        return Err(Otherwise::Pass);
    };
    if quote.key.source != ip.source || quote.key.destination != ip.destination {
        return Err(Otherwise::Pass);
    }
    let Some((decision, _)) = icmp::current(&quote.key) else {
        return Err(Otherwise::Pass);
    };
    let kind = state::PUBLISHED | state::REVERSE;
    if decision.state & kind != kind {
        return Err(Otherwise::Pass);
    }
    let new = FlowKey {
        source: decision.shown,
        destination: decision.address,
        source_port: decision.other_port,
        destination_port: decision.port,
        ..quote.key
    };
    icmp::rewrite(ctx, &ip, &quote, new.source, &new)?;
    published::send_back(ctx, hook, decision.state, decision.address, decision.interface)?;
    Ok(())
}
