//! The tables, looked at the way the programs do.

use std::net::Ipv4Addr;

use aya::maps::MapError;
use dataplane_ebpf::tables::{
    BackendKey, Endpoint, Flow, FlowKey, Instance, Node, Published, PublishedKey, Service, TunnelKey,
};

use super::Site;
use crate::dataplane::{DataplaneError, Tables};

/// The tables of a node, and what it is beside them.
pub struct View<'a> {
    pub tables: &'a Tables,
    pub site: Site,
    pub name: &'a dyn Fn(Ipv4Addr) -> Option<String>,
}

/// A flow's entry.
#[derive(Clone, Copy)]
pub struct Known {
    pub flow: Flow,
    /// Whether both sides have spoken in it.
    pub is_settled: bool,
}

impl View<'_> {
    pub fn endpoint(&self, address: [u8; 4]) -> Result<Option<Endpoint>, DataplaneError> {
        found("ENDPOINTS", self.tables.endpoints.get(&address, 0))
    }

    pub fn service(&self, address: [u8; 4]) -> Result<Option<Service>, DataplaneError> {
        found("SERVICES", self.tables.services.get(&address, 0))
    }

    pub fn backend(&self, key: BackendKey) -> Result<Option<u32>, DataplaneError> {
        found("BACKENDS", self.tables.backends.get(&key, 0))
    }

    /// The next turn of a service.
    pub fn turn(&self, service: u32) -> Result<u64, DataplaneError> {
        Ok(found("CURSORS", self.tables.cursors.get(&service, 0))?.unwrap_or_default())
    }

    pub fn instance_index(&self, address: [u8; 4]) -> Result<Option<u32>, DataplaneError> {
        found("INSTANCE_INDEX", self.tables.instance_index.get(&address, 0))
    }

    /// The instance in a slot, unless the slot is vacant.
    pub fn instance(&self, index: u32) -> Result<Option<Instance>, DataplaneError> {
        let instance = found("INSTANCES", self.tables.instances.get(&index, 0))?;
        Ok(instance.filter(|instance| instance.incarnation != 0))
    }

    /// The instance that shows this address.
    pub fn instance_at(&self, address: [u8; 4]) -> Result<Option<Instance>, DataplaneError> {
        match self.instance_index(address)? {
            Some(index) => self.instance(index),
            None => Ok(None),
        }
    }

    pub fn node(&self, index: u32) -> Result<Node, DataplaneError> {
        Ok(found("NODES", self.tables.nodes.get(&index, 0))?.unwrap_or_default())
    }

    pub fn is_local(&self, address: [u8; 4]) -> Result<bool, DataplaneError> {
        Ok(found("LOCAL_ADDRESSES", self.tables.local_addresses.get(&address, 0))?.is_some())
    }

    pub fn published(&self, protocol: u8, port: [u8; 2]) -> Result<Option<Published>, DataplaneError> {
        let key = PublishedKey {
            port,
            protocol,
            zero: 0,
        };
        found("PUBLISHED", self.tables.published.get(&key, 0))
    }

    /// Whether a tunnel may listen there.
    pub fn is_any_tunnel(&self, address: [u8; 4], port: [u8; 2]) -> Result<bool, DataplaneError> {
        let key = TunnelKey {
            address,
            port,
            zero: [0; 2],
        };
        let known = found("TUNNELS", self.tables.tunnels.get(&key, 0))?.is_some();
        Ok(known || u16::from_be_bytes(port) == self.site.tunnel_port)
    }

    /// The entry of a flow: in `FLOWS`, else in `UNANSWERED`.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Known>, DataplaneError> {
        if let Some(flow) = found("FLOWS", self.tables.flows.get(key, 0))? {
            return Ok(Some(Known {
                flow,
                is_settled: true,
            }));
        }
        let flow = found("UNANSWERED", self.tables.unanswered.get(key, 0))?;
        Ok(flow.map(|flow| Known {
            flow,
            is_settled: false,
        }))
    }
}

/// A missing entry is an answer, not an error.
fn found<T>(name: &'static str, result: Result<T, MapError>) -> Result<Option<T>, DataplaneError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
        Err(source) => Err(DataplaneError::Map {
            name,
            operation: "reading",
            source,
        }),
    }
}
