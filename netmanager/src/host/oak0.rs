//! `oak0`: the persistent tap between the node itself, the data plane and NetManager.
//!
//! The node's own packets to the overlay leave through it, packets that the data plane cannot place yet
//! arrive at its file, and go back through it once the tables are filled. It outlives NetManager, so that the
//! programs on it go on without a process behind it.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane_ebpf::address;
use rtnetlink::LinkUnspec;
use tokio::time::Instant;

use super::netlink::InterfaceAddress;
use super::tap::Tap;
use super::{Error, Errors, Netlink, Result, Route, RouteTarget, sysctl};
use crate::endpoint::Undo;

/// Name of the interface.
pub const NAME: &str = "oak0";

/// Room in bytes for the largest frame with its header: a superframe of 65,535 bytes behind Ethernet.
pub const FRAME_CAPACITY: usize = super::tap::HEADER_LENGTH as usize + 14 + 65_535;

/// How long a tap that is in use is waited for, and how often it is tried.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// What `oak0` should be.
#[derive(Clone, Copy, Debug)]
pub struct Oak0Options {
    /// The node's own namespace address: the first of its subnet after the network's.
    pub address: Ipv4Addr,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// The open tap. Dropping it leaves the interface in place.
#[derive(Debug)]
pub struct Oak0 {
    tap: Tap,
    index: u32,
}

impl Oak0 {
    /// Opens `oak0`, makes it when it is missing, and gives it its address and routes.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] when another process has it open, [`Error::ForeignLink`] when the name is
    /// taken, [`Error::ForeignRoute`] when somebody else routes the overlay, or whatever the kernel refuses.
    /// An interface that was not there before is not there afterwards.
    pub async fn open(netlink: &Netlink, options: &Oak0Options) -> Result<Self> {
        let existed = netlink.link_by_name(NAME).await?.is_some();
        let tap = open_tap().await?;
        let mut undo = Undo::default();
        if !existed {
            let netlink = netlink.clone();
            undo.push("delete oak0", move || async move { delete(&netlink).await });
        }
        let outcome = Self::set_up(tap, netlink, options, &mut undo).await;
        undo.finish(outcome).await
    }

    async fn set_up(tap: Tap, netlink: &Netlink, options: &Oak0Options, undo: &mut Undo) -> Result<Self> {
        let link = netlink.link_by_name(NAME).await?.ok_or_else(|| {
            let source = io::Error::from_raw_os_error(libc::ENODEV);
            Error::kernel("look up link", NAME, source)
        })?;
        let oak0 = Self {
            tap,
            index: link.index,
        };
        oak0.set_link(netlink, options).await?;
        oak0.set_addresses(netlink, options).await?;
        if netlink.ensure_route(&UNREACHABLE).await? {
            let netlink = netlink.clone();
            undo.push("delete route", move || async move {
                remove_unreachable(&netlink).await.map(drop)
            });
        }
        oak0.tap.persist(true)?;
        Ok(oak0)
    }

    /// Puts back what others have taken from the interface and its routes. Nothing is written that is as it should
    /// be.
    ///
    /// # Errors
    /// As [`Self::open`], and `ENODEV` when the interface itself is gone.
    pub async fn reconcile(&self, netlink: &Netlink, options: &Oak0Options) -> Result<()> {
        let link = netlink.link_by_index(self.index).await?;
        if link.is_none_or(|link| !link.up || link.mtu != options.mtu) {
            self.set_link(netlink, options).await?;
        }
        self.set_addresses(netlink, options).await?;
        netlink.ensure_route(&UNREACHABLE).await.map(drop)
    }

    async fn set_link(&self, netlink: &Netlink, options: &Oak0Options) -> Result<()> {
        // Before it is up, else it has a link-local address and says so.
        sysctl::write_if_different(&format!("net/ipv6/conf/{NAME}/disable_ipv6"), "1")?;
        let link = LinkUnspec::new_with_index(self.index)
            .arp(false)
            .mtu(options.mtu)
            .up();
        netlink.set_link("configure", NAME, link.build()).await
    }

