//! Which of a service's instances take new flows: those on nodes that answer, and of these, where the address says so,
//! the closest. The data plane only takes the chosen ones in turn.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;

use dataplane_ebpf::tables::{SentProbe, THIS_NODE, policy};

use super::{Directory, NodeKey};
use crate::dataplane::DataplaneError;
use crate::probes::{Distance, is_near};

/// What a service address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Each instance in turn.
    RoundRobin,
    /// The closest instance; those that are equally close in turn.
    Closest,
}

impl Policy {
    /// The name that people see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round robin",
            Self::Closest => "closest",
        }
    }

    pub(super) const fn to_map(self) -> u8 {
        match self {
            Self::RoundRobin => policy::ROUND_ROBIN,
            Self::Closest => policy::CLOSEST,
        }
    }

    pub(super) const fn from_map(value: u8) -> Self {
        match value {
            policy::CLOSEST => Self::Closest,
            _ => Self::RoundRobin,
        }
    }
}

impl Directory {
    /// From now on the instances on this node take no new flows, or take them again; those that they have stay. Where all
    /// of a service's are on silent nodes, the last ones that were chosen stay so.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write; all services that could be written are.
    pub fn set_silent(&mut self, key: NodeKey, silent: bool) -> Result<(), DataplaneError> {
        let Some(known) = self.nodes.get_mut(&key) else {
            return Ok(());
        };
        known.silent = silent;
        let index = known.index;
        self.choose_for_node(index)
    }

    /// The round trip to this node is this many microseconds.
    ///
    /// # Errors
    /// As [`Self::set_silent`].
    pub fn set_round_trip(&mut self, key: NodeKey, round_trip: u32) -> Result<(), DataplaneError> {
        let Some(known) = self.nodes.get_mut(&key) else {
            return Ok(());
        };
        known.round_trip = round_trip;
        let index = known.index;
        let failed = |operation| {
            move |source| DataplaneError::Map {
                name: "NODES",
                operation,
                source,
            }
        };
        let mut node = self.tables.nodes.get(&index, 0).map_err(failed("reading"))?;
        node.round_trip = round_trip;
        self.tables.nodes.set(index, node, 0).map_err(failed("writing"))?;
        self.choose_for_node(index)
    }

    /// Notes a probe that is about to leave, at this index of `PROBES`.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn note_probe(&mut self, index: u32, nonce: u64) -> Result<(), DataplaneError> {
        let probe = SentProbe {
            nonce,
            received_at: 0,
        };
        let result = self.tables.probes.set(index, probe, 0);
        result.map_err(|source| DataplaneError::Map {
            name: "PROBES",
            operation: "writing",
            source,
        })
    }

    /// When the answer to this probe arrived; `None` while it has not.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn probe_received(&self, index: u32, nonce: u64) -> Result<Option<u64>, DataplaneError> {
        let probe = self.tables.probes.get(&index, 0);
        let probe = probe.map_err(|source| DataplaneError::Map {
            name: "PROBES",
            operation: "reading",
            source,
        })?;
        Ok(Some(probe.received_at).filter(|received_at| probe.nonce == nonce && *received_at != 0))
    }

    /// Lets a service address lead to those of these instances that its policy chooses.
    pub(super) fn set_candidates(
        &mut self,
        address: Ipv4Addr,
        policy: Policy,
        candidates: &[u32],
    ) -> Result<(), DataplaneError> {
        let backends = self.choose(address, policy, candidates);
        self.set_backends(address, policy, candidates, &backends)
    }

    /// Chooses anew for every service.
    pub(super) fn choose_everywhere(&mut self) -> Result<(), DataplaneError> {
        let addresses: BTreeSet<Ipv4Addr> = self.services.keys().copied().collect();
        self.choose_again(addresses)
    }

    /// Chooses anew for the services that this instance is a candidate of.
    pub(super) fn choose_for_instance(&mut self, index: u32) -> Result<(), DataplaneError> {
        let addresses = self.services_of.get(&index).cloned().unwrap_or_default();
        self.choose_again(addresses)
    }

    /// Notes of which services an instance is a candidate.
    pub(super) fn note_candidates(&mut self, address: Ipv4Addr, before: Option<&[u32]>, after: &[u32]) {
        let stays: HashSet<&u32> = after.iter().collect();
        for index in before.unwrap_or_default() {
            if !stays.contains(index)
                && let Some(services) = self.services_of.get_mut(index)
            {
                services.remove(&address);
                if services.is_empty() {
                    self.services_of.remove(index);
                }
            }
        }
        for index in after {
            self.services_of.entry(*index).or_default().insert(address);
        }
    }

    fn choose_for_node(&mut self, node: u32) -> Result<(), DataplaneError> {
        let instances = self.instances_on.get(&node).into_iter().flatten();
        let services = instances.filter_map(|instance| self.services_of.get(instance));
        let addresses = services.flatten().copied().collect();
        self.choose_again(addresses)
    }

    fn choose_again(&mut self, addresses: BTreeSet<Ipv4Addr>) -> Result<(), DataplaneError> {
        let mut outcome = Ok(());
        for address in addresses {
            let Some(service) = self.services.get(&address) else {
                continue;
            };
            let (policy, candidates) = (service.policy, service.candidates.clone());
            // One that cannot be written does not keep the others.
            if let Err(error) = self.set_candidates(address, policy, &candidates) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn choose(&self, address: Ipv4Addr, policy: Policy, candidates: &[u32]) -> Vec<u32> {
        let answering: Vec<u32> = candidates
            .iter()
            .copied()
            .filter(|index| !self.is_silent(*index))
            .collect();
        if answering.is_empty() {
            let last = self
                .services
                .get(&address)
                .into_iter()
                .flat_map(|service| &service.backends);
            let last: Vec<u32> = last.filter(|index| candidates.contains(index)).copied().collect();
            return if last.is_empty() {
                candidates.to_vec()
            } else {
                last
            };
        }
        match policy {
            Policy::RoundRobin => answering,
            Policy::Closest => {
                let distance = |index: &u32| self.distance(*index);
                let nearest = answering.iter().map(distance).min().unwrap_or(Distance::Unknown);
                let mut closest = answering;
                closest.retain(|index| is_near(nearest, self.distance(*index)));
                closest
            }
        }
    }

    fn is_silent(&self, instance: u32) -> bool {
        self.node_of(instance)
            .and_then(|node| self.node_keys.get(&node))
            .and_then(|key| self.nodes.get(key))
            .is_some_and(|known| known.silent)
    }

    fn distance(&self, instance: u32) -> Distance {
        match self.node_of(instance) {
            Some(THIS_NODE) => Distance::Here,
            Some(node) => {
                let known = self.node_keys.get(&node).and_then(|key| self.nodes.get(key));
                let round_trip = known.map(|known| known.round_trip).filter(|time| *time != 0);
                round_trip.map_or(Distance::Unknown, Distance::Measured)
            }
            None => Distance::Unknown,
        }
    }

    /// Index of the node that the instance is on.
    fn node_of(&self, instance: u32) -> Option<u32> {
        let known = self.instances.get(self.addresses.get(&instance)?)?;
        Some(known.node)
    }
}
