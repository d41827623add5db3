//! The half that takes connections: a root.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::SinkExt;
use futures_util::stream::{SplitSink, SplitStream};
use protocol::cluster::{Frame, FromCluster, FromRoot, Hello, PATH, VERSION, Welcome};
use rand::Rng as _;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::drive::{Wire, WireRead, WireWrite, drive, first_frame, write_frame};
use super::{Counters, Handler, LARGEST_FRAME, NotTaken, Outbox, Timing, WireError, WireEvent};

/// What a root does with its clusters. The comments of [`Handler`] hold here too.
#[async_trait]
pub trait Clusters: Send + Sync + 'static {
    /// Decides about a cluster by its name and key: its id, 24 hexadecimal digits, or why it is not wanted.
    /// `peer` is where its connection comes from, where that is known.
    async fn admit(&self, hello: &Hello, peer: Option<SocketAddr>) -> Result<String, String>;

    /// A new session with this cluster has begun: [`Outbox::begin`] is to be called with [`FromRoot::Desired`].
    async fn begin(&self, cluster: &str, outbox: &Outbox<FromRoot>);

    /// A message of this cluster; durable when this returns.
    async fn message(&self, cluster: &str, message: FromCluster) -> Result<(), NotTaken>;

    async fn connected(&self, cluster: &str, connected: bool);
}

/// The root's side of the sessions with all clusters. A clone is the same.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    links: Mutex<HashMap<String, Arc<Link>>>,
    counters: Counters,
    timing: Timing,
}

/// What is kept of a cluster between its connections.
#[derive(Default)]
struct Link {
    outbox: Outbox<FromRoot>,
    /// Held by the connection that drives the session.
    driving: tokio::sync::Mutex<()>,
    /// Ends the present connection when a newer one comes.
    replaced: Mutex<CancellationToken>,
}

impl Server {
    pub fn new(timing: Timing) -> Self {
        Self(Arc::new(Shared {
            links: Mutex::default(),
            counters: Counters::default(),
            timing,
        }))
    }

    /// Says something to a cluster. A cluster without a session hears of it by the snapshot of the next one.
    pub fn send(&self, cluster: &str, message: FromRoot) {
        let link = self.links().get(cluster).cloned();
        match link {
            Some(link) => link.outbox.send(message),
            None => debug!(cluster, "no session yet"),
        }
    }

    /// Forgets a cluster and ends its connection.
    pub fn forget(&self, cluster: &str) {
        if let Some(link) = self.links().remove(cluster) {
            link.token().cancel();
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The route that clusters connect to. Serve it with `into_make_service_with_connect_info::<SocketAddr>()`, so that
    /// [`Clusters::admit`] learns who it is. All connections end with `stop`.
    pub fn router(&self, clusters: Arc<dyn Clusters>, stop: CancellationToken) -> Router {
        Router::new().route(PATH, any(upgrade)).with_state(Routed {
            server: self.clone(),
            clusters,
            stop,
        })
    }

    /// Carries one connection from its first frame to its end.
    pub async fn serve<W: Wire>(
        &self,
        wire: W,
        peer: Option<SocketAddr>,
        clusters: &Arc<dyn Clusters>,
        stop: &CancellationToken,
    ) {
        let (mut read, mut write) = wire.split();
        let reason = match self.greet(&mut read, &mut write, peer, clusters.as_ref()).await {
            Ok((cluster, hello)) => {
                self.session(&mut read, &mut write, cluster, &hello, clusters, stop)
                    .await
            }
            Err(reason) => reason,
        };
        info!(?peer, %reason, "connection of a cluster ended");
        if timeout(self.0.timing.keep_alive, write.close()).await.is_err() {
            debug!(?peer, "the cluster does not take the farewell");
        }
    }

    async fn greet<R: WireRead, W: WireWrite>(
        &self,
        read: &mut R,
        write: &mut W,
        peer: Option<SocketAddr>,
        clusters: &dyn Clusters,
    ) -> Result<(String, Hello), WireError> {
        let refusal = match first_frame(read, &self.0.timing).await {
            Ok(Frame::Hello(hello)) if hello.version == VERSION => match clusters.admit(&hello, peer).await {
                Ok(cluster) => return Ok((cluster, hello)),
                Err(message) => message,
            },
            Ok(Frame::Hello(hello)) => {
                format!(
                    "this root speaks version {VERSION}, the cluster version {}",
                    hello.version
                )
            }
            Ok(
                Frame::Welcome(_) | Frame::Refused { .. } | Frame::Message { .. } | Frame::Acknowledge { .. },
            ) => "the first frame is not a hello".to_owned(),
            Err(WireError::Handshake(error)) => format!("the first frame is not a hello: {error}"),
            Err(error) => return Err(error),
        };
        let frame = Frame::<Value>::Refused {
            message: refusal.clone(),
        };
        write_frame(write, &frame).await?;
        Err(WireError::Refused(refusal))
    }

    async fn session<R: WireRead, W: WireWrite>(
        &self,
        read: &mut R,
        write: &mut W,
        cluster: String,
        hello: &Hello,
        clusters: &Arc<dyn Clusters>,
        stop: &CancellationToken,
    ) -> WireError {
        let link = Arc::clone(self.links().entry(cluster.clone()).or_default());
        let replaced = stop.child_token();
        // The connection before this one may be dead without knowing it, or be busy with a message: that one
        // has to be taken in before the number of the last one is told.
        link.replace(&replaced);
        let _driving = link.driving.lock().await;
        if replaced.is_cancelled() {
            return WireError::Replaced;
        }

        let (known, received) = link.outbox.session();
        let resumed = known.is_some() && known == hello.session && link.outbox.resume(hello.received).is_ok();
        let (session, received) = match known.filter(|_| resumed) {
            Some(session) => (session, received),
            None => {
                let session = format!("{:032x}", rand::rng().random::<u128>());
                link.outbox.start(session.clone());
                (session, 0)
            }
        };
        let welcome = Frame::<Value>::Welcome(Welcome {
            version: VERSION,
            cluster_id: cluster.clone(),
            session,
            resumed,
            received,
        });
        if let Err(error) = write_frame(write, &welcome).await {
            return error;
        }
        let handler = OfCluster {
            cluster,
            clusters: Arc::clone(clusters),
        };
        if !resumed {
            handler.begin(&link.outbox).await;
        }
        info!(
            cluster = handler.cluster,
            name = hello.cluster_name,
            resumed,
            "cluster connected"
        );
        handler.connected(true).await;
        let reason = drive(
            (read, write),
            &link.outbox,
            &handler,
            &self.0.counters,
            &self.0.timing,
            &replaced,
        )
        .await;
        handler.connected(false).await;
        reason
    }

    fn links(&self) -> MutexGuard<'_, HashMap<String, Arc<Link>>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn token(&self) -> MutexGuard<'_, CancellationToken> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, by: &CancellationToken) {
        let before = std::mem::replace(&mut *self.token(), by.clone());
        before.cancel();
    }
}

struct OfCluster {
    cluster: String,
    clusters: Arc<dyn Clusters>,
}

#[async_trait]
impl Handler<FromCluster, FromRoot> for OfCluster {
    async fn begin(&self, outbox: &Outbox<FromRoot>) {
        self.clusters.begin(&self.cluster, outbox).await;
    }

