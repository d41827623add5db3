//! Probes: how nodes find out whether another node is there, and how far away it is.
//!
//! A probe is a UDP datagram from tunnel port to tunnel port whose payload is a [`Probe`]. It begins with a nibble that
//! no IP packet begins with, so that it is told apart from what the tunnel carries. The program of the node that
//! is asked turns it around itself: what is measured is the network, not when a process gets its turn.
//!
//! Turning around is exchanging: addresses, ports, and the two words that say what it is. The sum of a
//! datagram's words does not depend on their order, so its checksum stays right, be it finished, left out or left to
//! the network card.

use crate::checksum::Difference;
use crate::header::{Ipv4, Udp};

/// What the payload begins with.
pub const MARKER: u8 = 0x10;
/// Version of the frame; a node answers no other.
pub const VERSION: u8 = 1;
/// Value of [`Probe::kind`]: to be turned around. In an answer it stands in [`Probe::other_kind`].
pub const REQUEST: [u8; 2] = [0, 1];
/// Value of [`Probe::kind`]: turned around.
pub const ANSWER: [u8; 2] = [0, 2];
/// Length of the payload in bytes, neither less nor more.
pub const LENGTH: usize = 20;
/// Time to live of an answer.
pub const TIME_TO_LIVE: u8 = 64;

/// Probes of other nodes that each CPU answers in a second, unless configured otherwise.
pub const ANSWERED_PER_SECOND: u32 = 1_000;

/// Probes to one node that may be under way at once: an answer that comes after this many further probes is not
/// recognised any more.
pub const SLOTS: u32 = 4;

/// The payload of a probe, as it lies in the frame.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// [`MARKER`].
    pub marker: u8,
    /// [`VERSION`].
    pub version: u8,
    /// [`REQUEST`] or [`ANSWER`].
    pub kind: [u8; 2],
    /// The other of the two.
    pub other_kind: [u8; 2],
    pub zero: [u8; 2],
    /// Where the sender of the request looks the answer up: an index in its `PROBES`, in its own byte order. It
    /// means nothing to others.
    pub index: [u8; 4],
    /// What only who has seen the request knows.
    pub nonce: [u8; 8],
}

const _: () = assert!(size_of::<Probe>() == LENGTH);

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Answer,
}

impl Probe {
    /// The request with this nonce.
    #[inline(always)]
    pub const fn request(index: u32, nonce: u64) -> Self {
        Self {
            marker: MARKER,
            version: VERSION,
            kind: REQUEST,
            other_kind: ANSWER,
            zero: [0; 2],
            index: index.to_ne_bytes(),
            nonce: nonce.to_ne_bytes(),
        }
    }

    /// What it is; `None` when it is nothing that this version knows.
    #[inline(always)]
    pub fn kind(&self) -> Option<Kind> {
        if self.marker != MARKER || self.version != VERSION {
            return None;
        }
        match (self.kind, self.other_kind) {
            (REQUEST, ANSWER) => Some(Kind::Request),
            (ANSWER, REQUEST) => Some(Kind::Answer),
            _ => None,
        }
    }

    /// The answer to this request.
    #[inline(always)]
    pub const fn answer(&self) -> Self {
        Self {
            kind: self.other_kind,
            other_kind: self.kind,
            ..*self
        }
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = self.marker;
        bytes[1] = self.version;
        bytes[2..4].copy_from_slice(&self.kind);
        bytes[4..6].copy_from_slice(&self.other_kind);
        bytes[8..12].copy_from_slice(&self.index);
        bytes[12..].copy_from_slice(&self.nonce);
        bytes
    }
}

/// Everything behind the Ethernet header of a probe.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    pub ipv4: Ipv4,
    pub udp: Udp,
    pub probe: Probe,
}

