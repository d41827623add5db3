//! Carries out what the core decides, one event after the other.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protocol::cluster::{FromCluster, FromRoot, Lease};
use protocol::network::{
    InterestRemoval, Lenient, PeersAcknowledgement, ServiceAnnouncement, SubnetMethod, SubnetRequest,
    TableQuery,
};
use protocol::node::{
    Acknowledgement, JobReport, NodeInformation, Registered, ResourcesReport, ServiceUsage, topic,
};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::Settings;
use super::broker::{Accounts, Broker, Tapped};
use super::core::{Core, NodeView, Patience};
use crate::session::{Handler, NotTaken, Outbox};
use crate::store::Store;

/// Questions of one node that are being answered at the same time. It asks again for what is left out, and nobody else
/// waits for it.
const QUERIES: usize = 256;
/// How long a registration waits for the root's addresses.
const LEASE: Duration = Duration::from_secs(5);

/// A cluster at work.
pub(super) struct Service {
    core: tokio::sync::Mutex<Core>,
    store: Arc<dyn Store>,
    broker: Broker,
    accounts: Accounts,
    outbox: Arc<Outbox<FromCluster>>,
    patience: Patience,
    name: String,
    /// As the root has told it last.
    cluster_id: Mutex<String>,
    /// By node: how many more questions of it can be answered at the same time.
    queries: Mutex<HashMap<String, Arc<Semaphore>>>,
    malformed: AtomicU64,
    failed: CancellationToken,
}

/// Why an event was not carried out.
#[derive(Debug, thiserror::Error)]
#[error("the state cannot be stored")]
pub(super) struct NotStored;

/// Why a node did not get what it needs.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistrationError {
    #[error("the root is away and this node has no addresses yet; try again")]
    RootAway,
    #[error("the root has not given this node addresses in time; try again")]
    RootLate,
    #[error("the root gives this node no addresses: {0}")]
    Refused(String),
    #[error(transparent)]
    NotStored(#[from] NotStored),
}

impl Service {
    pub(super) fn new(
        core: Core,
        store: Arc<dyn Store>,
        broker: Broker,
        accounts: Accounts,
        outbox: Arc<Outbox<FromCluster>>,
        settings: &Settings,
    ) -> Self {
        Self {
            core: tokio::sync::Mutex::new(core),
            store,
            broker,
            accounts,
            outbox,
            patience: settings.patience.clone(),
            name: settings.name.clone(),
            cluster_id: Mutex::default(),
            queries: Mutex::default(),
            malformed: AtomicU64::new(0),
            failed: CancellationToken::new(),
        }
    }

