//! Who may take a placement: a cluster, or a node.

use std::collections::BTreeSet;
use std::fmt;

use protocol::cluster::Capacity;
use protocol::ports::{PortMapping, TransportProtocol};

/// What a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Cluster,
    Node,
}

/// What is to be known of a cluster or a node in order to place something there.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub tier: Tier,
    pub id: String,
    /// For people.
    pub name: String,
    /// Name of the cluster that it is, or is in.
    pub cluster: String,
    /// Names of the hosts that it is, or has.
    pub hosts: Vec<String>,
    /// Whether it is connected and has shown signs of life.
    pub active: bool,
    pub virtualization: Vec<String>,
    pub architectures: Vec<String>,
    /// Cores there are, and cores that are not reserved.
    pub vcpus: u64,
    pub vcpus_free: u64,
    /// MiB there are, and MiB that are not reserved.
    pub memory: u64,
    pub memory_free: u64,
    /// The most that one placement can get now.
    pub largest_vcpus: u64,
    /// MiB.
    pub largest_memory: u64,
    /// The most that one placement could get if nothing were reserved; at least what it can get now.
    pub largest_vcpus_ever: u64,
    /// MiB.
    pub largest_memory_ever: u64,
    pub vgpus: u64,
    pub vgpus_free: u64,
    /// Published by others already; empty for a cluster, which has many nodes.
    pub ports_taken: BTreeSet<HostPort>,
    /// Instances that are placed there.
    pub instances: u32,
}

impl Candidate {
    /// A cluster, which counts as active when it is `connected` and has an active node.
    pub fn cluster(id: &str, name: &str, connected: bool, capacity: &Capacity, instances: u32) -> Self {
        Self {
            tier: Tier::Cluster,
            id: id.to_owned(),
            name: name.to_owned(),
            cluster: name.to_owned(),
            hosts: capacity.hosts.clone(),
            active: connected && capacity.active_nodes > 0,
            virtualization: capacity.virtualization.clone(),
            architectures: capacity.architectures.clone(),
            vcpus: capacity.vcpus,
            vcpus_free: capacity.vcpus_free,
            memory: capacity.memory,
            memory_free: capacity.memory_free,
            largest_vcpus: capacity.largest_vcpus,
            largest_memory: capacity.largest_memory,
            // Not told; the sum is what no node exceeds.
            largest_vcpus_ever: capacity.vcpus,
            largest_memory_ever: capacity.memory,
            vgpus: capacity.vgpus,
            vgpus_free: capacity.vgpus,
            ports_taken: BTreeSet::new(),
            instances,
        }
    }
}

/// A port of a node that a service publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub protocol: TransportProtocol,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "port {}/{}", self.port, self.protocol)
    }
}

/// The ports of the host in a list of published ports. What cannot be read was refused with the descriptor, and is
/// left out here.
pub fn host_ports(text: &str) -> Vec<HostPort> {
    text.split(';')
        .filter_map(|part| part.parse::<PortMapping>().ok())
        .map(|mapping| HostPort {
            protocol: mapping.protocol,
            port: mapping.host,
        })
        .collect()
}
