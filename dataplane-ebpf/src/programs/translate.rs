//! Rewriting addresses and ports of the packet that is delivered, with its checksums.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::checksum::Difference;
use dataplane_ebpf::header::{IPV4_LENGTH, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::FlowKey;
use dataplane_ebpf::verdict::DropReason;

use super::packet;
use super::parse::{Part, Transport};

/// Offset of the checksum in each transport header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;
/// Offset of the identifier in an ICMP echo header.
const ICMP_IDENTIFIER: usize = 4;

/// Rewrites the packet whose IPv4 header is at `ip_offset` from flow `old` to flow `new`.
///
/// The transport checksum goes through the kernel's helper, which alone knows whether the packet carries a
/// finished sum or only that of the pseudo-header, to be finished by the sender's interface. The sum of the
/// IPv4 header is always finished, so it is written directly. A later fragment has neither ports nor a sum; its
/// datagram's are in the first.
#[inline(always)]
pub fn rewrite(
    ctx: &TcContext,
    ip_offset: usize,
    header: &Transport,
    old: &FlowKey,
    new: &FlowKey,
) -> Result<(), DropReason> {
    let transport = ip_offset + header.offset;
    let addresses = Difference::default()
        .address(old.source, new.source)
        .address(old.destination, new.destination);
    let is_later = header.part == Part::Later;
    let ports =
        !is_later && (old.source_port != new.source_port || old.destination_port != new.destination_port);

    let (checksum, flags) = match old.protocol {
        PROTOCOL_TCP => (transport + TCP_CHECKSUM, 0),
        PROTOCOL_UDP => (transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0)),
        PROTOCOL_ICMP => (transport + ICMP_CHECKSUM, 0),
        _ => return Err(DropReason::Protocol),
    };
    if old.protocol != PROTOCOL_ICMP && !is_later {
        let difference = u64::from(addresses.to_u32());
        replace(ctx, checksum, difference, flags | u64::from(BPF_F_PSEUDO_HDR))?;
    }
    if ports {
        let difference = Difference::default()
            .word(old.source_port, new.source_port)
            .word(old.destination_port, new.destination_port);
        replace(ctx, checksum, u64::from(difference.to_u32()), flags)?;
    }

    let ip = packet::at::<Ipv4>(ctx, ip_offset).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe {
        (*ip).checksum = addresses.apply((*ip).checksum);
        (*ip).source = new.source;
        (*ip).destination = new.destination;
    }
    if !ports {
        return Ok(());
    }
    if old.protocol == PROTOCOL_ICMP {
        // One of the two is the identifier, the other is zero in both flows.
        let identifier = if new.source_port == [0; 2] {
            new.destination_port
        } else {
            new.source_port
        };
        return write(ctx, ip_offset, ICMP_IDENTIFIER, header, identifier);
    }
    write(ctx, ip_offset, 0, header, [new.source_port, new.destination_port])
}

/// Writes a field of the transport header at `offset` in it.
#[inline(always)]
fn write<T: Copy>(
    ctx: &TcContext,
    ip_offset: usize,
    offset: usize,
    header: &Transport,
    value: T,
) -> Result<(), DropReason> {
    if header.offset != IPV4_LENGTH {
        // Behind options: the helper finds it.
        return match ctx.store(ip_offset + header.offset + offset, &value, 0) {
            Ok(()) => Ok(()),
            Err(_) => Err(DropReason::KernelRefused),
        };
    }
    let field = packet::at::<T>(ctx, ip_offset + IPV4_LENGTH + offset).ok_or(DropReason::KernelRefused)?;
    // SAFETY: `at` has checked the bounds, and no helper runs before the last use.
    unsafe { field.write_unaligned(value) };
    Ok(())
}

#[inline(always)]
fn replace(ctx: &TcContext, offset: usize, difference: u64, flags: u64) -> Result<(), DropReason> {
    match ctx.l4_csum_replace(offset, 0, difference, flags) {
        Ok(()) => Ok(()),
        Err(_) => Err(DropReason::KernelRefused),
    }
}
