//! The tunnel: a bare inner IPv4 packet behind an outer IPv4 and UDP header, nothing of ours in between.

use crate::checksum;
use crate::header::{ETHERNET_LENGTH, IPV4_DONT_FRAGMENT, IPV4_LENGTH, Ipv4, PROTOCOL_UDP, UDP_LENGTH, Udp};

/// Bytes that the tunnel adds to a packet: outer IPv4 and UDP.
pub const OVERHEAD: usize = IPV4_LENGTH + UDP_LENGTH;
/// Where the inner packet begins in a tunnelled frame.
pub const INNER_OFFSET: usize = ETHERNET_LENGTH + OVERHEAD;
/// Time to live of the outer packet, Linux' default for what a host sends itself.
pub const OUTER_TIME_TO_LIVE: u8 = 64;

/// The outer headers of a tunnelled packet, as they lie in the frame.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub ipv4: Ipv4,
    pub udp: Udp,
}

const _: () = assert!(size_of::<Outer>() == OVERHEAD);

/// Where a tunnelled packet goes, in network byte order.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    pub local: [u8; 4],
    pub remote: [u8; 4],
    pub source_port: [u8; 2],
    pub port: [u8; 2],
}

impl Outer {
    /// The headers around an inner packet of `inner_length` bytes.
    ///
    /// "Don't fragment" is set and the identification is zero (RFC 6864): the outer packet is never
    /// fragmented. The UDP checksum is zero, which IPv4 allows; the inner packet carries its own. Of a
    /// superframe longer than the length fields can say, they say the most; segmentation writes them anew.
    #[inline(always)]
    pub const fn new(tunnel: Tunnel, type_of_service: u8, inner_length: usize) -> Self {
        let length = saturate(inner_length + OVERHEAD).to_be_bytes();
        let flags_and_offset = IPV4_DONT_FRAGMENT.to_be_bytes();
        let sum = u16::from_ne_bytes([0x45, type_of_service]) as u64
            + u16::from_ne_bytes(length) as u64
            + u16::from_ne_bytes(flags_and_offset) as u64
            + u16::from_ne_bytes([OUTER_TIME_TO_LIVE, PROTOCOL_UDP]) as u64
            + u32::from_ne_bytes(tunnel.local) as u64
            + u32::from_ne_bytes(tunnel.remote) as u64;
        Self {
            ipv4: Ipv4 {
                version_and_length: 0x45,
                type_of_service,
                total_length: length,
                identification: [0; 2],
                flags_and_offset,
                time_to_live: OUTER_TIME_TO_LIVE,
                protocol: PROTOCOL_UDP,
                checksum: (!checksum::fold(sum)).to_ne_bytes(),
                source: tunnel.local,
                destination: tunnel.remote,
            },
            udp: Udp {
                source: tunnel.source_port,
                destination: tunnel.port,
                length: saturate(inner_length + UDP_LENGTH).to_be_bytes(),
                checksum: [0; 2],
            },
        }
    }
}

const fn saturate(length: usize) -> u16 {
    if length > u16::MAX as usize {
        u16::MAX
    } else {
        length as u16
    }
}

/// A source port for the tunnel that differs between flows, so that the receiver's queues share the load.
/// From the dynamic range 49152–65535 (RFC 6335).
#[inline(always)]
pub const fn source_port(source: [u8; 4], destination: [u8; 4], ports: u32) -> [u8; 2] {
    let mixed = u32::from_ne_bytes(source) ^ u32::from_ne_bytes(destination).rotate_left(13) ^ ports;
    // A product carries upwards only: the ports, uppermost in what goes in, are told apart by its topmost bits.
    let hash = mixed.wrapping_mul(0x9e37_79b1) >> 18;
    (0xc000 | hash as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(outer: &Outer) -> Vec<u8> {
        let Outer { ipv4, udp } = outer;
        let mut bytes = vec![ipv4.version_and_length, ipv4.type_of_service];
        bytes.extend([ipv4.total_length, ipv4.identification, ipv4.flags_and_offset].concat());
        bytes.extend([ipv4.time_to_live, ipv4.protocol]);
        bytes.extend(ipv4.checksum);
        bytes.extend([ipv4.source, ipv4.destination].concat());
        bytes.extend([udp.source, udp.destination, udp.length, udp.checksum].concat());
        bytes
    }

    proptest! {
        /// P-40 on the host: another implementation reads back what was meant, checksum included.
        #[test]
        fn p40_outer_headers_are_what_etherparse_reads(
            local: [u8; 4], remote: [u8; 4], source_port: u16, port: u16, type_of_service in 0u8..255, length in 20usize..65507,
        ) {
            let tunnel = Tunnel { local, remote, source_port: source_port.to_be_bytes(), port: port.to_be_bytes() };
            let encoded = bytes(&Outer::new(tunnel, type_of_service, length));
            let (ipv4, rest) = etherparse::Ipv4Header::from_slice(&encoded).expect("a valid header");
            let (udp, _) = etherparse::UdpHeader::from_slice(rest).expect("a valid header");
            prop_assert_eq!(ipv4.header_checksum, ipv4.calc_header_checksum());
            prop_assert_eq!((ipv4.source, ipv4.destination), (local, remote));
            prop_assert_eq!(usize::from(ipv4.total_len), length + OVERHEAD);
            prop_assert!(ipv4.dont_fragment && !ipv4.more_fragments);
            prop_assert_eq!((udp.source_port, udp.destination_port, udp.checksum), (source_port, port, 0));
            prop_assert_eq!(usize::from(udp.length), length + UDP_LENGTH);
        }

        #[test]
        fn source_ports_lie_in_the_dynamic_range(source: [u8; 4], destination: [u8; 4], ports: u32) {
            prop_assert!(u16::from_be_bytes(source_port(source, destination, ports)) >= 49152);
        }
    }

    #[test]
    fn lengths_beyond_the_field_saturate() {
        let tunnel = Tunnel {
            local: [192, 0, 2, 1],
            remote: [192, 0, 2, 2],
            source_port: [0; 2],
            port: [0; 2],
        };
        assert_eq!(Outer::new(tunnel, 0, 65_535).ipv4.total_length, [0xff, 0xff]);
    }
}
