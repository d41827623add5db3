//! The broker that the nodes of a cluster connect to, in a runtime of its own, so that it can be ended as a whole.
//!
//! Every message that a node may publish comes out of the tap; what the cluster says goes in by [`Broker::publish`].
//! Nothing is kept over a restart: nodes notice that their session is gone and ask anew, and commands are sent again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use protocol::node::topic::node_of;
use rmqtt::codec::types::{Publish as CodecPublish, QoS};
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::Builder;
use rmqtt::server::MqttServer;
use rmqtt::session::SessionState;
use rmqtt::types::{
    AuthResult, ConnectInfo, From, FromType, Id, LastWill, PublishAclResult, SubscribeAclResult,
};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, error, warn};

use super::rights::{is_client_of, may_publish, may_subscribe};
use super::secret::Digest;

/// Bytes of a packet; a table with some thousand rows fits.
const LARGEST_PACKET: u32 = 4 << 20;
/// Messages to a node that are not acknowledged yet.
const IN_FLIGHT: NonZeroU16 = NonZeroU16::new(64).expect("not zero");
/// Messages to a node that wait for those, or for the node. What does not fit is made up for by asking and sending anew.
const QUEUE: usize = 4096;
/// Connections; each node has two.
const CONNECTIONS: usize = 20_000;
/// How long a node may be away and still find its messages.
const SESSION: Duration = Duration::from_secs(10 * 60);
/// Messages on their way from the broker to the cluster; whoever says more waits.
const TAP: usize = 4096;
/// How many of them may be of one node, so that one that says a lot delays itself and not the others.
const SHARE: usize = 64;

/// What comes out of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tapped {
    /// A node has published something.
    Message { topic: String, payload: Vec<u8> },
    /// A node hears of a filter from now on.
    Subscribed { node: String, filter: String },
}

/// One of the messages that a node may have on its way, until it is dropped.
pub type Share = OwnedSemaphorePermit;

/// Who may log in.
#[derive(Clone, Debug, Default)]
pub struct Accounts(Arc<RwLock<HashMap<String, Account>>>);

/// What the broker knows of a node.
#[derive(Debug)]
struct Account {
    /// The digests of its passwords.
    passwords: Vec<Digest>,
    shares: Arc<Semaphore>,
}

impl Accounts {
    pub fn set(&self, node: &str, passwords: Vec<Digest>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(node.to_owned())
            .or_insert_with(|| Account {
                passwords: Vec::new(),
                shares: Arc::new(Semaphore::new(SHARE)),
            })
            .passwords = passwords;
    }

    fn admits(&self, node: &str, password: &[u8]) -> bool {
        let accounts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let given = Digest::of(password);
        accounts
            .get(node)
            .is_some_and(|account| account.passwords.contains(&given))
    }

    /// Waits until the node may say something.
    async fn share(&self, node: &str) -> Option<Share> {
        let shares = {
            let accounts = self.0.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&accounts.get(node)?.shares)
        };
        shares.acquire_owned().await.ok()
    }
}

