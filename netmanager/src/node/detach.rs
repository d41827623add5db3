//! Endpoints go: told to, or because their links are gone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use protocol::ports::{PortMapping, PortMappings};

use super::attach::AttachError;
use super::{Kept, Node, docker, lock};
use crate::dataplane::Program;
use crate::endpoint::{self, Step};
use crate::state::{EndpointState, endpoint_key};

/// What becomes of the endpoint of Docker that is behind an endpoint which is taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is forgotten and its address free.
    Struck,
    /// It keeps its address, for Docker to join it again.
    Stays,
}

impl Node {
    /// Takes an endpoint off; success when it is not there. What fails is tried again by the next call.
    ///
    /// # Errors
    /// When the kernel refuses to let something go.
    pub async fn detach(self: Arc<Self>, service: &str, number: u32) -> Result<(), AttachError> {
        self.detach_if(&endpoint_key(service, number), |_| true).await
    }

    async fn detach_if(
        &self,
        key: &str,
        condition: impl FnOnce(&EndpointState) -> bool + Send,
    ) -> Result<(), AttachError> {
        let mut kept = self.kept.clone().lock_owned().await;
        let Some(endpoint) = kept.state.endpoints.get(key).cloned() else {
            return Ok(());
        };
        if !condition(&endpoint) {
            return Ok(());
        }
        self.take_off(&mut kept, key, Noted::Struck).await?;
        drop(kept);
        self.tell_undeployed(&endpoint).await;
        self.renew(&endpoint.service);
        Ok(())
    }

    /// Takes endpoints off whose links are gone: their containers have ended.
    pub(super) async fn drop_vanished(self: &Arc<Self>, gone: &BTreeSet<u32>, all: bool) {
        let suspects: Vec<EndpointState> = {
            let kept = self.kept.lock().await;
            let interface =
                |endpoint: &EndpointState| endpoint.attached.as_ref().map(|attached| attached.interface);
            let suspect = |endpoint: &&EndpointState| {
                all || interface(endpoint).is_some_and(|index| gone.contains(&index))
            };
            kept.state.endpoints.values().filter(suspect).cloned().collect()
        };
        self.drop_dead(suspects).await;
    }

    /// Takes those of the endpoints off whose links are gone, or have come back from their containers.
    pub(super) async fn drop_dead(self: &Arc<Self>, suspects: Vec<EndpointState>) {
        for endpoint in suspects {
            if self.is_attached(&endpoint).await {
                continue;
            }
            tracing::info!(
                service = endpoint.service,
                number = endpoint.number,
                "the link of an endpoint is gone"
            );
            // The container may have been started again by now, with another link.
            let key = endpoint_key(&endpoint.service, endpoint.number);
            if let Err(error) = self.detach_if(&key, |current| *current == endpoint).await {
                tracing::error!(%error, service = endpoint.service, "cannot take an endpoint off");
            }
        }
    }

    /// Takes other endpoints off that have the address or one of the ports, and are dead: their containers ended while
    /// nobody here was told of it, and the next round of upkeep may be a while off.
    pub(super) async fn drop_dead_holders(
        self: &Arc<Self>,
        kept: &mut Kept,
        key: &str,
        address: Ipv4Addr,
        ports: &PortMappings,
    ) -> Result<(), AttachError> {
        let is_in_the_way = |endpoint: &EndpointState| {
            let published = endpoint.ports.iter().any(|held| {
                let same =
                    |wanted: &PortMapping| (wanted.host, wanted.protocol) == (held.host, held.protocol);
                ports.iter().any(same)
            });
            published || endpoint.instance_address == address
        };
        let others = kept.state.endpoints.iter().filter(|(other, _)| *other != key);
        let holders: Vec<(String, EndpointState)> = others
            .filter(|(_, endpoint)| is_in_the_way(endpoint))
            .map(|(other, endpoint)| (other.clone(), endpoint.clone()))
            .collect();
        for (other, endpoint) in holders {
            if self.is_attached(&endpoint).await {
                continue;
            }
            tracing::info!(endpoint = other, "what it holds is wanted, and its link is gone");
            self.take_off(kept, &other, Noted::Struck).await?;
            // Both wait for what is locked here, or for the cluster.
            self.spawn(|node| async move {
                node.tell_undeployed(&endpoint).await;
                node.renew(&endpoint.service);
            });
        }
        Ok(())
    }

    /// Every step of detaching: first nobody finds the endpoint, and nothing it sends has a source that is known; then
    /// its link goes, and last its address is free and it is struck out. Each step finds it done on the second try.
    pub(super) async fn take_off(&self, kept: &mut Kept, key: &str, noted: Noted) -> Result<(), AttachError> {
        let Some(endpoint) = kept.state.endpoints.get(key).cloned() else {
            return Ok(());
        };
        self.faults.detach.check(Step::FillTables)?;
        {
            let mut directory = self.directory();
            directory.unpublish(&endpoint.ports)?;
            directory.withdraw(endpoint.instance_address)?;
            directory.remove_endpoint(endpoint.instance_address, endpoint.namespace_address)?;
        }
        self.faults.detach.check(Step::CreateLink)?;
        endpoint::detach(
            &self.netlink,
            &self.registration.node_id,
            endpoint.namespace_address,
        )
        .await?;
        // What guards a link is in place as long as the link is.
        self.faults.detach.check(Step::AttachProgram)?;
        if let Some(attached) = &endpoint.attached {
            lock(&self.dataplane).detach(Program::FromEndpoint, attached.interface)?;
        }
        self.faults.detach.check(Step::SaveState)?;
        kept.state.endpoints.remove(key);
        match (&endpoint.docker, noted) {
            (None, _) => release(kept, endpoint.namespace_address),
            (Some(id), Noted::Stays) => docker::wait_again(&mut kept.state, id),
            (Some(id), Noted::Struck) => docker::strike_out(&mut kept.state, id),
        }
        kept.save()?;
        self.settle_fewer_ports(kept).await;
        Ok(())
    }

    /// Whether the endpoint's link is the one that was made for it, and has not come back from the container.
    pub(super) async fn is_attached(&self, endpoint: &EndpointState) -> bool {
        let Some(attached) = &endpoint.attached else {
            return false;
        };
        match self.netlink.link_by_index(attached.interface).await {
            Ok(link) => link.is_some_and(|link| {
                link.name == attached.interface_name && !docker::has_come_back(attached, link.peer_namespace)
            }),
            Err(error) => {
                // Not knowing is no reason to take a working endpoint off.
                tracing::warn!(%error, interface = attached.interface_name, "cannot look at a link");
                true
            }
        }
    }
}

pub(super) fn release(kept: &mut Kept, address: Ipv4Addr) {
    if let Some(addresses) = &mut kept.state.addresses {
        addresses.release(address);
    }
}
