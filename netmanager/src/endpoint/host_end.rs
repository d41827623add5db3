//! The host's end of an endpoint's link, which is the same whoever wires the container's.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVeth};

use super::name::{self, End};
use super::{Error, Fault, Result, Step, Undo};
use crate::host::netlink::Link;
use crate::host::{self, Netlink, Route, RouteTarget, sysctl};

/// Names, addresses and settings of a host's end.
pub(super) struct HostEnd<'a> {
    pub netlink: &'a Netlink,
    pub name: String,
    alias: String,
    address: Ipv4Addr,
    mtu: u32,
    fault: Fault,
}

impl<'a> HostEnd<'a> {
    /// That of the endpoint called `endpoint` of node `node_id`, which has this namespace address.
    pub fn new(
        netlink: &'a Netlink,
        (node_id, endpoint): (&str, &str),
        address: Ipv4Addr,
        mtu: u32,
        fault: Fault,
    ) -> Result<Self> {
        let alias = name::alias(node_id, endpoint).ok_or_else(|| Error::Alias {
            node_id: node_id.to_owned(),
            endpoint: endpoint.to_owned(),
        })?;
        Ok(Self {
            netlink,
            name: name::host_link(node_id, address),
            alias,
            address,
            mtu,
            fault,
        })
    }

    pub fn check(&self, step: Step) -> Result<()> {
        Ok(self.fault.check(step)?)
    }

    /// The link as it is, if there is one.
    ///
    /// # Errors
    /// [`Error::InUse`] when it is another endpoint's.
    pub async fn existing(&self) -> Result<Option<Link>> {
        let Some(host) = self.netlink.link_by_name(&self.name).await? else {
            return Ok(None);
        };
        match host.alias.clone().filter(|alias| *alias != self.alias) {
            Some(alias) => Err(Error::InUse {
                address: self.address,
                link: host.name,
                alias,
            }),
            None => Ok(Some(host)),
        }
    }

    /// Makes the pair; `container` describes the other end. The host's end.
    pub async fn create(
        &self,
        container_name: &str,
        container: LinkMessage,
        undo: &mut Undo,
    ) -> Result<Link> {
        let host = LinkVeth::new(&self.name, container_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(container)))
            .mtu(self.mtu)
            .address(name::mac("", self.address, End::Host).to_vec())
            .build();
        // Before it is done: a caller that is cancelled while the kernel works has to undo it as well.
        let (netlink, name) = (self.netlink.clone(), self.name.clone());
        undo.push(format!("delete link {name}"), move || async move {
            delete_pair(&netlink, &name).await
        });
        self.netlink.add_link(&self.name, host).await?;
        let host = self.netlink.link_by_name(&self.name).await?;
        host.ok_or_else(|| Error::Vanished(self.name.clone()))
    }

    pub async fn delete(&self) -> host::Result<()> {
        delete_pair(self.netlink, &self.name).await
    }

    /// Notes whose it is, and keeps IPv6 from it.
    pub async fn name_owner(&self, host: &Link) -> Result<()> {
        self.check(Step::SetAlias)?;
        let alias = LinkUnspec::new_with_index(host.index).alias(&self.alias).build();
        self.netlink
            .set_link("note the owner of", &host.name, alias)
            .await?;
        self.check(Step::DisableIpv6)?;
        // Before it is up, else it has a link-local address and says so. No IPv6 at all is as good.
        sysctl::write_if_different(&format!("net/ipv6/conf/{}/disable_ipv6", host.name), "1")?;
        Ok(())
    }

    pub async fn set_up(&self, host: &Link) -> Result<()> {
        self.check(Step::SetHostLinkUp)?;
        let up = LinkUnspec::new_with_index(host.index).mtu(self.mtu).up().build();
        self.netlink.set_link("set up", &host.name, up).await?;
        Ok(())
    }

    /// The way back for what is masqueraded, and for the host itself.
    pub async fn add_route(&self, host: &Link) -> Result<()> {
        self.check(Step::AddHostRoute)?;
        let target = RouteTarget::Link {
            interface: host.index,
        };
        let route = Route {
            destination: self.address,
            prefix_length: 32,
            target,
        };
        self.netlink.ensure_route(&route).await?;
        Ok(())
    }
}

/// Removes both ends of a pair; success when it is not there.
pub(super) async fn delete_pair(netlink: &Netlink, name: &str) -> host::Result<()> {
    match netlink.link_by_name(name).await? {
        Some(link) if link.veth => netlink.delete_link(name, link.index).await.map(drop),
        Some(_) => Err(host::Error::ForeignLink(name.to_owned())),
        None => Ok(()),
    }
}
