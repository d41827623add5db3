//! Whether a port of this host is free.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use protocol::ports::TransportProtocol;
use tokio::net::TcpSocket;

/// Whether a socket of this host has the port, or another reason keeps everybody from it. Nobody can connect to it
/// while this looks.
pub fn is_in_use(protocol: TransportProtocol, port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let bound = match protocol {
        // Bound only, never listening; connections that have ended do not count.
        TransportProtocol::Tcp => TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)
        }),
        TransportProtocol::Udp => UdpSocket::bind(address).map(drop),
    };
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}
