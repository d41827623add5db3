//! What the cluster and the own tables are told when an endpoint has come or gone.

use super::{Node, lock};
use crate::resolver::Deployed;
use crate::state::EndpointState;

impl Node {
    /// Tells the cluster of every endpoint; it may have forgotten them.
    pub(super) async fn announce_all(&self) {
        let keys: Vec<String> = self.kept.lock().await.state.endpoints.keys().cloned().collect();
        for key in keys {
            self.tell_deployed(&key).await;
        }
    }

    pub(super) async fn tell_deployed(&self, key: &str) {
        let endpoint = self.kept.lock().await.state.endpoints.get(key).cloned();
        let Some(deployed) = endpoint.and_then(|endpoint| self.deployed(&endpoint)) else {
            return;
        };
        if let Err(error) = self.resolver.deployed(&deployed).await {
            tracing::warn!(%error, endpoint = key, "cannot tell the cluster");
        }
    }

    pub(super) async fn tell_undeployed(&self, endpoint: &EndpointState) {
        let Some(deployed) = self.deployed(endpoint) else {
            return;
        };
        if let Err(error) = self.resolver.undeployed(&deployed).await {
            tracing::warn!(%error, service = endpoint.service, "cannot tell the cluster");
        }
    }

    pub(super) fn deployed(&self, endpoint: &EndpointState) -> Option<Deployed> {
        Some(Deployed {
            service: endpoint.service.parse().ok()?,
            number: endpoint.number,
            namespace_address: endpoint.namespace_address,
            namespace_address_v6: endpoint.namespace_address_v6,
            node_address: (*lock(&self.announced))?,
            node_port: self.config.announced_port,
            incarnation: Some(endpoint.incarnation),
        })
    }

    /// Lets the addresses of a service lead to its instances of this node as they are now.
    pub(super) fn renew(&self, service: &str) {
        if let Err(error) = self.renew_service(service) {
            tracing::error!(%error, service, "cannot enter a service again");
        }
    }
}
