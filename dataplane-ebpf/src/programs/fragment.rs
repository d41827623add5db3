//! Packets whose transport header is not where most have it: behind options, or in the first fragment of a datagram.
//!
//! A first fragment is handled like any packet, and its ports are entered in `FRAGMENTS`; later ones take them from
//! there, so they belong to the same flow and go the same way. A later one that comes before the first leaves a mark
//! there and goes to NetManager, which holds it; a first that finds the mark goes after it, and NetManager writes
//! both back in their order, through `from_oak0`. What is known comes back in any case: a fragment that has waited
//! in vain is dropped, and counted, there.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, IPV4_LENGTH, IPV4_OFFSET_MASK, Ipv4, OPTION_END, OPTION_LOOSE_ROUTE, OPTION_NOTHING,
    OPTION_STRICT_ROUTE, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
};
use dataplane_ebpf::tables::{FRAGMENT_KEPT, FRAGMENT_WAITS, Fragment, FragmentKey};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::maps::{self, FRAGMENTS};
use super::parse::{Part, Transport};
use super::{Outcome, packet, parse, redirect};

/// The transport header of a packet that is not plain, in `found`.
///
/// Not inlined: few packets come here, and the walks stay short. Such a function may return only what fits a
/// register: where the rest is returned, the verifier takes the register for a pointer to the stack.
#[inline(never)]
pub fn transport(
    ctx: &TcContext,
    ip_offset: usize,
    ip: &Ipv4,
    found: &mut Transport,
) -> Result<(), DropReason> {
    let (short, malformed) = if ip_offset == ETHERNET_LENGTH {
        (DropReason::Short, DropReason::Malformed)
    } else {
        (DropReason::InnerShort, DropReason::InnerMalformed)
    };
    check_options(ctx, ip_offset, parse::header_length(ip), malformed)?;
    if !is_later(ip) {
        *found = parse::transport_header::<false>(ctx, ip_offset, ip, short, malformed)?;
        return Ok(());
    }
    if !matches!(ip.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP) {
        return Err(DropReason::Protocol);
    }
    let (part, (source_port, destination_port)) = match ports(ip) {
        Some(ports) => (Part::Later, ports),
        None => (Part::Early, ([0; 2], [0; 2])),
    };
    *found = Transport {
        source_port,
        destination_port,
        offset: parse::header_length(ip),
        part,
        ..Transport::default()
    };
    Ok(())
}

/// Whether the packet is a fragment without a transport header.
#[inline(always)]
pub fn is_later(ip: &Ipv4) -> bool {
    parse::fragment_word(ip) & IPV4_OFFSET_MASK != 0
}

/// Enters the ports of a first fragment. Whether it has to follow a later one to NetManager, which waits for it.
#[inline(never)]
pub fn enter(hook: Hook, ip: &Ipv4, transport: &Transport) -> bool {
    let key = key(ip);
    let entry = Fragment {
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        seen: maps::coarse_time(),
        waiting: 0,
    };
    // What NetManager writes back has the others behind it.
    if !matches!(hook, Hook::FromOak0) {
        // First to leave a mark or ports decides, where two processors are at it.
        if FRAGMENTS.insert(key, entry, BPF_NOEXIST.into()).is_ok() {
            return false;
        }
        if let Some(found) = found(&key)
            && found.waiting != 0
            && age(&found) <= FRAGMENT_WAITS
        {
            return true;
        }
    }
    match FRAGMENTS.insert(key, entry, BPF_ANY.into()) {
        // Without an entry the later fragments wait in vain; this one is carried all the same.
        Ok(()) | Err(_) => false,
    }
}

/// Hands a later fragment to NetManager until its first has come.
#[inline(always)]
pub fn wait(hook: Hook, ip: &Ipv4) -> Outcome {
    if matches!(hook, Hook::FromOak0) || !leave_mark(ip) {
        return Err(DropReason::Fragment);
    }
    hand_up(hook)
}

