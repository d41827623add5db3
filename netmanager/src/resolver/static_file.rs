//! Answers from a file, for laboratories and tests.
//!
//! The file is one JSON object. Rows are those of the cluster's wires
//! ([`InstanceRow`], [`PeerRow`](protocol::network::PeerRow)), `service_ip` may be left out:
//!
//! ```json
//! {
//!   "subnet": "10.18.0.0",
//!   "subnetV6": "fc00::", "instanceIp": "10.30.0.1", "instanceIpV6": "fdff::1", "appId": 0,
//!   "peers": [
//!     {"app_name": "app.ns.client.ns", "instance_number": 0, "instance_ip": "10.30.0.2",
//!      "namespace_ip": "10.18.0.66", "host_ip": "192.0.2.11", "host_port": 50103, "node_id": "b"}
//!   ],
//!   "services": [
//!     {"name": "app.ns.server.ns", "rr": ["10.30.55.55"], "closest": ["10.30.55.56"],
//!      "delayMilliseconds": 0,
//!      "instances": [
//!        {"instance_number": 0, "instance_ip": "10.30.0.3", "namespace_ip": "10.18.0.67",
//!         "host_ip": "192.0.2.11", "host_port": 50103, "incarnation": 1}
//!      ]}
//!   ]
//! }
//! ```
//!
//! Only `subnet` is needed. `delayMilliseconds` makes the answers about a service come late. The file is read
//! again whenever it is written or replaced: what changed in services that were asked for, and in `peers`,
//! comes as updates. Content that is not valid is reported, and the last valid one stays.

mod content;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, error, info};

use self::content::{Content, Service};
use self::watch::Watch;
use super::updates::Updates;
use super::{Deployed, InstanceRecord, Lease, ResolveError, Resolver, ServiceRecord, Update, service_name};

/// The longest that a caller waits for an answer that the file delays.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a file does not do.
#[derive(Debug, thiserror::Error)]
pub enum StaticFileError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// The file is not what the format says.
    #[error("{}: {source}", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// The file reads well and says something impossible.
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
    /// Changes of the file cannot be noticed.
    #[error("{}: cannot be watched: {source}", path.display())]
    Unwatchable { path: PathBuf, source: io::Error },
}

/// Answers from a file.
pub struct StaticFile {
    shared: Arc<Shared>,
    /// Ends, with all that it started, when the resolver is dropped.
    _tasks: JoinSet<()>,
}

struct Shared {
    path: PathBuf,
    deadline: Duration,
    state: Mutex<State>,
    updates: Updates,
}

struct State {
    content: Arc<Content>,
    /// Names of the services that were asked for.
    interests: BTreeSet<String>,
}

impl StaticFile {
    /// Reads the file at `path` and begins to watch it. Has to be called inside a tokio runtime.
    pub fn open(path: &Path) -> Result<(Self, mpsc::Receiver<Update>), StaticFileError> {
        Self::open_with(path, DEADLINE)
    }

    fn open_with(path: &Path, deadline: Duration) -> Result<(Self, mpsc::Receiver<Update>), StaticFileError> {
        // Watched before it is read, so that no change can fall in between.
        let watch = Watch::new(path).map_err(|source| StaticFileError::Unwatchable {
            path: path.to_owned(),
            source,
        })?;
        let content = Content::read(path)?;

        let updates = Updates::default();
        let detail = format!("answers come from {}", path.display());
        updates.tell(Update::Connection { up: true, detail });
        let (receiver, forward) = updates.channel();
        let state = State {
            content: Arc::new(content),
            interests: BTreeSet::new(),
        };
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            deadline,
            state: Mutex::new(state),
            updates,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(forward);
        tasks.spawn(Arc::clone(&shared).follow(watch));
        Ok((
            Self {
                shared,
                _tasks: tasks,
            },
            receiver,
        ))
    }

