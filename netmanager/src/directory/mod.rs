//! Who is where: the user side of the tables.
//!
//! The directory turns records (this service has these instances, this instance lives there) into map writes, in
//! an order in which a packet never finds half of a change: an instance before the slot that names it, a
//! generation of backends before the service that points to it, the index of an instance before its address.
//! It holds no knowledge of its own beyond what the maps hold, so a new process reads it back from them.

mod adopt;
mod choice;
mod indexes;
mod instances;
mod look;
mod nodes;
mod published;
mod services;
mod usage;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use aya::maps::MapError;
use tokio::sync::Notify;

use crate::dataplane::{CounterRow, DataplaneError, Tables, read_counters};
use indexes::Indexes;

pub use choice::Policy;
pub use instances::{LocalEndpoint, RemoteInstance};
pub use look::{Fill, NodeView, ServiceTraffic};
pub use nodes::{Ethernet, KnownPath, NodeKey, Path};
pub use services::{InstanceView, ServiceView};
pub use usage::ServiceUse;

/// How long a freed index of an instance is kept from reuse: this many others are handed out first.
const INDEX_QUARANTINE: usize = 1_024;

/// An instance as the maps hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KnownInstance {
    index: u32,
    incarnation: u64,
    namespace_address: Ipv4Addr,
    /// Index in `NODES`; `THIS_NODE` for an endpoint of this node.
    node: u32,
}

/// A service address as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownService {
    id: u32,
    generation: u32,
    policy: Policy,
    /// Indexes of the instances that may be chosen, in the order in which they were said.
    candidates: Vec<u32>,
    /// Those of them that are, in the order of slots.
    backends: Vec<u32>,
}

/// A node as the maps hold it.
#[derive(Clone, Debug)]
struct KnownNode {
    index: u32,
    group: u32,
    /// Index of the interface towards it.
    interface: u32,
    /// Round trip in microseconds; zero while it is not known.
    round_trip: u32,
    /// It does not answer, and takes no new flows.
    silent: bool,
}

/// The tables and what is in them.
pub struct Directory {
    tables: Tables,
    node_id: String,
    instances: HashMap<Ipv4Addr, KnownInstance>,
    /// Address of each instance by its index.
    addresses: HashMap<u32, Ipv4Addr>,
    instance_indexes: Indexes,
    nodes: HashMap<NodeKey, KnownNode>,
    /// Each node by its index.
    node_keys: HashMap<u32, NodeKey>,
    /// Raised with every node that comes, goes, or is reached by another interface.
    nodes_version: u64,
    /// Indexes of the instances on each node, by its index.
    instances_on: HashMap<u32, BTreeSet<u32>>,
    /// Addresses of the services that each instance may be chosen for, by its index.
    services_of: HashMap<u32, BTreeSet<Ipv4Addr>>,
    node_indexes: Indexes,
    group_indexes: Indexes,
    services: HashMap<Ipv4Addr, KnownService>,
    service_ids: Indexes,
    /// Service addresses by the name of their service; learnt anew by a new process.
    names: HashMap<String, Vec<Ipv4Addr>>,
    /// Name of the service that each service address belongs to.
    owners: HashMap<Ipv4Addr, String>,
    /// Instances of each named service, by the address they show.
    members: HashMap<String, Vec<Ipv4Addr>>,
    /// An instance has ended, and its flows with it.
    endings: Arc<Notify>,
}

impl Directory {
    /// What happened to packets so far.
    ///
    /// # Errors
    /// When the kernel refuses to read the counters.
    pub fn counters(&self) -> Result<Vec<CounterRow>, DataplaneError> {
        read_counters(&self.tables)
    }

    /// Replaces the set of this node's own addresses.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn set_local_addresses(&mut self, addresses: &[Ipv4Addr]) -> Result<(), DataplaneError> {
        let name = "LOCAL_ADDRESSES";
        for address in addresses {
            let result = self.tables.local_addresses.insert(address.octets(), 1, 0);
            result
                .map_err(|source| written(name, dataplane_ebpf::tables::capacity::LOCAL_ADDRESSES, source))?;
        }
        let present: Vec<_> = self
            .tables
            .local_addresses
            .keys()
            .filter_map(Result::ok)
            .collect();
        for address in present {
            if !addresses.contains(&Ipv4Addr::from(address)) {
                removed(name, self.tables.local_addresses.remove(&address))?;
            }
        }
        Ok(())
    }

    /// Whether a packet to this address would find its way: it is a service or an instance that is known.
    pub fn knows(&self, address: Ipv4Addr) -> bool {
        self.instances.contains_key(&address) || self.services.contains_key(&address)
    }
}

/// Gives a failed write its meaning: a hash that is full says `E2BIG`.
fn written(name: &'static str, entries: u32, source: MapError) -> DataplaneError {
    if let MapError::SyscallError(error) = &source
        && error.io_error.raw_os_error() == Some(libc::E2BIG)
    {
        return DataplaneError::Full { name, entries };
    }
    DataplaneError::Map {
        name,
        operation: "writing",
        source,
    }
}

/// Removing what is not there is no failure.
fn removed(name: &'static str, result: Result<(), MapError>) -> Result<(), DataplaneError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(DataplaneError::Map {
            name,
            operation: "removing from",
            source,
        }),
    }
}
