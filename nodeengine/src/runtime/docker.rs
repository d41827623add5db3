//! Docker, over its HTTP API.

mod answers;
mod network;
mod reference;
mod specification;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use protocol::job::{InstanceKey, Placement};
use tokio::sync::Mutex;
use tracing::{debug, info};

use self::answers::{event, key, refused, state, with_causes};
use self::network::network_name;
use self::reference::Reference;
use self::specification::Specification;
use super::{Container, ContainerEvent, ContainerState, Listed, Progress, Runtime, RuntimeError, Usage};
use crate::measure::{cgroup, logs};

/// An answer takes at most this, besides the time of grace. Starting waits for the network's driver.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A pull that says nothing for so long has failed.
const PULL_SILENCE: Duration = Duration::from_secs(120);

const LABEL_NODE: &str = "oakestra.node";
const LABEL_SERVICE: &str = "oakestra.service";
const LABEL_INSTANCE: &str = "oakestra.instance";
const LABEL_INCARNATION: &str = "oakestra.incarnation";

/// What containers are connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// The node's own network, which NetManager drives.
    Overlay,
    /// What Docker has: its bridge, or nothing.
    Plain,
}

/// What is the same for all containers of the node.
#[derive(Clone, Debug)]
pub(crate) struct DockerSettings {
    /// `unix:///path`.
    pub(crate) host: String,
    /// The node's id.
    pub(crate) node: String,
    pub(crate) network: NetworkMode,
    /// Between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    /// Name servers; Docker's choice, which is the host's, when empty.
    pub(crate) dns_servers: Vec<String>,
}

/// A Docker engine.
pub(crate) struct Docker {
    settings: DockerSettings,
    client: RwLock<Option<bollard::Docker>>,
    /// The network that is known to be there.
    network: Mutex<Option<String>>,
}

impl Docker {
    pub(crate) fn new(settings: DockerSettings) -> Self {
        Self {
            settings,
            client: RwLock::new(None),
            network: Mutex::new(None),
        }
    }

    fn client(&self) -> Result<bollard::Docker, RuntimeError> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => Err(RuntimeError::Away(format!(
                "Docker does not answer at {}",
                self.settings.host
            ))),
        }
    }

    fn name(&self, key: &InstanceKey) -> String {
        specification::container_name(&self.settings.node, key)
    }

    fn by_node(&self) -> HashMap<String, Vec<String>> {
        let label = format!("{LABEL_NODE}={}", self.settings.node);
        HashMap::from([("label".to_owned(), vec![label])])
    }

    fn container(&self, found: ContainerInspectResponse) -> Container {
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let is_ours = labels.get(LABEL_NODE) == Some(&self.settings.node);
        let incarnation = labels
            .get(LABEL_INCARNATION)
            .and_then(|text| text.parse().ok())
            .filter(|_| is_ours);
        let is_connected = match self.settings.network {
            NetworkMode::Plain => true,
            NetworkMode::Overlay => found
                .network_settings
                .and_then(|settings| settings.networks)
                .is_some_and(|networks| networks.contains_key(&network_name(&self.settings.node))),
        };
        let memory_limit = found.host_config.and_then(|host| host.memory).unwrap_or_default();
        Container {
            id: found.id.unwrap_or_default(),
            incarnation,
            state: state(found.state.unwrap_or_default()),
            is_connected,
            log_path: found.log_path.unwrap_or_default(),
            memory_limit: memory_limit.try_into().unwrap_or_default(),
        }
    }
}

#[async_trait]
impl Runtime for Docker {
    async fn connect(&self) -> Result<(), RuntimeError> {
        let away = |error: Error| {
            let causes = with_causes(&error);
            RuntimeError::Away(format!(
                "Docker does not answer at {}: {causes}",
                self.settings.host
            ))
        };
        let timeout = (TIMEOUT + self.settings.grace).as_secs();
        let client =
            bollard::Docker::connect_with_unix(&self.settings.host, timeout, bollard::API_DEFAULT_VERSION)
                .map_err(away)?;
        let client = client.negotiate_version().await.map_err(away)?;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = Some(client);
        // A Docker that was away may have come back without its networks.
        *self.network.lock().await = None;
        Ok(())
    }

    async fn pull(&self, image: &str, progress: Progress<'_>) -> Result<(), RuntimeError> {
        let docker = self.client()?;
        let Reference { repository, tag } = reference::parse(image);
        info!(image, "pulling");
        let options = CreateImageOptionsBuilder::default()
            .from_image(&repository)
            .tag(&tag)
            .build();
        let mut steps = docker.create_image(Some(options), None, None);
        let failed = |reason: String| RuntimeError::Refused(format!("pulling {image}: {reason}"));
        let mut layers = reference::Layers::default();
        loop {
            let step = match tokio::time::timeout(PULL_SILENCE, steps.next()).await {
                Err(_elapsed) => return Err(failed("the registry fell silent".to_owned())),
                Ok(None) => return Ok(()),
                Ok(Some(Ok(step))) => step,
                Ok(Some(Err(error))) => {
                    return Err(match refused(error) {
                        RuntimeError::Away(reason) => RuntimeError::Away(reason),
                        RuntimeError::Refused(reason) => failed(reason),
                        RuntimeError::Gone => failed("the registry has no such image".to_owned()),
                        other @ (RuntimeError::ImageMissing | RuntimeError::NameTaken) => {
                            failed(other.to_string())
                        }
                    });
                }
            };
            if let Some(error) = step.error_detail {
                return Err(failed(error.message.unwrap_or_default()));
            }
            if let Some(said) = layers.take(&step) {
                progress(said);
            }
        }
    }

