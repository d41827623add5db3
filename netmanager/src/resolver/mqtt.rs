//! Asks a cluster over its MQTT broker.
//!
//! [`core`] decides, [`connection`] talks to the broker, and tasks in between carry out what the core wants:
//! nothing that waits holds up anything else. One connection serves all questions; answers find who waits for
//! them by what they are about. The session at the broker outlives the connection, and whatever may have
//! been missed is asked for again on the next one.

mod announcements;
mod connection;
mod core;
mod interest;
mod peers;
mod pending;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protocol::network::{AnnouncementStatus, BrokerAccess, ServiceName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info};

use self::core::{Answer, Core, Effect, Outgoing, QueryKey, Waiter};
use self::interest::Next;
use super::updates::Updates;
use super::{Deployed, Lease, ResolveError, Resolver, ServiceRecord, Update, service_name};
use crate::config::Config;

const QUERY_DEADLINE: Duration = Duration::from_secs(5);
const LEASE_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between attempts to hear of a service that does not get an answer.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How long an unexpected absence is left alone before it is asked for once more: enough for a cluster that
/// has just started to find out what it knows.
const DOUBT: Duration = Duration::from_secs(2);

/// Who this node is to the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

/// Which broker to ask, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct MqttSettings {
    node: String,
    host: String,
    port: u16,
    credentials: Option<Credentials>,
    query_deadline: Duration,
    lease_deadline: Duration,
}

impl MqttSettings {
    /// The broker at TCP port `port` of `host`, a name or an address, for the node with the id `node`.
    pub fn new(node: &str, host: &str, port: u16) -> Result<Self, ResolveError> {
        if node.is_empty() || node.contains(['/', '+', '#', '\0']) || node.contains(char::is_whitespace) {
            return Err(ResolveError::Refused(format!(
                "node id {node:?} cannot be part of a topic"
            )));
        }
        if host.is_empty() {
            return Err(ResolveError::Refused(
                "nobody said where the cluster is".to_owned(),
            ));
        }
        Ok(Self {
            node: node.to_owned(),
            host: host.to_owned(),
            port,
            credentials: None,
            query_deadline: QUERY_DEADLINE,
            lease_deadline: LEASE_DEADLINE,
        })
    }

    /// The broker that the configuration names, unless `cluster_address` and `broker`, from the registration, name
    /// one.
    pub fn from_config(
        config: &Config,
        node: &str,
        cluster_address: &str,
        broker: Option<&BrokerAccess>,
    ) -> Result<Self, ResolveError> {
        // Whoever configured an identity wants the connection protected; it is not made otherwise.
        let files = [&config.mqtt_certificate, &config.mqtt_key, &config.mqtt_ca];
        if let Some(file) = files.into_iter().flatten().next() {
            return Err(tls_refused(file));
        }
        let configured = config.cluster_host.as_deref().unwrap_or_default();
        let host = if cluster_address.is_empty() {
            configured
        } else {
            cluster_address
        };
        let port = broker
            .and_then(|broker| broker.port)
            .unwrap_or(config.cluster_port);
        let settings = Self::new(node, host, port)?;
        Ok(match broker {
            Some(BrokerAccess { user, password, .. }) => settings.with_credentials(Credentials {
                user: user.clone(),
                password: password.clone(),
            }),
            None => settings,
        })
    }

    /// Who the node is to a broker that asks.
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self {
            credentials: Some(credentials),
            ..self
        }
    }

    /// How long an answer may take: about a service, and about the node's own addresses.
    pub fn with_deadlines(self, query: Duration, lease: Duration) -> Self {
        Self {
            query_deadline: query,
            lease_deadline: lease,
            ..self
        }
    }
}

fn tls_refused(file: &Path) -> ResolveError {
    let file = file.display();
    ResolveError::Refused(format!(
        "connections to the broker with a certificate ({file}) are not supported"
    ))
}

