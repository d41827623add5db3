//! One echo request, so that no `ping` has to be installed.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Sends one echo request from the namespace of this thread and waits for its answer.
pub(crate) fn ping(destination: Ipv4Addr, deadline: Duration) -> Result<Duration> {
    // Unique within the process is enough: the identifier tells processes apart as far as 16 bits can.
    static SEQUENCE: AtomicU16 = AtomicU16::new(0);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let request = echo_request(std::process::id() as u16, sequence);

    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )
    .context("cannot open a raw socket")?;
    // The standard library has no raw socket, but sends and receives on one just as well.
    let socket = UdpSocket::from(socket);
    let sent = Instant::now();
    socket
        .send_to(&request, (destination, 0))
        .context("cannot send")?;

    let mut packet = [0; 2048];
    loop {
        let left = deadline.saturating_sub(sent.elapsed());
        if left.is_zero() {
            bail!("no answer within {deadline:?}");
        }
        socket
            .set_read_timeout(Some(left))
            .context("cannot set a deadline")?;
        match socket.recv(&mut packet) {
            Ok(length) if answers(&packet[..length], &request, destination) => return Ok(sent.elapsed()),
            // A raw socket sees every ICMP packet of its namespace.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
}

fn echo_request(identifier: u16, sequence: u16) -> [u8; 8] {
    let [i0, i1] = identifier.to_be_bytes();
    let [s0, s1] = sequence.to_be_bytes();
    let sum = u32::from(ECHO_REQUEST) * 0x100 + u32::from(identifier) + u32::from(sequence);
    let [c0, c1] = (!fold(sum)).to_be_bytes();
    [ECHO_REQUEST, 0, c0, c1, i0, i1, s0, s1]
}

/// Ones' complement sum of 16 bits.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Whether an IPv4 packet is the reply to a request that was sent to this address.
fn answers(packet: &[u8], request: &[u8; 8], destination: Ipv4Addr) -> bool {
    let Some(first) = packet.first() else { return false };
    let header = usize::from(first & 0x0f) * 4;
    let (Some(source), Some(message)) = (packet.get(12..16), packet.get(header..header + 8)) else {
        return false;
    };
    source == destination.octets() && message[0] == ECHO_REPLY && message[4..] == request[4..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_request_is_right() {
        let request = echo_request(0xfffe, 0xabcd);
        let sum = request
            .chunks(2)
            .map(|pair| u32::from(pair[0]) * 0x100 + u32::from(pair[1]))
            .sum();
        assert_eq!(0xffff, fold(sum));
    }

    #[test]
    fn only_the_reply_to_the_request_answers_it() {
        let request = echo_request(1, 2);
        let source = Ipv4Addr::new(192, 0, 2, 7);
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&source.octets());
        packet[20..].copy_from_slice(&request);
        assert!(!answers(&packet, &request, source), "the request itself");
        packet[20] = ECHO_REPLY;
        assert!(answers(&packet, &request, source));
        assert!(
            !answers(&packet, &echo_request(1, 3), source),
            "another sequence number"
        );
        assert!(
            !answers(&packet, &request, Ipv4Addr::new(192, 0, 2, 8)),
            "another host"
        );
        assert!(!answers(&packet[..27], &request, source), "truncated");
    }
}