    async fn create(&self, placement: &Placement) -> Result<String, RuntimeError> {
        let docker = self.client()?;
        let network = self.network(&docker).await?;
        let name = self.name(&placement.key());
        let specification = Specification {
            settings: &self.settings,
            network: &network,
            placement,
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = docker.create_container(Some(options), specification.body()).await;
        match created.map_err(refused) {
            Ok(created) => Ok(created.id),
            // The only thing that is looked up at this point.
            Err(RuntimeError::Gone) => Err(RuntimeError::ImageMissing),
            Err(error) => Err(error),
        }
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        let docker = self.client()?;
        let started = docker
            .start_container(container, None::<StartContainerOptions>)
            .await
            .map_err(refused);
        let Err(RuntimeError::Gone) = started else {
            return started;
        };
        // The container, or the network that it is to be connected to.
        let present = docker
            .inspect_container(container, None::<InspectContainerOptions>)
            .await;
        present.map_err(refused)?;
        *self.network.lock().await = None;
        let network = self.network(&docker).await?;
        debug!(container, network, "the network was gone");
        docker
            .start_container(container, None::<StartContainerOptions>)
            .await
            .map_err(refused)
    }

    async fn resume(&self, container: &str) -> Result<(), RuntimeError> {
        self.client()?.unpause_container(container).await.map_err(refused)
    }

    async fn stop(&self, container: &str) -> Result<(), RuntimeError> {
        let grace = i32::try_from(self.settings.grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(grace).build();
        let stopped = self.client()?.stop_container(container, Some(options)).await;
        match stopped {
            // It does not run.
            Err(Error::DockerResponseServerError { status_code: 304, .. }) => Ok(()),
            stopped => stopped.map_err(refused),
        }
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        let docker = self.client()?;
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        match docker
            .remove_container(container, Some(options))
            .await
            .map_err(refused)
        {
            Ok(()) | Err(RuntimeError::Gone) => Ok(()),
            // Somebody else is about to.
            Err(RuntimeError::NameTaken) => {
                let options = WaitContainerOptionsBuilder::default()
                    .condition("removed")
                    .build();
                let gone: Result<Vec<_>, Error> = docker
                    .wait_container(container, Some(options))
                    .try_collect()
                    .await;
                match gone {
                    Ok(_) | Err(Error::DockerContainerWaitError { .. }) => Ok(()),
                    Err(error) => match refused(error) {
                        RuntimeError::Gone => Ok(()),
                        error @ (RuntimeError::Away(_)
                        | RuntimeError::ImageMissing
                        | RuntimeError::NameTaken
                        | RuntimeError::Refused(_)) => Err(error),
                    },
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn find(&self, key: &InstanceKey) -> Result<Option<Container>, RuntimeError> {
        let name = self.name(key);
        let found = self
            .client()?
            .inspect_container(&name, None::<InspectContainerOptions>)
            .await;
        match found.map_err(refused) {
            Ok(found) => Ok(Some(self.container(found))),
            Err(RuntimeError::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self) -> Result<Vec<Listed>, RuntimeError> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&self.by_node())
            .build();
        let containers = self
            .client()?
            .list_containers(Some(options))
            .await
            .map_err(refused)?;
        let listed = containers.into_iter().map(|container| {
            let key = key(&container.labels.unwrap_or_default());
            let name = key.as_ref().map(|key| format!("/{}", self.name(key)));
            Listed {
                id: container.id.unwrap_or_default(),
                is_named_so: name.is_some_and(|name| container.names.unwrap_or_default().contains(&name)),
                key,
            }
        });
        Ok(listed.collect())
    }

    fn events(&self) -> BoxStream<'static, Result<ContainerEvent, RuntimeError>> {
        let docker = match self.client() {
            Ok(docker) => docker,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let mut filters = self.by_node();
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let of_containers = docker
            .events(Some(options))
            .map_err(refused)
            .try_filter_map(|message| std::future::ready(Ok(event(message))));
        match self.settings.network {
            NetworkMode::Plain => of_containers.boxed(),
            NetworkMode::Overlay => stream::select(of_containers, self.disconnections(docker)).boxed(),
        }
    }

    fn usage(&self, container: &Container) -> Option<Usage> {
        let ContainerState::Running { pid } = container.state else {
            return None;
        };
        cgroup::usage(pid)
    }

    fn logs(&self, container: &Container, limit: usize) -> String {
        logs::tail(&container.log_path, limit)
    }

    async fn give_up(&self) -> Result<(), RuntimeError> {
        let docker = self.client()?;
        // All at once, and each whatever becomes of the others: with the network's driver gone, one takes most of a
        // minute.
        let removals = self.list().await?.into_iter().map(|container| async move {
            info!(container = container.id, "removing");
            self.remove(&container.id).await
        });
        for removed in join_all(removals).await {
            removed?;
        }
        let name = network_name(&self.settings.node);
        match docker.remove_network(&name).await.map_err(refused) {
            Ok(()) | Err(RuntimeError::Gone) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
