//! The ways to other nodes, kept as the kernel's routes and neighbours say.

use std::time::Duration;

use dataplane_ebpf::tables::node_flags;
use nix::time::{ClockId, clock_gettime};

use super::Node;
use crate::directory::{Ethernet, NodeKey, Path};
use crate::host::uplink::{self, PathTo};

/// How long a confirmed neighbour's address is used without asking the kernel. Longer than two rounds of
/// [`CONFIRM_EVERY`], so that a living NetManager always renews it in time; after a dead one the kernel resolves
/// neighbours itself.
const VALID_FOR: Duration = Duration::from_secs(60);
/// How often neighbours are confirmed.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(20);

impl Node {
    /// The way to a node, as it is now.
    ///
    /// # Errors
    /// When there is no route.
    pub(super) async fn path_to(&self, key: NodeKey) -> crate::host::Result<Path> {
        let route = uplink::route_to(&self.netlink, key.address).await?;
        let neighbour = uplink::neighbour(&self.netlink, route.interface, route.next_hop).await?;
        if !neighbour.is_some_and(|neighbour| neighbour.is_confirmed()) {
            uplink::resolve(&self.netlink, route.interface, route.next_hop).await?;
        }
        let ethernet = neighbour.map(|neighbour| Ethernet {
            next_hop: neighbour.mac,
            own: route.local_mac,
            valid_until: neighbour
                .is_confirmed()
                .then(|| monotonic_nanoseconds() + VALID_FOR.as_nanos() as u64),
        });
        let PathTo {
            interface,
            source,
            mtu,
            ..
        } = route;
        Ok(Path {
            interface,
            source,
            mtu,
            ethernet,
            flags: 0,
        })
    }

    /// Brings the ways to all nodes up to date. A node without a route is marked as unreachable: packets to it are
    /// dropped and counted, and flows go on when the route is back.
    pub(super) async fn refresh_paths(&self) {
        let keys = self.directory().node_keys();
        for key in keys {
            let path = match self.path_to(key).await {
                Ok(path) => path,
                Err(error) => {
                    tracing::warn!(%error, node = %key.address, "no way to a node");
                    let flags = node_flags::UNREACHABLE;
                    Path {
                        interface: 0,
                        source: key.address,
                        mtu: 0,
                        ethernet: None,
                        flags,
                    }
                }
            };
            if let Err(error) = self.directory().update_node(key, &path) {
                tracing::error!(%error, node = %key.address, "cannot write the way to a node");
            }
        }
    }
}

/// The clock that the programs read.
fn monotonic_nanoseconds() -> u64 {
    // Every Linux has this clock; were it missing, no address would be valid, which is safe.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
