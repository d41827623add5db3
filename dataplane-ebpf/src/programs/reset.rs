//! A TCP reset for a segment that belongs to no flow (RFC 9293, section 3.10.7.1): the client learns at once
//! that its connection is over.

use aya_ebpf::helpers::generated::bpf_skb_change_tail;
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::checksum::{fold, sum_words};
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, Ethernet, IPV4_DONT_FRAGMENT, IPV4_LENGTH, Ipv4, PROTOCOL_TCP, TCP_ACK, TCP_FIN,
    TCP_LENGTH, TCP_RST, TCP_SYN, Tcp,
};
use dataplane_ebpf::tables::{Endpoint, delivery};
use dataplane_ebpf::verdict::{Action, DropReason};

use super::{Outcome, packet, parse, redirect};

/// Bytes of the frame that carries the reset.
const FRAME: usize = ETHERNET_LENGTH + IPV4_LENGTH + TCP_LENGTH;

/// Both headers as they lie in the frame.
#[repr(C, align(4))]
struct Headers {
    ipv4: Ipv4,
    tcp: Tcp,
}

const _: () = assert!(size_of::<Headers>() == IPV4_LENGTH + TCP_LENGTH);

/// Turns the segment around as a reset and sends it back to the endpoint it came from. A reset is not
/// answered, it is only dropped.
#[inline(always)]
pub fn answer(ctx: &TcContext, ip: &Ipv4, endpoint: &Endpoint) -> Outcome {
    let tcp: Tcp = packet::load(ctx, ETHERNET_LENGTH + parse::header_length(ip)).ok_or(DropReason::Short)?;
    if tcp.flags & TCP_RST != 0 {
        return Err(DropReason::NoFlow);
    }
    let header_length = ((tcp.data_offset >> 4) as usize) * 4;
    let payload = parse::total_length(ip) - parse::header_length(ip) - header_length;
    let consumed = payload as u32 + u32::from(tcp.flags & TCP_SYN != 0) + u32::from(tcp.flags & TCP_FIN != 0);
    let (sequence, acknowledgement, flags) = if tcp.flags & TCP_ACK != 0 {
        (tcp.acknowledgement, [0; 4], TCP_RST)
    } else {
        let next = u32::from_be_bytes(tcp.sequence).wrapping_add(consumed);
        ([0; 4], next.to_be_bytes(), TCP_RST | TCP_ACK)
    };

    // SAFETY: a valid context and a length that a frame may have.
    packet::accepted(unsafe { bpf_skb_change_tail(ctx.skb.skb, FRAME as u32, 0) })?;

    let mut answer = Tcp {
        source: tcp.destination,
        destination: tcp.source,
        sequence,
        acknowledgement,
        data_offset: ((TCP_LENGTH / 4) << 4) as u8,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    let pseudo_header = u64::from(u32::from_ne_bytes(ip.source))
        + u64::from(u32::from_ne_bytes(ip.destination))
        + u64::from(u16::from_ne_bytes([0, PROTOCOL_TCP]))
        + u64::from(u16::from_ne_bytes((TCP_LENGTH as u16).to_be_bytes()));
    answer.checksum = (!fold(pseudo_header + sum_words(&answer))).to_ne_bytes();
    let mut header = Ipv4 {
        version_and_length: 0x45,
        type_of_service: 0,
        total_length: ((IPV4_LENGTH + TCP_LENGTH) as u16).to_be_bytes(),
        identification: [0; 2],
        flags_and_offset: IPV4_DONT_FRAGMENT.to_be_bytes(),
        time_to_live: 64,
        protocol: PROTOCOL_TCP,
        checksum: [0; 2],
        source: ip.destination,
        destination: ip.source,
    };
    header.checksum = (!fold(sum_words(&header))).to_ne_bytes();

    let ethernet = packet::at::<Ethernet>(ctx, 0).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe {
        core::mem::swap(&mut (*ethernet).destination, &mut (*ethernet).source);
    }
    let frame = packet::at::<Headers>(ctx, ETHERNET_LENGTH).ok_or(DropReason::KernelRefused)?;
    // SAFETY: as above.
    unsafe {
        *frame = Headers {
            ipv4: header,
            tcp: answer,
        };
    }

    if endpoint.delivery == delivery::HOST {
        redirect::into_ingress(endpoint.interface)?;
    } else {
        redirect::out(endpoint.interface)?;
    }
    Ok(Action::Reset)
}
