//! Flows: the table of decisions, and how a decision is entered into it.
//!
//! A flow has two entries. The forward entry says where the client's packets go, the reverse entry what the
//! client is shown as the source of the answers. The reverse entry is written first, so that no packet leaves
//! whose answer could not be translated back.
//!
//! Both begin in `UNANSWERED`, where the least recently used make room, and move to `FLOWS` when both sides have
//! spoken: a datagram that is answered, a TCP handshake that is complete. So a scan or a flood pushes out nobody's
//! connection, and an established flow costs one look-up per packet and direction. `FLOWS` is looked at first, an entry
//! is written there before it is taken out of `UNANSWERED`, and who enters a key in `UNANSWERED` looks afterwards whether
//! `FLOWS` has it: so no key ever leads to two decisions.

use aya_ebpf::bindings::BPF_NOEXIST;
use dataplane_ebpf::header::{PROTOCOL_ICMP, PROTOCOL_TCP, TCP_FIN, TCP_RST, TCP_SYN};
use dataplane_ebpf::tables::{Flow, FlowKey, Instance, Opening, state};
use dataplane_ebpf::verdict::DropReason;

use super::events;
use super::maps::{self, FLOWS, UNANSWERED};
use super::parse::Transport;
use super::trace;

/// `EEXIST`, as map updates return it.
const ALREADY_EXISTS: i32 = -17;
/// Source ports tried when the client's own is taken towards the instance.
const CANDIDATES: u32 = 8;

/// A copy of what an entry says.
#[derive(Clone, Copy)]
pub struct Decision {
    pub instance: u32,
    pub incarnation: u64,
    pub shown: [u8; 4],
    pub address: [u8; 4],
    pub port: [u8; 2],
    pub other_port: [u8; 2],
    pub interface: u32,
    pub service: u32,
    pub state: u8,
    /// Whether the entry is in `FLOWS`.
    pub is_settled: bool,
}

/// What the client's packets need of a decision.
#[derive(Clone, Copy, Default)]
pub struct Way {
    /// Index in `INSTANCES`.
    pub instance: u32,
    pub service: u32,
    /// The source port that the server sees.
    pub port: [u8; 2],
}

impl Way {
    #[inline(always)]
    pub fn of(decision: &Decision) -> Self {
        Self {
            instance: decision.instance,
            service: decision.service,
            port: decision.port,
        }
    }
}

/// Looks a flow up and marks it as used, at most once in 2^30 ns.
#[inline(always)]
pub fn known(key: &FlowKey) -> Option<Decision> {
    let (flow, is_settled) = find(key)?;
    let now = maps::coarse_time();
    // SAFETY: the verifier has seen the null check. The entry may be recycled by another CPU while it is read;
    // then this packet follows the decision of a flow that ended at this moment, and the next one does not.
    unsafe {
        if (*flow).last_seen != now {
            (*flow).last_seen = now;
        }
        Some(decision(&*flow, is_settled))
    }
}

/// The entry at `key`, and whether it is in `FLOWS`.
#[inline(always)]
fn find(key: &FlowKey) -> Option<(*mut Flow, bool)> {
    trace::look_up();
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        return Some((flow, true));
    }
    trace::look_up();
    UNANSWERED.get_ptr_mut(key).map(|flow| (flow, false))
}

/// Looks a flow up without marking it as used. It is read in place: rare, and short of stack.
#[inline(always)]
pub fn peek(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: the verifier has seen the null check; see `known` about an entry that is recycled meanwhile.
    find(key).map(|(flow, _)| unsafe { &*flow })
}

/// The flow that `received` answers, and the instance that it comes from, unless it answers none. An instance that
/// took the place of the one in the flow does not answer in its name: what it begins ends the flow, all else is
/// refused.
#[inline(always)]
pub fn answered(
    received: &FlowKey,
    transport: &Transport,
) -> Result<Option<(Decision, &'static Instance)>, DropReason> {
    let Some(decision) = known(received) else {
        return Ok(None);
    };
    match maps::instance(decision.instance) {
        Some(instance) if instance.incarnation == decision.incarnation => Ok(Some((decision, instance))),
        _ if transport.begins => {
            forget(&forward_key(received, &decision), received);
            Ok(None)
        }
        _ => Err(DropReason::InstanceGone),
    }
}