    async fn set_addresses(&self, netlink: &Netlink, options: &Oak0Options) -> Result<()> {
        netlink
            .ensure_address(NAME, self.index, options.address, 32)
            .await?;
        // The route before the old addresses go: its source must not be one of them.
        let target = RouteTarget::LinkFrom {
            interface: self.index,
            source: options.address,
        };
        netlink.ensure_route(&Route { target, ..SERVICES }).await?;
        for old in netlink.addresses(Some(self.index)).await? {
            if (old.address, old.prefix_length) != (options.address, 32) {
                self.remove_address(netlink, &old).await?;
            }
        }
        Ok(())
    }

    async fn remove_address(&self, netlink: &Netlink, old: &InterfaceAddress) -> Result<()> {
        if netlink.remove_address(old).await? {
            tracing::info!(address = %old.address, interface = NAME, "removed an address of another");
        }
        Ok(())
    }

    /// Index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether UDP superframes arrive whole, as TCP's do.
    pub fn udp_segmentation(&self) -> bool {
        self.tap.udp_segmentation()
    }

    /// Waits for a frame: 10 bytes of virtio header, then Ethernet. What does not fit into `buffer` is lost,
    /// so it should have [`FRAME_CAPACITY`]. The number of bytes.
    ///
    /// # Errors
    /// Whatever reading gives; `EBADFD` once the interface is gone.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tap.receive(buffer).await
    }

    /// Writes a frame back, with the header it came with.
    ///
    /// # Errors
    /// Whatever writing gives; `EIO` while the interface is down.
    pub async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.tap.send(frame).await
    }

    /// Removes the interface and the routes for good.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn remove(self, netlink: &Netlink) -> Result<(), Errors> {
        let mut errors = Errors::default();
        errors.collect(self.tap.persist(false));
        // It would go with the file as well, but later than this when a child was just being forked.
        errors.collect(delete(netlink).await);
        errors.collect(remove_unreachable(netlink).await);
        errors.into_result()
    }
}

/// Removes what a NetManager that no longer runs has left; nothing to do is success.
///
/// # Errors
/// [`Error::AlreadyRunning`] when one does run, and everything that could not be removed.
pub async fn remove_leftover(netlink: &Netlink) -> Result<(), Errors> {
    let mut errors = Errors::default();
    match netlink.link_by_name(NAME).await {
        Ok(Some(link)) => match open_tap().await {
            Ok(tap) => {
                return Oak0 {
                    tap,
                    index: link.index,
                }
                .remove(netlink)
                .await;
            }
            Err(error) => errors.collect::<()>(Err(error)),
        },
        Ok(None) => errors.collect(remove_unreachable(netlink).await),
        Err(error) => errors.collect::<()>(Err(error)),
    }
    errors.into_result()
}

/// A process that was killed lets go of the tap only when its last copy of the file is closed, which a child
/// that it was just forking holds a moment longer. The kernel does not tell when.
async fn open_tap() -> Result<Tap> {
    let deadline = Instant::now() + RELEASED_WITHIN;
    loop {
        match Tap::open(NAME) {
            Err(Error::AlreadyRunning(_)) if Instant::now() < deadline => {
                tokio::time::sleep(RETRY_AFTER).await
            }
            outcome => return outcome,
        }
    }
}

async fn delete(netlink: &Netlink) -> Result<()> {
    if let Some(link) = netlink.link_by_name(NAME).await? {
        netlink.delete_link(NAME, link.index).await?;
    }
    Ok(())
}

async fn remove_unreachable(netlink: &Netlink) -> Result<bool> {
    netlink
        .remove_route(UNREACHABLE.destination, UNREACHABLE.prefix_length)
        .await
}

/// The way to services and instances; the target depends on the interface.
const SERVICES: Route = Route {
    destination: address_of(address::SERVICES),
    prefix_length: address::SERVICES_PREFIX_LENGTH,
    target: RouteTarget::Unreachable,
};

/// All other addresses of the overlay lead nowhere, above all not to a default gateway.
const UNREACHABLE: Route = Route {
    destination: address_of(address::OVERLAY),
    prefix_length: address::OVERLAY_PREFIX_LENGTH,
    target: RouteTarget::Unreachable,
};

const fn address_of([a, b, c, d]: [u8; 4]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}
