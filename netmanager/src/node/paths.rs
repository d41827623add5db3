//! The ways to other nodes, kept as the kernel's routes and neighbours say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane_ebpf::tables::node_flags;

use super::{Node, lock};
use crate::clock::monotonic_nanoseconds;
use crate::directory::{Ethernet, NodeKey, Path};
use crate::host::uplink::{self, PathTo};

/// How long a confirmed neighbour's address is used without asking the kernel. Longer than two rounds of
/// [`CONFIRM_EVERY`], so that a living NetManager always renews it in time; after a dead one the kernel resolves
/// neighbours itself.
const VALID_FOR: Duration = Duration::from_secs(60);
/// How often neighbours are confirmed.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(20);

/// Whether the kernel is made to look for a next hop that it is not sure of. Its outcome is a change of the
/// neighbour, so whoever follows those must not ask for more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    Always,
    /// Only if nothing went by that next hop before.
    WhenNew,
}

/// A next hop: the interface and the address on it.
pub type Hop = (u32, Ipv4Addr);

/// Which nodes are behind which next hop, as last seen.
#[derive(Debug, Default)]
pub struct Hops {
    of: BTreeMap<NodeKey, Hop>,
    behind: BTreeMap<Hop, BTreeSet<NodeKey>>,
}

impl Hops {
    /// Notes where the way to a node begins; whether no other way begins there.
    fn note(&mut self, key: NodeKey, hop: Hop) -> bool {
        let is_new = !self.behind.contains_key(&hop);
        if self.of.get(&key) != Some(&hop) {
            self.forget(key);
            self.of.insert(key, hop);
            self.behind.entry(hop).or_default().insert(key);
        }
        is_new
    }

    fn forget(&mut self, key: NodeKey) {
        let Some(hop) = self.of.remove(&key) else { return };
        if let Some(nodes) = self.behind.get_mut(&hop) {
            nodes.remove(&key);
            if nodes.is_empty() {
                self.behind.remove(&hop);
            }
        }
    }

    fn retain(&mut self, wanted: &[NodeKey]) {
        let wanted: BTreeSet<&NodeKey> = wanted.iter().collect();
        let unwanted: Vec<NodeKey> = self
            .of
            .keys()
            .filter(|key| !wanted.contains(key))
            .copied()
            .collect();
        for key in unwanted {
            self.forget(key);
        }
    }

    /// The nodes that any of these next hops leads to.
    pub fn nodes_behind<'a>(&self, hops: impl IntoIterator<Item = &'a Hop>) -> Vec<NodeKey> {
        let nodes = hops.into_iter().filter_map(|hop| self.behind.get(hop));
        nodes.flatten().copied().collect()
    }
}

impl Node {
    /// The way to a node, as it is now.
    ///
    /// # Errors
    /// When there is no route.
    pub(super) async fn path_to(&self, key: NodeKey, confirm: Confirm) -> crate::host::Result<Path> {
        let route = uplink::route_to(&self.netlink, key.address).await?;
        let is_new = lock(&self.hops).note(key, (route.interface, route.next_hop));
        let neighbour = uplink::neighbour(&self.netlink, route.interface, route.next_hop).await?;
        let is_confirmed = neighbour.is_some_and(|neighbour| neighbour.is_confirmed());
        if !is_confirmed && (is_new || confirm == Confirm::Always) {
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
        let learnt = lock(&self.path_mtus).get(key, Instant::now());
        Ok(Path {
            interface,
            source,
            mtu: learnt.map_or(mtu, |learnt| learnt.min(mtu)),
            ethernet,
            flags: 0,
        })
    }

    /// Brings the ways to all nodes up to date.
    pub(super) async fn refresh_all_paths(&self, confirm: Confirm) {
        let keys = self.directory().node_keys();
        lock(&self.hops).retain(&keys);
        lock(&self.path_mtus).retain(&keys);
        self.refresh_paths(keys, confirm).await;
    }

    /// Brings the ways to these nodes up to date. A node without a route is marked as unreachable: packets to it are
    /// dropped and counted, and flows go on when the route is back.
    pub(super) async fn refresh_paths(&self, keys: Vec<NodeKey>, confirm: Confirm) {
        for key in keys {
            let path = match self.path_to(key, confirm).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_concerns_the_nodes_behind_it_and_no_others() {
        let key = |last| NodeKey {
            address: Ipv4Addr::new(192, 0, 2, last),
            port: 50_103,
        };
        let (first, second) = ((2, Ipv4Addr::new(10, 0, 0, 1)), (3, Ipv4Addr::new(10, 0, 0, 1)));
        let mut hops = Hops::default();
        assert!(hops.note(key(1), first));
        assert!(!hops.note(key(2), first), "known by the other node");
        assert!(!hops.note(key(1), first));
        assert_eq!(hops.nodes_behind([&first, &second]), [key(1), key(2)]);

        assert!(hops.note(key(2), second), "the way has changed");
        assert_eq!(hops.nodes_behind([&first]), [key(1)]);
        assert_eq!(hops.nodes_behind([&second]), [key(2)]);
        hops.retain(&[key(2)]);
        assert_eq!(hops.nodes_behind([&first]), []);
        assert!(hops.note(key(3), first), "nothing goes there any more");
    }
}