/// Notes what a packet of the client says about its flow.
#[inline(always)]
pub fn note_sent(forward: &FlowKey, tcp_flags: u8, decision: &Decision) {
    if tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        mark(forward, ending(tcp_flags, state::FIN_FORWARD));
    }
    let is_complete = decision.state & state::ANSWERED != 0 && tcp_flags & (TCP_SYN | TCP_RST) == 0;
    if !decision.is_settled && is_complete && forward.protocol == PROTOCOL_TCP {
        if let Some(instance) = maps::instance(decision.instance) {
            settle(forward, &answers(forward, decision, instance));
        }
    }
}

/// Notes what an answer says about its flow.
#[inline(always)]
pub fn note_received(reverse: &FlowKey, tcp_flags: u8, decision: &Decision) {
    if decision.is_settled && tcp_flags & (TCP_FIN | TCP_RST) == 0 {
        return;
    }
    let forward = forward_key(reverse, decision);
    if tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        mark(&forward, ending(tcp_flags, state::FIN_REVERSE));
    }
    if decision.is_settled {
        return;
    }
    // An answer to a SYN shows that somebody is there, not that the client wants a connection; a reset ends it. A ping
    // is not worth a place.
    let settles = match reverse.protocol {
        PROTOCOL_TCP => tcp_flags & (TCP_SYN | TCP_RST) == 0,
        PROTOCOL_ICMP => false,
        _ => true,
    };
    if settles {
        settle(&forward, reverse);
    } else if decision.state & state::ANSWERED == 0 && tcp_flags & TCP_RST == 0 {
        mark(&forward, state::ANSWERED);
        mark(reverse, state::ANSWERED);
    }
}

/// The bits that a segment with FIN or RST adds.
#[inline(always)]
fn ending(tcp_flags: u8, fin: u8) -> u8 {
    if tcp_flags & TCP_RST != 0 {
        state::RESET
    } else {
        fin
    }
}

/// Adds bits to an entry's state. Rare: when a flow is answered first, and when it ends.
#[inline(always)]
fn mark(key: &FlowKey, bits: u8) {
    if let Some((flow, _)) = find(key) {
        // SAFETY: as in `known`. Two CPUs may write at once, and one bit be lost: it describes the end of a flow of
        // which the other is known, and the next packet brings it again.
        unsafe { (*flow).state |= bits };
    }
}

/// Moves both entries from `UNANSWERED` to `FLOWS`. Where there is no room, or one of them was pushed out, the other
/// stays where it is.
#[inline(never)]
fn settle(forward: &FlowKey, reverse: &FlowKey) {
    if copy(reverse) {
        if copy(forward) {
            leave(forward);
            leave(reverse);
        } else {
            take_out(reverse);
        }
    }
}

/// Enters a copy of an unanswered entry, as an answered one, in `FLOWS`; whether it is there then.
#[inline(always)]
fn copy(key: &FlowKey) -> bool {
    let Some(entry) = UNANSWERED.get_ptr(key) else {
        return false;
    };
    // SAFETY: as in `known`.
    let mut entry = unsafe { *entry };
    entry.state |= state::ANSWERED;
    matches!(
        FLOWS.insert(key, entry, BPF_NOEXIST.into()),
        Ok(()) | Err(ALREADY_EXISTS)
    )
}

/// Takes a key out of `UNANSWERED`, where it may not be.
#[inline(always)]
fn leave(key: &FlowKey) {
    match UNANSWERED.remove(key) {
        Ok(()) | Err(_) => {}
    }
}

/// Takes a key out of `FLOWS`, where it may not be.
#[inline(always)]
fn take_out(key: &FlowKey) {
    match FLOWS.remove(key) {
        Ok(()) | Err(_) => {}
    }
}

/// Removes both entries of a flow. Either may be gone already.
#[inline(always)]
pub fn forget(forward: &FlowKey, reverse: &FlowKey) {
    remove(forward);
    remove(reverse);
}

/// Removes one entry. Another CPU, or the table itself, may have removed it already.
#[inline(always)]
pub fn remove(key: &FlowKey) {
    take_out(key);
    leave(key);
}

