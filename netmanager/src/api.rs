//! The HTTP API: what the node engine tells this daemon, and what its command line asks.
//!
//! On a unix socket that only root can open, and, where a port is given, on loopback.

mod client;
pub(crate) mod error;
mod handlers;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use anyhow::Context;
use axum::Router;
use axum::routing::{get, post};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::manager::Manager;

pub use client::{ClientError, get as ask};

/// The routes.
pub fn router(manager: Arc<Manager>) -> Router {
    Router::new()
        .route("/register", post(handlers::register))
        .route("/container/deploy", post(handlers::deploy))
        .route("/container/undeploy", post(handlers::undeploy))
        .route("/docker/undeploy", post(handlers::undeploy))
        .route("/status", get(handlers::status))
        .route("/endpoints", get(handlers::endpoints))
        .route("/services", get(handlers::services))
        .route("/nodes", get(handlers::nodes))
        .route("/drops", get(handlers::drops))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .with_state(manager)
}

/// Takes the socket's path, from a process that is gone if need be.
///
/// # Errors
/// When the folder cannot be written.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("opening the socket {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    // The lock of the state folder proves that nobody listens on it.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(context),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(context)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(context)?;
    Ok(listener)
}

/// Serves until `stop`; requests that are under way are finished.
///
/// # Errors
/// When a listener breaks.
pub async fn serve(
    router: Router,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    stop: CancellationToken,
) -> io::Result<()> {
    let on_unix = axum::serve(unix, router.clone()).with_graceful_shutdown(stop.clone().cancelled_owned());
    let on_tcp = async {
        match tcp {
            Some(tcp) => {
                axum::serve(tcp, router)
                    .with_graceful_shutdown(stop.cancelled_owned())
                    .await
            }
            None => Ok(()),
        }
    };
    tokio::try_join!(on_unix.into_future(), on_tcp)?;
    Ok(())
}
