//! The node's side of its cluster: registration, and then the broker.
//!
//! The node registers, talks to the broker that it was told of, and registers again when that broker does not take
//! it, when the cluster says that it does not know it, or when the broker stays away: the cluster may have moved it.

mod commands;
mod culprit;
mod mqtt;
mod registration;
mod reports;

use std::sync::Arc;
use std::time::Duration;

use protocol::network::{BrokerAccess, RegisterRequest};
use protocol::node::Registered;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::engine::{Engine, blocking};
use crate::identity::Identity;
use crate::measure::host;

/// Pauses between registrations that fail.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// Where the cluster is, and who this node is to it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSettings {
    /// Host name or address.
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) identity: Identity,
    /// Name of this host.
    pub(crate) host: String,
}

/// How the node stands with its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub(crate) enum Standing {
    /// Not registered, and why.
    Unregistered(String),
    /// Registered, but the broker is away, and why.
    Disconnected(String),
    Connected,
}

/// A part of the node that goes on while the cluster is away.
pub(crate) struct Cluster {
    pub(crate) settings: ClusterSettings,
    pub(crate) standing: watch::Sender<Standing>,
    /// What NetManager is to be told.
    pub(crate) network: watch::Sender<Option<RegisterRequest>>,
}

impl Cluster {
    pub(crate) fn new(settings: ClusterSettings) -> Self {
        Self {
            settings,
            standing: watch::Sender::new(Standing::Unregistered("not asked yet".to_owned())),
            network: watch::Sender::new(None),
        }
    }

    /// Never ends.
    pub(crate) async fn run(&self, engine: Arc<Engine>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut said = String::new();
        loop {
            // Its name may have to be looked up, which waits for a name server.
            let (cluster, port) = (self.settings.address.clone(), self.settings.port);
            let address = blocking(move || host::address(&cluster, port)).await;
            let reason = match registration::register(&self.settings, address).await {
                Ok(registered) => {
                    said.clear();
                    let address = address.map(|address| address.to_string());
                    engine.board.set_public_address(address.unwrap_or_default());
                    self.registered(&registered);
                    let ending = mqtt::run(self, &engine, &registered).await;
                    if ending.was_steady {
                        backoff.reset();
                    }
                    ending.reason
                }
                Err(error) => format!("{error:#}"),
            };
            if said != reason {
                warn!("not registered: {reason}");
                said.clone_from(&reason);
            }
            self.standing.send_replace(Standing::Unregistered(reason));
            tokio::time::sleep(backoff.next_with_jitter()).await;
        }
    }

    fn registered(&self, registered: &Registered) {
        info!(node = registered.id, subnet = ?registered.subnet, broker_port = registered.broker_port, "registered");
        let request = RegisterRequest {
            client_id: registered.id.clone(),
            cluster_address: self.settings.address.clone(),
            broker: Some(BrokerAccess {
                port: registered.broker_port.parse().ok(),
                user: registered.mqtt_user.clone(),
                password: registered.mqtt_password.clone(),
            })
            .filter(|access| !access.user.is_empty()),
        };
        self.network.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&request);
            *known = Some(request);
            is_new
        });
        let connecting = Standing::Disconnected("connecting to the broker".to_owned());
        self.standing.send_replace(connecting);
    }
}
