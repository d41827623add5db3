//! Instances: where each one is, and which of them are endpoints of this node.

use std::net::Ipv4Addr;

use dataplane_ebpf::tables::{
    Endpoint, Instance, Place, THIS_NODE, capacity, endpoint_flags, instance_flags,
};

use super::nodes::NodeKey;
use super::{Directory, KnownInstance, removed, written};
use crate::dataplane::DataplaneError;

/// An instance on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteInstance {
    /// The address that it shows to others.
    pub address: Ipv4Addr,
    pub namespace_address: Ipv4Addr,
    pub node: NodeKey,
    pub incarnation: u64,
    /// Zero when unknown.
    pub application: u32,
    pub draining: bool,
}

/// An endpoint of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The address that it shows to others.
    pub address: Ipv4Addr,
    pub namespace_address: Ipv4Addr,
    pub incarnation: u64,
    /// Zero when unknown.
    pub application: u32,
    /// Index of the host's end of its link.
    pub interface: u32,
    /// Address of its own end of the link.
    pub mac: [u8; 6],
    /// One of [`dataplane_ebpf::tables::delivery`].
    pub delivery: u8,
    /// Whether it has published ports.
    pub publishes: bool,
}

impl Directory {
    /// Enters an endpoint of this node, or brings its entry up to date.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write; what was entered is taken back.
    pub fn add_endpoint(&mut self, endpoint: &LocalEndpoint) -> Result<(), DataplaneError> {
        let incarnation = kernel_incarnation(endpoint.address, endpoint.incarnation);
        let place = Place::new(endpoint.namespace_address.octets(), THIS_NODE);
        let index = self.place(
            endpoint.address,
            place,
            incarnation,
            endpoint.application,
            instance_flags_of(false),
        )?;
        let value = Endpoint {
            interface: endpoint.interface,
            instance: index,
            instance_address: endpoint.address.octets(),
            application: endpoint.application,
            mac: endpoint.mac,
            delivery: endpoint.delivery,
            flags: if endpoint.publishes {
                endpoint_flags::PUBLISHES
            } else {
                0
            },
        };
        let result = self
            .tables
            .endpoints
            .insert(endpoint.namespace_address.octets(), value, 0);
        if let Err(source) = result {
            self.vacate(endpoint.address)?;
            return Err(written("ENDPOINTS", capacity::ENDPOINTS, source));
        }
        Ok(())
    }

