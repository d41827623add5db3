//! Probes of other nodes, and the answers to this node's own (`dataplane_ebpf::probe`).

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::encapsulation::INNER_OFFSET;
use dataplane_ebpf::header::{ETHERNET_LENGTH, Ethernet};
use dataplane_ebpf::probe::{Datagram, Kind, LENGTH, MARKER, Probe, SLOTS};
use dataplane_ebpf::verdict::{Action, DropReason};

use super::maps::{self, NODES, PROBES};
use super::{Outcome, packet, redirect};

/// Whether the payload of the tunnel datagram is a probe rather than a packet.
#[inline(always)]
pub fn is_probe(ctx: &TcContext, length: usize) -> bool {
    length != 0 && packet::read::<u8>(ctx, INNER_OFFSET) == Some(MARKER)
}

/// Answers a probe, or takes an answer in. The datagram's outer headers are checked, and it came from this group of
/// nodes by the interface that leads there.
#[inline(never)]
pub fn take(ctx: &TcContext, length: usize, group: u32) -> Outcome {
    if length != LENGTH {
        return Err(DropReason::ProbeMalformed);
    }
    // Made linear that far: no more than this is copied, because the stack of the program that calls is used up.
    let probe = packet::read::<Probe>(ctx, INNER_OFFSET).ok_or(DropReason::ProbeMalformed)?;
    match probe.kind() {
        Some(Kind::Request) if maps::may_answer_probe() => turn_around(ctx),
        Some(Kind::Request) => Err(DropReason::ProbeRate),
        Some(Kind::Answer) => note(&probe, group),
        None => Err(DropReason::ProbeMalformed),
    }
}

/// Sends the answer to where the probe came from, by the link that it came in by.
#[inline(always)]
fn turn_around(ctx: &TcContext) -> Outcome {
    let datagram = packet::at::<Datagram>(ctx, ETHERNET_LENGTH).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe { (*datagram).turn_around() };
    let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::KernelRefused)?;
    // SAFETY: as above.
    unsafe {
        core::mem::swap(&mut (*ethernet).destination, &mut (*ethernet).source);
    }
    redirect::out(packet::interface(ctx))?;
    Ok(Action::ProbeAnswered)
}

/// Notes when the answer to a probe that is under way to one of these nodes arrived, once.
#[inline(always)]
fn note(probe: &Probe, group: u32) -> Outcome {
    // Before the nonce is looked at: should user space exchange the probe in between, the arrival noted is earlier than
    // the departure, and means nothing.
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let index = u32::from_ne_bytes(probe.index);
    let nonce = u64::from_ne_bytes(probe.nonce);
    let node = NODES.get(index / SLOTS).ok_or(DropReason::ProbeUnexpected)?;
    let sent = PROBES.get_ptr_mut(index).ok_or(DropReason::ProbeUnexpected)?;
    if node.interface == 0 || node.group != group {
        return Err(DropReason::ProbeUnexpected);
    }
    // SAFETY: a checked pointer to two aligned words, each read or written as one.
    unsafe {
        let (expected, received_at) = (
            core::ptr::read_volatile(&raw const (*sent).nonce),
            core::ptr::read_volatile(&raw const (*sent).received_at),
        );
        if nonce == 0 || nonce != expected || received_at != 0 {
            return Err(DropReason::ProbeUnexpected);
        }
        core::ptr::write_volatile(&raw mut (*sent).received_at, now);
    }
    Ok(Action::ProbeReceived)
}
