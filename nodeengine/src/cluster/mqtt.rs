//! The connection to the broker.

use std::time::{Duration, Instant};

use protocol::node::{Registered, topic};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet, Publish, QoS,
    SubscribeFilter, SubscribeReasonCode,
};
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{debug, error, info};

use super::commands::{self, Flow};
use super::registration::bracketed;
use super::{Cluster, Standing, reports};
use crate::backoff::Backoff;
use crate::board::Outgoing;
use crate::engine::Engine;

/// The broker is found dead after at most twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What MQTT allows. A lower limit of our own would end the connection, the broker would send the same packet
/// again on the next one, and so on: one large message would stop everything.
const LARGEST_PACKET: usize = 268_435_455;
/// Requests between the client's handle and its loop; more wait in the board.
const REQUESTS: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A cluster that says that it does not know this node is given so long to say it often enough.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// A connection that has lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// A broker that is away for so long may have been moved: the cluster is asked where it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the node has to register again.
pub(super) struct Ending {
    pub(super) reason: String,
    /// Whether the connection was there for a while.
    pub(super) was_steady: bool,
}

/// Talks to the broker until the node has to register again.
pub(super) async fn run(cluster: &Cluster, engine: &Arc<Engine>, registered: &Registered) -> Ending {
    let (client, events) = client(cluster, registered);
    let node = &registered.id;
    let (sender, messages) = mpsc::unbounded_channel();
    let mut connected_since = None;
    let link = Link {
        cluster,
        engine,
        node,
        client: &client,
        messages: sender,
    };
    let reason = tokio::select! {
        reason = link.keep(events, &mut connected_since) => reason,
        reason = take_commands(engine, &client, messages) => reason,
        () = write(engine, &client, node) => "the client has gone".to_owned(),
        () = reports::run(engine, &client, node, &cluster.settings) => "the client has gone".to_owned(),
    };
    engine.board.set_connected(false);
    Ending {
        reason,
        was_steady: connected_since.is_some_and(|since: Instant| since.elapsed() >= STEADY),
    }
}

fn client(cluster: &Cluster, registered: &Registered) -> (AsyncClient, EventLoop) {
    let host = bracketed(&cluster.settings.address);
    // Checked at registration.
    let port = registered.broker_port.parse().unwrap_or_default();
    let mut options = MqttOptions::new(format!("{}-ne", registered.id), host, port);
    options
        // Orders that come while this node is away wait for it.
        .set_clean_session(false)
        .set_keep_alive(KEEP_ALIVE)
        .set_manual_acks(true)
        .set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
    if !registered.mqtt_user.is_empty() {
        options.set_credentials(&registered.mqtt_user, &registered.mqtt_password);
    }
    AsyncClient::new(options, REQUESTS)
}

/// What keeps the connection up.
struct Link<'a> {
    cluster: &'a Cluster,
    engine: &'a Engine,
    node: &'a str,
    client: &'a AsyncClient,
    messages: mpsc::UnboundedSender<Publish>,
}