/// The key of the answers: from the instance's own address to the client's namespace address.
#[inline(always)]
pub fn reverse_key(forward: &FlowKey, instance_address: [u8; 4], port: [u8; 2]) -> FlowKey {
    FlowKey {
        source: instance_address,
        destination: forward.source,
        source_port: forward.destination_port,
        destination_port: port,
        protocol: forward.protocol,
        zero: [0; 3],
    }
}

/// The key of the answers to a flow that is known.
#[inline(always)]
pub fn answers(forward: &FlowKey, decision: &Decision, instance: &Instance) -> FlowKey {
    if decision.state & state::PUBLISHED == 0 {
        return reverse_key(forward, instance.address, decision.port);
    }
    FlowKey {
        source: instance.place.address(),
        destination: decision.address,
        source_port: decision.other_port,
        destination_port: decision.port,
        protocol: forward.protocol,
        zero: [0; 3],
    }
}

/// The key of the client's packets, from that of the answers and what the reverse entry says.
#[inline(always)]
pub fn forward_key(reverse: &FlowKey, decision: &Decision) -> FlowKey {
    let (source, destination_port) = if decision.state & state::PUBLISHED == 0 {
        (reverse.destination, reverse.source_port)
    } else {
        (decision.address, decision.other_port)
    };
    FlowKey {
        source,
        destination: decision.shown,
        source_port: decision.port,
        destination_port,
        protocol: reverse.protocol,
        zero: [0; 3],
    }
}

/// Where a flow that is to be opened goes.
pub struct Choice {
    /// Index in `INSTANCES`.
    pub index: u32,
    pub instance: &'static Instance,
    /// The id of the service that the client has asked for, if it was one.
    pub service: Option<u32>,
    pub may_change_port: bool,
}

/// Enters the decision that `forward` goes to the chosen instance, under a source port that no other flow of this
/// client towards the instance has. When another CPU enters the flow at the same moment, its decision counts.
///
/// Not inlined: what it needs of the stack would be missing elsewhere. The way is written to memory that the caller has
/// initialised, since the verifier does not see which of two results was left there.
#[inline(never)]
pub fn open(forward: &FlowKey, choice: &Choice, way: &mut Way) -> Result<(), DropReason> {
    let Choice {
        index,
        instance,
        service,
        may_change_port,
    } = *choice;
    let opening = maps::opening().ok_or(DropReason::FlowTableFull)?;
    opening.forward = Flow {
        incarnation: instance.incarnation,
        instance: index,
        last_seen: maps::coarse_time(),
        shown: forward.destination,
        service: service.map_or(0, |service| service + 1),
        ..Flow::default()
    };
    opening.reverse = opening.forward;
    opening.reverse.port = forward.source_port;
    opening.reverse.state = state::REVERSE;
    opening.answers = reverse_key(forward, instance.address, forward.source_port);
    *way = Way::of(&enter(forward, opening, may_change_port)?);
    Ok(())
}

/// Enters both entries of a flow, the reverse one first.
#[inline(always)]
pub fn enter(
    forward: &FlowKey,
    opening: &mut Opening,
    may_change_port: bool,
) -> Result<Decision, DropReason> {
    enter_reverse(forward, opening, may_change_port)?;
    let port = opening.answers.destination_port;
    opening.forward.port = port;
    match insert(forward, &opening.forward) {
        Ok(()) => {
            events::begun(forward, &opening.forward);
            Ok(decision(&opening.forward, false))
        }
        Err(ALREADY_EXISTS) => {
            let winner = known(forward).ok_or(DropReason::FlowTableFull)?;
            if winner.instance != opening.forward.instance || winner.port != port {
                remove(&opening.answers);
            }
            Ok(winner)
        }
        Err(_) => {
            remove(&opening.answers);
            Err(DropReason::FlowTableFull)
        }
    }
}

/// Enters the reverse entry under the first source port that is free towards the instance, which is in its key then.
#[inline(always)]
fn enter_reverse(forward: &FlowKey, opening: &mut Opening, may_change_port: bool) -> Result<(), DropReason> {
    for attempt in 0..=CANDIDATES {
        match try_port(forward, opening, attempt, may_change_port) {
            ENTERED => return Ok(()),
            COLLIDED => break,
            FULL => return Err(DropReason::FlowTableFull),
            next => opening.answers.destination_port = (next as u16).to_ne_bytes(),
        }
    }
    Err(DropReason::PortCollision)
}