    /// The answer about the service that `matches`, after its delay.
    async fn answer(
        &self,
        about: &str,
        matches: impl Fn(&Service) -> bool,
    ) -> Result<Option<ServiceRecord>, ResolveError> {
        let content = self.shared.with_state(|state| Arc::clone(&state.content));
        let Some(service) = content.services.values().find(|service| matches(service)) else {
            return Ok(None);
        };
        let deadline = self.shared.deadline;
        tokio::time::sleep(service.delay.min(deadline)).await;
        if service.delay > deadline {
            return Err(ResolveError::Late {
                about: about.to_owned(),
                deadline,
            });
        }

        // Read after the delay, in one step with the beginning of interest: a change during the delay is in
        // the answer, every later one comes as an update.
        let name = service.record.name.as_str();
        let record = self.shared.with_state(|state| {
            let service = state.content.services.get(name)?;
            state.interests.insert(name.to_owned());
            Some(service.record.clone())
        });
        Ok(record)
    }
}

impl Shared {
    fn with_state<T>(&self, access: impl FnOnce(&mut State) -> T) -> T {
        access(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the peers, and whatever changes from then on.
    async fn follow(self: Arc<Self>, watch: Watch) {
        let mut acknowledgements = JoinSet::new();
        let peers = self.with_state(|state| state.content.peers.clone());
        self.tell_peers(peers, &mut acknowledgements);
        loop {
            tokio::select! {
                changed = watch.changed() => match changed {
                    Ok(()) => self.read_again(&mut acknowledgements),
                    Err(error) => {
                        error!(path = %self.path.display(), %error, "the file is not watched any more");
                        return;
                    }
                },
                Some(_) = acknowledgements.join_next() => {}
            }
        }
    }

    fn read_again(&self, acknowledgements: &mut JoinSet<()>) {
        let content = match Content::read(&self.path) {
            Ok(content) => Arc::new(content),
            Err(error) => {
                error!(%error, "the answers stay what they were");
                return;
            }
        };
        let peers = self.with_state(|state| {
            let old = std::mem::replace(&mut state.content, Arc::clone(&content));
            state.interests.retain(|name| match content.services.get(name) {
                Some(service) => {
                    if old
                        .services
                        .get(name)
                        .is_none_or(|old| old.record != service.record)
                    {
                        self.updates.tell(Update::Service(service.record.clone()));
                    }
                    true
                }
                None => {
                    self.updates.tell(Update::Gone { name: name.clone() });
                    false
                }
            });
            (old.peers != content.peers).then(|| content.peers.clone())
        });
        info!(path = %self.path.display(), services = content.services.len(), "answers read again");
        if let Some(peers) = peers {
            self.tell_peers(peers, acknowledgements);
        }
    }

    fn tell_peers(&self, instances: Vec<InstanceRecord>, acknowledgements: &mut JoinSet<()>) {
        if instances.is_empty() {
            return;
        }
        let count = instances.len();
        let (acknowledge, acknowledged) = oneshot::channel();
        self.updates.tell(Update::Peers {
            instances,
            acknowledge,
        });
        acknowledgements.spawn(async move {
            match acknowledged.await {
                Ok(()) => debug!(count, "peers are installed"),
                Err(_closed) => debug!(count, "peers are not installed"),
            }
        });
    }
}

#[async_trait]
impl Resolver for StaticFile {
    async fn lease(&self) -> Result<Lease, ResolveError> {
        Ok(self.shared.with_state(|state| state.content.lease.clone()))
    }

    async fn resolve(&self, address: Ipv4Addr) -> Result<Option<ServiceRecord>, ResolveError> {
        self.answer(&address.to_string(), |service| {
            service.addresses.contains(&address)
        })
        .await
    }

    async fn resolve_name(&self, name: &str) -> Result<Option<ServiceRecord>, ResolveError> {
        let name = service_name(name)?;
        self.answer(name.as_str(), |service| service.record.name == name.as_str())
            .await
    }

    async fn deployed(&self, instance: &Deployed) -> Result<(), ResolveError> {
        info!(service = %instance.service, number = instance.number, "deployed; nobody is told");
        Ok(())
    }

    async fn undeployed(&self, instance: &Deployed) -> Result<(), ResolveError> {
        info!(service = %instance.service, number = instance.number, "undeployed; nobody is told");
        Ok(())
    }

    async fn uninterested(&self, name: &str) -> Result<(), ResolveError> {
        self.shared.with_state(|state| state.interests.remove(name));
        Ok(())
    }

    fn follows(&self, name: &str) -> bool {
        self.shared.with_state(|state| state.interests.contains(name))
    }
}

#[cfg(test)]
mod tests;
