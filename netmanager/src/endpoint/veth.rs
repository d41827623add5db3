//! Attaching a container by a veth pair, and taking it off again.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use dataplane_ebpf::address::GATEWAY;
use rtnetlink::LinkUnspec;

use super::host_end::{HostEnd, delete_pair};
use super::name::{self, End};
use super::{Error, Fault, Namespace, Result, Step, Undo};
use crate::host::changes::Changes;
use crate::host::netlink::{InterfaceAddress, Link};
use crate::host::{self, Errors, Netlink, Route, RouteTarget};

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// The node whose endpoint it is. Without spaces.
    pub node_id: String,
    /// What is behind the link, as `<service>.<instance>`.
    pub endpoint: String,
    /// A process in the container's network namespace.
    pub pid: u32,
    /// The namespace address, which nobody else may be attaching at the same time.
    pub address: Ipv4Addr,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The step that is to fail, in tests.
    pub fault: Fault,
}

/// An endpoint's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Index of the host's end.
    pub host_interface: u32,
    pub host_interface_name: String,
    pub container_interface_name: String,
    /// Ethernet address of the container's end.
    pub mac: [u8; 6],
    /// Ethernet address of the host's end, which is the gateway's for the container.
    pub host_mac: [u8; 6],
}

/// A link that an earlier process has made for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of the host's end.
    pub interface: u32,
    pub name: String,
    /// The namespace address it was made for.
    pub address: Ipv4Addr,
    /// What is behind it; none when the process ended before it noted that, so that nothing can be.
    pub endpoint: Option<String>,
    /// What the kernel calls the namespace of the container's end; none for this one.
    pub peer_namespace: Option<i32>,
}

/// Attaches a container. What was done is noted in `undo`, which the caller rolls back when this fails, or
/// when something fails that it does afterwards. An endpoint that is attached already is left as it is.
///
/// # Errors
/// [`Error::InUse`] when the address belongs to another endpoint, [`Error::HostNamespace`] when the process
/// has no network of its own, a namespace that is gone, or whatever the kernel refuses.
pub async fn attach(netlink: &Netlink, options: &AttachOptions, undo: &mut Undo) -> Result<Attached> {
    attach_guarded(netlink, options, undo, |_interface, _name| Ok(())).await
}

