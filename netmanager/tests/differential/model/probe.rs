//! Probes of other nodes. This node has none under way.

use super::packet::ETHERNET;
use super::{Arrival, Exit, Sent, Walked};

/// What the payload of a probe begins with.
pub(super) const MARK: u8 = 0x10;
/// Mark, version, and then what it is and what it is not.
const REQUEST: [u8; 6] = [MARK, 1, 0, 1, 0, 2];
const ANSWER: [u8; 6] = [MARK, 1, 0, 2, 0, 1];

pub(super) fn walk(arrival: &Arrival<'_>, payload: &[u8]) -> Walked {
    if payload.len() != 20 {
        return Err("PROBE_MALFORMED");
    }
    if payload[..6] == ANSWER {
        return Err("PROBE_UNEXPECTED");
    }
    if payload[..6] != REQUEST {
        return Err("PROBE_MALFORMED");
    }
    let mut frame = arrival.frame.to_vec();
    let swap = |frame: &mut [u8], one: usize, other: usize, length: usize| {
        for offset in 0..length {
            frame.swap(one + offset, other + offset);
        }
    };
    let (outer, udp, probe) = (ETHERNET, ETHERNET + 20, ETHERNET + 28);
    swap(&mut frame, 0, 6, 6);
    swap(&mut frame, outer + 12, outer + 16, 4);
    swap(&mut frame, udp, udp + 2, 2);
    swap(&mut frame, probe + 2, probe + 4, 2);
    // A fresh time to live, and the checksum follows, right or wrong as it was (RFC 1624).
    let word = |frame: &[u8], at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (before, checksum) = (word(&frame, outer + 8), word(&frame, outer + 10));
    frame[outer + 8] = 64;
    let mut sum = (checksum ^ 0xffff) + (before ^ 0xffff) + word(&frame, outer + 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (sum ^ 0xffff).to_be_bytes();
    frame[outer + 10..outer + 12].copy_from_slice(&[high, low]);
    Ok(Sent {
        name: "PROBE_ANSWERED",
        exit: Exit::Out(arrival.interface),
        node: 0,
        frame,
    })
}
