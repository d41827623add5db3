//! The way to a peer: interface, source address, next hop and its neighbour entry, and this host's addresses.

use std::net::Ipv4Addr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::absent_is_none;
use super::{Error, Netlink, Result, oak0};
use crate::endpoint::name;

/// How this host would send to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTo {
    /// Index of the interface.
    pub interface: u32,
    pub interface_name: String,
    /// The own address that the peer would see.
    pub source: Ipv4Addr,
    /// The gateway, or the peer itself when it is on the interface's network.
    pub next_hop: Ipv4Addr,
    /// Largest packet on the way in bytes, as far as it is known: the interface's, the route's, or what a
    /// router has reported.
    pub mtu: u32,
    pub local_mac: [u8; 6],
}

/// An entry of the neighbour table that has a link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub mac: [u8; 6],
    /// As the kernel has it; [`Self::is_confirmed`] says what it means.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Whether the kernel knows that the neighbour is there, so that the address may be used without asking
    /// it.
    pub fn is_confirmed(&self) -> bool {
        matches!(
            self.state,
            NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp
        )
    }
}

/// Which way packets to `peer` go.
///
/// # Errors
/// `ENETUNREACH` or `EHOSTUNREACH` when there is none, [`Error::LocalDestination`] for an own address,
/// [`Error::NotEthernet`] when it leads out of something else.
pub async fn route_to(netlink: &Netlink, peer: Ipv4Addr) -> Result<PathTo> {
    let missing = |missing| Error::Incomplete {
        operation: "find route to",
        object: peer.to_string(),
        missing,
    };
    let found = netlink.lookup(peer).await?;
    if found.kind == RouteType::Local {
        return Err(Error::LocalDestination(peer));
    }
    let interface = found.interface.ok_or_else(|| missing("interface"))?;
    let link = netlink
        .link_by_index(interface)
        .await?
        .ok_or_else(|| missing("interface"))?;
    let not_ethernet = || Error::NotEthernet {
        interface: link.name.clone(),
        destination: peer,
    };
    Ok(PathTo {
        interface,
        source: found.source.ok_or_else(|| missing("source"))?,
        next_hop: found.gateway.unwrap_or(peer),
        mtu: found.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        local_mac: link.mac.ok_or_else(not_ethernet)?,
        interface_name: link.name,
    })
}

/// The neighbour entry of `next_hop`, if it has an address that may be right: none when there is no entry,
/// when resolution is under way, or has failed.
///
/// # Errors
/// The kernel refuses the question.
pub async fn neighbour(netlink: &Netlink, interface: u32, next_hop: Ipv4Addr) -> Result<Option<Neighbour>> {
    let message = RouteNetlinkMessage::GetNeighbour(entry(interface, next_hop));
    let object = format!("{next_hop} on index {interface}");
    let answer = netlink.ask("look up neighbour", &object, message).await;
    let answer = absent_is_none(answer, libc::ENOENT)?.flatten();
    let Some(RouteNetlinkMessage::NewNeighbour(message)) = answer else {
        return Ok(None);
    };
    Ok(neighbour_of(&message))
}

/// Makes the kernel find out where `next_hop` is, as if somebody had a packet for it: an entry that is
/// missing or has failed is resolved, one that is old is confirmed. The outcome arrives as a
/// [`Change::Neighbour`](super::changes::Change).
///
/// # Errors
/// The kernel refuses, such as with `ENETDOWN` or `ENODEV`.
pub async fn resolve(netlink: &Netlink, interface: u32, next_hop: Ipv4Addr) -> Result<()> {
    let mut message = entry(interface, next_hop);
    message.header.flags = NeighbourFlags::Use;
    let object = format!("{next_hop} on index {interface}");
    let message = RouteNetlinkMessage::NewNeighbour(message);
    netlink
        .change(
            "resolve neighbour",
            &object,
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
}

/// This host's own IPv4 addresses by interface index, without those of loopback, `oak0` and the containers'
/// links.
///
/// # Errors
/// The kernel refuses the question.
pub async fn local_addresses(netlink: &Netlink) -> Result<Vec<(u32, Ipv4Addr)>> {
    let links = netlink.links().await?;
    let excluded = |index| {
        let link = links.iter().find(|link| link.index == index);
        link.is_some_and(|link| link.loopback || link.name == oak0::NAME || name::is_host_link(&link.name))
    };
    let addresses = netlink.addresses(None).await?;
    let own = addresses
        .iter()
        .filter(|address| !address.host_scope && !excluded(address.interface));
    Ok(own.map(|address| (address.interface, address.address)).collect())
}

fn entry(interface: u32, next_hop: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = interface;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(next_hop)));
    message
}

/// The entry, unless it is without an address that may be right.
pub(super) fn neighbour_of(message: &NeighbourMessage) -> Option<Neighbour> {
    let state = message.header.state;
    if matches!(
        state,
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
    ) {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::LinkLayerAddress(mac) = attribute {
            Some(mac.as_slice())
        } else {
            None
        }
    })?;
    Some(Neighbour {
        mac: mac.try_into().ok()?,
        state,
    })
}