/// As [`attach`], and lets `guard` do something with the host's end, given by index and name, before anything can be
/// sent through it.
///
/// # Errors
/// As [`attach`], and those of `guard`.
pub async fn attach_guarded(
    netlink: &Netlink,
    options: &AttachOptions,
    undo: &mut Undo,
    guard: impl FnOnce(u32, &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send,
) -> Result<Attached> {
    let attachment = Attachment::prepare(netlink, options).await?;
    let (host, container) = attachment.pair(undo).await?;
    attachment.host.name_owner(&host).await?;
    attachment.check(Step::AttachProgram)?;
    guard(host.index, &host.name).map_err(Error::Guard)?;
    attachment.host.set_up(&host).await?;
    attachment.set_up_loopback(undo).await?;
    attachment.set_up_container(&container).await?;
    attachment.host.add_route(&host).await?;
    wait_until_operational(netlink, &host).await?;
    Ok(Attached {
        host_interface: host.index,
        host_interface_name: host.name,
        container_interface_name: container.name,
        mac: attachment.mac(End::Container),
        host_mac: attachment.mac(End::Host),
    })
}

/// Whether a process can be attached: it is there, and has a network of its own.
///
/// # Errors
/// As [`attach`].
pub fn check_process(pid: u32) -> Result<()> {
    own_namespace(pid).map(drop)
}

fn own_namespace(pid: u32) -> Result<Namespace> {
    let namespace = Namespace::of_process(pid)?;
    if namespace.is(&Namespace::current()?)? {
        return Err(Error::HostNamespace(pid));
    }
    Ok(namespace)
}

/// Takes an endpoint off; success when it is not there.
///
/// # Errors
/// Everything that could not be removed.
pub async fn detach(netlink: &Netlink, node_id: &str, address: Ipv4Addr) -> Result<(), Errors> {
    let mut errors = Errors::default();
    // Addresses, routes and settings at both ends go with the link.
    errors.collect(delete_pair(netlink, &name::host_link(node_id, address)).await);
    // Unless somebody has moved the link away.
    errors.collect(netlink.remove_route(address, 32).await);
    errors.into_result()
}

/// The links of this node's endpoints, for adoption and for cleaning up.
///
/// # Errors
/// The kernel refuses the question.
pub async fn list(netlink: &Netlink, node_id: &str) -> Result<Vec<Found>> {
    let found = |link: Link| {
        let address = name::address_in(&link.name, node_id).filter(|_| link.veth)?;
        let endpoint = match &link.alias {
            Some(alias) => Some(name::endpoint_in(alias, node_id)?.to_owned()),
            None => None,
        };
        Some(Found {
            interface: link.index,
            name: link.name,
            address,
            endpoint,
            peer_namespace: link.peer_namespace,
        })
    };
    Ok(netlink.links().await?.into_iter().filter_map(found).collect())
}

/// Waits until the kernel sends to the container: it puts the queue of a link in place some time after both ends are
/// up, and drops what goes out before.
async fn wait_until_operational(netlink: &Netlink, host: &Link) -> Result<()> {
    let mut changes = Changes::open()?;
    let operational = async {
        loop {
            match netlink.link_by_index(host.index).await? {
                Some(link) if link.operational => return Ok(()),
                Some(_) => {}
                None => return Err(Error::Vanished(host.name.clone())),
            }
            changes.next().await?;
        }
    };
    match tokio::time::timeout(OPERATIONAL, operational).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => {
            // It may well be in a moment; whoever sends then tries again.
            tracing::warn!(interface = host.name, "a link is slow to come up");
            Ok(())
        }
    }
}

/// Sets it down, with only the addresses it had before.
async fn set_loopback_down(inside: &Netlink, index: u32, before: &[InterfaceAddress]) -> host::Result<()> {
    inside.set_link_up(LOOPBACK, index, false).await?;
    // The kernel gives it 127.0.0.1 when it goes up, and leaves it there.
    for address in inside.addresses(Some(index)).await? {
        if !before.contains(&address) {
            inside.remove_address(&address).await?;
        }
    }
    Ok(())
}

const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(GATEWAY[0], GATEWAY[1], GATEWAY[2], GATEWAY[3]);
const LOOPBACK: &str = "lo";
/// How long a link may take until it is operational; the kernel needs a second at most.
const OPERATIONAL: Duration = Duration::from_secs(2);

/// One run of [`attach`]. Objects that hang on the link are undone with it, so only the link and the loopback
/// are noted.
struct Attachment<'a> {
    options: &'a AttachOptions,
    host: HostEnd<'a>,
    namespace: Namespace,
    /// The container's.
    inside: Netlink,
}

impl<'a> Attachment<'a> {
    async fn prepare(netlink: &'a Netlink, options: &'a AttachOptions) -> Result<Self> {
        let AttachOptions {
            node_id,
            endpoint,
            pid,
            address,
            mtu,
            fault,
        } = options;
        let host = HostEnd::new(netlink, (node_id, endpoint), *address, *mtu, *fault)?;
        fault.check(Step::OpenNamespace)?;
        let namespace = own_namespace(*pid)?;
        let inside = namespace.netlink().await?;
        Ok(Self {
            options,
            host,
            namespace,
            inside,
        })
    }

    fn check(&self, step: Step) -> Result<()> {
        self.host.check(step)
    }

    fn mac(&self, end: End) -> [u8; 6] {
        name::mac(&self.options.node_id, self.options.address, end)
    }