/// Asks a cluster over its broker.
pub struct Mqtt {
    session: Arc<Session>,
    /// Ends, with all that it started, when the resolver is dropped.
    _tasks: JoinSet<()>,
}

/// What the resolver and its tasks share.
struct Session {
    node: String,
    core: Mutex<Core>,
    query_deadline: Duration,
    lease_deadline: Duration,
    updates: Updates,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    jobs: mpsc::UnboundedSender<Job>,
    settings: watch::Sender<MqttSettings>,
}

/// What takes time and waits for nobody.
enum Job {
    Refresh(ServiceName),
    AwaitPeers {
        epoch: Option<u64>,
        version: u64,
        acknowledged: oneshot::Receiver<()>,
    },
}

impl Mqtt {
    /// Begins to connect, and keeps connecting. Has to be called inside a tokio runtime.
    pub fn connect(settings: &MqttSettings) -> (Self, mpsc::Receiver<Update>) {
        let (client, events) = connection::client(settings);
        let (outgoing, to_write) = mpsc::unbounded_channel();
        let (jobs, to_do) = mpsc::unbounded_channel();
        let updates = Updates::default();
        let (receiver, forward) = updates.channel();
        let (sender, moves) = watch::channel(settings.clone());
        let session = Arc::new(Session {
            node: settings.node.clone(),
            core: Mutex::new(Core::new(
                &settings.node,
                settings.query_deadline,
                settings.lease_deadline,
            )),
            query_deadline: settings.query_deadline,
            lease_deadline: settings.lease_deadline,
            updates,
            outgoing,
            jobs,
            settings: sender,
        });

        info!(host = %settings.host, port = settings.port, node = %settings.node, "connecting to the cluster");
        let mut tasks = JoinSet::new();
        tasks.spawn(forward);
        tasks.spawn(connection::write(client, to_write));
        tasks.spawn(work(Arc::clone(&session), to_do));
        tasks.spawn(connection::run(Arc::clone(&session), events, moves));
        (
            Self {
                session,
                _tasks: tasks,
            },
            receiver,
        )
    }
}

#[async_trait]
impl Resolver for Mqtt {
    async fn lease(&self) -> Result<Lease, ResolveError> {
        self.session.lease().await
    }

    async fn resolve(&self, address: Ipv4Addr) -> Result<Option<ServiceRecord>, ResolveError> {
        self.session.query(QueryKey::Address(address), true).await
    }

    async fn resolve_name(&self, name: &str) -> Result<Option<ServiceRecord>, ResolveError> {
        self.session
            .query(QueryKey::Name(service_name(name)?), true)
            .await
    }

    async fn deployed(&self, instance: &Deployed) -> Result<(), ResolveError> {
        self.session
            .with_core(|core| core.set_announcement(instance, AnnouncementStatus::Deployed));
        Ok(())
    }

    async fn undeployed(&self, instance: &Deployed) -> Result<(), ResolveError> {
        self.session
            .with_core(|core| core.set_announcement(instance, AnnouncementStatus::Undeployed));
        Ok(())
    }

    async fn uninterested(&self, name: &str) -> Result<(), ResolveError> {
        let name = service_name(name)?;
        self.session.with_core(|core| core.uninterested(&name));
        Ok(())
    }

    fn follows(&self, name: &str) -> bool {
        service_name(name).is_ok_and(|name| self.session.with_core(|core| core.is_interested(&name)))
    }

    fn follow(&self, settings: MqttSettings) {
        self.session.settings.send_if_modified(|current| {
            let moved = *current != settings;
            *current = settings;
            moved
        });
    }
}

