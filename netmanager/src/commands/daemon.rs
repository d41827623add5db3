//! The daemon's life: configuration, socket, node, signals.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use netmanager::api;
use netmanager::config::{Config, Paths};
use netmanager::dataplane::{DataplaneError, OBJECT};
use netmanager::endpoint::{Fault, Step};
use netmanager::manager::{Manager, RegisterError, Settings};
use netmanager::node::Faults;
use netmanager::state::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::RunOptions;

/// How long after a node could not be started it is tried again.
const RESUME_AGAIN: Duration = Duration::from_secs(10);

pub async fn run(paths: &Paths, options: RunOptions) -> anyhow::Result<()> {
    let config = Config::read(paths)?;
    let default = if config.debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if OBJECT.is_empty() {
        return Err(DataplaneError::NoObject.into());
    }
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "the data plane needs root");
    ensure_bpf_filesystem()?;

    let store = Store::open(&paths.state)?;
    let unix = api::bind(&paths.socket)?;
    let tcp = match options.port {
        Some(port) => {
            let address = (Ipv4Addr::LOCALHOST, port);
            Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("listening on 127.0.0.1:{port}"))?,
            )
        }
        None => None,
    };
    let fault = |fail: Option<Step>, crash: Option<Step>| match (fail, crash) {
        (_, Some(step)) => Fault::Crash(step),
        (Some(step), None) => Fault::Fail(step),
        (None, None) => Fault::None,
    };
    let faults = Faults {
        attach: fault(options.fail_attach_at, options.crash_attach_at),
        detach: fault(options.fail_detach_at, options.crash_detach_at),
    };
    let settings = Settings {
        config,
        static_answers: options.static_answers,
        docker_plugins: Some(options.docker_plugins).filter(|folder| folder != Path::new("off")),
        faults,
        attachment: options.attachment,
    };
    tracing::info!(?settings, socket = %paths.socket.display(), tcp = options.port, "starting");
    let manager = Arc::new(Manager::new(settings, store)?);
    let stop = CancellationToken::new();
    // Before requests are taken: whoever asks finds the node that was registered, or is told why it does not run.
    let resuming = match manager.resume().await {
        Ok(true) => None,
        Ok(false) => {
            tracing::info!("not registered yet");
            None
        }
        Err(error) => {
            not_started(&error);
            Some(tokio::spawn(keep_resuming(manager.clone(), stop.clone())))
        }
    };
    let server = tokio::spawn(api::serve(api::router(manager.clone()), unix, tcp, stop.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; the data plane stays in place");
    stop.cancel();
    server.await??;
    if let Some(resuming) = resuming {
        resuming.await?;
    }
    manager.stop().await;
    Ok(())
}

/// Tries to start the registered node until it runs: what was in the way may have gone, and nobody may be there to
/// ask for it.
async fn keep_resuming(manager: Arc<Manager>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESUME_AGAIN) => {}
        }
        match manager.resume().await {
            Ok(_) => return,
            Err(error) => not_started(&error),
        }
    }
}

fn not_started(error: &RegisterError) {
    tracing::error!("the registered node does not run; what is in the kernel goes on: {error}");
}

/// Maps and links are pinned there; where nobody has mounted it, this does.
fn ensure_bpf_filesystem() -> anyhow::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    const PATH: &str = "/sys/fs/bpf";
    let kind = statfs(PATH)
        .with_context(|| format!("looking at {PATH}"))?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        mount(Some("bpf"), PATH, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting the BPF file system at {PATH}"))?;
    }
    Ok(())
}
