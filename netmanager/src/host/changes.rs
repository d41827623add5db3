//! What changes on the host: links, addresses, routes and neighbours, as the kernel tells it.

use std::io;
use std::net::Ipv4Addr;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::uplink::{Neighbour, neighbour_of};
use super::{Error, Result};

/// Enough for several thousand messages, so that a routing daemon that restarts is seldom an overflow.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The groups of IPv4 and links.
const GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
];

/// Something changed. What it is now is to be read: this says where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link came, changed, or is gone (`removed`).
    Link { interface: u32, removed: bool },
    /// An IPv4 address of the interface came or went.
    Address { interface: u32 },
    /// An IPv4 route came or went.
    Route,
    /// The entry of `address` on the interface changed; `None` when it has no link-layer address any more.
    Neighbour {
        interface: u32,
        address: Ipv4Addr,
        entry: Option<Neighbour>,
    },
    /// Changes were lost, because they came faster than they were read: everything is to be read anew.
    Overflow,
}

/// The stream of changes in the network namespace in which it was opened.
pub struct Changes {
    socket: TokioSocket,
    datagram: Vec<u8>,
    read: usize,
}

impl Changes {
    /// Subscribes. What changes from now on is reported; what is now is to be read after this.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    /// As [`Self::open`], with a receive buffer of this many bytes; the kernel may double it.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn with_buffer(bytes: usize) -> Result<Self> {
        let subscribe = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
            socket.socket_mut().set_rx_buf_sz(bytes)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.socket_mut().add_membership(group as u32)?;
            }
            Ok(socket)
        };
        let socket = subscribe().map_err(|error| Error::kernel("subscribe to", "changes", error))?;
        Ok(Self {
            socket,
            datagram: Vec::new(),
            read: 0,
        })
    }

    /// Waits for the next change. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            while let Some(message) = self.message() {
                if let Some(change) = message.map_or(Some(Change::Overflow), change_of) {
                    return Ok(change);
                }
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _kernel)) => (self.datagram, self.read) = (datagram, 0),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Change::Overflow),
                Err(error) => return Err(Error::kernel("receive", "changes", error)),
            }
        }
    }

    /// The next message of the datagram; one that cannot be read may have been anything.
    fn message(&mut self) -> Option<Result<RouteNetlinkMessage, ()>> {
        let rest = self.datagram.get(self.read..).filter(|rest| !rest.is_empty())?;
        let Ok(buffer) = NetlinkBuffer::new_checked(rest) else {
            tracing::debug!(bytes = rest.len(), "truncated message from the kernel");
            self.read = self.datagram.len();
            return Some(Err(()));
        };
        let length = buffer.length() as usize;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
        // Messages are padded to four bytes, the last one possibly not.
        self.read += length.next_multiple_of(4);
        match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => Some(Ok(message)),
            Ok(payload) => {
                tracing::debug!(?payload, "unexpected message from the kernel");
                Some(Err(()))
            }
            Err(error) => {
                tracing::debug!(%error, "unreadable message from the kernel");
                Some(Err(()))
            }
        }
    }
}

fn change_of(message: RouteNetlinkMessage) -> Option<Change> {
    if let RouteNetlinkMessage::NewLink(link) = message {
        Some(Change::Link {
            interface: link.header.index,
            removed: false,
        })
    } else if let RouteNetlinkMessage::DelLink(link) = message {
        // A bridge tells of a port that left it in the same words.
        let removed = link.header.interface_family == AddressFamily::Unspec;
        Some(Change::Link {
            interface: link.header.index,
            removed,
        })
    } else if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) =
        message
    {
        Some(Change::Address {
            interface: address.header.index,
        })
    } else if let RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) = message {
        Some(Change::Route)
    } else if let RouteNetlinkMessage::NewNeighbour(message) = message {
        neighbour_change(&message, neighbour_of(&message))
    } else if let RouteNetlinkMessage::DelNeighbour(message) = message {
        neighbour_change(&message, None)
    } else {
        None
    }
}

fn neighbour_change(message: &NeighbourMessage, entry: Option<Neighbour>) -> Option<Change> {
    let address = message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })?;
    Some(Change::Neighbour {
        interface: message.header.ifindex,
        address,
        entry,
    })
}
