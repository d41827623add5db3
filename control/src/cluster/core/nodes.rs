//! The nodes: who they are, whether they live, and what they have left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use protocol::cluster::{Capacity, FromCluster, Lease};
use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Job};
use protocol::node::NodeInformation;
use serde::Serialize;
use tracing::{info, warn};

use super::super::bounds;
use super::super::records::{NodeRecord, Tunnel};
use super::super::secret::{self, Digest};
use super::{Core, Node, Stop};
use crate::scheduler::{Candidate, Tier, host_ports};

/// What a node gets when it registers.
pub struct Registration {
    pub id: String,
    pub password: String,
    /// Digests of the passwords that are valid from now on.
    pub passwords: Vec<Digest>,
    pub lease: Option<Lease>,
}

/// A node as people see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeView {
    pub id: String,
    pub host: String,
    pub ip: String,
    pub active: bool,
    pub vcpus: u64,
    pub vcpus_free: u64,
    /// MiB.
    pub memory: u64,
    pub memory_free: u64,
    pub cpu_percent: f64,
    pub memory_percent: f64,
    pub architecture: String,
    pub virtualization: Vec<String>,
    /// Numbers of instances that are placed there, by status.
    pub instances: BTreeMap<&'static str, usize>,
    /// Seconds since its last sign of life.
    pub last_seen: u64,
    pub instance_ip: Option<std::net::Ipv4Addr>,
    pub subnet: Option<std::net::Ipv4Addr>,
}

/// What is reserved on a node.
#[derive(Default)]
struct Reserved<'a> {
    jobs: Vec<&'a Job>,
    instances: u32,
}

impl Core {
    /// A node introduces itself.
    pub fn register(&mut self, information: NodeInformation, address: Option<IpAddr>) -> Registration {
        let mut information = bounds::registration(information);
        let key = information.node_key.take().map(Digest::of);
        let id = self.identify(&information, key.as_ref());
        let password = secret::secret();
        let rows_before = self.rows_of_node(&id);
        let before = self.nodes.remove(&id);
        let (mut passwords, lease, tunnel, was_active) = match before {
            Some(node) => {
                let active = node.is_active();
                // A tunnel that ended at the node's address ends at its new one.
                let ended = node.address();
                let tunnel = node
                    .record
                    .tunnel
                    .map(|tunnel| match named(&information).or(address) {
                        Some(address) if Some(tunnel.address) == ended => Tunnel { address, ..tunnel },
                        Some(_) | None => tunnel,
                    });
                (node.record.passwords, node.record.lease, tunnel, active)
            }
            None => (Vec::new(), None, None, false),
        };
        passwords.insert(0, Digest::of(&password));
        passwords.truncate(2);
        information.id.clone_from(&id);
        info!(
            node = id,
            host = information.host,
            new = lease.is_none(),
            "node registers"
        );
        let record = NodeRecord {
            id: id.clone(),
            key,
            passwords: passwords.clone(),
            information,
            address,
            lease: lease.clone(),
            tunnel,
        };
        self.nodes.insert(id.clone(), Node::new(record, self.now));
        self.dirty.nodes.insert(id.clone());
        if !was_active {
            self.room = true;
        }
        if !rows_before.is_empty() && self.rows_of_node(&id) != rows_before {
            self.moved(&id);
        }
        self.tell_capacity();
        Registration {
            id,
            password,
            passwords,
            lease,
        }
    }

    /// Which node it is.
    fn identify(&self, information: &NodeInformation, key: Option<&Digest>) -> String {
        let proposed = &information.id;
        let Some(key) = key else {
            // Nodes of other makes are known by their host only.
            let known = self
                .nodes
                .values()
                .find(|node| node.record.key.is_none() && node.host() == information.host)
                .filter(|node| !node.host().is_empty());
            return known.map_or_else(secret::id, |node| node.record.id.clone());
        };
        match self.nodes.get(proposed) {
            Some(node) if node.record.key.as_ref() == Some(key) => proposed.clone(),
            Some(_) => {
                warn!(
                    node = proposed,
                    host = information.host,
                    "another node claims this id and gets a new one"
                );
                secret::id()
            }
            None => {
                // It may have registered before without having heard the answer.
                let known = self
                    .nodes
                    .values()
                    .find(|node| node.record.key.as_ref() == Some(key));
                match known {
                    Some(node) if proposed.is_empty() => node.record.id.clone(),
                    Some(_) | None if secret::is_id(proposed) => proposed.clone(),
                    Some(_) | None => secret::id(),
                }
            }
        }
    }

