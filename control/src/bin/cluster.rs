//! `ClusterOrchestrator`: takes what the root hands it, and places it on its nodes.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use control::cluster::{Cluster, Patience, Settings, root_url};
use control::limits;
use control::session::Timing;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Takes what the root orchestrator hands it, places it on the nodes that registered here, and tells them where
/// everything is.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder under which all state lies.
    #[arg(long, env = "OAKESTRA_ROOT", default_value = "/")]
    root: PathBuf,
    /// Where nodes register.
    #[arg(long, default_value = "0.0.0.0:10100")]
    listen: SocketAddr,
    /// Where the broker for the nodes listens.
    #[arg(long, default_value = "0.0.0.0:10003")]
    broker_listen: SocketAddr,
    /// Where the root is: a host, with or without port, or a URL.
    #[arg(long, env = "SYSTEM_MANAGER_URL", value_parser = root_url)]
    system_manager_url: String,
    /// Name of this cluster, for constraints and people.
    #[arg(long, env = "CLUSTER_NAME")]
    name: String,
    /// Where this cluster is, for people.
    #[arg(long, env = "CLUSTER_LOCATION", default_value = "")]
    location: String,
    /// Seconds of silence after which a node counts as inactive.
    #[arg(long, default_value = "10", value_parser = seconds)]
    node_silence: Duration,
    /// Seconds that the instances of an inactive node wait for it, before they are placed elsewhere.
    #[arg(long, default_value = "30", value_parser = seconds)]
    node_grace: Duration,
    /// Seconds that an instance which is to be stopped still serves what it has begun to, where anybody follows its
    /// service; 0 to stop it at once.
    #[arg(long, default_value = "3", value_parser = seconds_or_none)]
    drain: Duration,
    /// Seconds after which a command that no node acknowledged is sent again.
    #[arg(long, default_value = "5", value_parser = seconds, hide = true)]
    resend: Duration,
    /// Seconds of silence after which the root counts as away.
    #[arg(long, default_value = "6", value_parser = seconds, hide = true)]
    root_silence: Duration,
    /// What is logged: error, warn, info, debug or trace, also by module, such as info,control::session=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info,rmqtt=warn")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&arguments.log).context("--log")?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    limits::raise_open_files();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    });

    let settings = settings(arguments);
    let cluster = Cluster::start(settings.clone())
        .await
        .context("the cluster cannot start")?;
    info!(
        name = settings.name,
        nodes = %cluster.address()?,
        broker = %cluster.broker_address(),
        root = settings.root_url,
        "listening"
    );
    cluster.run(stop).await
}

fn settings(arguments: Arguments) -> Settings {
    let shortest = [arguments.node_silence, arguments.node_grace, arguments.resend]
        .into_iter()
        .min()
        .unwrap_or_default();
    Settings {
        folder: arguments.root.join("var/lib/oakestra/cluster"),
        listen: arguments.listen,
        broker_listen: arguments.broker_listen,
        root_url: arguments.system_manager_url,
        name: arguments.name,
        location: arguments.location,
        patience: Patience {
            silence: arguments.node_silence,
            grace: arguments.node_grace,
            resend: arguments.resend,
            drain: arguments.drain,
            ..Patience::default()
        },
        timing: Timing {
            keep_alive: arguments.root_silence / 3,
            dead_after: arguments.root_silence,
            ..Timing::default()
        },
        tick: (shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1)),
    }
}

fn seconds_or_none(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    seconds(text)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_error| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration >= Duration::from_millis(10) => Ok(duration),
        Ok(_) | Err(_) => Err(format!("{text} seconds is no time to wait")),
    }
}
