//! How the daemon fares, for a person or a script: whoever connects to its socket gets one JSON text.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::{fs, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

use crate::cluster::{Cluster, Standing};
use crate::engine::Engine;

/// A person who asks does not wait longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the daemon says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// The node's id.
    pub node: String,
    /// Name of the host.
    pub host: String,
    /// Where the cluster is.
    pub cluster: String,
    /// Whether the cluster knows this node.
    pub registered: bool,
    /// Whether orders and reports flow.
    pub connected: bool,
    /// `{"state": "connected" | "disconnected" | "unregistered", "reason": …}`.
    pub standing: Value,
    /// `{"state": "off" | "waiting" | "ready", "reason": …}`.
    pub network: Value,
    /// `{"state": "here" | "away", "reason": …}`.
    pub runtime: Value,
    pub instances: Vec<InstanceStatusLine>,
}

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceStatusLine {
    pub job_name: String,
    pub instance: u32,
    pub incarnation: u64,
    pub status: String,
    pub status_detail: String,
    /// Its container's id; empty when there is none.
    pub container: String,
}

impl Status {
    pub(crate) fn of(engine: &Engine, cluster: &Cluster) -> Self {
        let standing = cluster.standing.borrow().clone();
        let value = |value: serde_json::Result<Value>| value.unwrap_or_default();
        let instances = engine.board.instances().into_iter().map(|(key, shown)| {
            let container = shown.container.map(|container| container.id);
            InstanceStatusLine {
                job_name: key.job_name.to_string(),
                instance: key.instance_number,
                incarnation: shown.incarnation,
                status: shown.status.to_string(),
                status_detail: shown.detail,
                container: container.unwrap_or_default(),
            }
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: cluster.settings.identity.id.clone(),
            host: cluster.settings.host.clone(),
            cluster: format!("{}:{}", cluster.settings.address, cluster.settings.port),
            registered: !matches!(standing, Standing::Unregistered(_)),
            connected: standing == Standing::Connected,
            standing: value(serde_json::to_value(&standing)),
            network: value(serde_json::to_value(&*engine.overlay.borrow())),
            runtime: value(serde_json::to_value(&*engine.presence.borrow())),
            instances: instances.collect(),
        }
    }

    /// Asks the daemon behind `socket`; `None` when there is none.
    ///
    /// # Errors
    /// When it answers something else.
    pub async fn ask(socket: &Path) -> io::Result<Option<Self>> {
        let asked = tokio::time::timeout(TIMEOUT, async {
            let mut stream = match UnixStream::connect(socket).await {
                Ok(stream) => stream,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await?;
            Ok(Some(serde_json::from_slice(&text)?))
        });
        match asked.await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the daemon does not answer",
            )),
        }
    }
}

/// Takes the socket's path, from a process that is gone if need be: the lock of the state folder proves that nobody
/// listens on it.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers everybody who asks. Never ends.
pub(crate) async fn serve(listener: UnixListener, engine: Arc<Engine>, cluster: Arc<Cluster>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _address)) => stream,
            Err(error) => {
                debug!("nobody can ask: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(text) = serde_json::to_vec(&Status::of(&engine, &cluster)) else {
            continue;
        };
        // Who does not read must not hold up others.
        tokio::spawn(async move {
            match tokio::time::timeout(TIMEOUT, stream.write_all(&text)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("the status was not read: {error}"),
                Err(_elapsed) => debug!("the status was not read in time"),
            }
        });
    }
}