/// What [`try_port`] says, if not the port to be tried next.
const ENTERED: u32 = 0x0001_0000;
/// See [`ENTERED`].
const COLLIDED: u32 = 0x0002_0000;
/// See [`ENTERED`].
const FULL: u32 = 0x0003_0000;

/// Enters the reverse entry under the source port in its key, or names the next one.
///
/// A function of its own: Linux 6.1 refuses a loop in which an instruction other than a jump leads back to the first, and
/// a body of one call has none.
#[inline(never)]
fn try_port(forward: &FlowKey, opening: &Opening, attempt: u32, may_change_port: bool) -> u32 {
    let reverse = &opening.answers;
    match insert(reverse, &opening.reverse) {
        Ok(()) => ENTERED,
        Err(ALREADY_EXISTS) if is_own(reverse, &opening.reverse) => ENTERED,
        Err(ALREADY_EXISTS) if attempt == CANDIDATES => COLLIDED,
        // Removed, not overwritten: of two CPUs that find it, one enters its flow and the other tries again.
        Err(ALREADY_EXISTS) if has_ended(reverse) => {
            remove(reverse);
            u32::from(u16::from_ne_bytes(reverse.destination_port))
        }
        Err(ALREADY_EXISTS) if may_change_port => u32::from(u16::from_ne_bytes(candidate(forward, attempt))),
        Err(ALREADY_EXISTS) => COLLIDED,
        Err(_) => FULL,
    }
}

/// Enters a key that neither table has, in `UNANSWERED`.
#[inline(always)]
fn insert(key: &FlowKey, entry: &Flow) -> Result<(), i32> {
    UNANSWERED.insert(key, entry, BPF_NOEXIST.into())?;
    if FLOWS.get_ptr(key).is_some() {
        leave(key);
        return Err(ALREADY_EXISTS);
    }
    Ok(())
}

/// Whether the reverse entry at `key` belongs to the flow that is being opened: its forward entry was evicted,
/// or another CPU is entering it right now.
#[inline(always)]
fn is_own(key: &FlowKey, entry: &Flow) -> bool {
    find(key).is_some_and(|(found, _)| {
        // SAFETY: the verifier has seen the null check; only compared, see `known`.
        let found = unsafe { &*found };
        found.shown == entry.shown
            && found.port == entry.port
            && found.incarnation == entry.incarnation
            && found.address == entry.address
            && found.other_port == entry.other_port
    })
}

/// Whether the entry at `key` names an instance that is gone: it keeps no port from anybody. Its flow ended without
/// it, because the address that its key is made of went with the instance.
#[inline(always)]
fn has_ended(key: &FlowKey) -> bool {
    find(key).is_some_and(|(found, _)| {
        // SAFETY: as in `is_own`.
        let (index, incarnation) = unsafe { ((*found).instance, (*found).incarnation) };
        maps::instance(index).is_none_or(|instance| instance.incarnation != incarnation)
    })
}

/// A source port from 32768–49151 that differs between clients, flows and attempts.
#[inline(always)]
fn candidate(forward: &FlowKey, attempt: u32) -> [u8; 2] {
    let mixed = u32::from_ne_bytes(forward.source)
        ^ u32::from_ne_bytes(forward.destination).rotate_left(7)
        ^ (u16::from_ne_bytes(forward.source_port) as u32) << 16
        ^ u16::from_ne_bytes(forward.destination_port) as u32
        ^ attempt.wrapping_mul(0x85eb_ca6b);
    let hash = mixed.wrapping_mul(0x9e37_79b1) >> 16;
    (0x8000 | (hash as u16 & 0x3fff)).to_be_bytes()
}

#[inline(always)]
fn decision(flow: &Flow, is_settled: bool) -> Decision {
    Decision {
        instance: flow.instance,
        incarnation: flow.incarnation,
        shown: flow.shown,
        address: flow.address,
        port: flow.port,
        other_port: flow.other_port,
        interface: flow.interface,
        service: flow.service,
        state: flow.state,
        is_settled,
    }
}
