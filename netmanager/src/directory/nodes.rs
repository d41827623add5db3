//! Nodes: how each one is reached, and from which addresses each one sends.

use std::net::Ipv4Addr;

use dataplane_ebpf::tables::{Node, Peer, TunnelKey, capacity};

use super::{Directory, KnownNode, removed, written};
use crate::dataplane::DataplaneError;

/// What tells nodes apart: where their tunnel listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// How frames to a node are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    pub next_hop: [u8; 6],
    pub own: [u8; 6],
    /// Monotonic time in ns up to which the addresses may be used without asking the kernel; `None` when the
    /// neighbour has not been confirmed lately: then what was said before about the same addresses holds.
    pub valid_until: Option<u64>,
}

/// The way to a node, as the kernel's routes and neighbours say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the interface towards the node.
    pub interface: u32,
    /// Outer source address.
    pub source: Ipv4Addr,
    /// Largest outer packet, in bytes.
    pub mtu: u32,
    /// `None` while the neighbour is not known.
    pub ethernet: Option<Ethernet>,
    /// Bits of [`dataplane_ebpf::tables::node_flags`].
    pub flags: u16,
}

/// A node that is known, and how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownPath {
    pub key: NodeKey,
    /// Index in `NODES`.
    pub index: u32,
    /// Index of the interface towards it; zero while there is no way.
    pub interface: u32,
    /// Largest outer packet, in bytes.
    pub mtu: u32,
    /// Round trip in microseconds; zero while it is not known.
    pub round_trip: u32,
}

impl Directory {
    /// Enters a node, or brings its path up to date: one write, whatever flows go there.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write.
    pub fn set_node(&mut self, key: NodeKey, path: &Path) -> Result<(), DataplaneError> {
        let full = || DataplaneError::Full {
            name: "NODES",
            entries: capacity::NODES,
        };
        let known = match self.nodes.get(&key) {
            Some(known) => known.clone(),
            None => {
                let sibling = self.nodes.iter().find(|(other, _)| other.address == key.address);
                let group = match sibling.map(|(_, known)| known.group) {
                    Some(group) => group,
                    None => self.group_indexes.take().ok_or_else(full)?,
                };
                KnownNode {
                    index: self.node_indexes.take().ok_or_else(full)?,
                    group,
                    interface: 0,
                    round_trip: 0,
                    silent: false,
                }
            }
        };
        let (ethernet, valid_until) = self.ethernet(known.index, path)?;
        let value = Node {
            valid_until,
            ethernet,
            flags: path.flags,
            local: path.source.octets(),
            remote: key.address.octets(),
            interface: path.interface,
            group: known.group,
            port: key.port.to_be_bytes(),
            zero: [0; 2],
            mtu: path.mtu,
            round_trip: known.round_trip,
            zero_end: 0,
        };
        let KnownNode { index, group, .. } = known;
        if known.interface != path.interface {
            self.nodes_version += 1;
        }
        let known = KnownNode {
            interface: path.interface,
            ..known
        };
        self.nodes.insert(key, known);
        self.node_keys.insert(index, key);
        self.tables
            .nodes
            .set(index, value, 0)
            .map_err(|source| DataplaneError::Map {
                name: "NODES",
                operation: "writing",
                source,
            })?;
        let tunnel = tunnel_key(key);
        let result = self.tables.tunnels.insert(tunnel, index, 0);
        result.map_err(|source| written("TUNNELS", capacity::NODES, source))?;
        let peer = Peer {
            group,
            interface: path.interface,
        };
        let result = self.tables.peers.insert(key.address.octets(), peer, 0);
        result.map_err(|source| written("PEERS", capacity::NODES, source))
    }

    /// Brings the path of a node up to date, if the node is still known.
    ///
    /// # Errors
    /// As [`Self::set_node`].
    pub fn update_node(&mut self, key: NodeKey, path: &Path) -> Result<(), DataplaneError> {
        if self.nodes.contains_key(&key) {
            self.set_node(key, path)
        } else {
            Ok(())
        }
    }

