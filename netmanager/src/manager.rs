//! The daemon before and after registration.

use std::path::PathBuf;
use std::sync::Arc;

use ipnetwork::{Ipv4Network, Ipv6Network};
use tokio::sync::{Mutex, mpsc};

use crate::config::Config;
use crate::endpoint::addresses::{SUBNET_PREFIX_LENGTH, SUBNET_PREFIX_LENGTH_V6};
use crate::node::{Faults, Kept, Node, Start};
use crate::resolver::{Mqtt, MqttSettings, ResolveError, Resolver, StaticFile, StaticFileError, Update};
use crate::state::{Registration, Store};

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("this NetManager is not registered yet; POST /register first")]
    NotRegistered,
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
    pub faults: Faults,
}

/// The daemon.
pub struct Manager {
    settings: Settings,
    kept: Arc<Mutex<Kept>>,
    node: std::sync::OnceLock<Arc<Node>>,
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
            registering: Mutex::default(),
        })
    }

    /// The node, once it is registered.
    ///
    /// # Errors
    /// [`RegisterError::NotRegistered`] before.
    pub fn node(&self) -> Result<Arc<Node>, RegisterError> {
        self.node.get().cloned().ok_or(RegisterError::NotRegistered)
    }

    /// Goes on with the node that an earlier process registered, if there is one. The cluster need not answer.
    ///
    /// # Errors
    /// When the data plane cannot be put in place.
    pub async fn resume(&self) -> Result<bool, RegisterError> {
        let _one_at_a_time = self.registering.lock().await;
        let Some(registration) = self.kept.lock().await.state.registration.clone() else {
            return Ok(false);
        };
        let (resolver, updates) = self.resolver(&registration.node_id, &registration.cluster_address)?;
        self.start(registration, resolver, updates).await?;
        Ok(true)
    }

    /// Becomes the node `node_id` of the cluster at `cluster_address`, or of the configured one where that is
    /// empty. The same id again changes nothing.
    ///
    /// # Errors
    /// When this is another node already, the cluster gives no addresses, or the data plane cannot be put in place;
    /// then it is not registered and may be tried again.
    pub async fn register(&self, node_id: &str, cluster_address: &str) -> Result<(), RegisterError> {
        if !is_node_id(node_id) {
            return Err(RegisterError::NodeId(node_id.to_owned()));
        }
        let _one_at_a_time = self.registering.lock().await;
        let earlier = self.kept.lock().await.state.registration.clone();
        if let Some(earlier) = &earlier
            && earlier.node_id != node_id
        {
            return Err(RegisterError::Other {
                current: earlier.node_id.clone(),
                asked: node_id.to_owned(),
            });
        }
        if self.node.get().is_some() {
            return Ok(());
        }
        let (resolver, updates) = self.resolver(node_id, cluster_address)?;
        if let Some(earlier) = earlier {
            // Its start failed: its addresses are leased already.
            return self.start(earlier, resolver, updates).await;
        }
        let lease = resolver.lease().await?;
        let registration = Registration {
            node_id: node_id.to_owned(),
            cluster_address: cluster_address.to_owned(),
            subnet: lease.subnet,
            subnet_v6: lease.subnet_v6,
            instance_address: lease.instance_address,
            application: lease.application,
        };
        self.note(&registration).await.map_err(RegisterError::Start)?;
        self.start(registration, resolver, updates).await
    }

    /// Ends what runs; everything in the kernel stays and goes on.
    pub async fn stop(&self) {
        if let Some(node) = self.node.get() {
            node.stop().await;
        }
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
        };
        let node = Node::start(start).await.map_err(RegisterError::Start)?;
        // Set once: `registering` is held, and it was empty.
        if self.node.set(node).is_err() {
            tracing::error!("a node was started twice");
        }
        Ok(())
    }

    fn resolver(
        &self,
        node_id: &str,
        cluster_address: &str,
    ) -> Result<(Arc<dyn Resolver>, mpsc::Receiver<Update>), RegisterError> {
        if let Some(file) = &self.settings.static_answers {
            let (answers, updates) = StaticFile::open(file)?;
            return Ok((Arc::new(answers), updates));
        }
        let settings = MqttSettings::from_config(&self.settings.config, node_id, cluster_address)?;
        let (answers, updates) = Mqtt::connect(&settings);
        Ok((Arc::new(answers), updates))
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
