//! Packet headers as they lie in a frame.
//!
//! Fields are byte arrays, so that byte order is visible where it matters. The structures carry the alignment
//! that the frame gives them (an IPv4 header lies on a multiple of four behind the Ethernet header), which
//! lets the compiler load whole words instead of single bytes.

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_LENGTH: usize = 14;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_LENGTH: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_LENGTH: usize = 8;
/// Length of a TCP header without options, in bytes.
pub const TCP_LENGTH: usize = 20;
/// Length of the ICMP echo header, in bytes.
pub const ICMP_LENGTH: usize = 8;

/// EtherType of IPv4, as in the frame.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// EtherType of ARP, as in the frame.
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];

/// What an ARP packet for IPv4 over Ethernet begins with: both kinds of address and their lengths (RFC 826).
pub const ARP_IPV4_OVER_ETHERNET: [u8; 6] = [0x00, 0x01, 0x08, 0x00, 6, 4];
/// ARP operations, as in the frame.
pub const ARP_REQUEST: [u8; 2] = [0x00, 0x01];
/// See [`ARP_REQUEST`].
pub const ARP_REPLY: [u8; 2] = [0x00, 0x02];

/// IP protocol numbers.
pub const PROTOCOL_ICMP: u8 = 1;
/// See [`PROTOCOL_ICMP`].
pub const PROTOCOL_TCP: u8 = 6;
/// See [`PROTOCOL_ICMP`].
pub const PROTOCOL_UDP: u8 = 17;

/// ICMP types (RFC 792).
pub const ICMP_ECHO_REPLY: u8 = 0;
/// See [`ICMP_ECHO_REPLY`].
pub const ICMP_ECHO_REQUEST: u8 = 8;

/// TCP flag bits (RFC 9293).
pub const TCP_FIN: u8 = 0x01;
/// See [`TCP_FIN`].
pub const TCP_SYN: u8 = 0x02;
/// See [`TCP_FIN`].
pub const TCP_RST: u8 = 0x04;
/// See [`TCP_FIN`].
pub const TCP_ACK: u8 = 0x10;

/// IPv4 flag "don't fragment" in the flags-and-offset word.
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;
/// What makes a packet a fragment: "more fragments" or an offset.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// The offset part alone: not zero in every fragment but the first.
pub const IPV4_OFFSET_MASK: u16 = 0x1fff;

/// IPv4 option "end of options" (RFC 791); as the next one, a single byte.
pub const OPTION_END: u8 = 0;
/// IPv4 option "no operation".
pub const OPTION_NOTHING: u8 = 1;
/// IPv4 option "loose source route".
pub const OPTION_LOOSE_ROUTE: u8 = 131;
/// IPv4 option "strict source route".
pub const OPTION_STRICT_ROUTE: u8 = 137;

/// Ethernet II header.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: [u8; 2],
}

/// ARP packet for IPv4 over Ethernet (RFC 826).
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// [`ARP_IPV4_OVER_ETHERNET`].
    pub kind: [u8; 6],
    pub operation: [u8; 2],
    pub sender_mac: [u8; 6],
    pub sender: [u8; 4],
    pub target_mac: [u8; 6],
    pub target: [u8; 4],
}

/// IPv4 header without options (RFC 791).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    pub version_and_length: u8,
    pub type_of_service: u8,
    pub total_length: [u8; 2],
    pub identification: [u8; 2],
    pub flags_and_offset: [u8; 2],
    pub time_to_live: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

/// TCP header without options (RFC 9293).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    pub source: [u8; 2],
    pub destination: [u8; 2],
    pub sequence: [u8; 4],
    pub acknowledgement: [u8; 4],
    /// Header length in 32-bit words, in the upper four bits.
    pub data_offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

/// UDP header (RFC 768).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    pub source: [u8; 2],
    pub destination: [u8; 2],
    pub length: [u8; 2],
    pub checksum: [u8; 2],
}

/// ICMP header of an echo request or reply (RFC 792).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct IcmpEcho {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    pub identifier: [u8; 2],
    pub sequence: [u8; 2],
}

const _: () = assert!(size_of::<Ethernet>() == ETHERNET_LENGTH);
const _: () = assert!(size_of::<Arp>() == 28);
const _: () = assert!(size_of::<Ipv4>() == IPV4_LENGTH);
const _: () = assert!(size_of::<Tcp>() == TCP_LENGTH);
const _: () = assert!(size_of::<Udp>() == UDP_LENGTH);
const _: () = assert!(size_of::<IcmpEcho>() == ICMP_LENGTH);
