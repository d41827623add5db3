//! Frames, written by another implementation than the one under test.

use dataplane_ebpf::encapsulation::source_port;
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header,
    Ipv4HeaderSlice, TcpHeader, UdpHeader,
};

use crate::topology::{A, GATEWAY_MAC, MAC_OF_A, SINGLE};

pub type Address = [u8; 4];

/// Length of the Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// What the tunnel adds.
pub const OVERHEAD: usize = 28;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// What follows the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    /// UDP whose sender left the checksum out.
    UncheckedUdp,
    /// An echo request; its identifier is the source port.
    Ping,
    /// An echo reply; its identifier is the destination port.
    Pong,
    /// Another ICMP message: type and code.
    Icmp(u8, u8),
    /// The payload as it is, under this protocol number.
    Raw(u8),
}

impl Transport {
    /// All that the overlay carries.
    pub const CARRIED: [Self; 4] = [Self::Tcp, Self::Udp, Self::UncheckedUdp, Self::Ping];

    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp | Self::UncheckedUdp => 17,
            Self::Ping | Self::Pong | Self::Icmp(..) => 1,
            Self::Raw(protocol) => protocol,
        }
    }

    /// What the other side answers with.
    pub fn answer(self) -> Self {
        match self {
            Self::Ping => Self::Pong,
            Self::Pong => Self::Ping,
            Self::Tcp | Self::Udp | Self::UncheckedUdp | Self::Icmp(..) | Self::Raw(_) => self,
        }
    }
}

/// An IPv4 packet in its frame. By default the first packet of endpoint a to a service with one instance.
#[derive(Clone, Debug)]
pub struct Packet {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub source: Address,
    pub source_port: u16,
    pub destination: Address,
    pub destination_port: u16,
    pub transport: Transport,
    /// TCP only.
    pub flags: u8,
    /// TCP only.
    pub sequence: u32,
    /// TCP only.
    pub acknowledgement: u32,
    /// TCP only.
    pub window: u16,
    /// TCP only; a multiple of four bytes.
    pub tcp_options: &'static [u8],
    pub type_of_service: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of eight bytes.
    pub fragment_offset: u16,
    pub time_to_live: u8,
    /// A multiple of four bytes.
    pub ip_options: &'static [u8],
    pub payload: Vec<u8>,
    /// What the link appended to reach its minimum.
    pub trailer: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            to_mac: GATEWAY_MAC,
            from_mac: MAC_OF_A,
            source: A,
            source_port: 5000,
            destination: SINGLE,
            destination_port: 80,
            transport: Transport::Tcp,
            flags: SYN,
            sequence: 0x0102_0304,
            acknowledgement: 0,
            window: 0x7210,
            tcp_options: &[],
            type_of_service: 0,
            identification: 0x4242,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            time_to_live: 64,
            ip_options: &[],
            payload: b"over the overlay".to_vec(),
            trailer: Vec::new(),
        }
    }
}

impl Packet {
    /// The frame, from the Ethernet header to the trailer.
    pub fn frame(&self) -> Vec<u8> {
        [
            ethernet(self.to_mac, self.from_mac),
            self.ip(),
            self.trailer.clone(),
        ]
        .concat()
    }

