//! What routers say about this host's datagrams that were too big for them (RFC 1191).
//!
//! The kernel drops these messages when they are about a tunnel: it finds no socket with the datagram's source port,
//! which is the flow's. A raw socket sees them all the same.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The option of raw ICMP sockets that says which types they get, at level `SOL_RAW` (linux/icmp.h): a bit that is set
/// keeps the type out.
const ICMP_FILTER: libc::c_int = 1;
const SOL_RAW: libc::c_int = 255;
/// Type and code of "fragmentation needed".
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
/// Every host takes datagrams of this size (RFC 791); who claims that less fits is not believed.
pub const SMALLEST: u32 = 576;
/// Room for both headers with options, and what has to be quoted.
const CAPACITY: usize = 60 + 8 + 60 + 8;

/// A router's word that a datagram did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// Where the datagram came from.
    pub source: Ipv4Addr,
    /// Where it went.
    pub destination: Ipv4Addr,
    /// The UDP port that it went to.
    pub port: u16,
    /// Bytes of the largest packet that fits.
    pub mtu: u32,
}

/// The socket that gets these messages.
#[derive(Debug)]
pub struct PathMtuSocket {
    socket: AsyncFd<OwnedFd>,
}

impl PathMtuSocket {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )?;
        let kept_out = !(1u32 << FRAGMENTATION_NEEDED[0]);
        // SAFETY: the value lives across the call, and its length is told.
        let code = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                SOL_RAW,
                ICMP_FILTER,
                (&raw const kept_out).cast(),
                size_of_val(&kept_out) as libc::socklen_t,
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the socket owns its descriptor and keeps it until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Waits for the next message about a UDP datagram that must not be fragmented.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub async fn next(&self) -> io::Result<TooBig> {
        let mut buffer = [0; CAPACITY];
        loop {
            let length = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?)
                })
                .await?;
            if let Some(message) = buffer.get(..length).and_then(read) {
                return Ok(message);
            }
        }
    }
}

/// Reads a message, from its IPv4 header on; `None` when it is about something else, or cannot be true.
fn read(packet: &[u8]) -> Option<TooBig> {
    let message = packet.get(header_length(packet)?..)?;
    if message.get(..2)? != FRAGMENTATION_NEEDED {
        return None;
    }
    let mtu = u32::from(word(message, 6)?);
    let quoted = message.get(8..)?;
    let datagram = quoted.get(header_length(quoted)?..)?;
    let address = |offset| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = quoted.get(offset..offset + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let flags = word(quoted, 6)?;
    let is_first_and_whole = flags & 0x3fff == 0;
    let must_not_be_fragmented = flags & 0x4000 != 0;
    let is_udp = *quoted.get(9)? == 17;
    let did_not_fit = u32::from(word(quoted, 2)?) > mtu;
    if !(is_first_and_whole && must_not_be_fragmented && is_udp && did_not_fit && mtu >= SMALLEST) {
        return None;
    }
    Some(TooBig {
        source: address(12)?,
        destination: address(16)?,
        port: word(datagram, 2)?,
        mtu,
    })
}

fn header_length(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let length = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && length >= 20).then_some(length)
}

fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let word: [u8; 2] = bytes.get(offset..offset + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as a raw socket reads it.
    fn message(kind: [u8; 2], mtu: u16, quoted_length: u16, flags: u16, protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0; 20 + 8 + 20 + 8];
        bytes[0] = 0x45;
        bytes[20..22].copy_from_slice(&kind);
        bytes[26..28].copy_from_slice(&mtu.to_be_bytes());
        bytes[28] = 0x45;
        bytes[30..32].copy_from_slice(&quoted_length.to_be_bytes());
        bytes[34..36].copy_from_slice(&flags.to_be_bytes());
        bytes[37] = protocol;
        bytes[40..44].copy_from_slice(&[192, 0, 2, 1]);
        bytes[44..48].copy_from_slice(&[192, 0, 2, 2]);
        bytes[50..52].copy_from_slice(&50_103u16.to_be_bytes());
        bytes
    }

    #[test]
    fn a_router_s_word_is_read() {
        let expected = TooBig {
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: Ipv4Addr::new(192, 0, 2, 2),
            port: 50_103,
            mtu: 1400,
        };
        let bytes = message([3, 4], 1400, 1478, 0x4000, 17);
        assert_eq!(read(&bytes), Some(expected));
        for length in 0..bytes.len() - 4 {
            assert_eq!(read(&bytes[..length]), None, "cut off after {length} bytes");
        }
    }

    #[test]
    fn what_is_about_something_else_or_cannot_be_true_is_not_believed() {
        for (name, bytes) in [
            ("port unreachable", message([3, 3], 1400, 1478, 0x4000, 17)),
            ("time exceeded", message([11, 4], 1400, 1478, 0x4000, 17)),
            ("TCP", message([3, 4], 1400, 1478, 0x4000, 6)),
            ("it would have fitted", message([3, 4], 1400, 1400, 0x4000, 17)),
            (
                "it could have been fragmented",
                message([3, 4], 1400, 1478, 0, 17),
            ),
            ("a fragment", message([3, 4], 1400, 1478, 0x4001, 17)),
            (
                "less than every host takes",
                message([3, 4], 575, 1478, 0x4000, 17),
            ),
            ("no size at all", message([3, 4], 0, 1478, 0x4000, 17)),
        ] {
            assert_eq!(read(&bytes), None, "{name}");
        }
    }
}