    /// The Ethernet header towards a node, and how long it is valid.
    fn ethernet(&self, index: u32, path: &Path) -> Result<([u8; 14], u64), DataplaneError> {
        let Some(Ethernet {
            next_hop,
            own,
            valid_until,
        }) = path.ethernet
        else {
            return Ok(([0; 14], 0));
        };
        let mut header = [0; 14];
        header[..6].copy_from_slice(&next_hop);
        header[6..12].copy_from_slice(&own);
        header[12..].copy_from_slice(&dataplane_ebpf::header::ETHERTYPE_IPV4);
        if let Some(valid_until) = valid_until {
            return Ok((header, valid_until));
        }
        let failed = |source| DataplaneError::Map {
            name: "NODES",
            operation: "reading",
            source,
        };
        let before = self.tables.nodes.get(&index, 0).map_err(failed)?;
        let same = before.ethernet == header && before.interface == path.interface;
        Ok((header, if same { before.valid_until } else { 0 }))
    }

    /// Takes out nodes that no instance is on any more.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn forget_unused_nodes(&mut self) -> Result<Vec<NodeKey>, DataplaneError> {
        let used: std::collections::HashSet<u32> = self.instances.values().map(|known| known.node).collect();
        let unused: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| !used.contains(&node.index))
            .map(|(key, _)| *key)
            .collect();
        for key in &unused {
            self.forget_node(*key)?;
        }
        Ok(unused)
    }

    /// The nodes whose paths are to be kept up to date.
    pub fn node_keys(&self) -> Vec<NodeKey> {
        self.nodes.keys().copied().collect()
    }

    /// All nodes, in the order of addresses.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn known_paths(&self) -> Result<Vec<KnownPath>, DataplaneError> {
        let mut paths = Vec::with_capacity(self.nodes.len());
        for (key, known) in &self.nodes {
            let node = self.tables.nodes.get(&known.index, 0);
            let node = node.map_err(|source| DataplaneError::Map {
                name: "NODES",
                operation: "reading",
                source,
            })?;
            paths.push(KnownPath {
                key: *key,
                index: known.index,
                interface: known.interface,
                mtu: node.mtu,
                round_trip: known.round_trip,
            });
        }
        paths.sort_by_key(|path| path.key);
        Ok(paths)
    }

    /// Another number whenever a node has come, gone, or is reached by another interface.
    pub fn nodes_version(&self) -> u64 {
        self.nodes_version
    }

    /// Whether instances of this node can be entered.
    pub fn knows_node(&self, key: NodeKey) -> bool {
        self.nodes.contains_key(&key)
    }

    /// The largest tunnel datagram on the way to a node, in bytes, as the table has it.
    ///
    /// # Errors
    /// When the kernel refuses to read the table.
    pub fn mtu_of(&self, key: NodeKey) -> Result<Option<u32>, DataplaneError> {
        let Some(known) = self.nodes.get(&key) else {
            return Ok(None);
        };
        let node = self.tables.nodes.get(&known.index, 0);
        node.map(|node| Some(node.mtu))
            .map_err(|source| DataplaneError::Map {
                name: "NODES",
                operation: "reading",
                source,
            })
    }

    /// Whether tunnel datagrams from this address are taken.
    pub fn is_peer(&self, address: Ipv4Addr) -> bool {
        self.nodes.keys().any(|key| key.address == address)
    }

    /// Index of the interface by which tunnel datagrams from this address come in; `None` when it is no peer's.
    pub fn peer_interface(&self, address: Ipv4Addr) -> Option<u32> {
        let peer = self.tables.peers.get(&address.octets(), 0).ok()?;
        Some(peer.interface)
    }

    fn forget_node(&mut self, key: NodeKey) -> Result<(), DataplaneError> {
        let Some(known) = self.nodes.remove(&key) else {
            return Ok(());
        };
        self.nodes_version += 1;
        removed("TUNNELS", self.tables.tunnels.remove(&tunnel_key(key)))?;
        if !self.is_peer(key.address) {
            removed("PEERS", self.tables.peers.remove(&key.address.octets()))?;
            self.group_indexes.free(known.group);
        }
        self.tables
            .nodes
            .set(known.index, Node::default(), 0)
            .map_err(|source| DataplaneError::Map {
                name: "NODES",
                operation: "writing",
                source,
            })?;
        self.node_keys.remove(&known.index);
        self.node_indexes.free(known.index);
        Ok(())
    }
}

fn tunnel_key(key: NodeKey) -> TunnelKey {
    TunnelKey {
        address: key.address.octets(),
        port: key.port.to_be_bytes(),
        zero: [0; 2],
    }
}
