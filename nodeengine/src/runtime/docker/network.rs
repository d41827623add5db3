//! The node's network in Docker: made, found, and who is taken off it.

use std::collections::HashMap;

use bollard::models::{Ipam, NetworkCreateRequest};
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions, InspectNetworkOptions};
use futures_util::{Stream, TryStreamExt};
use tracing::info;

use super::answers::{key, refused};
use super::{Docker, LABEL_NODE, NetworkMode};
use crate::runtime::{ContainerEvent, ContainerEventKind, RuntimeError};

impl Docker {
    /// The network for a container, made if need be.
    pub(super) async fn network(&self, docker: &bollard::Docker) -> Result<String, RuntimeError> {
        let mut known = self.network.lock().await;
        if let Some(network) = &*known {
            return Ok(network.clone());
        }
        let network = match self.settings.network {
            NetworkMode::Plain => {
                let bridge = docker
                    .inspect_network("bridge", None::<InspectNetworkOptions>)
                    .await;
                match bridge.map_err(refused) {
                    Ok(_) => "bridge".to_owned(),
                    Err(RuntimeError::Gone) => "none".to_owned(),
                    Err(error) => return Err(error),
                }
            }
            NetworkMode::Overlay => {
                let name = network_name(&self.settings.node);
                let present = docker.inspect_network(&name, None::<InspectNetworkOptions>).await;
                match present.map_err(refused) {
                    Ok(_) => {}
                    Err(RuntimeError::Gone) => self.create_network(docker, &name).await?,
                    Err(error) => return Err(error),
                }
                name
            }
        };
        *known = Some(network.clone());
        Ok(network)
    }

    async fn create_network(&self, docker: &bollard::Docker, name: &str) -> Result<(), RuntimeError> {
        info!(network = name, "making the Docker network");
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some(name.to_owned()),
            ipam: Some(Ipam {
                driver: Some("null".to_owned()),
                ..Ipam::default()
            }),
            labels: Some(HashMap::from([(
                LABEL_NODE.to_owned(),
                self.settings.node.clone(),
            )])),
            ..NetworkCreateRequest::default()
        };
        match docker.create_network(request).await.map_err(refused) {
            Ok(_) | Err(RuntimeError::NameTaken) => Ok(()),
            // The driver is not there: NetManager does not serve it.
            Err(RuntimeError::Gone) => Err(RuntimeError::Refused(format!(
                "Docker finds no network driver {name}; NetManager serves it"
            ))),
            Err(error) => Err(error),
        }
    }

    /// That containers were taken off the node's network: by hand, and whenever one ends.
    pub(super) fn disconnections(
        &self,
        docker: bollard::Docker,
    ) -> impl Stream<Item = Result<ContainerEvent, RuntimeError>> + Send + use<> {
        let filter = [
            ("type", "network".to_owned()),
            ("event", "disconnect".to_owned()),
            ("network", network_name(&self.settings.node)),
        ];
        let filters = filter.map(|(name, value)| (name.to_owned(), vec![value]));
        let options = EventsOptionsBuilder::default()
            .filters(&HashMap::from(filters))
            .build();
        let events = docker.events(Some(options)).map_err(refused);
        events.try_filter_map(move |message| {
            let docker = docker.clone();
            async move {
                let attributes = message.actor.and_then(|actor| actor.attributes);
                let Some(container) = attributes.and_then(|mut attributes| attributes.remove("container"))
                else {
                    return Ok(None);
                };
                // Who it is, its labels say. One that is gone is told of otherwise.
                let found = docker
                    .inspect_container(&container, None::<InspectContainerOptions>)
                    .await;
                let labels = found.ok().and_then(|found| found.config?.labels);
                Ok(labels.as_ref().and_then(key).map(|key| ContainerEvent {
                    key,
                    container,
                    kind: ContainerEventKind::Disappeared,
                }))
            }
        })
    }
}

/// Name of the node's Docker network, and of its driver.
pub(super) fn network_name(node: &str) -> String {
    format!("oakestra-{node}")
}
