//! The connection to the broker: kept up, read, and written to.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS,
    Request, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info};

use super::core::Outgoing;
use super::{MqttSettings, Session};
use crate::resolver::ResolveError;

/// The broker is found dead after at most twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What MQTT allows. A lower limit of our own would end the connection, the broker would send the same packet
/// again on the next one, and so on: one large message would stop everything.
const LARGEST_PACKET: usize = 268_435_455;
/// Requests between the client's handle and its loop; more wait in the queue before.
const REQUESTS: usize = 64;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A client for the broker of `settings`, not connected yet.
pub(super) fn client(settings: &MqttSettings) -> (AsyncClient, EventLoop) {
    AsyncClient::new(options(settings), REQUESTS)
}

fn options(settings: &MqttSettings) -> MqttOptions {
    let host = if settings.host.contains(':') && !settings.host.starts_with('[') {
        // The client joins host and port with a colon, which an IPv6 address has too many of.
        format!("[{}]", settings.host)
    } else {
        settings.host.clone()
    };
    let mut options = MqttOptions::new(&settings.node, host, settings.port);
    options
        .set_clean_session(false)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
    if let Some(credentials) = &settings.credentials {
        options.set_credentials(&credentials.user, &credentials.password);
    }
    options
}

/// Connects, again and again, and hands what comes to the session. Where `moves` says that the broker is elsewhere,
/// it goes there.
pub(super) async fn run(
    session: Arc<Session>,
    mut events: EventLoop,
    mut moves: watch::Receiver<MqttSettings>,
) {
    let mut failures = 0;
    loop {
        let event = tokio::select! {
            // What has arrived is taken in first; a connection that is given up may be cut anywhere.
            biased;
            event = events.poll() => event,
            () = moved(&mut moves) => {
                follow(&session, &mut events, &moves.borrow_and_update());
                failures = 0;
                continue;
            }
        };
        let reason = match event {
            Ok(Event::Incoming(Packet::ConnAck(acknowledgement))) => {
                session.with_core(|core| core.connected(acknowledgement.session_present));
                continue;
            }
            Ok(Event::Incoming(Packet::SubAck(acknowledgement))) => {
                let granted: Vec<bool> = acknowledgement
                    .return_codes
                    .iter()
                    .map(|code| matches!(code, SubscribeReasonCode::Success(_)))
                    .collect();
                if session.with_core(|core| core.subscribed(&granted)) {
                    if session.with_core(|core| core.down().is_none()) {
                        failures = 0;
                    }
                    continue;
                }
                events.clean();
                "the broker refuses a subscription".to_owned()
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                session.with_core(|core| core.message(&message.topic, &message.payload));
                continue;
            }
            Ok(Event::Incoming(_) | Event::Outgoing(_)) => continue,
            Err(error) => {
                let reason = reason(&error);
                let detail = reason.to_string();
                session.with_core(|core| core.disconnected(reason));
                detail
            }
        };

        take_back(&session, &mut events);
        let pause = pause(&session.node, failures);
        failures = failures.saturating_add(1);
        info!(%reason, ?pause, "not connected to the cluster");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = moved(&mut moves) => {
                follow(&session, &mut events, &moves.borrow_and_update());
                failures = 0;
            }
        }
    }
}

/// Waits until the broker is to be sought elsewhere.
async fn moved(moves: &mut watch::Receiver<MqttSettings>) {
    if moves.changed().await.is_err() {
        // The session holds the sender, and this task the session.
        std::future::pending::<()>().await;
    }
}

/// Gives the connection up, so that the next one is made as `settings` say.
fn follow(session: &Session, events: &mut EventLoop, settings: &MqttSettings) {
    info!(host = %settings.host, port = settings.port, "the cluster is to be reached another way");
    session.with_core(|core| {
        core.disconnected(ResolveError::Away("the connection is made anew".to_owned()));
    });
    events.clean();
    take_back(session, events);
    events.mqtt_options = options(settings);
}

/// Sorts out what the client keeps for the next connection, because it was not acknowledged on the last one.
fn take_back(session: &Session, events: &mut EventLoop) {
    // A message that waits for a free packet number stays behind, and would block everything for ever.
    if let Some(message) = events.state.collision.take() {
        events.pending.push_back(Request::Publish(message));
    }
    session.with_core(|core| {
        events.pending.retain(|request| match request {
            Request::Publish(message) => !core.take_back(&message.topic, &message.payload),
            // All are made again.
            Request::Subscribe(_) => false,
            Request::Unsubscribe(_)
            | Request::PubAck(_)
            | Request::PubRec(_)
            | Request::PubComp(_)
            | Request::PubRel(_)
            | Request::PingReq(_)
            | Request::PingResp(_)
            | Request::SubAck(_)
            | Request::UnsubAck(_)
            | Request::Disconnect(_) => true,
        });
    });
}

/// Carries out what the session wants of the connection.
pub(super) async fn write(client: AsyncClient, mut outgoing: mpsc::UnboundedReceiver<Outgoing>) {
    while let Some(outgoing) = outgoing.recv().await {
        let result = match outgoing {
            Outgoing::Publish { topic, payload } => {
                client.publish(topic, QoS::AtLeastOnce, false, payload).await
            }
            Outgoing::Subscribe(topics) => {
                let filter = |topic| SubscribeFilter::new(topic, QoS::AtLeastOnce);
                client.subscribe_many(topics.into_iter().map(filter)).await
            }
            Outgoing::Unsubscribe(topic) => client.unsubscribe(topic).await,
        };
        match result {
            Ok(()) => {}
            Err(ClientError::Request(request) | ClientError::TryRequest(request)) => {
                error!(?request, "request refused by the client");
            }
        }
    }
    debug!("nobody wants anything of the connection any more");
}

fn reason(error: &ConnectionError) -> ResolveError {
    if let ConnectionError::ConnectionRefused(code) = error {
        let refused = |why: &str| ResolveError::Refused(format!("the broker refuses this node: {why}"));
        return match code {
            ConnectReturnCode::BadUserNamePassword => refused("wrong user name or password"),
            ConnectReturnCode::NotAuthorized => refused("not authorized"),
            ConnectReturnCode::BadClientId => refused("the node id is not one that it allows"),
            ConnectReturnCode::RefusedProtocolVersion => refused("it does not speak MQTT 3.1.1"),
            ConnectReturnCode::ServiceUnavailable | ConnectReturnCode::Success => {
                ResolveError::Away("the broker is not available".to_owned())
            }
        };
    }
    ResolveError::Away(error.to_string())
}

/// Doubles with each failure. The part that depends on the node keeps the nodes of a cluster from coming
/// back all in the same moment.
fn pause(node: &str, failures: u32) -> Duration {
    let pause = SHORTEST_PAUSE
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE);
    let mut hasher = DefaultHasher::new();
    (node, failures).hash(&mut hasher);
    let percent = u32::try_from(hasher.finish() % 25).unwrap_or_default();
    pause - pause * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ_between_nodes() {
        let of = |node: &str| (0..40).map(|failures| pause(node, failures)).collect::<Vec<_>>();
        let pauses = of("n1");
        assert!(
            pauses[0] <= SHORTEST_PAUSE && pauses[0] >= SHORTEST_PAUSE * 3 / 4,
            "{pauses:?}"
        );
        let longest = *pauses.last().expect("pauses");
        assert!(
            longest <= LONGEST_PAUSE && longest >= LONGEST_PAUSE * 3 / 4,
            "{pauses:?}"
        );
        assert_ne!(pauses, of("n2"));
    }
}