    pub(super) fn broker_address(&self) -> SocketAddr {
        self.broker.address()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Cancelled when nothing can be stored any more.
    pub(super) fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Lets the core do something and carries out what follows: to the disk first, so that nobody acts on what a
    /// crash would undo. The next event waits for that. Not to be dropped half-way: spawn what can be.
    async fn with_core<T>(&self, access: impl FnOnce(&mut Core) -> T) -> Result<T, NotStored> {
        let mut core = self.core.lock().await;
        if self.failed.is_cancelled() {
            return Err(NotStored);
        }
        core.at(Instant::now());
        let value = access(&mut core);
        let effects = match core.take_effects() {
            Ok(effects) => effects,
            Err(error) => {
                error!(%error, "state cannot be written");
                self.failed.cancel();
                return Err(NotStored);
            }
        };
        if !effects.transaction.is_empty()
            && let Err(error) = self.store.commit(effects.transaction).await
        {
            // What the core knows and what is stored differ from here on: only a restart mends that.
            error!(%error, "state cannot be stored");
            self.failed.cancel();
            return Err(NotStored);
        }
        for (topic, payload) in effects.publish {
            self.broker.publish(topic, payload).await;
        }
        for message in effects.root {
            self.outbox.send(message);
        }
        Ok(value)
    }

    /// The same for events that nobody waits for.
    async fn event(&self, access: impl FnOnce(&mut Core)) {
        if let Err(NotStored) = self.with_core(access).await {
            debug!("event lost with the process");
        }
    }

    pub(super) async fn tick(&self) {
        self.event(Core::tick).await;
    }

    /// Something came out of the broker.
    pub(super) async fn tapped(self: &Arc<Self>, tapped: Tapped) {
        match tapped {
            Tapped::Subscribed { node, filter } => self.event(|core| core.subscribed(&node, &filter)).await,
            Tapped::Message { topic, payload } => {
                let Some((node, rest)) = topic::node_of(&topic) else {
                    return;
                };
                self.message(node, rest, &topic, &payload).await;
            }
        }
    }

    async fn message(self: &Arc<Self>, node: &str, rest: &str, topic: &str, payload: &[u8]) {
        match rest {
            "information" => {
                if let Some(message) = self.read::<NodeInformation>(topic, payload) {
                    self.event(|core| core.information(node, message)).await;
                }
            }
            "job" => {
                if let Some(message) = self.read::<JobReport>(topic, payload) {
                    self.event(|core| core.job_report(node, message)).await;
                }
            }
            "jobs/resources" => {
                if let Some(message) = self.resources(topic, payload) {
                    self.event(|core| core.resources(node, message)).await;
                }
            }
            "control/ack" => {
                if let Some(message) = self.read::<Acknowledgement>(topic, payload) {
                    self.event(|core| core.acknowledged(node, message)).await;
                }
            }
            "net/subnet" => match self.read::<SubnetRequest>(topic, payload) {
                Some(SubnetRequest {
                    method: SubnetMethod::Get,
                }) => self.event(|core| core.subnet(node)).await,
                // Subnets are the node's for good.
                Some(SubnetRequest {
                    method: SubnetMethod::Delete,
                })
                | None => {}
            },
            "net/service/deployed" | "net/service/undeployed" | "net/service/address-changed" => {
                if let Some(message) = self.read::<ServiceAnnouncement>(topic, payload) {
                    self.event(|core| core.announced(node, &message)).await;
                }
            }
            "net/tablequery/request" => {
                if let Some(message) = self.read::<TableQuery>(topic, payload) {
                    self.query(node.to_owned(), message);
                }
            }
            "net/interest/remove" => {
                if let Some(message) = self.read::<InterestRemoval>(topic, payload) {
                    self.event(|core| core.uninterested(node, &message.appname)).await;
                }
            }
            "net/peers/ack" => {
                if let Some(message) = self.read::<PeersAcknowledgement>(topic, payload) {
                    self.event(|core| core.peers_acknowledged(node, message)).await;
                }
            }
            _ => debug!(topic, "message that nobody asked for"),
        }
    }

    /// Reads a report of everything on a node. An entry that cannot be read costs nobody but itself.
    fn resources(&self, topic: &str, payload: &[u8]) -> Option<ResourcesReport> {
        #[derive(serde::Deserialize)]
        struct Entries {
            services: Vec<Lenient<ServiceUsage>>,
        }
        let entries: Entries = self.read(topic, payload)?;
        let services = entries.services.into_iter().filter_map(|entry| match entry {
            Lenient::Read(usage) => Some(usage),
            Lenient::Malformed { error, .. } => {
                self.skipped(topic, &error, "entry skipped");
                None
            }
        });
        Some(ResourcesReport {
            services: services.collect(),
        })
    }

    fn read<T: DeserializeOwned>(&self, topic: &str, payload: &[u8]) -> Option<T> {
        match serde_json::from_slice(payload) {
            Ok(message) => Some(message),
            Err(error) => {
                self.skipped(topic, &error, "message skipped");
                None
            }
        }
    }

    /// Logs ever more rarely, so that no node can fill a disk.
    fn skipped(&self, topic: &str, error: &dyn std::fmt::Display, what: &str) {
        let skipped = self.malformed.fetch_add(1, Ordering::Relaxed) + 1;
        if skipped <= 64 || skipped.is_power_of_two() {
            warn!(topic, %error, skipped, "{what}");
        } else {
            debug!(topic, %error, skipped, "{what}");
        }
    }

    /// Answers a question of a node, without holding up anything else.
    fn query(self: &Arc<Self>, node: String, query: TableQuery) {
        let room = {
            let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(QUERIES));
            Arc::clone(queries.entry(node.clone()).or_insert_with(new))
        };
        let Ok(permit) = room.try_acquire_owned() else {
            debug!(node, "too many questions at the same time");
            return;
        };
        let service = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(NotStored) = service.answer(&node, &query).await {
                debug!(node, "question lost with the process");
            }
            drop(permit);
        });
    }

    async fn answer(&self, node: &str, query: &TableQuery) -> Result<(), NotStored> {
        let root = self.with_core(|core| core.begin_query(query)).await?;
        if let Some(answered) = root
            && timeout(self.patience.root, answered).await.is_err()
        {
            debug!(node, ?query, "the root does not answer in time");
        }
        let peers = self.with_core(|core| core.tell_peers(node, query)).await?;
        let all = async {
            for installed in peers {
                if installed.await.is_err() {
                    debug!(node, "a peer hears of it later");
                }
            }
        };
        if timeout(self.patience.peers, all).await.is_err() {
            debug!(node, ?query, "answered before all peers know");
        }
        self.with_core(|core| core.answer(node, query)).await
    }

    /// A node introduces itself.
    pub(super) async fn register(
        self: &Arc<Self>,
        information: NodeInformation,
        address: Option<IpAddr>,
    ) -> Result<Registered, RegistrationError> {
        let registration = self.with_core(|core| core.register(information, address)).await?;
        self.accounts.set(&registration.id, registration.passwords);
        let lease = match registration.lease {
            Some(lease) => lease,
            None => self.lease(&registration.id).await?,
        };
        Ok(Registered {
            mqtt_user: registration.id.clone(),
            id: registration.id,
            broker_port: self.broker.address().port().to_string(),
            mqtt_password: registration.password,
            subnet: Some(lease.subnet),
            subnet_v6: lease.subnet_v6,
            instance_ip: Some(lease.instance_ip),
            instance_ip_v6: lease.instance_ip_v6,
        })
    }

    async fn lease(&self, node: &str) -> Result<Lease, RegistrationError> {
        let asked = self
            .with_core(|core| core.is_connected().then(|| core.await_lease(node)))
            .await?;
        let Some(answer) = asked else {
            return Err(RegistrationError::RootAway);
        };
        match timeout(LEASE, answer).await {
            Ok(Ok(Ok(lease))) => Ok(lease),
            Ok(Ok(Err(message))) => Err(RegistrationError::Refused(message)),
            Ok(Err(_)) | Err(_) => Err(RegistrationError::RootLate),
        }
    }

    pub(super) async fn nodes(&self) -> Result<Vec<NodeView>, NotStored> {
        self.with_core(|core| core.node_views()).await
    }

    /// The id that the root has given, and whether it is connected.
    pub(super) async fn status(&self) -> Result<(String, bool), NotStored> {
        self.with_core(|core| (core.id().to_owned(), core.is_connected()))
            .await
    }

    /// The root has taken this cluster.
    pub(super) fn welcomed(&self, cluster_id: &str) {
        let mut id = self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner);
        cluster_id.clone_into(&mut id);
    }

    fn cluster_id(&self) -> String {
        self.cluster_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl Handler<FromRoot, FromCluster> for Service {
    async fn begin(&self, outbox: &Outbox<FromCluster>) {
        let id = self.cluster_id();
        let mut core = self.core.lock().await;
        core.identified(&id);
        outbox.begin(core.snapshot());
    }

    async fn message(&self, message: FromRoot) -> Result<(), NotTaken> {
        self.with_core(|core| core.heard(message))
            .await
            .map_err(|error| NotTaken(error.to_string()))
    }

    async fn connected(&self, connected: bool) {
        let id = self.cluster_id();
        self.event(|core| {
            core.identified(&id);
            core.connected(connected);
        })
        .await;
    }
}