    async fn message(&self, message: FromCluster) -> Result<(), NotTaken> {
        self.clusters.message(&self.cluster, message).await
    }

    async fn connected(&self, connected: bool) {
        self.clusters.connected(&self.cluster, connected).await;
    }
}

#[derive(Clone)]
struct Routed {
    server: Server,
    clusters: Arc<dyn Clusters>,
    stop: CancellationToken,
}

async fn upgrade(
    State(routed): State<Routed>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    // A page that somebody looks at is not a cluster, and its browser would connect it wherever that somebody can.
    if headers.contains_key(ORIGIN) {
        return (StatusCode::FORBIDDEN, "this is for clusters, not for browsers").into_response();
    }
    let peer = peer.map(|axum::Extension(ConnectInfo(peer))| peer);
    upgrade
        .max_message_size(LARGEST_FRAME)
        .max_frame_size(LARGEST_FRAME)
        .on_failed_upgrade(|error| warn!(%error, "a cluster does not get its WebSocket"))
        .on_upgrade(move |socket| async move {
            let Routed {
                server,
                clusters,
                stop,
            } = routed;
            server.serve(socket, peer, &clusters, &stop).await;
        })
}

impl Wire for WebSocket {
    type Read = SplitStream<Self>;
    type Write = SplitSink<Self, Message>;

    fn split(self) -> (Self::Read, Self::Write) {
        let (write, read) = futures_util::StreamExt::split(self);
        (read, write)
    }
}

impl WireRead for SplitStream<WebSocket> {
    async fn next(&mut self) -> Result<WireEvent, WireError> {
        match futures_util::StreamExt::next(self).await {
            Some(Ok(Message::Text(text))) => Ok(WireEvent::Text(text.as_str().to_owned())),
            Some(Ok(Message::Close(_))) | None => Err(WireError::Closed),
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => Ok(WireEvent::Other),
            Some(Err(error)) => Err(WireError::Broken(error.to_string())),
        }
    }
}

impl WireWrite for SplitSink<WebSocket, Message> {
    async fn text(&mut self, text: String) -> Result<(), WireError> {
        self.send(Message::text(text))
            .await
            .map_err(|error| WireError::Broken(error.to_string()))
    }

    async fn ping(&mut self) -> Result<(), WireError> {
        self.send(Message::Ping(Vec::new().into()))
            .await
            .map_err(|error| WireError::Broken(error.to_string()))
    }

    async fn close(&mut self) {
        if let Err(error) = SinkExt::close(self).await {
            debug!(%error, "the connection is gone already");
        }
    }
}
