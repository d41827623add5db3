//! Tells NetManager which node it serves.
//!
//! The connection of the registration is kept open: its end is the sign that NetManager has gone, and the next one
//! is told anew.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use protocol::network::{ErrorBody, RegisterRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::engine::{Engine, Overlay};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// NetManager asks the cluster for the node's addresses meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where NetManager is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetManager {
    /// A port of 127.0.0.1.
    Port(u16),
    Socket(PathBuf),
}

impl std::fmt::Display for NetManager {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(formatter, "127.0.0.1:{port}"),
            Self::Socket(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// A connection that stays open, and the task that ends with it.
type Open = (http1::SendRequest<Full<Bytes>>, JoinHandle<()>);

/// Registers the node at NetManager whenever that is new to one of them. Never ends.
pub(crate) async fn run(
    engine: Arc<Engine>,
    netmanager: NetManager,
    mut wanted: watch::Receiver<Option<RegisterRequest>>,
) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        let Some(request) = wanted.borrow_and_update().clone() else {
            waiting(&engine, "the cluster has not registered this node yet".to_owned());
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        match register(&netmanager, &request).await {
            Ok((_sender, mut connection)) => {
                info!(netmanager = %netmanager, "NetManager serves this node");
                engine.overlay.send_replace(Overlay::Ready);
                backoff.reset();
                tokio::select! {
                    _ended = &mut connection => {
                        waiting(&engine, format!("NetManager at {netmanager} has gone"));
                    }
                    changed = wanted.changed() => {
                        connection.abort();
                        if changed.is_err() {
                            return;
                        }
                    }
                }
            }
            Err(error) => waiting(&engine, format!("{error:#}")),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_with_jitter()) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

fn waiting(engine: &Engine, reason: String) {
    engine.overlay.send_if_modified(|overlay| {
        let next = Overlay::Waiting(reason);
        let is_new = *overlay != next;
        if is_new {
            warn!(?next, "the network is not ready");
            *overlay = next;
        }
        is_new
    });
}

async fn register(netmanager: &NetManager, request: &RegisterRequest) -> anyhow::Result<Open> {
    let away = || format!("no NetManager answers at {netmanager}");
    let open = match netmanager {
        NetManager::Port(port) => {
            open(
                TcpStream::connect(("127.0.0.1", *port))
                    .await
                    .with_context(away)?,
            )
            .await
        }
        NetManager::Socket(path) => open(UnixStream::connect(path).await.with_context(away)?).await,
    };
    let (mut sender, connection) = open.with_context(away)?;
    let answer = tokio::time::timeout(TIMEOUT, post(&mut sender, request)).await;
    match answer {
        Ok(Ok(())) => Ok((sender, connection)),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => bail!("NetManager at {netmanager} does not answer"),
    }
}

async fn open<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> anyhow::Result<Open> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("the connection to NetManager broke: {error}");
        }
    });
    Ok((sender, connection))
}

async fn post(sender: &mut http1::SendRequest<Full<Bytes>>, request: &RegisterRequest) -> anyhow::Result<()> {
    let request = Request::post("/register")
        .header(header::HOST, "netmanager")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(request)?)))?;
    let response = sender.send_request(request).await.context("asking NetManager")?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading NetManager's answer")?
        .to_bytes();
    if status == StatusCode::OK {
        return Ok(());
    }
    let message = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(error) => error.message,
        Err(_) => String::from_utf8_lossy(&body).chars().take(200).collect(),
    };
    bail!("NetManager refuses ({status}): {message}")
}
