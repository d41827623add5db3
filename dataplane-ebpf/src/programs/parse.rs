//! What the walks need to know of a packet, copied out of its headers.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_LENGTH,
    IPV4_FRAGMENT_MASK, IPV4_LENGTH, IcmpEcho, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LENGTH,
    Tcp, UDP_LENGTH, Udp,
};
use dataplane_ebpf::tables::FlowKey;
use dataplane_ebpf::verdict::DropReason;

use super::packet;

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    #[default]
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A fragment without a transport header: its ports are those of the first.
    Later,
    /// The same, and the first has not been seen: nobody knows its ports.
    Early,
}

/// The transport header's part in a flow.
#[derive(Clone, Copy, Default)]
pub struct Transport {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// Bytes of the IPv4 header, with options: where the transport header begins.
    pub offset: usize,
    /// Bytes of the header: what each segment of a superframe repeats.
    pub header_length: usize,
    /// TCP flags; zero for other protocols.
    pub tcp_flags: u8,
    /// Whether the packet may begin a flow to a service: a SYN, a datagram, an echo request.
    pub begins: bool,
    pub part: Part,
}

/// Whether the frame carries IPv4.
#[inline(always)]
pub fn is_ipv4(ctx: &TcContext) -> bool {
    packet::read::<Ethernet>(ctx, 0).is_some_and(|ethernet| ethernet.ethertype == ETHERTYPE_IPV4)
}

/// The IPv4 header behind the Ethernet header, its lengths checked against each other and the frame.
/// The frame may be longer (padding), never shorter.
#[inline(always)]
pub fn ipv4(ctx: &TcContext) -> Result<Ipv4, DropReason> {
    let ip = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Short)?;
    if ip.version_and_length >> 4 != 4 || header_length(&ip) < IPV4_LENGTH {
        return Err(DropReason::Malformed);
    }
    let total = total_length(&ip);
    if total < header_length(&ip) {
        return Err(DropReason::Malformed);
    }
    if total + ETHERNET_LENGTH > packet::length(ctx) {
        return Err(DropReason::Short);
    }
    Ok(ip)
}

/// Bytes of the IPv4 header, with options.
#[inline(always)]
pub fn header_length(ip: &Ipv4) -> usize {
    ((ip.version_and_length & 0x0f) as usize) * 4
}

/// Bytes of the IPv4 packet.
#[inline(always)]
pub fn total_length(ip: &Ipv4) -> usize {
    u16::from_be_bytes(ip.total_length) as usize
}

/// The "flags and fragment offset" word.
#[inline(always)]
pub fn fragment_word(ip: &Ipv4) -> u16 {
    u16::from_be_bytes(ip.flags_and_offset)
}

/// Whether the packet is what most are: neither with options nor a fragment.
#[inline(always)]
pub fn is_plain(ip: &Ipv4) -> bool {
    header_length(ip) == IPV4_LENGTH && fragment_word(ip) & IPV4_FRAGMENT_MASK == 0
}

/// The transport header of the plain IPv4 packet at `ip_offset`. `short` and `malformed` are the reasons to count,
/// which differ between a packet and the inner packet of a tunnel.
#[inline(always)]
pub fn transport(
    ctx: &TcContext,
    ip_offset: usize,
    ip: &Ipv4,
    short: DropReason,
    malformed: DropReason,
) -> Result<Transport, DropReason> {
    transport_header::<true>(ctx, ip_offset, ip, short, malformed)
}

/// As [`transport`], of any packet but a later fragment. Whether it is `PLAIN` is known when this is compiled: then
/// the header is where it always is.
#[inline(always)]
pub fn transport_header<const PLAIN: bool>(
    ctx: &TcContext,
    ip_offset: usize,
    ip: &Ipv4,
    short: DropReason,
    malformed: DropReason,
) -> Result<Transport, DropReason> {
    let length = if PLAIN { IPV4_LENGTH } else { header_length(ip) };
    let offset = ip_offset + length;
    let available = total_length(ip) - length;
    let part = if PLAIN || fragment_word(ip) & IPV4_FRAGMENT_MASK == 0 {
        Part::Whole
    } else {
        Part::First
    };
    match ip.protocol {
        PROTOCOL_TCP => {
            if available < TCP_LENGTH {
                return Err(short);
            }
            let tcp = read::<Tcp, PLAIN>(ctx, offset).ok_or(short)?;
            let header_length = ((tcp.data_offset >> 4) as usize) * 4;
            if header_length < TCP_LENGTH || header_length > available {
                return Err(malformed);
            }
            use dataplane_ebpf::header::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
            Ok(Transport {
                source_port: tcp.source,
                destination_port: tcp.destination,
                offset: length,
                header_length,
                tcp_flags: tcp.flags,
                begins: tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN,
                part,
            })
        }
        PROTOCOL_UDP => {
            if available < UDP_LENGTH {
                return Err(short);
            }
            let udp = read::<Udp, PLAIN>(ctx, offset).ok_or(short)?;
            let datagram = u16::from_be_bytes(udp.length) as usize;
            // A first fragment has only the beginning of what it says.
            if datagram < UDP_LENGTH || part == Part::Whole && datagram > available {
                return Err(malformed);
            }
            Ok(Transport {
                source_port: udp.source,
                destination_port: udp.destination,
                offset: length,
                header_length: UDP_LENGTH,
                tcp_flags: 0,
                begins: true,
                part,
            })
        }
        PROTOCOL_ICMP => {
            if available < ICMP_LENGTH {
                return Err(short);
            }
            let echo = read::<IcmpEcho, PLAIN>(ctx, offset).ok_or(short)?;
            let (source_port, destination_port) = match (echo.kind, echo.code) {
                (ICMP_ECHO_REQUEST, 0) => (echo.identifier, [0; 2]),
                (ICMP_ECHO_REPLY, 0) => ([0; 2], echo.identifier),
                // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
                (3 | 4 | 5 | 11 | 12, _) => return Err(DropReason::IcmpError),
                _ => return Err(DropReason::IcmpType),
            };
            Ok(Transport {
                source_port,
                destination_port,
                offset: length,
                header_length: ICMP_LENGTH,
                tcp_flags: 0,
                begins: echo.kind == ICMP_ECHO_REQUEST,
                part,
            })
        }
        _ => Err(DropReason::Protocol),
    }
}

/// Copies a header out of the frame. Where it lies is known when this is compiled, or the helper finds it.
#[inline(always)]
fn read<T: Copy, const PLAIN: bool>(ctx: &TcContext, offset: usize) -> Option<T> {
    if PLAIN {
        packet::read(ctx, offset)
    } else {
        packet::load(ctx, offset)
    }
}

/// The flow that the packet belongs to.
#[inline(always)]
pub fn flow_key(ip: &Ipv4, transport: &Transport) -> FlowKey {
    FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: ip.protocol,
        zero: [0; 3],
    }
}

/// Ports of a UDP datagram at `offset`, wherever its bytes lie; `None` when it ends before them.
#[inline(always)]
pub fn udp_ports(ctx: &TcContext, offset: usize) -> Option<([u8; 2], [u8; 2])> {
    let ports: [[u8; 2]; 2] = ctx.load(offset).ok()?;
    Some((ports[0], ports[1]))
}
