//! The daemon before and after registration.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use ipnetwork::{Ipv4Network, Ipv6Network};
use protocol::network::BrokerAccess;
use tokio::sync::{Mutex, mpsc};

use crate::config::Config;
use crate::dataplane::Attachment;
use crate::endpoint::addresses::{SUBNET_PREFIX_LENGTH, SUBNET_PREFIX_LENGTH_V6};
use crate::host::{Netlink, overlap};
use crate::node::{Faults, Kept, Node, Start, remove_from_kernel};
use crate::resolver::{Mqtt, MqttSettings, ResolveError, Resolver, StaticFile, StaticFileError, Update};
use crate::state::{Registration, Store};
use crate::{api, driver};

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("this NetManager is not registered yet; POST /register first")]
    NotRegistered,
    #[error(
        "the node {node_id} is registered and could not be started: {reason}; POST /register tries again"
    )]
    NotStarted { node_id: String, reason: String },
    #[error(
        "{interface} has {address}, which is in the overlay's 10.16.0.0/12: with the overlay in place nothing \
         would arrive there any more; give this host an address outside"
    )]
    HostAddress { interface: String, address: Ipv4Addr },
    #[error("{0:?} cannot be a node id: 1 to 64 letters, digits, '-' and '_'")]
    NodeId(String),
    #[error("registered as {current}; it cannot be {asked} as well (`NetManager purge` gives the node up)")]
    Other { current: String, asked: String },
    #[error("the cluster gives no addresses: {0}")]
    Lease(#[from] ResolveError),
    #[error(transparent)]
    StaticAnswers(#[from] StaticFileError),
    #[error("starting the node: {0:#}")]
    Start(#[source] anyhow::Error),
}

/// What the daemon is told when it is started.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    /// Answers instead of a cluster, where given.
    pub static_answers: Option<PathBuf>,
    /// The folder where Docker looks for drivers; none to be no driver.
    pub docker_plugins: Option<PathBuf>,
    pub faults: Faults,
    /// How programs are attached; the better way that the kernel has, where nothing is given.
    pub attachment: Option<Attachment>,
}

/// The daemon.
pub struct Manager {
    settings: Settings,
    kept: Arc<Mutex<Kept>>,
    node: std::sync::OnceLock<Arc<Node>>,
    /// Why the registered node is not running, while it is not.
    not_started: std::sync::Mutex<Option<String>>,
    registering: Mutex<()>,
}

impl Manager {
    /// A daemon with this state folder.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn new(settings: Settings, store: Store) -> anyhow::Result<Self> {
        let state = store.load()?;
        Ok(Self {
            settings,
            kept: Arc::new(Mutex::new(Kept { store, state })),
            node: std::sync::OnceLock::new(),
            not_started: std::sync::Mutex::default(),
            registering: Mutex::default(),
        })
    }

    /// The node, once it is registered and runs.
    ///
    /// # Errors
    /// [`RegisterError::NotRegistered`] before, [`RegisterError::NotStarted`] while it cannot be started.
    pub async fn node(&self) -> Result<Arc<Node>, RegisterError> {
        if let Some(node) = self.node.get() {
            return Ok(node.clone());
        }
        let registration = self.kept.lock().await.state.registration.clone();
        let registration = registration.ok_or(RegisterError::NotRegistered)?;
        let reason = self.reason().clone();
        Err(RegisterError::NotStarted {
            node_id: registration.node_id,
            reason: reason.unwrap_or_else(|| "it is being started".to_owned()),
        })
    }

    /// Goes on with the node that an earlier process registered, if there is one. The cluster need not answer.
    /// Whether there is one; where it runs already, nothing happens.
    ///
    /// # Errors
    /// When the data plane cannot be put in place. It stays registered and may be tried again.
    pub async fn resume(&self) -> Result<bool, RegisterError> {
        let _one_at_a_time = self.registering.lock().await;
        if self.node.get().is_some() {
            return Ok(true);
        }
        let Some(registration) = self.kept.lock().await.state.registration.clone() else {
            return Ok(false);
        };
        self.start_again(registration).await?;
        Ok(true)
    }

    /// Becomes the node `node_id` of the cluster at `cluster_address`, or of the configured one where that is
    /// empty. The same id again changes nothing but where the cluster is and how to log in there, where that is
    /// given: it is kept, and a node that runs already goes there.
    ///
    /// # Errors
    /// When this is another node already, the host has an address of the overlay, the cluster gives no addresses, or
    /// the data plane cannot be put in place. Then it is not registered, and may be tried again under any id;
    /// what was registered before stays so.
    pub async fn register(
        &self,
        node_id: &str,
        cluster_address: &str,
        broker: Option<BrokerAccess>,
    ) -> Result<(), RegisterError> {
        if !is_node_id(node_id) {
            return Err(RegisterError::NodeId(node_id.to_owned()));
        }
        let _one_at_a_time = self.registering.lock().await;
        let earlier = self.kept.lock().await.state.registration.clone();
        let Some(earlier) = earlier else {
            return self.register_first(node_id, cluster_address, broker).await;
        };
        if earlier.node_id != node_id {
            return Err(RegisterError::Other {
                current: earlier.node_id,
                asked: node_id.to_owned(),
            });
        }
        let registration = self.follow_cluster(earlier, cluster_address, broker).await?;
        if self.node.get().is_some() {
            return Ok(());
        }
        // Its start failed: its addresses are leased already.
        self.start_again(registration).await
    }

    /// Keeps where the cluster is and how to log in there, where that is not as before, and goes there. What is not
    /// given stays as it was.
    async fn follow_cluster(
        &self,
        earlier: Registration,
        cluster_address: &str,
        broker: Option<BrokerAccess>,
    ) -> Result<Registration, RegisterError> {
        let mut registration = earlier.clone();
        if !cluster_address.is_empty() {
            registration.cluster_address = cluster_address.to_owned();
        }
        if broker.is_some() {
            registration.broker = broker;
        }
        if registration == earlier {
            return Ok(earlier);
        }
        // Refused before it is kept.
        let settings = match self.settings.static_answers {
            Some(_) => None,
            None => Some(self.mqtt_settings(&registration)?),
        };
        let mut kept = self.kept.lock().await;
        kept.state.registration = Some(registration.clone());
        kept.save().map_err(|error| RegisterError::Start(error.into()))?;
        if let (Some(node), Some(settings)) = (self.node.get(), settings) {
            node.follow(settings);
        }
        Ok(registration)
    }

    async fn register_first(
        &self,
        node_id: &str,
        cluster_address: &str,
        broker: Option<BrokerAccess>,
    ) -> Result<(), RegisterError> {
        // Before the cluster leases anything.
        check_host().await?;
        let mut registration = Registration {
            node_id: node_id.to_owned(),
            cluster_address: cluster_address.to_owned(),
            broker,
            subnet: Ipv4Addr::UNSPECIFIED,
            subnet_v6: None,
            instance_address: None,
            application: 0,
        };
        let (resolver, updates) = self.resolver(&registration)?;
        let lease = resolver.lease().await?;
        registration.subnet = lease.subnet;
        registration.subnet_v6 = lease.subnet_v6;
        registration.instance_address = lease.instance_address;
        registration.application = lease.application;
        self.note(&registration).await.map_err(RegisterError::Start)?;
        let outcome = self.start(registration, resolver, updates).await;
        if outcome.is_err()
            && let Err(error) = self.take_back().await
        {
            tracing::error!("the registration stays, because {error:#}");
        }
        outcome
    }

    /// Makes it as if there had been no registration. What cannot be removed keeps it, else nobody would know what to
    /// remove.
    async fn take_back(&self) -> anyhow::Result<()> {
        let mut kept = self.kept.lock().await;
        let removed = remove_from_kernel(&mut kept.state).await;
        if removed.is_ok() {
            kept.state.registration = None;
            kept.state.addresses = None;
            kept.state.docker.clear();
            kept.state.last_addresses.clear();
            *self.reason() = None;
        }
        // Whatever was removed is to be forgotten.
        kept.save()?;
        removed
    }

    /// Ends what runs; everything in the kernel stays and goes on.
    pub async fn stop(&self) {
        if let Some(node) = self.node.get() {
            node.stop().await;
        }
    }

    async fn start_again(&self, registration: Registration) -> Result<(), RegisterError> {
        let outcome = async {
            check_host().await?;
            let (resolver, updates) = self.resolver(&registration)?;
            self.start(registration, resolver, updates).await
        };
        let outcome = outcome.await;
        *self.reason() = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    fn reason(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.not_started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn note(&self, registration: &Registration) -> anyhow::Result<()> {
        let subnet = Ipv4Network::new(registration.subnet, SUBNET_PREFIX_LENGTH)?;
        let subnet_v6 = registration
            .subnet_v6
            .map(|subnet| Ipv6Network::new(subnet, SUBNET_PREFIX_LENGTH_V6));
        let mut kept = self.kept.lock().await;
        kept.state
            .addresses
            .get_or_insert_default()
            .add_subnet(subnet, subnet_v6.transpose()?)?;
        kept.state.registration = Some(registration.clone());
        kept.save()?;
        Ok(())
    }

    async fn start(
        &self,
        registration: Registration,
        resolver: Arc<dyn Resolver>,
        updates: mpsc::Receiver<Update>,
    ) -> Result<(), RegisterError> {
        let start = Start {
            registration,
            config: self.settings.config.clone(),
            resolver,
            updates,
            kept: self.kept.clone(),
            faults: self.settings.faults,
            attachment: self.settings.attachment,
        };
        let node = Node::start(start).await.map_err(RegisterError::Start)?;
        // Containers that are attached otherwise do without.
        if let Err(error) = self.serve_docker(&node).await {
            tracing::error!("Docker does not find this node's network driver: {error:#}");
        }
        // Set once: `registering` is held, and it was empty.
        if self.node.set(node).is_err() {
            tracing::error!("a node was started twice");
        }
        Ok(())
    }

    /// Serves Docker's network driver of the node; where it was before is noted, and removed if it is elsewhere.
    async fn serve_docker(&self, node: &Arc<Node>) -> anyhow::Result<()> {
        let folder = self.settings.docker_plugins.as_deref();
        let socket = folder.map(|folder| driver::socket(folder, &node.registration.node_id));
        let earlier = {
            let mut kept = self.kept.lock().await;
            let earlier = std::mem::replace(&mut kept.state.docker_socket, socket.clone());
            if earlier != socket {
                kept.save()?;
            }
            earlier
        };
        if let Some(earlier) = earlier.filter(|earlier| Some(earlier) != socket.as_ref()) {
            driver::remove(&earlier);
        }
        if let Some(socket) = socket {
            let listener = api::bind(&socket)?;
            node.serve_docker(listener, socket);
        }
        Ok(())
    }

    fn resolver(
        &self,
        registration: &Registration,
    ) -> Result<(Arc<dyn Resolver>, mpsc::Receiver<Update>), RegisterError> {
        if let Some(file) = &self.settings.static_answers {
            let (answers, updates) = StaticFile::open(file)?;
            return Ok((Arc::new(answers), updates));
        }
        let (answers, updates) = Mqtt::connect(&self.mqtt_settings(registration)?);
        Ok((Arc::new(answers), updates))
    }

    fn mqtt_settings(&self, registration: &Registration) -> Result<MqttSettings, ResolveError> {
        let Registration {
            node_id,
            cluster_address,
            broker,
            ..
        } = registration;
        MqttSettings::from_config(&self.settings.config, node_id, cluster_address, broker.as_ref())
    }
}

/// Refuses a host that the overlay would cut off.
async fn check_host() -> Result<(), RegisterError> {
    let found = async { overlap::foreign_address(&Netlink::open()?).await };
    match found.await.map_err(|error| RegisterError::Start(error.into()))? {
        Some((interface, address)) => Err(RegisterError::HostAddress { interface, address }),
        None => Ok(()),
    }
}

/// Whether the text may name folders, tables and links.
fn is_node_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_name_nothing_but_themselves() {
        for good in ["65f0a1b2c3d4e5f60718293a", "oakt-1-a", "A_b"] {
            assert!(is_node_id(good), "{good}");
        }
        for bad in ["", "..", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(!is_node_id(bad), "{bad}");
        }
    }
}
