//! Services: which instances a service address leads to, and in which order.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;

use aya::maps::{MapError, PerCpuValues};
use dataplane_ebpf::tables::{BackendKey, BackendSet, Service, ServiceCounter, THIS_NODE, capacity};
use serde::{Deserialize, Serialize};

use super::{Directory, KnownService, Policy, removed, written};
use crate::dataplane::DataplaneError;

/// A service address, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Name of the service; empty when it is not known (yet).
    pub name: String,
    pub address: Ipv4Addr,
    pub policy: String,
    pub instances: Vec<InstanceView>,
}

/// An instance of a service, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    pub address: Ipv4Addr,
    pub namespace_address: Ipv4Addr,
    /// Outer address and port of its node; `None` when it is on this one.
    pub node: Option<String>,
}

impl Directory {
    /// Makes these the addresses of the named service, each leading to those of these instances that its policy chooses,
    /// in turn. Instances that
    /// were reached through it before and are in no service any more are taken out, unless they are endpoints of
    /// this node.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write; addresses that were written stay.
    pub fn set_service(
        &mut self,
        name: &str,
        addresses: &[(Ipv4Addr, Policy)],
        candidates: &[u32],
        instances: &[Ipv4Addr],
    ) -> Result<(), DataplaneError> {
        let policies = addresses;
        let addresses: Vec<Ipv4Addr> = policies.iter().map(|(address, _)| *address).collect();
        let mut before = self.members_of(name, &addresses);
        let previous = self
            .names
            .insert(name.to_owned(), addresses.clone())
            .unwrap_or_default();
        for (address, policy) in policies {
            self.set_candidates(*address, *policy, candidates)?;
            self.owners.insert(*address, name.to_owned());
        }
        for address in previous.iter().filter(|address| !addresses.contains(address)) {
            self.remove_address_of(name, *address)?;
        }
        self.members.insert(name.to_owned(), instances.to_vec());
        before.retain(|address| !instances.contains(address));
        self.vacate_gone(&before)
    }

