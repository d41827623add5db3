//! Whether the overlay's addresses are free on this host.

use std::net::Ipv4Addr;

use dataplane_ebpf::address::in_overlay;

use super::{Netlink, Result, oak0};
use crate::endpoint::name;

/// An address of this host in 10.16.0.0/12 that is not the overlay's own, with the name of its interface. A host
/// that has one is cut off once the overlay is in place: what comes from a wire towards 10.16.0.0/12 is dropped.
///
/// # Errors
/// The kernel refuses the question.
pub async fn foreign_address(netlink: &Netlink) -> Result<Option<(String, Ipv4Addr)>> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses(None).await?;
    let of_others = addresses.into_iter().filter_map(|address| {
        let link = links.iter().find(|link| link.index == address.interface)?;
        let own = link.name == oak0::NAME || name::is_host_link(&link.name);
        (in_overlay(address.address.octets()) && !own).then(|| (link.name.clone(), address.address))
    });
    Ok(of_others.min())
}
