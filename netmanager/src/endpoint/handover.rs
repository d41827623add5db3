//! Making a link whose container's end somebody else moves into the container and sets up, as Docker does.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use rtnetlink::LinkUnspec;

use super::host_end::HostEnd;
use super::{Error, Fault, Namespace, Result, Step, Undo, name};
use crate::host::Netlink;

/// What is to be handed over, and where.
#[derive(Clone, Debug)]
pub struct HandOverOptions {
    /// The node whose endpoint it is. Without spaces.
    pub node_id: String,
    /// What is behind the link, as `<service>.<instance>`.
    pub endpoint: String,
    /// Where the container's end is put, for the other to find.
    pub home: Namespace,
    /// The namespace address, which nobody else may be attaching at the same time.
    pub address: Ipv4Addr,
    /// Ethernet address of the container's end.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The step that is to fail, in tests.
    pub fault: Fault,
}

/// A link whose container's end waits to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Index of the host's end.
    pub host_interface: u32,
    pub host_interface_name: String,
    /// What the kernel calls the namespace of the container's end while nobody has moved it; none for the host's own.
    pub home: Option<i32>,
}

/// Name under which the container's end waits.
pub fn waiting_name(node_id: &str, address: Ipv4Addr) -> String {
    name::waiting_link(node_id, address)
}

/// Makes a link, and leaves its other end to be moved into a container. Address, routes and setting it up are up to
/// whoever moves it; where the gateway is, the data plane answers. What was done is noted in `undo`, which the caller
/// rolls back when this fails, or when something fails that it does afterwards. `guard` does something with the host's
/// end, given by index and name, before anything can be sent through it.
///
/// # Errors
/// [`Error::InUse`] when the address belongs to another endpoint, or whatever the kernel or `guard` refuses.
pub async fn hand_over(
    netlink: &Netlink,
    options: &HandOverOptions,
    undo: &mut Undo,
    guard: impl FnOnce(u32, &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send,
) -> Result<HandedOver> {
    let HandOverOptions {
        node_id,
        endpoint,
        home,
        address,
        mac,
        mtu,
        fault,
    } = options;
    let end = HostEnd::new(netlink, (node_id, endpoint), *address, *mtu, *fault)?;
    end.check(Step::CreateLink)?;
    if end.existing().await?.is_some() {
        tracing::info!(link = end.name, "replacing a link that was never moved");
        end.delete().await?;
    }
    let waiting = waiting_name(node_id, *address);
    let container = LinkUnspec::new_with_name(&waiting)
        .mtu(*mtu)
        .address(mac.to_vec())
        .setns_by_fd(home.as_raw_fd())
        .build();
    let host = end.create(&waiting, container, undo).await?;
    end.name_owner(&host).await?;
    end.check(Step::AttachProgram)?;
    guard(host.index, &host.name).map_err(Error::Guard)?;
    end.set_up(&host).await?;
    end.add_route(&host).await?;
    Ok(HandedOver {
        host_interface: host.index,
        host_interface_name: host.name,
        home: host.peer_namespace,
    })
}

/// Ethernet address of a container's end, unless somebody wants another.
pub fn container_mac(node_id: &str, address: Ipv4Addr) -> [u8; 6] {
    name::mac(node_id, address, name::End::Container)
}
