//! Reading the directory back from the maps, as a new process does that takes them over.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use aya::maps::MapError;
use dataplane_ebpf::tables::capacity;

use super::indexes::Indexes;
use super::{Directory, INDEX_QUARANTINE, KnownInstance, KnownNode, KnownService, NodeKey, Policy, removed};
use crate::dataplane::{DataplaneError, Tables};

impl Directory {
    /// Takes the tables over, empty or filled by a previous process, and removes what a crash left half-written:
    /// backends of generations that no service points to.
    ///
    /// # Errors
    /// When the kernel refuses to read or write.
    pub fn adopt(tables: Tables, node_id: &str) -> Result<Self, DataplaneError> {
        let mut directory = Self {
            instances: HashMap::new(),
            addresses: HashMap::new(),
            instance_indexes: Indexes::new(0, 0, 0),
            nodes: HashMap::new(),
            node_keys: HashMap::new(),
            nodes_version: 0,
            instances_on: HashMap::new(),
            services_of: HashMap::new(),
            node_indexes: Indexes::new(0, 0, 0),
            group_indexes: Indexes::new(0, 0, 0),
            services: HashMap::new(),
            service_ids: Indexes::new(0, 0, 0),
            names: HashMap::new(),
            owners: HashMap::new(),
            members: HashMap::new(),
            endings: Arc::default(),
            node_id: node_id.to_owned(),
            tables,
        };
        directory.adopt_nodes()?;
        directory.adopt_instances()?;
        directory.adopt_services()?;
        // Whoever was silent before has to fall silent again.
        directory.choose_everywhere()?;
        Ok(directory)
    }

    fn adopt_nodes(&mut self) -> Result<(), DataplaneError> {
        for entry in self.tables.tunnels.iter() {
            let (key, index) = entry.map_err(reading("TUNNELS"))?;
            let node = self.tables.nodes.get(&index, 0).map_err(reading("NODES"))?;
            let key = NodeKey {
                address: Ipv4Addr::from(key.address),
                port: u16::from_be_bytes(key.port),
            };
            self.node_keys.insert(index, key);
            self.nodes.insert(
                key,
                KnownNode {
                    index,
                    group: node.group,
                    interface: node.interface,
                    round_trip: node.round_trip,
                    silent: false,
                },
            );
        }
        let indexes = self.nodes.values().map(|node| node.index).collect();
        // Zero is this node itself, and the group of nobody.
        self.node_indexes = Indexes::with_used(1, capacity::NODES, 0, &indexes);
        let groups = self.nodes.values().map(|node| node.group).collect();
        self.group_indexes = Indexes::with_used(1, capacity::NODES, 0, &groups);
        Ok(())
    }

    fn adopt_instances(&mut self) -> Result<(), DataplaneError> {
        for entry in self.tables.instance_index.iter() {
            let (address, index) = entry.map_err(reading("INSTANCE_INDEX"))?;
            let instance = self
                .tables
                .instances
                .get(&index, 0)
                .map_err(reading("INSTANCES"))?;
            let known = KnownInstance {
                index,
                incarnation: instance.incarnation,
                namespace_address: Ipv4Addr::from(instance.place.address()),
                node: instance.place.node(),
            };
            self.instances_on.entry(known.node).or_default().insert(index);
            self.instances.insert(Ipv4Addr::from(address), known);
            self.addresses.insert(index, Ipv4Addr::from(address));
        }
        let used = self.instances.values().map(|known| known.index).collect();
        // Zero is left vacant, so that an index that was never written leads nowhere.
        self.instance_indexes = Indexes::with_used(1, capacity::INSTANCES, INDEX_QUARANTINE, &used);
        Ok(())
    }

    fn adopt_services(&mut self) -> Result<(), DataplaneError> {
        let mut current = HashSet::new();
        for entry in self.tables.services.iter() {
            let (address, service) = entry.map_err(reading("SERVICES"))?;
            let generation = service.set.generation();
            current.insert((service.id, generation));
            // Up to the first that is vacant: behind those that are chosen are the others.
            let candidates: Vec<u32> = (0..capacity::BACKENDS)
                .map_while(|slot| {
                    let key = dataplane_ebpf::tables::BackendKey {
                        service: service.id,
                        generation,
                        slot,
                    };
                    self.tables.backends.get(&key, 0).ok()
                })
                .collect();
            let address = Ipv4Addr::from(address);
            for index in &candidates {
                self.services_of.entry(*index).or_default().insert(address);
            }
            let number = usize::from(service.set.backends());
            let known = KnownService {
                id: service.id,
                generation,
                policy: Policy::from_map(service.set.policy()),
                backends: candidates.iter().take(number).copied().collect(),
                candidates,
            };
            self.services.insert(address, known);
        }
        let used: BTreeSet<u32> = self.services.values().map(|service| service.id).collect();
        self.service_ids = Indexes::with_used(0, capacity::SERVICES, 0, &used);
        let keys: Vec<_> = self.tables.backends.keys().filter_map(Result::ok).collect();
        for key in keys
            .iter()
            .filter(|key| !current.contains(&(key.service, key.generation)))
        {
            removed("BACKENDS", self.tables.backends.remove(key))?;
        }
        Ok(())
    }

    /// Instances that the maps name as endpoints of this node: their addresses.
    pub fn local_instances(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        self.instances
            .iter()
            .filter(|(_, known)| known.node == dataplane_ebpf::tables::THIS_NODE)
            .map(|(address, known)| (*address, known.namespace_address))
            .collect()
    }
}

fn reading(name: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        name,
        operation: "reading",
        source,
    }
}