    /// The pair, as it is or anew: the host's end and the container's.
    async fn pair(&self, undo: &mut Undo) -> Result<(Link, Link)> {
        self.check(Step::CreateLink)?;
        if let Some(host) = self.host.existing().await? {
            if let Some(container) = self.other_end(&host).await? {
                return Ok((host, container));
            }
            // The same endpoint in a namespace that is on its way out, or a link that was never finished.
            tracing::info!(link = host.name, "replacing a link that leads elsewhere");
            self.host.delete().await?;
        }
        self.create_pair(undo).await
    }

    /// The container's end of a link that exists, if it is in this namespace and as it should be.
    async fn other_end(&self, host: &Link) -> Result<Option<Link>> {
        let Some(index) = host.peer.filter(|_| host.veth && host.peer_namespace.is_some()) else {
            return Ok(None);
        };
        let container = self.inside.link_by_index(index).await?;
        Ok(container.filter(|container| {
            container.veth
                && container.peer == Some(host.index)
                && container.mac == Some(self.mac(End::Container))
                && host.mac == Some(self.mac(End::Host))
        }))
    }

    async fn create_pair(&self, undo: &mut Undo) -> Result<(Link, Link)> {
        let inside_name = self.free_name().await?;
        let container = LinkUnspec::new_with_name(&inside_name)
            .mtu(self.options.mtu)
            .address(self.mac(End::Container).to_vec())
            .setns_by_fd(self.namespace.as_raw_fd())
            .build();
        let host = self.host.create(&inside_name, container, undo).await?;
        let container = self.inside.link_by_name(&inside_name).await?;
        let container = container.ok_or(Error::Vanished(inside_name))?;
        Ok((host, container))
    }

    /// The first of eth0, eth1, … that the container does not have.
    async fn free_name(&self) -> Result<String> {
        let links = self.inside.links().await?;
        let taken = |name: &String| links.iter().any(|link| link.name == *name);
        let mut names = (0..=links.len())
            .map(|number| format!("eth{number}"))
            .filter(|name| !taken(name));
        names
            .next()
            .ok_or_else(|| Error::Vanished("a free name".to_owned()))
    }

    /// Docker and others have it up; a bare namespace has not.
    async fn set_up_loopback(&self, undo: &mut Undo) -> Result<()> {
        self.check(Step::SetLoopbackUp)?;
        let lo = self.inside.link_by_name(LOOPBACK).await?;
        let lo = lo.ok_or_else(|| Error::Vanished(LOOPBACK.to_owned()))?;
        if lo.up {
            return Ok(());
        }
        let before = self.inside.addresses(Some(lo.index)).await?;
        let inside = self.inside.clone();
        undo.push("set lo down", move || async move {
            set_loopback_down(&inside, lo.index, &before).await
        });
        self.inside.set_link_up(LOOPBACK, lo.index, true).await?;
        Ok(())
    }

    async fn set_up_container(&self, container: &Link) -> Result<()> {
        let Link {
            index: interface,
            name,
            ..
        } = container;
        self.check(Step::AddAddress)?;
        self.inside
            .ensure_address(name, *interface, self.options.address, 32)
            .await?;
        self.check(Step::SetContainerLinkUp)?;
        let up = LinkUnspec::new_with_index(*interface)
            .mtu(self.options.mtu)
            .up()
            .build();
        self.inside.set_link("set up", name, up).await?;
        self.check(Step::AddGatewayNeighbour)?;
        self.inside
            .ensure_neighbour(name, *interface, GATEWAY_ADDRESS, self.mac(End::Host))
            .await?;
        self.check(Step::AddGatewayRoute)?;
        let target = RouteTarget::Link {
            interface: *interface,
        };
        let gateway = Route {
            destination: GATEWAY_ADDRESS,
            prefix_length: 32,
            target,
        };
        self.inside.ensure_route(&gateway).await?;
        self.check(Step::AddDefaultRoute)?;
        let target = RouteTarget::Gateway {
            interface: *interface,
            gateway: GATEWAY_ADDRESS,
        };
        let default = Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix_length: 0,
            target,
        };
        self.inside.ensure_route(&default).await?;
        Ok(())
    }
}