impl Link<'_> {
    /// Connects, again and again, and hands on what comes; why that is of no use any more.
    async fn keep(&self, mut events: EventLoop, connected_since: &mut Option<Instant>) -> String {
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut away_since = Instant::now();
        loop {
            let error = match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    self.subscribe();
                    continue;
                }
                Ok(Event::Incoming(Packet::SubAck(acknowledgement))) => {
                    let is_granted = acknowledgement
                        .return_codes
                        .iter()
                        .all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                    if !is_granted {
                        return "the broker refuses this node its own topics".to_owned();
                    }
                    info!("connected to the broker");
                    connected_since.get_or_insert_with(Instant::now);
                    backoff.reset();
                    self.cluster.standing.send_replace(Standing::Connected);
                    self.engine.board.set_connected(true);
                    continue;
                }
                Ok(Event::Incoming(Packet::Publish(message))) => {
                    if self.messages.send(message).is_err() {
                        return "the client has gone".to_owned();
                    }
                    continue;
                }
                Ok(Event::Incoming(_) | Event::Outgoing(_)) => continue,
                Err(error) => error,
            };
            if self.engine.board.is_connected() {
                away_since = Instant::now();
            }
            self.engine.board.set_connected(false);
            if let Some(refusal) = refusal(&error) {
                return refusal;
            }
            let reason = error.to_string();
            if away_since.elapsed() > PATIENCE {
                return format!("the broker stays away: {reason}");
            }
            if backoff.failures() == 0 {
                info!("not connected to the broker: {reason}");
            }
            self.cluster.standing.send_replace(Standing::Disconnected(reason));
            tokio::time::sleep(backoff.next_with_jitter()).await;
        }
    }

    /// Anew on each connection: the broker may have lost the session.
    fn subscribe(&self) {
        let topics = [
            topic::deploy(self.node),
            topic::delete(self.node),
            topic::error(self.node),
        ];
        let filters = topics.map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
        let client = self.client.clone();
        // The loop that makes room in the queue is the caller.
        tokio::spawn(async move {
            if let Err(error) = client.subscribe_many(filters).await {
                debug!("not subscribed: {error}");
            }
        });
    }
}

/// Why the broker does not want this node, if that is so.
fn refusal(error: &ConnectionError) -> Option<String> {
    let ConnectionError::ConnectionRefused(code) = error else {
        return None;
    };
    match code {
        ConnectReturnCode::BadUserNamePassword => Some("the broker does not know the password".to_owned()),
        ConnectReturnCode::NotAuthorized => Some("the broker does not admit this node".to_owned()),
        ConnectReturnCode::BadClientId => Some("the broker does not take the node's id".to_owned()),
        ConnectReturnCode::RefusedProtocolVersion => Some("the broker does not speak MQTT 3.1.1".to_owned()),
        ConnectReturnCode::ServiceUnavailable | ConnectReturnCode::Success => None,
    }
}

/// Carries out one message after the other. The broker keeps each until it has been noted.
async fn take_commands(
    engine: &Arc<Engine>,
    client: &AsyncClient,
    mut messages: mpsc::UnboundedReceiver<Publish>,
) -> String {
    while let Some(message) = messages.recv().await {
        let flow = take_one(engine, client, &message).await;
        let Flow::RegisterAgain(reason) = flow else {
            continue;
        };
        // Its acknowledgement has to reach the broker, and a cluster that does not know this node says so more
        // than once.
        let rest = async {
            while let Some(message) = messages.recv().await {
                take_one(engine, client, &message).await;
            }
        };
        match tokio::time::timeout(ERROR_PAUSE, rest).await {
            Ok(()) | Err(_) => return reason,
        }
    }
    "the client has gone".to_owned()
}

async fn take_one(engine: &Arc<Engine>, client: &AsyncClient, message: &Publish) -> Flow {
    let flow = commands::take(engine, &message.topic, &message.payload).await;
    if let Err(error) = client.ack(message).await {
        debug!("not acknowledged: {error}");
    }
    flow
}

/// Hands what the board has for the cluster to the client.
async fn write(engine: &Engine, client: &AsyncClient, node: &str) {
    loop {
        let outgoing = engine.board.next().await;
        let (topic, payload) = match &outgoing {
            Outgoing::Job(report) => (topic::job(node), text(report)),
            Outgoing::Acknowledgement(acknowledgement) => {
                (topic::acknowledgement(node), text(acknowledgement))
            }
        };
        let Some(payload) = payload else {
            continue;
        };
        if client
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .is_err()
        {
            engine.board.put_back(outgoing);
            return;
        }
    }
}

/// A message of ours as it travels.
pub(super) fn text<M: Serialize>(message: &M) -> Option<Vec<u8>> {
    match serde_json::to_vec(message) {
        Ok(text) => Some(text),
        Err(error) => {
            error!("a message cannot be written: {error}");
            None
        }
    }
}