/// A running broker. Dropped, it is gone with all connections.
pub struct Broker {
    context: ServerContext,
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Broker {
    /// Starts to listen; port 0 is any that is free.
    pub fn start(
        listen: SocketAddr,
        accounts: Accounts,
    ) -> anyhow::Result<(Self, mpsc::Receiver<(Tapped, Share)>)> {
        let runtime = RuntimeBuilder::new_multi_thread()
            .worker_threads(1)
            .thread_name("broker")
            .enable_all()
            .build()?;
        let (tap, tapped) = mpsc::channel(TAP);
        let started = runtime.block_on(start(listen, accounts, tap));
        let (context, address) = match started {
            Ok(started) => started,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok((
            Self {
                context,
                runtime: Some(runtime),
                address,
            },
            tapped,
        ))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends to everybody who has subscribed, at QoS 1. Who has not hears nothing of it later.
    pub async fn publish(&self, topic: String, payload: Vec<u8>) {
        let message = CodecPublish {
            dup: false,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: topic.clone().into(),
            packet_id: None,
            payload: payload.into(),
            properties: None,
        };
        let id = Id::new(self.context.node.id(), 0, None, None, "cluster".into(), None);
        let publish = Box::new(message).into();
        if let Err(error) =
            SessionState::forwards(&self.context, From::from_system(id), publish, false, None).await
        {
            // Whatever it was is sent again by its own deadline.
            debug!(topic, %error, "message does not get through the broker");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn start(
    listen: SocketAddr,
    accounts: Accounts,
    tap: mpsc::Sender<(Tapped, Share)>,
) -> anyhow::Result<(ServerContext, SocketAddr)> {
    let context = ServerContext::new()
        .busy_check_enable(false)
        .task_exec_workers(64)
        .task_exec_queue_max(65_536)
        .build()
        .await;
    let refused = Arc::<AtomicU64>::default();
    let register = context.extends.hook_mgr().register();
    for kind in [
        Type::ClientAuthenticate,
        Type::ClientSubscribeCheckAcl,
        Type::MessagePublishCheckAcl,
        Type::MessagePublish,
        Type::SessionSubscribed,
    ] {
        let hook = Hook {
            accounts: accounts.clone(),
            tap: tap.clone(),
            refused: Arc::clone(&refused),
        };
        register.add(kind, Box::new(hook)).await;
    }
    register.start().await;

    let listener = Builder::new()
        .name("nodes")
        .laddr(listen)
        .nodelay(true)
        .reuseaddr(Some(true))
        .allow_anonymous(false)
        .max_connections(CONNECTIONS)
        .max_packet_size(LARGEST_PACKET)
        .max_inflight(IN_FLIGHT)
        .max_mqueue_len(QUEUE)
        .max_clientid_len(256)
        .max_topic_levels(16)
        .handshake_timeout(Duration::from_secs(10))
        .session_expiry_interval(SESSION)
        .max_session_expiry_interval(SESSION)
        .bind()?
        .tcp()?;
    let address = listener.local_addr()?;
    let server = MqttServer::new(context.clone())
        .listener_by_id(listener, 1)
        .build();
    tokio::spawn(async move {
        if let Err(error) = server.run().await {
            error!(%error, "the broker has ended");
        }
    });
    Ok((context, address))
}

/// The rules of [`super::rights`], and the tap.
struct Hook {
    accounts: Accounts,
    tap: mpsc::Sender<(Tapped, Share)>,
    /// How often something was refused.
    refused: Arc<AtomicU64>,
}

#[async_trait]
impl Handler for Hook {
    // No answer would mean yes: each decision is an explicit one.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the kinds that were registered come here"
    )]
    async fn hook(&self, parameter: &Parameter, accumulated: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(info) => {
                (false, Some(HookResult::AuthResult(self.authenticate(info))))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let allowed = may_subscribe(session.id.username_ref(), &subscribe.topic_filter);
                let result = if allowed {
                    SubscribeAclResult::new_success(subscribe.opts.qos(), None)
                } else {
                    self.refuse("subscription", &session.id.client_id, &subscribe.topic_filter);
                    SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
                };
                (false, Some(HookResult::SubscribeAclResult(result)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let allowed = may_publish(session.id.username_ref(), &publish.topic);
                let result = if allowed {
                    self.message(&publish.topic, &publish.payload).await;
                    PublishAclResult::allow()
                } else {
                    self.refuse("message", &session.id.client_id, &publish.topic);
                    PublishAclResult::rejected(false, None)
                };
                (false, Some(HookResult::PublishAclResult(result)))
            }
            Parameter::MessagePublish(_, from, publish) => {
                // All others went by the arm above. The rights of a will were checked at the login.
                if matches!(from.typ(), FromType::LastWill) {
                    self.message(&publish.topic, &publish.payload).await;
                }
                (true, accumulated)
            }
            Parameter::SessionSubscribed(session, subscribe) => {
                let node = session.id.username_ref();
                let subscribed = Tapped::Subscribed {
                    node: node.to_owned(),
                    filter: subscribe.topic_filter.to_string(),
                };
                self.say(node, subscribed).await;
                (true, accumulated)
            }
            _ => (true, accumulated),
        }
    }
}

impl Hook {
    fn authenticate(&self, info: &ConnectInfo) -> AuthResult {
        let client: &str = info.client_id();
        let user: &str = info.username().map_or("", AsRef::as_ref);
        let password: &[u8] = info.password().map_or(&[], AsRef::as_ref);
        let refusal = if !self.accounts.admits(user, password) {
            Some((AuthResult::BadUsernameOrPassword, "wrong user or password"))
        } else if !is_client_of(client, user) {
            Some((AuthResult::NotAuthorized, "the client id is of another node"))
        } else {
            // Nothing can hold a will back later.
            let topic = match info.last_will() {
                Some(LastWill::V3(will)) => Some(&will.topic),
                Some(LastWill::V5(will)) => Some(&will.topic),
                None => None,
            };
            topic
                .filter(|topic| !may_publish(user, topic))
                .map(|_topic| (AuthResult::NotAuthorized, "the will is not the node's to say"))
        };
        match refusal {
            Some((result, reason)) => {
                self.refuse("login", client, reason);
                result
            }
            None => AuthResult::Allow(false, None),
        }
    }

    /// Logs ever more rarely, so that nobody can fill a disk.
    fn refuse(&self, what: &str, client: &str, detail: &str) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= 64 || count.is_power_of_two() {
            warn!(client, detail, count, "{what} refused");
        } else {
            debug!(client, detail, count, "{what} refused");
        }
    }

    async fn message(&self, topic: &str, payload: &[u8]) {
        let Some((node, _)) = node_of(topic) else {
            return;
        };
        let message = Tapped::Message {
            topic: topic.to_owned(),
            payload: payload.to_owned(),
        };
        self.say(node, message).await;
    }

    async fn say(&self, node: &str, tapped: Tapped) {
        let Some(share) = self.accounts.share(node).await else {
            return;
        };
        if self.tap.send((tapped, share)).await.is_err() {
            debug!("the cluster has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_says_a_lot_delays_nobody_else() {
        let accounts = Accounts::default();
        for node in ["n1", "n2"] {
            accounts.set(node, Vec::new());
        }
        let mut said = Vec::new();
        for _ in 0..SHARE {
            said.push(accounts.share("n1").await.expect("a share"));
        }
        // A new password is no new share.
        accounts.set("n1", vec![Digest::of("another")]);
        let mut more = std::pin::pin!(accounts.share("n1"));
        assert!(
            timeout(Duration::ZERO, &mut more).await.is_err(),
            "no share is left"
        );
        assert!(accounts.share("n2").await.is_some());
        assert!(accounts.share("n3").await.is_none());
        said.pop();
        assert!(more.await.is_some());
    }
}
