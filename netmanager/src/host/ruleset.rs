//! That the firewall's rules have changed, whoever changed them, as the kernel tells it. `iptables` of the old kind
//! changes its rules without a word.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::{Error, Result};

/// The kernel's multicast group for changes of nftables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;

/// The stream of changes in the network namespace in which it was opened.
pub struct RulesetChanges {
    socket: TokioSocket,
}

impl RulesetChanges {
    /// Subscribes. What changes from now on is reported.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let subscribe = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let subscribed = subscribe();
        let socket = subscribed.map_err(|error: io::Error| Error::kernel("subscribe to", "rules", error))?;
        Ok(Self { socket })
    }

    /// Waits for a change, whatever it is. Changes that were lost are one, too.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub async fn next(&mut self) -> Result<()> {
        match self.socket.recv_from_full().await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(Error::kernel("receive", "changes of rules", error)),
        }
    }
}