impl Datagram {
    /// Makes it the datagram that answers it, in its place: the stack of a program is small.
    #[inline(always)]
    pub fn turn_around(&mut self) {
        let Self { ipv4, udp, probe } = self;
        ipv4.checksum = Difference::default()
            .word([ipv4.time_to_live, ipv4.protocol], [TIME_TO_LIVE, ipv4.protocol])
            .apply(ipv4.checksum);
        ipv4.time_to_live = TIME_TO_LIVE;
        core::mem::swap(&mut ipv4.source, &mut ipv4.destination);
        core::mem::swap(&mut udp.source, &mut udp.destination);
        core::mem::swap(&mut probe.kind, &mut probe.other_kind);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes<T: Copy>(value: &T) -> Vec<u8> {
        // SAFETY: the types that it is called with consist of byte arrays without padding.
        unsafe { core::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    #[test]
    fn what_is_sent_is_what_lies_in_the_frame() {
        let request = Probe::request(0x0102_0304, 0x1122_3344_5566_7788);
        assert_eq!(request.to_bytes().to_vec(), bytes(&request));
        assert_eq!(request.kind(), Some(Kind::Request));
        assert_eq!(request.answer().kind(), Some(Kind::Answer));
        assert_eq!(
            (request.answer().index, request.answer().nonce),
            (request.index, request.nonce)
        );
        assert!(!matches!(MARKER >> 4, 4 | 6), "neither IPv4 nor IPv6");
    }

    #[test]
    fn every_other_kind_and_version_is_unknown() {
        let request = Probe::request(1, 2);
        for (kind, other_kind) in [
            (REQUEST, REQUEST),
            (ANSWER, ANSWER),
            ([0, 3], [0, 0]),
            ([1, 0], [2, 0]),
        ] {
            let probe = Probe {
                kind,
                other_kind,
                ..request
            };
            assert_eq!(probe.kind(), None, "{kind:?} {other_kind:?}");
        }
        let version = VERSION + 1;
        assert_eq!(Probe { version, ..request }.kind(), None);
        assert_eq!(
            Probe {
                marker: 0x11,
                ..request
            }
            .kind(),
            None
        );
    }

    proptest! {
        /// The answer's checksums are those that another implementation computes, for every way the request went.
        #[test]
        fn the_answer_has_right_checksums(
            source: [u8; 4], destination: [u8; 4], ports: (u16, u16), time_to_live in 1u8..=255,
            index: u32, nonce: u64, with_checksum: bool,
        ) {
            let probe = Probe::request(index, nonce);
            let mut udp = etherparse::UdpHeader::without_ipv4_checksum(ports.0, ports.1, LENGTH).expect("short");
            let ip = etherparse::Ipv4Header::new(28, time_to_live, etherparse::IpNumber::UDP, source, destination)
                .expect("short");
            let sum = |udp: &etherparse::UdpHeader, ip: &etherparse::Ipv4Header, probe: &Probe| {
                udp.calc_checksum_ipv4(ip, &probe.to_bytes()).expect("short")
            };
            if with_checksum {
                udp.checksum = sum(&udp, &ip, &probe);
            }
            let mut datagram = Datagram {
                ipv4: Ipv4 {
                    version_and_length: 0x45,
                    type_of_service: 0,
                    total_length: ip.total_len.to_be_bytes(),
                    identification: [0; 2],
                    flags_and_offset: 0x4000_u16.to_be_bytes(),
                    time_to_live,
                    protocol: 17,
                    checksum: ip.calc_header_checksum().to_be_bytes(),
                    source,
                    destination,
                },
                udp: Udp {
                    source: ports.0.to_be_bytes(),
                    destination: ports.1.to_be_bytes(),
                    length: udp.length.to_be_bytes(),
                    checksum: udp.checksum.to_be_bytes(),
                },
                probe,
            };
            datagram.turn_around();
            let answer = bytes(&datagram);
            let (ip, rest) = etherparse::Ipv4Header::from_slice(&answer).expect("a header");
            let (udp, payload) = etherparse::UdpHeader::from_slice(rest).expect("a header");
            prop_assert_eq!((ip.source, ip.destination, ip.time_to_live), (destination, source, TIME_TO_LIVE));
            prop_assert_eq!((udp.source_port, udp.destination_port), (ports.1, ports.0));
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!(payload, &probe.answer().to_bytes()[..]);
            let expected = if with_checksum { sum(&udp, &ip, &probe.answer()) } else { 0 };
            prop_assert_eq!(udp.checksum, expected);
        }
    }
}
