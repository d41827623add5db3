//! The ways in which a packet leaves a program by another interface than it came in by.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use dataplane_ebpf::tables::exit;
use dataplane_ebpf::verdict::DropReason;

use super::trace;

/// Into the network namespace at the other end of a veth, without a queue in between. From ingress only.
#[inline(always)]
pub fn into_peer(interface: u32) -> Result<(), DropReason> {
    trace::leave(exit::PEER, interface);
    // SAFETY: the helper takes integers only and checks the interface.
    redirected(unsafe { bpf_redirect_peer(interface, 0) })
}

/// Out of an interface, with the Ethernet header that the frame has.
#[inline(always)]
pub fn out(interface: u32) -> Result<(), DropReason> {
    trace::leave(exit::OUT, interface);
    // SAFETY: as above.
    redirected(unsafe { bpf_redirect(interface, 0) })
}

/// Out of an interface. The kernel looks next hop and neighbour up for the packet's destination, and queues it while
/// it resolves.
#[inline(always)]
pub fn out_by_neighbour(interface: u32) -> Result<(), DropReason> {
    trace::leave(exit::NEIGHBOUR, interface);
    // SAFETY: as above; no parameters.
    redirected(unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) })
}

/// Into an interface, as if it had received the frame.
#[inline(always)]
pub fn into_ingress(interface: u32) -> Result<(), DropReason> {
    trace::leave(exit::INGRESS, interface);
    // SAFETY: as above.
    redirected(unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) })
}

/// A redirecting helper returns `TC_ACT_REDIRECT`, or `TC_ACT_SHOT` when it refuses.
#[inline(always)]
fn redirected(code: i64) -> Result<(), DropReason> {
    if code == i64::from(TC_ACT_REDIRECT) {
        Ok(())
    } else {
        Err(DropReason::KernelRefused)
    }
}