    /// The IPv4 packet alone.
    pub fn ip(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut header = Ipv4Header {
            dscp: (self.type_of_service >> 2).try_into().expect("six bits"),
            ecn: (self.type_of_service & 3).try_into().expect("two bits"),
            identification: self.identification,
            dont_fragment: self.dont_fragment,
            more_fragments: self.more_fragments,
            fragment_offset: self.fragment_offset.try_into().expect("thirteen bits"),
            time_to_live: self.time_to_live,
            protocol: IpNumber(self.transport.protocol()),
            source: self.source,
            destination: self.destination,
            options: self.ip_options.try_into().expect("whole words"),
            ..Ipv4Header::default()
        };
        header.set_payload_len(transport.len()).expect("a short payload");
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), transport].concat()
    }

    /// Source and destination port as a flow has them: of an echo message its identifier, on one side.
    pub fn ports(&self) -> (u16, u16) {
        match self.transport {
            Transport::Ping => (self.source_port, 0),
            Transport::Pong => (0, self.destination_port),
            Transport::Tcp
            | Transport::Udp
            | Transport::UncheckedUdp
            | Transport::Icmp(..)
            | Transport::Raw(_) => (self.source_port, self.destination_port),
        }
    }

    /// The packet in the frame that brought it through a tunnel.
    pub fn out_of(&self, outer: &Outer) -> Self {
        Self {
            to_mac: outer.to_mac,
            from_mac: outer.from_mac,
            ..self.clone()
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let header = match self.transport {
            Transport::Tcp => self.tcp().to_bytes().to_vec(),
            Transport::Udp => {
                let mut udp = self.udp();
                udp.checksum = udp
                    .calc_checksum_ipv4_raw(self.source, self.destination, &self.payload)
                    .expect("a short payload");
                udp.to_bytes().to_vec()
            }
            Transport::UncheckedUdp => self.udp().to_bytes().to_vec(),
            Transport::Ping => self.icmp(Icmpv4Type::EchoRequest(IcmpEchoHeader {
                id: self.source_port,
                seq: 7,
            })),
            Transport::Pong => self.icmp(Icmpv4Type::EchoReply(IcmpEchoHeader {
                id: self.destination_port,
                seq: 7,
            })),
            Transport::Icmp(type_u8, code_u8) => self.icmp(Icmpv4Type::Unknown {
                type_u8,
                code_u8,
                bytes5to8: [0; 4],
            }),
            Transport::Raw(_) => Vec::new(),
        };
        [header, self.payload.clone()].concat()
    }

    fn tcp(&self) -> TcpHeader {
        let mut header = TcpHeader {
            source_port: self.source_port,
            destination_port: self.destination_port,
            sequence_number: self.sequence,
            acknowledgment_number: self.acknowledgement,
            fin: self.flags & FIN != 0,
            syn: self.flags & SYN != 0,
            rst: self.flags & RST != 0,
            psh: self.flags & PSH != 0,
            ack: self.flags & ACK != 0,
            window_size: self.window,
            ..TcpHeader::default()
        };
        header.set_options_raw(self.tcp_options).expect("whole words");
        header.checksum = header
            .calc_checksum_ipv4_raw(self.source, self.destination, &self.payload)
            .expect("a short payload");
        header
    }

    fn udp(&self) -> UdpHeader {
        UdpHeader::without_ipv4_checksum(self.source_port, self.destination_port, self.payload.len())
            .expect("a short payload")
    }

    fn icmp(&self, message: Icmpv4Type) -> Vec<u8> {
        Icmpv4Header::with_checksum(message, &self.payload)
            .to_bytes()
            .to_vec()
    }
}

/// The headers of a tunnel datagram, as the data plane writes them.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub source: Address,
    pub source_port: u16,
    pub destination: Address,
    pub destination_port: u16,
    pub type_of_service: u8,
    pub options: &'static [u8],
    pub more_fragments: bool,
    /// In units of eight bytes.
    pub fragment_offset: u16,
}

impl Outer {
    /// The frame in which the data plane sends `inner`: the source port is the flow's, the service class is
    /// copied, and a trailer stays a trailer.
    pub fn carrying(&self, inner: &Packet) -> Vec<u8> {
        let (source, destination) = inner.ports();
        let ports = u32::from(source.to_be()) << 16 | u32::from(destination.to_be());
        let outer = Self {
            source_port: u16::from_be_bytes(source_port(inner.source, inner.destination, ports)),
            type_of_service: inner.type_of_service & 0xfc,
            ..*self
        };
        [outer.around(&inner.ip()), inner.trailer.clone()].concat()
    }

    /// The frame that carries `inner`.
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        Packet {
            to_mac: self.to_mac,
            from_mac: self.from_mac,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port: self.destination_port,
            transport: Transport::UncheckedUdp,
            type_of_service: self.type_of_service,
            identification: 0,
            more_fragments: self.more_fragments,
            fragment_offset: self.fragment_offset,
            ip_options: self.options,
            payload: inner.to_vec(),
            ..Packet::default()
        }
        .frame()
    }
}

fn ethernet(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    Ethernet2Header {
        source,
        destination,
        ether_type: EtherType::IPV4,
    }
    .to_bytes()
    .to_vec()
}

/// The IPv4 header of a frame, read back.
pub fn ipv4(frame: &[u8]) -> Ipv4Header {
    Ipv4HeaderSlice::from_slice(&frame[ETHERNET..])
        .expect("a frame that carries IPv4")
        .to_header()
}

/// The UDP header behind an IPv4 header without options, read back.
pub fn udp(frame: &[u8]) -> UdpHeader {
    UdpHeader::from_slice(&frame[ETHERNET + IPV4..])
        .expect("a frame that carries UDP")
        .0
}

/// Source and destination port behind an IPv4 header without options, read back.
pub fn ports(frame: &[u8]) -> (u16, u16) {
    let port = |offset: usize| u16::from_be_bytes([frame[offset], frame[offset + 1]]);
    (port(ETHERNET + IPV4), port(ETHERNET + IPV4 + 2))
}

/// The inner packet of a tunnel datagram behind an Ethernet header of nothing in particular, so that what reads
/// frames reads it too.
pub fn inner(frame: &[u8]) -> Vec<u8> {
    [&frame[..ETHERNET], &frame[ETHERNET + OVERHEAD..]].concat()
}

/// `frame` with the bytes at `offset` exchanged, checksums left alone.
pub fn patched(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// `bytes` in hexadecimal, for what a failed test prints.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