    /// A node says what has changed about it.
    pub fn information(&mut self, id: &str, information: NodeInformation) {
        self.seen(id);
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        let latest = &mut node.latest;
        let load = |figure: Option<f64>| figure.map(bounds::percent);
        latest.cpu_percent = load(information.cpu_percent).or(latest.cpu_percent);
        latest.memory_percent = load(information.memory_percent).or(latest.memory_percent);
    }

    /// A sign of life of the engine of a node.
    pub(super) fn seen(&mut self, id: &str) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        node.last_seen = self.now;
        if node.inactive_since.take().is_some() {
            info!(node = id, host = node.host(), "node is back");
            self.room = true;
            self.tell_capacity();
        }
    }

    /// Addresses of a node, which are its own for good.
    pub fn leased(&mut self, id: &str, lease: Lease) {
        if let Some(node) = self.nodes.get_mut(id)
            && node.record.lease.as_ref() != Some(&lease)
        {
            node.record.lease = Some(lease);
            self.dirty.nodes.insert(id.to_owned());
        }
    }

    pub fn lease_of(&self, id: &str) -> Option<&Lease> {
        self.nodes.get(id)?.record.lease.as_ref()
    }

    /// The digests of the passwords of each node.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Vec<Digest>)> {
        self.nodes
            .values()
            .map(|node| (node.record.id.as_str(), node.record.passwords.clone()))
    }

    pub(super) fn find_silent_nodes(&mut self) {
        let mut found = false;
        for (id, node) in &mut self.nodes {
            let silence = self.now.duration_since(node.last_seen);
            if node.is_active() && silence >= self.patience.silence {
                warn!(node = id, host = node.host(), ?silence, "node is silent");
                node.inactive_since = Some(self.now);
                found = true;
            }
        }
        if found {
            // Who waits for something to stop there waits in vain.
            self.room = true;
            self.tell_capacity();
        }
    }

    /// Places elsewhere what was on nodes that have been gone for too long.
    pub(super) fn move_from_lost_nodes(&mut self) {
        let lost: BTreeSet<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| {
                node.inactive_since
                    .is_some_and(|since| self.now.duration_since(since) >= self.patience.grace)
            })
            .map(|(id, _)| id.clone())
            .collect();
        if lost.is_empty() {
            return;
        }
        let moved: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, instance)| {
                let on_lost = instance
                    .record
                    .node
                    .as_ref()
                    .is_some_and(|node| lost.contains(node));
                on_lost && instance.record.status != InstanceStatus::Completed
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in moved {
            self.place_anew(&key);
        }
    }

    /// All nodes with what is free now, for the scheduler. What an earlier placement of `of` still occupies does not
    /// count: the new one takes its place.
    pub(super) fn candidates(&self, of: Option<&InstanceKey>) -> Vec<Candidate> {
        let stopping = self.stops.values().filter(|stop| Some(&stop.record.key) != of);
        self.candidates_with(stopping)
    }

    /// All nodes with what is free once everything has stopped that is to.
    pub(super) fn candidates_without_stops(&self) -> Vec<Candidate> {
        self.candidates_with(std::iter::empty())
    }

    fn candidates_with<'a>(&'a self, stopping: impl Iterator<Item = &'a Stop>) -> Vec<Candidate> {
        let mut reserved: BTreeMap<&str, Reserved<'_>> = BTreeMap::new();
        for instance in self.instances.values() {
            if let Some(node) = &instance.record.node
                && instance.record.status != InstanceStatus::Completed
            {
                let reserved = reserved.entry(node).or_default();
                reserved.jobs.push(&instance.record.placement.job);
                reserved.instances += 1;
            }
        }
        for stop in stopping {
            if let Some(job) = &stop.record.job {
                reserved.entry(&stop.record.node).or_default().jobs.push(job);
            }
        }
        self.nodes
            .values()
            .map(|node| {
                let reserved = reserved.remove(node.record.id.as_str()).unwrap_or_default();
                self.candidate(node, &reserved)
            })
            .collect()
    }

    fn candidate(&self, node: &Node, reserved: &Reserved<'_>) -> Candidate {
        let information = &node.record.information;
        let sum = |amount: fn(&Job) -> u64| reserved.jobs.iter().map(|job| amount(job)).sum::<u64>();
        let vcpus = information.vcpus.unwrap_or(0);
        let vcpus_free = vcpus.saturating_sub(sum(|job| job.vcpus));
        let memory = information.memory_total.or(information.memory).unwrap_or(0);
        let memory_free = memory.saturating_sub(sum(|job| job.memory));
        let vgpus = information.vgpus.unwrap_or(0);
        let ports = reserved.jobs.iter().flat_map(|job| host_ports(&job.port));
        let architecture = &information.architecture;
        Candidate {
            tier: Tier::Node,
            id: node.record.id.clone(),
            name: information.host.clone(),
            cluster: self.name.clone(),
            hosts: vec![information.host.clone()],
            active: node.is_active(),
            virtualization: information.virtualization.clone(),
            architectures: Some(architecture.clone())
                .filter(|name| !name.is_empty())
                .into_iter()
                .collect(),
            vcpus,
            vcpus_free,
            memory,
            memory_free,
            largest_vcpus: vcpus_free,
            largest_memory: memory_free,
            largest_vcpus_ever: vcpus,
            largest_memory_ever: memory,
            vgpus,
            vgpus_free: vgpus.saturating_sub(sum(|job| job.vgpus)),
            ports_taken: ports.collect(),
            instances: reserved.instances,
        }
    }

    /// The sum of the active nodes.
    pub fn capacity(&self) -> Capacity {
        let mut capacity = Capacity::default();
        let (mut cpu, mut memory) = (0.0, 0.0);
        let mut virtualization = BTreeSet::new();
        let mut architectures = BTreeSet::new();
        for candidate in self
            .candidates(None)
            .into_iter()
            .filter(|candidate| candidate.active)
        {
            capacity.active_nodes += 1;
            capacity.vcpus += candidate.vcpus;
            capacity.vcpus_free += candidate.vcpus_free;
            capacity.memory += candidate.memory;
            capacity.memory_free += candidate.memory_free;
            capacity.largest_vcpus = capacity.largest_vcpus.max(candidate.vcpus_free);
            capacity.largest_memory = capacity.largest_memory.max(candidate.memory_free);
            capacity.vgpus += candidate.vgpus_free;
            capacity.hosts.extend(candidate.hosts);
            virtualization.extend(candidate.virtualization);
            architectures.extend(candidate.architectures);
            if let Some(node) = self.nodes.get(&candidate.id) {
                cpu += node.latest.cpu_percent.unwrap_or(0.0);
                memory += node.latest.memory_percent.unwrap_or(0.0);
            }
        }
        if capacity.active_nodes > 0 {
            capacity.cpu_percent = cpu / f64::from(capacity.active_nodes);
            capacity.memory_percent = memory / f64::from(capacity.active_nodes);
        }
        capacity.virtualization = virtualization.into_iter().collect();
        capacity.architectures = architectures.into_iter().collect();
        capacity
    }

    pub(super) fn tell_capacity(&mut self) {
        self.capacity_told = self.now;
        let capacity = self.capacity();
        self.tell_root(FromCluster::Capacity { capacity });
    }

    /// All nodes, for people.
    pub fn node_views(&self) -> Vec<NodeView> {
        self.candidates(None)
            .into_iter()
            .filter_map(|candidate| {
                let node = self.nodes.get(&candidate.id)?;
                let mut instances = BTreeMap::new();
                for instance in self
                    .instances
                    .values()
                    .filter(|instance| instance.is_on(&candidate.id))
                {
                    *instances.entry(instance.record.status.as_str()).or_default() += 1;
                }
                let lease = node.record.lease.as_ref();
                Some(NodeView {
                    ip: node
                        .address()
                        .map(|address| address.to_string())
                        .unwrap_or_default(),
                    host: candidate.name,
                    active: candidate.active,
                    vcpus: candidate.vcpus,
                    vcpus_free: candidate.vcpus_free,
                    memory: candidate.memory,
                    memory_free: candidate.memory_free,
                    cpu_percent: node.latest.cpu_percent.unwrap_or(0.0),
                    memory_percent: node.latest.memory_percent.unwrap_or(0.0),
                    architecture: node.record.information.architecture.clone(),
                    virtualization: candidate.virtualization,
                    instances,
                    last_seen: self.now.duration_since(node.last_seen).as_secs(),
                    instance_ip: lease.map(|lease| lease.instance_ip),
                    subnet: lease.map(|lease| lease.subnet),
                    id: candidate.id,
                })
            })
            .collect()
    }
}

impl Node {
    /// The address that it names, or came from.
    pub(super) fn address(&self) -> Option<IpAddr> {
        named(&self.record.information).or(self.record.address)
    }
}

fn named(information: &NodeInformation) -> Option<IpAddr> {
    information.ip.parse().ok()
}