    /// Takes an endpoint of this node out: first nobody finds it any more, then its flows end.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn remove_endpoint(
        &mut self,
        address: Ipv4Addr,
        namespace_address: Ipv4Addr,
    ) -> Result<(), DataplaneError> {
        self.vacate(address)?;
        removed(
            "ENDPOINTS",
            self.tables.endpoints.remove(&namespace_address.octets()),
        )
    }

    /// Enters an instance on another node, whose path must be known. An endpoint of this node is never replaced:
    /// what is attached here is here, whatever a late record says.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write.
    pub fn add_remote(&mut self, instance: &RemoteInstance) -> Result<Option<u32>, DataplaneError> {
        if let Some(known) = self
            .instances
            .get(&instance.address)
            .filter(|known| known.node == THIS_NODE)
        {
            return Ok(Some(known.index));
        }
        let Some(node) = self.nodes.get(&instance.node).map(|node| node.index) else {
            return Ok(None);
        };
        let incarnation = kernel_incarnation(instance.address, instance.incarnation);
        let place = Place::new(instance.namespace_address.octets(), node);
        let flags = instance_flags_of(instance.draining);
        self.place(instance.address, place, incarnation, instance.application, flags)
            .map(Some)
    }

    /// Takes an instance on another node out, unless it is this placement: its flows end, for where it is now cannot
    /// be entered, and where it was it is no more.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn end_other_placement(&mut self, address: Ipv4Addr, incarnation: u64) -> Result<(), DataplaneError> {
        let ended = self.instances.get(&address).is_some_and(|known| {
            known.node != THIS_NODE && known.incarnation != kernel_incarnation(address, incarnation)
        });
        if ended { self.vacate(address) } else { Ok(()) }
    }

    /// Whether the instance with this address is an endpoint of this node.
    pub fn is_local(&self, address: Ipv4Addr) -> bool {
        let known = self.instances.get(&address);
        known.is_some_and(|known| known.node == THIS_NODE)
    }

    /// Index of the instance with this address.
    pub fn index_of(&self, address: Ipv4Addr) -> Option<u32> {
        self.instances.get(&address).map(|known| known.index)
    }

    /// Writes one instance: the record first, then the address that leads to it.
    fn place(
        &mut self,
        address: Ipv4Addr,
        place: Place,
        incarnation: u64,
        application: u32,
        flags: u32,
    ) -> Result<u32, DataplaneError> {
        let known = self.instances.get(&address).copied();
        let full = DataplaneError::Full {
            name: "INSTANCES",
            entries: capacity::INSTANCES,
        };
        let index = match known {
            Some(known) => known.index,
            None => self.instance_indexes.take().ok_or(full)?,
        };
        let address_bytes = address.octets();
        let value = Instance {
            place,
            incarnation,
            address: address_bytes,
            application,
            flags,
            zero: 0,
        };
        self.write_instance(index, value)?;
        if known.is_none()
            && let Err(source) = self.tables.instance_index.insert(address_bytes, index, 0)
        {
            self.write_instance(index, Instance::default())?;
            self.instance_indexes.free(index);
            return Err(written("INSTANCE_INDEX", capacity::INSTANCES, source));
        }
        let namespace_address = Ipv4Addr::from(place.address());
        let entry = KnownInstance {
            index,
            incarnation,
            namespace_address,
            node: place.node(),
        };
        self.instances.insert(address, entry);
        self.addresses.insert(index, address);
        let moved_from = known.map(|known| known.node).filter(|node| *node != entry.node);
        if let Some(instances) = moved_from.and_then(|node| self.instances_on.get_mut(&node)) {
            instances.remove(&index);
        }
        self.instances_on.entry(entry.node).or_default().insert(index);
        if known.is_some_and(|known| known.incarnation != incarnation) {
            self.endings.notify_one();
        }
        if moved_from.is_some() {
            self.choose_for_instance(index)?;
        }
        Ok(index)
    }

    /// Takes an instance out; its flows end, because no incarnation is left that they could match.
    pub(super) fn vacate(&mut self, address: Ipv4Addr) -> Result<(), DataplaneError> {
        let Some(known) = self.instances.remove(&address) else {
            return Ok(());
        };
        removed(
            "INSTANCE_INDEX",
            self.tables.instance_index.remove(&address.octets()),
        )?;
        self.write_instance(known.index, Instance::default())?;
        self.addresses.remove(&known.index);
        if let Some(instances) = self.instances_on.get_mut(&known.node) {
            instances.remove(&known.index);
            if instances.is_empty() {
                self.instances_on.remove(&known.node);
            }
        }
        self.instance_indexes.free(known.index);
        self.endings.notify_one();
        Ok(())
    }

    fn write_instance(&mut self, index: u32, value: Instance) -> Result<(), DataplaneError> {
        let result = self.tables.instances.set(index, value, 0);
        result.map_err(|source| DataplaneError::Map {
            name: "INSTANCES",
            operation: "writing",
            source,
        })
    }
}

const fn instance_flags_of(draining: bool) -> u32 {
    if draining { instance_flags::DRAINING } else { 0 }
}

/// What the kernel compares: the placement's incarnation mixed with the instance's address, so that the next
/// holder of an index never matches the flows of the last, however the cluster counts. Never zero.
/// The mixing is SplitMix64's (Steele, Lea, Flood 2014).
pub(super) fn kernel_incarnation(address: Ipv4Addr, incarnation: u64) -> u64 {
    let mut mixed = incarnation ^ u64::from(u32::from(address)).rotate_left(32);
    mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}