    /// Takes the named service out, and its instances on other nodes with it.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn remove_service(&mut self, name: &str) -> Result<(), DataplaneError> {
        let addresses = self.names.remove(name).unwrap_or_default();
        let before = self.members_of(name, &addresses);
        for address in addresses {
            self.remove_address_of(name, address)?;
        }
        self.members.remove(name);
        self.vacate_gone(&before)
    }

    /// Takes a service address out of which nobody knows the name, and the instances on other nodes that only it
    /// led to.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn remove_unnamed_service(&mut self, address: Ipv4Addr) -> Result<(), DataplaneError> {
        if self.owners.contains_key(&address) {
            return Ok(());
        }
        let before = self.members_of("", &[address]);
        self.remove_address(address)?;
        self.vacate_gone(&before)
    }

    /// How many service addresses there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The service addresses of which nobody knows the name.
    pub fn unnamed_services(&self) -> Vec<Ipv4Addr> {
        let unnamed = |address: &&Ipv4Addr| !self.owners.contains_key(*address);
        self.services.keys().filter(unnamed).copied().collect()
    }

    /// All service addresses, in the order of addresses.
    pub fn services(&self) -> Vec<ServiceView> {
        let mut views: Vec<_> = self
            .services
            .iter()
            .map(|(address, service)| self.view(*address, service))
            .collect();
        views.sort_by_key(|view| view.address);
        views
    }

    /// Name of the service with this address.
    pub fn service_name(&self, address: Ipv4Addr) -> Option<&str> {
        self.owners.get(&address).map(String::as_str)
    }

    fn view(&self, address: Ipv4Addr, service: &KnownService) -> ServiceView {
        let instances = service.backends.iter().filter_map(|index| {
            let address = self.addresses.get(index)?;
            let known = self.instances.get(address)?;
            let node = self.node_keys.get(&known.node);
            Some(InstanceView {
                address: *address,
                namespace_address: known.namespace_address,
                node: node.map(|key| format!("{}:{}", key.address, key.port)),
            })
        });
        ServiceView {
            name: self.service_name(address).unwrap_or_default().to_owned(),
            address,
            policy: service.policy.as_str().to_owned(),
            instances: instances.collect(),
        }
    }

    /// Lets no service address lead to the instance any more, while it is still there: new flows go to the others, and
    /// those that go there find it.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn withdraw(&mut self, instance: Ipv4Addr) -> Result<(), DataplaneError> {
        let Some(index) = self.index_of(instance) else {
            return Ok(());
        };
        for address in self.services_of.get(&index).cloned().unwrap_or_default() {
            let Some(service) = self.services.get(&address) else {
                continue;
            };
            let policy = service.policy;
            let mut others = service.candidates.clone();
            others.retain(|candidate| *candidate != index);
            self.set_candidates(address, policy, &others)?;
        }
        Ok(())
    }

    /// Writes a generation of backends, the other candidates behind them, and switches to it by one store.
    pub(super) fn set_backends(
        &mut self,
        address: Ipv4Addr,
        policy: Policy,
        candidates: &[u32],
        backends: &[u32],
    ) -> Result<(), DataplaneError> {
        let known = self.services.get(&address);
        if known.is_some_and(|known| {
            known.policy == policy && known.backends == backends && known.candidates == candidates
        }) {
            return Ok(());
        }
        let (id, generation, is_new) = match known {
            Some(known) => (known.id, known.generation.wrapping_add(1), false),
            None => {
                let full = DataplaneError::Full {
                    name: "SERVICES",
                    entries: capacity::SERVICES,
                };
                (self.service_ids.take().ok_or(full)?, 0, true)
            }
        };
        if is_new {
            // Nodes begin at different instances, so that the first flows of many clients do not meet at one.
            let mut hasher = DefaultHasher::new();
            (&self.node_id, address).hash(&mut hasher);
            self.write_cursor(id, hasher.finish() >> 16)?;
            self.clear_traffic(id)?;
        }
        let chosen: HashSet<&u32> = backends.iter().collect();
        let others = candidates.iter().filter(|candidate| !chosen.contains(candidate));
        for (slot, instance) in (0u32..).zip(backends.iter().chain(others)) {
            let key = BackendKey {
                service: id,
                generation,
                slot,
            };
            if let Err(source) = self.tables.backends.insert(key, instance, 0) {
                self.remove_generation(id, generation, slot)?;
                if is_new {
                    self.service_ids.free(id);
                }
                return Err(written("BACKENDS", capacity::BACKENDS, source));
            }
        }
        let key = address.octets();
        let last_used = self
            .tables
            .services
            .get(&key, 0)
            .map_or(0, |service| service.last_used);
        let number = u16::try_from(backends.len()).unwrap_or(u16::MAX);
        let set = BackendSet::new(generation, number, policy.to_map());
        let result = self
            .tables
            .services
            .insert(key, Service { set, id, last_used }, 0);
        result.map_err(|source| written("SERVICES", capacity::SERVICES, source))?;
        let service = KnownService {
            id,
            generation,
            policy,
            candidates: candidates.to_vec(),
            backends: backends.to_vec(),
        };
        let old = self.services.insert(address, service);
        self.note_candidates(
            address,
            old.as_ref().map(|old| old.candidates.as_slice()),
            candidates,
        );
        if let Some(old) = old {
            self.remove_generation(id, old.generation, old.candidates.len() as u32)?;
        }
        Ok(())
    }

    /// Takes an address of the named service out, unless it has become another's.
    fn remove_address_of(&mut self, name: &str, address: Ipv4Addr) -> Result<(), DataplaneError> {
        match self.owners.get(&address) {
            Some(owner) if owner != name => return Ok(()),
            Some(_) | None => self.owners.remove(&address),
        };
        self.remove_address(address)
    }

    fn remove_address(&mut self, address: Ipv4Addr) -> Result<(), DataplaneError> {
        let Some(known) = self.services.remove(&address) else {
            return Ok(());
        };
        self.note_candidates(address, Some(&known.candidates), &[]);
        removed("SERVICES", self.tables.services.remove(&address.octets()))?;
        self.remove_generation(known.id, known.generation, known.candidates.len() as u32)?;
        self.service_ids.free(known.id);
        Ok(())
    }

    fn remove_generation(&mut self, service: u32, generation: u32, slots: u32) -> Result<(), DataplaneError> {
        for slot in 0..slots {
            let key = BackendKey {
                service,
                generation,
                slot,
            };
            removed("BACKENDS", self.tables.backends.remove(&key))?;
        }
        Ok(())
    }

    fn write_cursor(&mut self, id: u32, value: u64) -> Result<(), DataplaneError> {
        let result = self.tables.cursors.set(id, value, 0);
        result.map_err(|source| DataplaneError::Map {
            name: "CURSORS",
            operation: "writing",
            source,
        })
    }

    /// Lets a service begin with nothing sent or received: its row may have been another's.
    fn clear_traffic(&mut self, id: u32) -> Result<(), DataplaneError> {
        // The last row belongs to all services that have none of their own.
        if id >= capacity::SERVICE_COUNTERS - 1 {
            return Ok(());
        }
        let table = &mut self.tables.service_counters;
        let result = table.get(&id, 0).and_then(|values| {
            let cleared = vec![ServiceCounter::default(); values.len()];
            let cleared = PerCpuValues::try_from(cleared).map_err(MapError::IoError)?;
            table.set(id, cleared, 0)
        });
        result.map_err(|source| DataplaneError::Map {
            name: "SERVICE_COUNTERS",
            operation: "clearing",
            source,
        })
    }

    /// The instances that the service was known to have: by name, and behind its addresses, which a new process
    /// finds in the maps before it learns names.
    fn members_of(&self, name: &str, addresses: &[Ipv4Addr]) -> HashSet<Ipv4Addr> {
        let behind = addresses
            .iter()
            .filter_map(|address| self.services.get(address))
            .flat_map(|service| &service.candidates)
            .filter_map(|index| self.addresses.get(index).copied());
        behind
            .chain(self.members.get(name).into_iter().flatten().copied())
            .collect()
    }

    /// All instances that any service has, also one of which the name is not known: those have no members yet, but
    /// backends.
    pub(super) fn instances_of_services(&self) -> HashSet<Ipv4Addr> {
        let backends = self.services.values().flat_map(|service| &service.backends);
        let behind = backends.filter_map(|index| self.addresses.get(index));
        behind.chain(self.members.values().flatten()).copied().collect()
    }

    /// Takes instances out that left their service, unless another service has them or they are endpoints of this
    /// node, whose end is decided here.
    fn vacate_gone(&mut self, gone: &HashSet<Ipv4Addr>) -> Result<(), DataplaneError> {
        if gone.is_empty() {
            return Ok(());
        }
        let members = self.instances_of_services();
        let mut unused: HashSet<Ipv4Addr> = gone.difference(&members).copied().collect();
        // Services of which the name is not known have no members yet, but candidates.
        unused.retain(|address| {
            let index = self.index_of(*address);
            !index.is_some_and(|index| self.services_of.contains_key(&index))
        });
        unused.retain(|address| {
            let known = self.instances.get(address);
            known.is_some_and(|known| known.node != THIS_NODE)
        });
        for address in unused {
            self.vacate(address)?;
        }
        Ok(())
    }
}