impl Session {
    /// Lets the core do something, and carries out what follows from it before anybody else is let in, so
    /// that effects happen in the order of their causes. None of them waits.
    fn with_core<T>(&self, access: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let value = access(&mut core);
        for effect in core.take_effects() {
            match effect {
                Effect::Tell(update) => self.updates.tell(update),
                Effect::Send(outgoing) => hand_over(&self.outgoing, outgoing),
                Effect::Refresh(name) => hand_over(&self.jobs, Job::Refresh(name)),
                Effect::AwaitPeers {
                    epoch,
                    version,
                    acknowledged,
                } => {
                    hand_over(
                        &self.jobs,
                        Job::AwaitPeers {
                            epoch,
                            version,
                            acknowledged,
                        },
                    );
                }
            }
        }
        value
    }

    async fn query(&self, key: QueryKey, interested: bool) -> Answer {
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter {
            answer: sender,
            interested,
        };
        let ticket = self.with_core(|core| core.ask(key.clone(), waiter, Instant::now()))?;
        let _waiting = OnDrop(|| self.with_core(|core| core.leave(&key, ticket)));
        match timeout(self.query_deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_closed)) => Err(ResolveError::Away("the resolver has ended".to_owned())),
            Err(_elapsed) => {
                let about = match &key {
                    QueryKey::Address(address) => address.to_string(),
                    QueryKey::Name(name) => name.to_string(),
                };
                Err(ResolveError::Late {
                    about,
                    deadline: self.query_deadline,
                })
            }
        }
    }

    async fn lease(&self) -> Result<Lease, ResolveError> {
        let (waiter, answer) = oneshot::channel();
        let claim = |core: &mut Core| match core.claim_lease() {
            Some(lease) => Err(lease),
            None => Ok(core.ask_lease(waiter, Instant::now())),
        };
        let ticket = match self.with_core(claim) {
            Ok(ticket) => ticket,
            Err(lease) => return Ok(lease),
        };
        let _waiting = OnDrop(|| self.with_core(|core| core.leave_lease(ticket)));
        match timeout(self.lease_deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_closed)) => Err(ResolveError::Away("the resolver has ended".to_owned())),
            Err(_elapsed) => Err(self.with_core(|core| core.down().cloned()).unwrap_or_else(|| {
                let about = "the subnet of this node".to_owned();
                ResolveError::Late {
                    about,
                    deadline: self.lease_deadline,
                }
            })),
        }
    }

    /// Asks for a service by its name until there is an answer; what it says is told by the core.
    async fn refresh(&self, name: ServiceName) {
        let mut retry = FIRST_RETRY;
        loop {
            match self.query(QueryKey::Name(name.clone()), false).await {
                Ok(_) => retry = FIRST_RETRY,
                Err(ResolveError::Away(_) | ResolveError::Refused(_)) => {}
                Err(error @ (ResolveError::Late { .. } | ResolveError::Contradictory(_))) => {
                    debug!(service = %name, %error, ?retry, "service is not refreshed");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                    if self.with_core(|core| core.is_interested(&name)) {
                        continue;
                    }
                }
            }
            match self.with_core(|core| core.refreshed(&name)) {
                Next::Done => return,
                Next::Again => {}
                Next::Doubt => tokio::time::sleep(DOUBT).await,
            }
        }
    }
}

/// Does all jobs at the same time.
async fn work(session: Arc<Session>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv() => {
                let Some(job) = job else { return };
                let session = Arc::clone(&session);
                running.spawn(async move {
                    match job {
                        Job::Refresh(name) => session.refresh(name).await,
                        Job::AwaitPeers { epoch, version, acknowledged } => {
                            let installed = acknowledged.await.is_ok();
                            session.with_core(|core| core.peers_finished(epoch, version, installed));
                        }
                    }
                });
            }
            Some(_ended) = running.join_next() => {}
        }
    }
}

/// Hands something to a task, which is gone only when everything ends.
fn hand_over<T>(sender: &mpsc::UnboundedSender<T>, value: T) {
    if sender.send(value).is_err() {
        debug!("the resolver has ended");
    }
}

/// Does something when it is dropped, also when whoever waited is cancelled.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
