//! Published ports: who has which, and what the host has to know of them.

use std::collections::BTreeSet;

use protocol::ports::{PortMapping, PortMappings, TransportProtocol};

use super::attach::AttachError;
use super::{Kept, Node, lock};
use crate::host::{ports, reserved_ports};
use crate::state::EndpointState;

impl Node {
    /// Refuses ports of the node that are not free for this endpoint.
    pub(super) fn check_ports(
        &self,
        kept: &Kept,
        key: &str,
        wanted: &PortMappings,
    ) -> Result<(), AttachError> {
        let own = kept.state.endpoints.get(key);
        for mapping in wanted {
            let PortMapping {
                host: port, protocol, ..
            } = *mapping;
            let same = |other: &PortMapping| (other.host, other.protocol) == (port, protocol);
            let others = kept.state.endpoints.iter().filter(|(other, _)| *other != key);
            let endpoint = others
                .filter(|(_, endpoint)| endpoint.ports.iter().any(same))
                .map(|(other, _)| other.clone())
                .next();
            let holder = match endpoint {
                Some(holder) => Some(holder),
                None if protocol == TransportProtocol::Udp && port == self.config.listen_port => {
                    Some("the tunnel".to_owned())
                }
                // What it has, it keeps, whoever has bound the port meanwhile.
                None if own.is_some_and(|endpoint| endpoint.ports.iter().any(same)) => None,
                None if ports::is_in_use(protocol, port) => Some("a process of the node itself".to_owned()),
                None => None,
            };
            if let Some(holder) = holder {
                return Err(AttachError::PortTaken {
                    port,
                    protocol,
                    holder,
                });
            }
        }
        Ok(())
    }

    /// Lets an endpoint's ports lead to it. They have to be settled already.
    pub(super) fn publish(&self, endpoint: &EndpointState) -> Result<(), AttachError> {
        Ok(self
            .directory()
            .publish(endpoint.instance_address, &endpoint.ports)?)
    }

    /// Lets the ports of no endpoint lead anywhere.
    pub(super) fn forget_ports_of_nobody(&self, kept: &Kept) -> anyhow::Result<()> {
        let noted = kept.state.endpoints.values().flat_map(|endpoint| &endpoint.ports);
        Ok(self.directory().retain_published(noted)?)
    }

    /// As [`Self::settle_ports`], when there are fewer than before: a port that stays reserved does no harm until the
    /// next round of upkeep.
    pub(super) async fn settle_fewer_ports(&self, kept: &mut Kept) {
        if let Err(error) = self.settle_ports(kept).await {
            tracing::error!(error = format!("{error:#}"), "ports stay reserved");
        }
    }

    /// Keeps the published ports of all noted endpoints out of what the kernel chooses by itself: for the node's own
    /// connections, and for those that are masqueraded. Doing it twice changes nothing.
    pub(super) async fn settle_ports(&self, kept: &mut Kept) -> anyhow::Result<()> {
        let noted = kept.state.endpoints.values().flat_map(|endpoint| &endpoint.ports);
        let published: BTreeSet<_> = noted.map(|mapping| (mapping.protocol, mapping.host)).collect();
        reserve(kept, published.iter().map(|(_, port)| *port).collect())?;
        let changed = {
            let mut known = lock(&self.published);
            let changed = *known != published;
            *known = published;
            changed
        };
        if changed {
            self.apply_firewall().await?;
        }
        Ok(())
    }
}

/// Reserves these ports, and lets go of those that were reserved here before. Noted first, so that a process that is
/// killed in between leaves word of it.
pub(super) fn reserve(kept: &mut Kept, wanted: BTreeSet<u16>) -> anyhow::Result<()> {
    let present = reserved_ports::read()?;
    let foreign: BTreeSet<u16> = present.difference(&kept.state.reserved_ports).copied().collect();
    let own: BTreeSet<u16> = wanted.difference(&foreign).copied().collect();
    if !own.is_subset(&kept.state.reserved_ports) {
        kept.state.reserved_ports.extend(&own);
        kept.save()?;
    }
    let all: BTreeSet<u16> = foreign.union(&own).copied().collect();
    if all != present {
        reserved_ports::write(&all)?;
    }
    if kept.state.reserved_ports != own {
        kept.state.reserved_ports = own;
        kept.save()?;
    }
    Ok(())
}
