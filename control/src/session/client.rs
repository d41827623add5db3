//! The half that dials: a cluster.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::SinkExt;
use futures_util::stream::{SplitSink, SplitStream};
use protocol::cluster::{Frame, FromCluster, FromRoot, Hello, VERSION, Welcome};
use rand::Rng as _;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::drive::{Wire, WireRead, WireWrite, drive, first_frame, write_frame};
use super::{Counters, Handler, LARGEST_FRAME, Outbox, Timing, WireError, WireEvent};

/// How connections to the other side are made.
pub trait Connect: Send + Sync + 'static {
    type Wire: Wire;

    fn connect(&self) -> impl Future<Output = Result<Self::Wire, WireError>> + Send;
}

/// Connects to a root by its URL.
pub struct WebSocketConnect {
    /// `ws://<host>:<port>/api/clusters/connect`.
    pub url: String,
}

/// A cluster's side of the session with its root.
pub struct Client {
    /// Who this is; the fields `session` and `received` are filled in anew for each connection.
    hello: Hello,
    outbox: Arc<Outbox<FromCluster>>,
    counters: Arc<Counters>,
    timing: Timing,
}

impl Client {
    pub fn new(hello: Hello, timing: Timing) -> Self {
        Self {
            hello,
            outbox: Arc::default(),
            counters: Arc::default(),
            timing,
        }
    }

    /// Where to put what the root is to hear.
    pub fn outbox(&self) -> Arc<Outbox<FromCluster>> {
        Arc::clone(&self.outbox)
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Keeps the session going until `stop`. `welcomed` hears of each welcome before anything else of that connection.
    pub async fn run<C: Connect>(
        &self,
        connect: &C,
        handler: &dyn Handler<FromRoot, FromCluster>,
        welcomed: &(dyn Fn(&Welcome) + Send + Sync),
        stop: &CancellationToken,
    ) {
        let mut failures = 0;
        let mut told = String::new();
        while !stop.is_cancelled() {
            let mut greeted = false;
            let reason = self.once(connect, handler, welcomed, &mut greeted, stop).await;
            if stop.is_cancelled() {
                return;
            }
            failures = if greeted { 0 } else { failures + 1 };
            let pause = pause(&self.timing, failures);
            let text = reason.to_string();
            if text == told {
                debug!(%reason, ?pause, "still not connected to the root");
            } else if matches!(reason, WireError::Refused(_)) {
                warn!(%reason, ?pause, "the root does not want this cluster");
            } else {
                info!(%reason, ?pause, "not connected to the root");
            }
            told = if greeted { String::new() } else { text };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn once<C: Connect>(
        &self,
        connect: &C,
        handler: &dyn Handler<FromRoot, FromCluster>,
        welcomed: &(dyn Fn(&Welcome) + Send + Sync),
        greeted: &mut bool,
        stop: &CancellationToken,
    ) -> WireError {
        let connected = tokio::select! {
            () = stop.cancelled() => return WireError::Replaced,
            wire = timeout(self.timing.handshake, connect.connect()) => wire,
        };
        let (mut read, mut write) = match connected {
            Ok(Ok(wire)) => wire.split(),
            Ok(Err(error)) => return error,
            Err(_elapsed) => return WireError::Silent(self.timing.handshake),
        };
        let welcome = match self.greet(&mut read, &mut write).await {
            Ok(welcome) => welcome,
            Err(error) => return error,
        };
        *greeted = true;
        welcomed(&welcome);
        if !welcome.resumed {
            handler.begin(&self.outbox).await;
        }
        info!(
            session = welcome.session,
            resumed = welcome.resumed,
            "connected to the root"
        );
        handler.connected(true).await;
        let reason = drive(
            (&mut read, &mut write),
            &self.outbox,
            handler,
            &self.counters,
            &self.timing,
            stop,
        )
        .await;
        handler.connected(false).await;
        if stop.is_cancelled() {
            // Best effort: the root finds out by itself too.
            if timeout(Duration::from_millis(200), write.close()).await.is_err() {
                info!("the root does not take the farewell");
            }
        }
        reason
    }

    async fn greet<R: WireRead, W: WireWrite>(
        &self,
        read: &mut R,
        write: &mut W,
    ) -> Result<Welcome, WireError> {
        let (session, received) = self.outbox.session();
        let hello = Hello {
            session: session.clone(),
            received,
            ..self.hello.clone()
        };
        timeout(
            self.timing.handshake,
            write_frame(write, &Frame::<Value>::Hello(hello)),
        )
        .await
        .map_err(|_elapsed| WireError::Silent(self.timing.handshake))??;
        let welcome = match first_frame(read, &self.timing).await {
            Ok(Frame::Welcome(welcome)) => welcome,
            Ok(Frame::Refused { message }) => return Err(WireError::Refused(message)),
            Ok(Frame::Hello(_) | Frame::Message { .. } | Frame::Acknowledge { .. }) => {
                return Err(WireError::Handshake(
                    "the first frame is not a welcome".to_owned(),
                ));
            }
            Err(error) => {
                if matches!(error, WireError::Handshake(_)) {
                    self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                }
                return Err(error);
            }
        };
        if welcome.version != VERSION {
            return Err(WireError::Handshake(format!(
                "the root speaks version {}",
                welcome.version
            )));
        }
        if !welcome.resumed {
            self.outbox.start(welcome.session.clone());
        } else if session.as_ref() == Some(&welcome.session) {
            self.outbox.resume(welcome.received)?;
        } else {
            return Err(WireError::Handshake(
                "a session that is not this one is resumed".to_owned(),
            ));
        }
        Ok(welcome)
    }
}

/// Doubles with each failure up to a limit, less a random part, so that the clusters of a root do not come back all in
/// the same moment.
fn pause(timing: &Timing, failures: u32) -> Duration {
    let whole = timing
        .first_pause
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(timing.longest_pause);
    whole.mul_f64(rand::rng().random_range(0.5..=1.0))
}

impl Connect for WebSocketConnect {
    type Wire = WebSocketStream<MaybeTlsStream<TcpStream>>;

    async fn connect(&self) -> Result<Self::Wire, WireError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_FRAME))
            .max_frame_size(Some(LARGEST_FRAME));
        let (stream, _response) = tokio_tungstenite::connect_async_with_config(&self.url, Some(config), true)
            .await
            .map_err(broken)?;
        Ok(stream)
    }
}

