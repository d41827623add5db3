//! The daemon's life: what it is made of, and how it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing::info;

use crate::cluster::{Cluster, ClusterSettings};
use crate::config::Config;
use crate::engine::{Engine, Overlay};
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::lock::Lock;
use crate::measure::host;
pub use crate::overlay::NetManager;
use crate::paths::Paths;
use crate::runtime::{Docker, DockerSettings, NetworkMode};
use crate::{overlay, status};

/// What the command line and the configuration say.
#[derive(Clone, Debug)]
pub struct Settings {
    pub paths: Paths,
    pub config: Config,
    /// `None` for no overlay.
    pub netmanager: Option<NetManager>,
    /// Docker's address, `unix:///path`.
    pub docker: String,
    /// Name to go by instead of the host's.
    pub host: Option<String>,
}

impl Settings {
    /// What the configuration says of the network.
    ///
    /// `default` is NetManager at its socket, `custom:<path>` another socket, and anything else no overlay.
    pub fn netmanager_of(config: &Config, paths: &Paths) -> Option<NetManager> {
        match config.overlay_network.as_str() {
            "default" => Some(NetManager::Socket(paths.netmanager.clone())),
            other => other
                .strip_prefix("custom:")
                .map(|path| NetManager::Socket(PathBuf::from(path))),
        }
    }
}

/// Runs until SIGTERM or SIGINT. Containers go on running; the next process adopts them.
///
/// # Errors
/// When another process runs with the same root, or when the state or the configuration cannot be used.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let Settings {
        paths,
        config,
        netmanager,
        docker,
        host: host_name,
    } = settings;
    config.validate()?;
    let _lock = Lock::take(&paths.state)?;
    let identity = Identity::read_or_make(&paths.state)?;
    let (ledger, records) = Ledger::open(&paths.instances)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let runtime = Docker::new(DockerSettings {
        host: docker,
        node: identity.id.clone(),
        network: match netmanager {
            Some(_) => NetworkMode::Overlay,
            None => NetworkMode::Plain,
        },
        grace: Duration::from_secs(config.stop_grace_seconds.into()),
        dns_servers: config.dns_servers.clone(),
    });
    let network = match &netmanager {
        Some(netmanager) => Overlay::Waiting(format!("NetManager at {netmanager} was not asked yet")),
        None => Overlay::Off,
    };
    let engine = Arc::new(Engine::new(Arc::new(runtime), ledger, network));
    let cluster = Arc::new(Cluster::new(ClusterSettings {
        address: config.cluster_address.clone(),
        port: config.cluster_port,
        identity,
        host: host_name.unwrap_or_else(host::name),
    }));
    info!(
        node = cluster.settings.identity.id,
        host = cluster.settings.host,
        cluster = %format_args!("{}:{}", config.cluster_address, config.cluster_port),
        instances = records.len(),
        "starting"
    );
    let listener = status::bind(&paths.socket)
        .with_context(|| format!("opening the socket {}", paths.socket.display()))?;

    engine.resume(records).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(status::serve(listener, Arc::clone(&engine), Arc::clone(&cluster)));
    tasks.spawn(Arc::clone(&engine).watch_runtime());
    if let Some(netmanager) = netmanager {
        let wanted = cluster.network.subscribe();
        tasks.spawn(overlay::run(Arc::clone(&engine), netmanager, wanted));
    }
    tasks.spawn(async move { cluster.run(engine).await });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = tasks.join_next() => anyhow::bail!("a part of the daemon has ended: {ended:?}"),
    }
    info!("ending; containers go on running");
    crate::files::remove(&paths.socket).with_context(|| format!("removing {}", paths.socket.display()))
}
