//! Errors of our own (RFC 792, RFC 1191, RFC 1812 section 4.3): an endpoint learns at once that its packet cannot
//! arrive, and why.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::generated::{bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::checksum::{fold, sum_words};
use dataplane_ebpf::encapsulation::OVERHEAD;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, Ethernet, ICMP_FRAGMENTATION_NEEDED, ICMP_HOST_UNREACHABLE, ICMP_LENGTH,
    ICMP_UNREACHABLE, IPV4_DONT_FRAGMENT, IPV4_LENGTH, IPV4_OFFSET_MASK, IcmpUnreachable, Ipv4,
    PROTOCOL_ICMP,
};
use dataplane_ebpf::tables::Node;
use dataplane_ebpf::verdict::{Action, DropReason};

use super::{Outcome, deliver, maps, packet, parse};

/// Bytes of the packet's payload that are quoted.
const QUOTED: usize = 8;
/// Room for what is quoted: the longest IPv4 header, and those bytes.
const QUOTE: usize = 60 + QUOTED;
/// By how much the frame is shortened beyond its transport header, see [`say`].
const BEYOND: usize = 8;
const FURTHER: usize = 4;

/// Both headers as they lie in the frame.
#[repr(C, align(4))]
struct Headers {
    ipv4: Ipv4,
    icmp: IcmpUnreachable,
}

const _: () = assert!(size_of::<Headers>() == IPV4_LENGTH + ICMP_LENGTH);

/// Tells the sender that nobody is there; beyond the rate the packet is dropped for `reason`.
#[inline(always)]
pub fn host(ctx: &TcContext, reason: DropReason) -> Outcome {
    say(ctx, u32::from(ICMP_HOST_UNREACHABLE) << 16, reason).map(|()| Action::IcmpUnreachable)
}

/// Tells the sender what fits the way to the node. Who lets others fragment learns nothing (RFC 1191): its packet is
/// dropped, because nobody fragments here.
#[inline(always)]
pub fn too_big(ctx: &TcContext, node: &Node) -> Outcome {
    let mtu = node.mtu.saturating_sub(OVERHEAD as u32) & 0xffff;
    say(
        ctx,
        u32::from(ICMP_FRAGMENTATION_NEEDED) << 16 | mtu,
        DropReason::TooBig,
    )
    .map(|()| Action::IcmpTooBig)
}

/// Makes the frame the error and sends it back: from the address that the endpoint has sent to, the packet's first
/// bytes behind. `what` is the code in the upper half, the MTU of the next hop in the lower. Of a fragmented packet the
/// first fragment alone is answered. What is not answered is dropped for `reason`.
#[inline(never)]
fn say(ctx: &TcContext, what: u32, reason: DropReason) -> Result<(), DropReason> {
    let ip = parse::ipv4(ctx)?;
    let endpoint = maps::endpoint(ip.source).ok_or(reason)?;
    let is_too_big = matches!(reason, DropReason::TooBig);
    let fragment = parse::fragment_word(&ip);
    if fragment & IPV4_OFFSET_MASK != 0
        || is_too_big && fragment & IPV4_DONT_FRAGMENT == 0
        || !maps::may_send_error(is_too_big)
    {
        return Err(reason);
    }
    // Opaque to the compiler, which would otherwise compare another number than the one that the kernel is told.
    let quoted = core::hint::black_box(parse::header_length(&ip) + QUOTED);
    if quoted < IPV4_LENGTH + QUOTED || quoted > QUOTE {
        return Err(DropReason::Malformed);
    }
    let mut quote = [[0u8; 2]; QUOTE / 2];
    // SAFETY: the kernel checks the offset, and writes no more than the room there is.
    packet::accepted(unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ETHERNET_LENGTH as u32,
            quote.as_mut_ptr().cast(),
            quoted as u32,
        )
    })?;

    // What the frame was is forgotten with its first bytes: a sum that the sender's interface was to finish lies
    // behind the transport header, and would be written into the error. Only when a frame begins beyond that place
    // already, the kernel sees that there is nothing left to finish; hence the second step.
    let length = ETHERNET_LENGTH + IPV4_LENGTH + ICMP_LENGTH + quoted;
    let beyond = quoted + BEYOND;
    // SAFETY: a valid context and a length that a frame may have.
    packet::accepted(unsafe { bpf_skb_change_tail(ctx.skb.skb, (length + beyond + FURTHER) as u32, 0) })?;
    for excess in [beyond, FURTHER] {
        if ctx.adjust_room(-(excess as i32), BPF_ADJ_ROOM_MAC, 0).is_err() {
            return Err(DropReason::KernelRefused);
        }
    }

    let mut headers = Headers {
        ipv4: Ipv4 {
            version_and_length: 0x45,
            // Precedence of what controls the network (RFC 1812, section 4.3.2.5).
            type_of_service: 0xc0,
            total_length: ((IPV4_LENGTH + ICMP_LENGTH + quoted) as u16).to_be_bytes(),
            identification: [0; 2],
            flags_and_offset: IPV4_DONT_FRAGMENT.to_be_bytes(),
            time_to_live: 64,
            protocol: PROTOCOL_ICMP,
            checksum: [0; 2],
            source: ip.destination,
            destination: ip.source,
        },
        icmp: IcmpUnreachable {
            kind: ICMP_UNREACHABLE,
            code: (what >> 16) as u8,
            checksum: [0; 2],
            unused: [0; 2],
            next_hop_mtu: (what as u16).to_be_bytes(),
        },
    };
    headers.ipv4.checksum = (!fold(sum_words(&headers.ipv4))).to_ne_bytes();
    headers.icmp.checksum = (!fold(sum_words(&headers.icmp) + sum_words(&quote))).to_ne_bytes();
    if ctx.store(ETHERNET_LENGTH, &headers, 0).is_err() {
        return Err(DropReason::KernelRefused);
    }
    // SAFETY: as above; what is read is initialised.
    packet::accepted(unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb.cast(),
            (ETHERNET_LENGTH + size_of::<Headers>()) as u32,
            quote.as_ptr().cast(),
            quoted as u32,
            0,
        )
    })?;
    let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe {
        core::mem::swap(&mut (*ethernet).destination, &mut (*ethernet).source);
    }
    deliver::back(&endpoint)
}
