//! What the socket of the tunnel port receives, and how a peer's datagram goes from there to the data plane.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use dataplane_ebpf::encapsulation::{Outer, Tunnel};
use dataplane_ebpf::header::{ETHERNET_LENGTH, ETHERTYPE_IPV4};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Bytes of the header that the tap puts before each frame.
const VIRTIO_HEADER: usize = 10;

/// A datagram, and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub sender: SocketAddrV4,
    /// Index of the interface it came in by.
    pub interface: u32,
    /// The address it was sent to.
    pub local: Ipv4Addr,
    pub payload: &'a [u8],
}

/// Waits for a datagram; `None` when the kernel does not say where it came from.
pub(super) async fn receive<'a>(
    socket: &UdpSocket,
    buffer: &'a mut [u8],
) -> io::Result<Option<Datagram<'a>>> {
    let received = socket
        .async_io(Interest::READABLE, || {
            let mut control = nix::cmsg_space!(libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrIn>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            )?;
            let information = message.cmsgs()?.find_map(|message| {
                let ControlMessageOwned::Ipv4PacketInfo(information) = message else {
                    return None;
                };
                Some(information)
            });
            Ok((message.bytes, message.address, information))
        })
        .await?;
    let (length, Some(sender), Some(information)) = received else {
        return Ok(None);
    };
    Ok(Some(Datagram {
        sender: SocketAddrV4::new(sender.ip(), sender.port()),
        interface: information.ipi_ifindex.cast_unsigned(),
        local: Ipv4Addr::from(information.ipi_addr.s_addr.to_ne_bytes()),
        payload: &buffer[..length],
    }))
}

impl Datagram<'_> {
    /// The datagram as it would have come off the wire in one piece, in a frame for the tap. The Ethernet addresses
    /// are nobody's: what the data plane delivers it marks as received.
    pub fn frame(&self, tunnel_port: u16) -> Vec<u8> {
        let tunnel = Tunnel {
            local: self.sender.ip().octets(),
            remote: self.local.octets(),
            source_port: self.sender.port().to_be_bytes(),
            port: tunnel_port.to_be_bytes(),
        };
        let Outer { ipv4, udp } = Outer::new(tunnel, 0, self.payload.len());
        let mut frame = vec![0; VIRTIO_HEADER + ETHERNET_LENGTH];
        frame[VIRTIO_HEADER + ETHERNET_LENGTH - 2..].copy_from_slice(&ETHERTYPE_IPV4);
        frame.extend([ipv4.version_and_length, ipv4.type_of_service]);
        frame.extend([ipv4.total_length, ipv4.identification, ipv4.flags_and_offset].concat());
        frame.extend([ipv4.time_to_live, ipv4.protocol]);
        frame.extend(ipv4.checksum);
        frame.extend([ipv4.source, ipv4.destination].concat());
        frame.extend([udp.source, udp.destination, udp.length, udp.checksum].concat());
        frame.extend(self.payload);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p40_the_frame_is_the_datagram_in_one_piece() {
        for length in [20, 1_472, 65_507] {
            let payload = vec![0x45; length];
            let datagram = Datagram {
                sender: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 11), 51_000),
                interface: 2,
                local: Ipv4Addr::new(192, 0, 2, 1),
                payload: &payload,
            };
            let frame = datagram.frame(50_103);
            let (ipv4, rest) =
                etherparse::Ipv4Header::from_slice(&frame[VIRTIO_HEADER + ETHERNET_LENGTH..]).expect("IPv4");
            assert_eq!(ipv4.header_checksum, ipv4.calc_header_checksum());
            assert_eq!((ipv4.source, ipv4.destination), ([192, 0, 2, 11], [192, 0, 2, 1]));
            let (udp, rest) = etherparse::UdpHeader::from_slice(rest).expect("UDP");
            assert_eq!((udp.source_port, udp.destination_port), (51_000, 50_103));
            assert_eq!(usize::from(udp.length), 8 + length);
            assert_eq!(usize::from(ipv4.total_len), 28 + length);
            assert_eq!(rest, payload);
        }
    }
}
