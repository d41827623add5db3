//! What is in the tables, for people and for metrics.

use std::net::Ipv4Addr;

use dataplane_ebpf::tables::{Counter, THIS_NODE, capacity, node_flags};
use serde::{Deserialize, Serialize};

use super::Directory;
use crate::clock::monotonic_nanoseconds;
use crate::dataplane::{CounterRow, DataplaneError, read_all_counters};
use crate::trace::{Question, Site, Trace, trace};

/// A node, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Where its tunnel listens.
    pub address: Ipv4Addr,
    pub port: u16,
    /// The interface towards it; empty while there is no way to it.
    pub interface: String,
    /// Outer source address of what is sent there.
    pub local: Ipv4Addr,
    /// Largest outer packet on the way, in bytes.
    pub mtu: u32,
    /// Ethernet address of the next hop, where it is known.
    pub next_hop: Option<String>,
    /// Whether frames are addressed to it without asking the kernel.
    pub next_hop_valid: bool,
    /// Whether there is a way to it and it is not known to be silent.
    pub alive: bool,
    /// Whether it is behind a NAT that maps by source port.
    pub fixed_source_port: bool,
    /// Instances on it that are known here.
    pub instances: usize,
    /// Smoothed round trip and its mean deviation, in microseconds; `None` when it is not measured.
    pub round_trip_us: Option<u64>,
    pub deviation_us: Option<u64>,
    /// The share of probes that are lost, 0 to 1.
    pub loss: f64,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub map: &'static str,
    pub used: u64,
    pub entries: u32,
}

/// What went to a service and came from it, by clients on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTraffic {
    pub name: String,
    pub address: Ipv4Addr,
    pub sent: Counter,
    pub received: Counter,
}

impl Directory {
    /// All nodes, in the order of their addresses.
    ///
    /// # Errors
    /// When the kernel refuses to read the table.
    pub fn nodes(&self) -> Result<Vec<NodeView>, DataplaneError> {
        let now = monotonic_nanoseconds();
        let mut views = Vec::with_capacity(self.nodes.len());
        for (key, known) in &self.nodes {
            let node = self
                .tables
                .nodes
                .get(&known.index, 0)
                .map_err(|source| DataplaneError::Map {
                    name: "NODES",
                    operation: "reading",
                    source,
                })?;
            let hop = &node.ethernet[..6];
            let hexadecimal: Vec<String> = hop.iter().map(|byte| format!("{byte:02x}")).collect();
            views.push(NodeView {
                address: key.address,
                port: key.port,
                interface: crate::node::interface_name(node.interface),
                local: node.local.into(),
                mtu: node.mtu,
                next_hop: (hop != [0; 6]).then(|| hexadecimal.join(":")),
                next_hop_valid: now < node.valid_until,
                alive: node.interface != 0 && node.flags & node_flags::UNREACHABLE == 0,
                fixed_source_port: node.flags & node_flags::FIXED_SOURCE_PORT != 0,
                instances: self
                    .instances_on
                    .get(&known.index)
                    .map_or(0, std::collections::BTreeSet::len),
                round_trip_us: (node.round_trip != 0).then_some(node.round_trip.into()),
                deviation_us: None,
                loss: 0.0,
            });
        }
        views.sort_by_key(|view| (view.address, view.port));
        Ok(views)
    }

    /// As [`Self::counters`], with those that are zero.
    ///
    /// # Errors
    /// As [`Self::counters`].
    pub fn all_counters(&self) -> Result<Vec<CounterRow>, DataplaneError> {
        read_all_counters(&self.tables)
    }

    /// What the data plane would do with a packet.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    pub fn trace(&self, site: Site, question: &Question) -> Result<Trace, DataplaneError> {
        let name = |address| self.service_name(address).map(str::to_owned);
        trace(&self.tables, site, &name, question)
    }

    /// The addresses of the services with this name, or this address.
    pub fn addresses_of_service(&self, service: &str) -> Vec<Ipv4Addr> {
        match service.parse() {
            Ok(address) => vec![address],
            Err(_) => self.names.get(service).cloned().unwrap_or_default(),
        }
    }

    /// Where the instance with this index is, while it is that incarnation: the address that it shows, its namespace
    /// address, and its node; no node for this one.
    pub fn instance_of_flow(
        &self,
        index: u32,
        incarnation: u64,
    ) -> Option<(Ipv4Addr, Ipv4Addr, Option<String>)> {
        let address = self.addresses.get(&index)?;
        let known = self.instances.get(address)?;
        let node = self.node_keys.get(&known.node);
        (known.incarnation == incarnation).then(|| {
            let node = node
                .filter(|_| known.node != THIS_NODE)
                .map(|key| format!("{}:{}", key.address, key.port));
            (*address, known.namespace_address, node)
        })
    }

    /// How full the maps are that only user space fills.
    pub fn fill(&self) -> Vec<Fill> {
        let local = self.instances.values().filter(|known| known.node == THIS_NODE);
        let backends: usize = self.services.values().map(|service| service.backends.len()).sum();
        let rows = [
            ("INSTANCES", self.instances.len(), capacity::INSTANCES),
            ("NODES", self.nodes.len(), capacity::NODES),
            ("ENDPOINTS", local.count(), capacity::ENDPOINTS),
            ("SERVICES", self.services.len(), capacity::SERVICES),
            ("BACKENDS", backends, capacity::BACKENDS),
            (
                "LOCAL_ADDRESSES",
                self.tables.local_addresses.keys().count(),
                capacity::LOCAL_ADDRESSES,
            ),
            (
                "PUBLISHED",
                self.tables.published.keys().count(),
                capacity::PUBLISHED,
            ),
        ];
        rows.map(|(map, used, entries)| Fill {
            map,
            used: used as u64,
            entries,
        })
        .to_vec()
    }

    /// What went to the services and came from them, in the order of their addresses; of the first `limit`.
    ///
    /// # Errors
    /// When the kernel refuses to read the counters.
    pub fn service_traffic(&self, limit: usize) -> Result<Vec<ServiceTraffic>, DataplaneError> {
        let mut services: Vec<_> = self
            .services
            .iter()
            .filter(|(_, service)| service.id < capacity::SERVICE_COUNTERS - 1)
            .collect();
        services.sort_by_key(|(address, _)| **address);
        let mut rows = Vec::new();
        for (address, service) in services.into_iter().take(limit) {
            let values = self
                .tables
                .service_counters
                .get(&service.id, 0)
                .map_err(|source| DataplaneError::Map {
                    name: "SERVICE_COUNTERS",
                    operation: "reading",
                    source,
                })?;
            let sum = |of: fn(&dataplane_ebpf::tables::ServiceCounter) -> Counter| Counter {
                packets: values.iter().map(|value| of(value).packets).sum(),
                bytes: values.iter().map(|value| of(value).bytes).sum(),
            };
            rows.push(ServiceTraffic {
                name: self.service_name(*address).unwrap_or_default().to_owned(),
                address: *address,
                sent: sum(|value| value.sent),
                received: sum(|value| value.received),
            });
        }
        Ok(rows)
    }
}
