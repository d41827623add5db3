//! The maximum segment size that a TCP sender announces (RFC 9293, section 3.7.1), lowered to what the way to a node
//! carries, so that no connection has to find that out by losing its first large segment.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::checksum::Difference;
use dataplane_ebpf::encapsulation::OVERHEAD;
use dataplane_ebpf::header::{IPV4_LENGTH, TCP_LENGTH};
use dataplane_ebpf::tables::Node;
use dataplane_ebpf::verdict::DropReason;

/// Offset of the checksum in a TCP header.
const CHECKSUM: usize = 16;
/// Kinds of options: the end of the list, and one byte of nothing.
const END: u8 = 0;
const NOTHING: u8 = 1;
/// Kind and length of the option that is looked for.
const MAXIMUM_SEGMENT_SIZE: [u8; 2] = [2, 4];
/// Options that are looked at. Senders put this one first, and none has so many before it.
const OPTIONS: usize = 12;

/// Lowers the announced segment size of the SYN whose TCP header of `header_length` bytes is at `offset`. Options that
/// cannot be read are left alone, as is what announces less.
#[inline(never)]
pub fn clamp(ctx: &TcContext, offset: usize, header_length: usize, node: &Node) -> Result<(), DropReason> {
    let limit = (node.mtu as usize).saturating_sub(OVERHEAD + IPV4_LENGTH + TCP_LENGTH) & 0xffff;
    let mut at = TCP_LENGTH;
    for _ in 0..OPTIONS {
        if at + 2 > header_length {
            // A last byte is none of the options that have a length.
            return Ok(());
        }
        let Ok(option) = ctx.load::<[u8; 2]>(offset + at) else {
            return Ok(());
        };
        match option {
            [END, _] => return Ok(()),
            [NOTHING, _] => at += 1,
            MAXIMUM_SEGMENT_SIZE if at + 4 <= header_length => return lower(ctx, offset, at + 2, limit),
            [_, length] if length >= 2 => at += length as usize,
            [_, _] => return Ok(()),
        }
    }
    Ok(())
}

/// Writes the size at `at` bytes into the TCP header at `offset`, if it is larger than `limit`.
#[inline(always)]
fn lower(ctx: &TcContext, offset: usize, at: usize, limit: usize) -> Result<(), DropReason> {
    let Ok(announced) = ctx.load::<[u8; 2]>(offset + at) else {
        return Err(DropReason::KernelRefused);
    };
    if u16::from_be_bytes(announced) as usize <= limit {
        return Ok(());
    }
    let lowered = (limit as u16).to_be_bytes();
    // The sum is of words that begin at even places; at an odd one the two bytes belong to different words.
    let swapped = |[first, second]: [u8; 2]| {
        if at & 1 == 0 {
            [first, second]
        } else {
            [second, first]
        }
    };
    let difference = Difference::default().word(swapped(announced), swapped(lowered));
    let written = ctx.store(offset + at, &lowered, 0).is_ok()
        && ctx
            .l4_csum_replace(offset + CHECKSUM, 0, u64::from(difference.to_u32()), 0)
            .is_ok();
    if written {
        Ok(())
    } else {
        Err(DropReason::KernelRefused)
    }
}
