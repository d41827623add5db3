//! Out through the tunnel, and back out of it.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::encapsulation::{OVERHEAD, Outer, Tunnel, source_port};
use dataplane_ebpf::header::ETHERNET_LENGTH;
use dataplane_ebpf::tables::{FlowKey, Node, node_flags};
use dataplane_ebpf::verdict::{Action, DropReason};

use super::maps::{self, NODES};
use super::parse::Transport;
use super::{Outcome, packet, redirect, trace};

/// The path to the node with this index, unless it is vacant or known not to answer.
#[inline(always)]
pub fn path(node: u32) -> Result<&'static Node, DropReason> {
    trace::tunnel(node);
    NODES
        .get(node)
        .filter(|node| node.interface != 0 && node.flags & node_flags::UNREACHABLE == 0)
        .ok_or(DropReason::NodeUnknown)
}

/// Refuses what would not fit the way to the node: the outer packet is never fragmented. Of a superframe each
/// segment counts.
#[inline(always)]
pub fn fits(
    ctx: &TcContext,
    node: &Node,
    inner_length: usize,
    transport: &Transport,
) -> Result<(), DropReason> {
    let segment = packet::segment_size(ctx);
    let longest = if segment == 0 {
        inner_length
    } else {
        transport.offset + transport.header_length + segment
    };
    if longest + OVERHEAD > node.mtu as usize {
        Err(DropReason::TooBig)
    } else {
        Ok(())
    }
}

/// Puts the outer headers in front of the inner packet and sends the frame to the node. `flow` is the inner
/// packet's, as it is sent.
#[inline(always)]
pub fn send(
    ctx: &TcContext,
    node: &Node,
    flow: &FlowKey,
    type_of_service: u8,
    inner_length: usize,
) -> Outcome {
    let flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_FIXED_GSO;
    if ctx
        .adjust_room(OVERHEAD as i32, BPF_ADJ_ROOM_MAC, u64::from(flags))
        .is_err()
    {
        return Err(DropReason::KernelRefused);
    }
    let source_port = if node.flags & node_flags::FIXED_SOURCE_PORT == 0 {
        let ports = u32::from(u16::from_ne_bytes(flow.source_port)) << 16
            | u32::from(u16::from_ne_bytes(flow.destination_port));
        source_port(flow.source, flow.destination, ports)
    } else {
        maps::tunnel_port()
    };
    let tunnel = Tunnel {
        local: node.local,
        remote: node.remote,
        source_port,
        port: node.port,
    };
    let outer = packet::at::<Outer>(ctx, ETHERNET_LENGTH).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe { *outer = Outer::new(tunnel, type_of_service, inner_length) };

    // SAFETY: the helper takes no argument.
    if unsafe { bpf_ktime_get_ns() } < node.valid_until {
        let ethernet = packet::at::<[u8; ETHERNET_LENGTH]>(ctx, 0).ok_or(DropReason::KernelRefused)?;
        // SAFETY: as above.
        unsafe { *ethernet = node.ethernet };
        redirect::out(node.interface)?;
        return Ok(Action::Tunnel);
    }
    redirect::out_by_neighbour(node.interface)?;
    Ok(Action::Tunnel)
}

// What user space loads the programs with is what the kernel's header says.
const _: () = {
    use aya_ebpf::bindings::BPF_F_ADJ_ROOM_DECAP_L3_IPV4;
    use dataplane_ebpf::tables::decapsulation;
    assert!(decapsulation::UNNAMED == BPF_F_ADJ_ROOM_FIXED_GSO as u64);
    assert!(decapsulation::NAMED == (BPF_F_ADJ_ROOM_DECAP_L3_IPV4 | BPF_F_ADJ_ROOM_FIXED_GSO) as u64);
};

/// Takes the outer headers off.
#[inline(always)]
pub fn remove(ctx: &TcContext) -> Result<(), DropReason> {
    let flags = maps::decapsulation_flags();
    match ctx.adjust_room(-(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, flags) {
        Ok(()) => Ok(()),
        Err(_) => Err(DropReason::KernelRefused),
    }
}
