//! `RootOrchestrator`: what people talk to, and what hands work to clusters.

use std::future::IntoFuture;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use clap::Parser;
use control::limits;
use control::root::{Root, api};
use control::session::Timing;
use control::store::Embedded;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use tracing_subscriber::EnvFilter;

/// How long requests that are being answered may take when the root stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// The root orchestrator: takes applications from people, and hands their instances to clusters.
///
/// It serves the REST interface and takes the connections of clusters on one port. Log in with user Admin and
/// password Admin, and change the password:
///
///   curl -d '{"username":"Admin","password":"Admin"}' -H 'Content-Type: application/json' \
///        http://127.0.0.1:10000/api/auth/login
///
/// Clusters find it by their SYSTEM_MANAGER_URL. What it knows is in <ROOT>/var/lib/oakestra/root; it can be killed at any
/// moment and loses nothing that it has answered.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// The folder under which all paths of this root lie, so that several share one machine
    #[arg(long, env = "OAKESTRA_ROOT", default_value = "/", value_name = "FOLDER")]
    root: PathBuf,

    /// Where people and clusters reach it
    #[arg(
        long,
        env = "OAKESTRA_ROOT_LISTEN",
        default_value = "0.0.0.0:10000",
        value_name = "ADDRESS:PORT"
    )]
    listen: SocketAddr,

    /// What is logged: error, warn, info, debug or trace, also by module such as info,control::session=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    give_memory_back();
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(arguments))
}

/// Has large blocks, such as those that hashing a password takes, go back to the system when they are freed: else the
/// allocator learns from the first one to keep the later ones, one for each thread that ever hashed.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 256 * 1024;
        const POOLS: libc::c_int = 2;
        // SAFETY: this sets two numbers of the allocator, while there is no other thread yet.
        let accepted = unsafe {
            [
                libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE),
                libc::mallopt(libc::M_ARENA_MAX, POOLS),
            ]
        };
        debug_assert_eq!(accepted, [1, 1], "glibc takes these two");
    }
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    // First, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let folder = arguments.root.join("var/lib/oakestra/root");
    let opening = folder.clone();
    let store = tokio::task::spawn_blocking(move || Embedded::open(&opening))
        .await
        .context("open the store")?
        .with_context(|| format!("open the store in {}", folder.display()))?;
    let root = Root::open(Arc::new(store), Timing::default())
        .await
        .context("read the store")?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listen on {}", arguments.listen))?;
    info!(address = %listener.local_addr().context("listen")?, "the root is ready");

    // Answers and orders are small, and nobody is to wait for more of them.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection is gone already");
        }
    });
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let server = axum::serve(listener, api::service(&root, stop.clone()))
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    let serving = tokio::spawn(server.into_future());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("the root stops");
    stop.cancel();
    match tokio::time::timeout(FAREWELL, serving).await {
        Ok(ended) => ended.context("serve")?.context("serve"),
        Err(_elapsed) => {
            info!("some requests are left unanswered");
            Ok(())
        }
    }
}
