//! What is there and since when it was not used, for whoever decides what is forgotten.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use aya::maps::MapError;
use dataplane_ebpf::tables::THIS_NODE;
use tokio::sync::Notify;

use super::Directory;
use crate::dataplane::DataplaneError;
use crate::flows::FlowMaps;

/// A service with all that packets may lead to through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUse {
    pub name: String,
    /// Its addresses, and those of its instances.
    pub addresses: Vec<Ipv4Addr>,
    /// Indexes of its instances.
    pub instances: Vec<u32>,
    /// When a flow last chose, in units of 2^30 ns of the monotonic clock; zero when none did.
    pub last_used: u32,
}

impl Directory {
    /// Handles to the tables of flows, to be used without this being locked.
    ///
    /// # Errors
    /// When this process has no file descriptors left.
    pub fn flow_maps(&self) -> io::Result<FlowMaps> {
        self.tables.flow_maps.try_clone()
    }

    /// Told whenever an instance has ended: it was taken out, or another placement has taken its place.
    pub fn endings(&self) -> Arc<Notify> {
        self.endings.clone()
    }

    /// All services of which the names are known.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn service_uses(&self) -> Result<Vec<ServiceUse>, DataplaneError> {
        self.names.keys().map(|name| self.service_use(name)).collect()
    }

    fn service_use(&self, name: &str) -> Result<ServiceUse, DataplaneError> {
        let service_addresses = self.names.get(name).map(Vec::as_slice).unwrap_or_default();
        let members = self.members.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut last_used = 0;
        for address in service_addresses {
            match self.tables.services.get(&address.octets(), 0) {
                Ok(service) => last_used = last_used.max(service.last_used),
                Err(MapError::KeyNotFound) => {}
                Err(source) => {
                    return Err(DataplaneError::Map {
                        name: "SERVICES",
                        operation: "reading",
                        source,
                    });
                }
            }
        }
        Ok(ServiceUse {
            name: name.to_owned(),
            addresses: service_addresses.iter().chain(members).copied().collect(),
            instances: members
                .iter()
                .filter_map(|address| self.index_of(*address))
                .collect(),
            last_used,
        })
    }

    /// Instances on other nodes that no service has that is known here: they were announced, because they talk to
    /// instances of this node. Address and index of each.
    pub fn visitors(&self) -> Vec<(Ipv4Addr, u32)> {
        let members = self.instances_of_services();
        let visitors = self
            .instances
            .iter()
            .filter(|(address, known)| known.node != THIS_NODE && !members.contains(*address));
        visitors.map(|(address, known)| (*address, known.index)).collect()
    }

    /// Takes an instance on another node out, unless a service has it.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn forget_visitor(&mut self, address: Ipv4Addr) -> Result<(), DataplaneError> {
        if self.is_local(address) || self.instances_of_services().contains(&address) {
            return Ok(());
        }
        self.vacate(address)
    }
}