/// Notes that a fragment waits for its first. Whether it may.
#[inline(never)]
fn leave_mark(ip: &Ipv4) -> bool {
    if !maps::may_hand_up_fragment() {
        return false;
    }
    let key = key(ip);
    let mark = Fragment {
        seen: maps::coarse_time(),
        waiting: 1,
        ..Fragment::default()
    };
    if FRAGMENTS.insert(key, mark, BPF_NOEXIST.into()).is_err() {
        let is_old = match found(&key) {
            Some(found) => found.waiting != 0 || age(&found) > FRAGMENT_KEPT,
            None => true,
        };
        if is_old {
            // Without an entry the first does not come after it, and it waits in vain.
            match FRAGMENTS.insert(key, mark, BPF_ANY.into()) {
                Ok(()) | Err(_) => {}
            }
        }
    }
    // The first may have come in between: then this one is carried when it comes back.
    true
}

/// Hands a fragment to NetManager.
#[inline(always)]
pub fn hand_up(hook: Hook) -> Outcome {
    match hook {
        Hook::FromHost => Ok(Action::Park),
        Hook::FromEndpoint | Hook::FromOak0 | Hook::FromUplink | Hook::FromLoopback => {
            redirect::out(maps::oak0_interface())?;
            Ok(Action::Park)
        }
    }
}

/// The ports of the datagram that a later fragment belongs to.
#[inline(always)]
pub fn ports(ip: &Ipv4) -> Option<([u8; 2], [u8; 2])> {
    let found = found(&key(ip))?;
    (found.waiting == 0 && age(&found) <= FRAGMENT_KEPT)
        .then_some((found.source_port, found.destination_port))
}

#[inline(always)]
fn key(ip: &Ipv4) -> FragmentKey {
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        identification: ip.identification,
        protocol: ip.protocol,
        zero: 0,
    }
}

#[inline(always)]
fn found(key: &FragmentKey) -> Option<Fragment> {
    // SAFETY: the value is copied at once. Where another processor writes it, ports and mark of two datagrams with
    // the same identification may be mixed, which their receiver's checksum finds.
    unsafe { FRAGMENTS.get(key) }.copied()
}

#[inline(always)]
fn age(found: &Fragment) -> u32 {
    maps::coarse_time().wrapping_sub(found.seen)
}

/// Refuses options that choose the way (RFC 7126), and lengths that contradict each other. All other options are
/// between the two ends.
#[inline(always)]
fn check_options(
    ctx: &TcContext,
    ip_offset: usize,
    header_length: usize,
    malformed: DropReason,
) -> Result<(), DropReason> {
    /// Bytes of options that a header has room for.
    const LONGEST: usize = 40;
    let length = header_length - IPV4_LENGTH;
    let mut at = 0;
    // Each option has a byte at least.
    for _ in 0..LONGEST {
        if at >= length {
            return Ok(());
        }
        let offset = ip_offset + IPV4_LENGTH + at;
        let kind: u8 = packet::load(ctx, offset).ok_or(malformed)?;
        match kind {
            OPTION_END => return Ok(()),
            OPTION_NOTHING => at = anywhere(at + 1),
            OPTION_LOOSE_ROUTE | OPTION_STRICT_ROUTE => return Err(DropReason::IpOptions),
            _ => {
                let size: u8 = packet::load(ctx, offset + 1).ok_or(malformed)?;
                let next = at + size as usize;
                at = anywhere(next);
                if size < 2 || next > length {
                    return Err(malformed);
                }
            }
        }
    }
    Ok(())
}

/// An offset within the options, so that the verifier forgets how it came about: else it would follow every way of
/// dividing 40 bytes into options.
#[inline(always)]
fn anywhere(offset: usize) -> usize {
    let masked = offset & 0x3f;
    // SAFETY: a reference to a local variable; volatile, or the compiler would see that the mask changes nothing.
    unsafe { core::ptr::read_volatile(&raw const masked) }
}