impl Wire for WebSocketStream<MaybeTlsStream<TcpStream>> {
    type Read = SplitStream<Self>;
    type Write = SplitSink<Self, Message>;

    fn split(self) -> (Self::Read, Self::Write) {
        let (write, read) = futures_util::StreamExt::split(self);
        (read, write)
    }
}

impl WireRead for SplitStream<WebSocketStream<MaybeTlsStream<TcpStream>>> {
    async fn next(&mut self) -> Result<WireEvent, WireError> {
        match futures_util::StreamExt::next(self).await {
            Some(Ok(Message::Text(text))) => Ok(WireEvent::Text(text.as_str().to_owned())),
            Some(Ok(Message::Close(_))) | None => Err(WireError::Closed),
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                Ok(WireEvent::Other)
            }
            Some(Err(error)) => Err(broken(error)),
        }
    }
}

impl WireWrite for SplitSink<WebSocketStream<MaybeTlsStream<TcpStream>>, Message> {
    async fn text(&mut self, text: String) -> Result<(), WireError> {
        self.send(Message::text(text)).await.map_err(broken)
    }

    async fn ping(&mut self) -> Result<(), WireError> {
        self.send(Message::Ping(Vec::new().into())).await.map_err(broken)
    }

    async fn close(&mut self) {
        if let Err(error) = SinkExt::close(self).await {
            info!(%error, "the connection is gone already");
        }
    }
}

fn broken(error: Error) -> WireError {
    WireError::Broken(error.to_string())
}
