//! Ports that endpoints of this node have published at the node's own addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dataplane_ebpf::header::{PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{Published, PublishedKey, capacity};
use protocol::ports::{PortMapping, PortMappings, TransportProtocol};

use super::{Directory, removed, written};
use crate::dataplane::DataplaneError;

const TABLE: &str = "PUBLISHED";

impl Directory {
    /// Lets published ports lead to the endpoint with this instance address, which is entered already; where it is
    /// not, they lead nowhere.
    ///
    /// # Errors
    /// When the table is full or the kernel refuses a write; the ports before that one are entered then.
    pub fn publish(&mut self, address: Ipv4Addr, ports: &PortMappings) -> Result<(), DataplaneError> {
        let Some(known) = self.instances.get(&address).copied() else {
            return Ok(());
        };
        for mapping in ports {
            let value = Published {
                incarnation: known.incarnation,
                instance: known.index,
                port: mapping.container.to_be_bytes(),
                zero: [0; 2],
            };
            let result = self.tables.published.insert(key(mapping), value, 0);
            result.map_err(|source| written(TABLE, capacity::PUBLISHED, source))?;
        }
        Ok(())
    }

    /// Lets ports lead nowhere; those that lead nowhere already are no failure. What their clients have established
    /// ends with the endpoint.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn unpublish(&mut self, ports: &PortMappings) -> Result<(), DataplaneError> {
        for mapping in ports {
            removed(TABLE, self.tables.published.remove(&key(mapping)))?;
        }
        Ok(())
    }

    /// Lets every port lead nowhere that is not among these.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn retain_published<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a PortMapping>,
    ) -> Result<(), DataplaneError> {
        let ports = |key: PublishedKey| (key.protocol, key.port);
        let wanted: BTreeSet<_> = wanted.into_iter().map(|mapping| ports(key(mapping))).collect();
        let present: Vec<_> = self.tables.published.keys().filter_map(Result::ok).collect();
        for key in present {
            if !wanted.contains(&ports(key)) {
                removed(TABLE, self.tables.published.remove(&key))?;
            }
        }
        Ok(())
    }
}

fn key(mapping: &PortMapping) -> PublishedKey {
    PublishedKey {
        port: mapping.host.to_be_bytes(),
        protocol: match mapping.protocol {
            TransportProtocol::Tcp => PROTOCOL_TCP,
            TransportProtocol::Udp => PROTOCOL_UDP,
        },
        zero: 0,
    }
}
