//! The socket of the tunnel port.
//!
//! The data plane takes every datagram of a known peer before it gets here. What does get here comes from an
//! address that is no peer's, a few per second at most. Nothing of it is delivered; but its inner source may name
//! an instance of which the cluster knows the node, and if that node is where the datagram came from, it is a peer
//! from now on.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Context;
use dataplane_ebpf::address::is_service_or_instance;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use super::Node;
use crate::host::TUNNEL_MARK;

/// Opens the socket, which also keeps others from the port.
pub(super) fn listen(port: u16) -> anyhow::Result<UdpSocket> {
    let context = || format!("taking the tunnel port, UDP {port}; does another program have it?");
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(context)?;
    setsockopt(&socket.as_fd(), sockopt::Mark, &TUNNEL_MARK).context("marking the tunnel socket")?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}

impl Node {
    pub(super) async fn serve_strangers(self: Arc<Self>, socket: UdpSocket) {
        let mut buffer = [0; 64];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, SocketAddr::V4(sender))) => {
                    if let Some(source) = inner_source(&buffer[..length]) {
                        self.meet(*sender.ip(), source).await;
                    }
                }
                Ok((_, SocketAddr::V6(_))) => {}
                // An ICMP error that belongs to nothing we sent, or a shortage; the socket itself is whole.
                Err(error) => tracing::debug!(%error, "tunnel socket"),
            }
        }
    }

    /// Enters the service of `source` if the cluster says that an instance with this address lives at `sender`.
    async fn meet(&self, sender: Ipv4Addr, source: Ipv4Addr) {
        if self.directory().is_peer(sender) {
            return;
        }
        let Ok(Some(record)) = self.resolver.resolve(source).await else {
            return;
        };
        let lives_there = record
            .instances
            .iter()
            .any(|instance| instance.address == source && instance.node.address == sender);
        if lives_there && let Err(error) = self.install_service(record).await {
            tracing::error!(%error, "cannot enter a service");
        }
    }
}

fn inner_source(datagram: &[u8]) -> Option<Ipv4Addr> {
    let source: [u8; 4] = datagram.get(12..16)?.try_into().ok()?;
    (datagram[0] >> 4 == 4 && is_service_or_instance(source)).then(|| Ipv4Addr::from(source))
}
