//! Docker's remote network driver (CNM): how Docker asks for the network of a container before its first instruction.
//!
//! A unix socket in the folder where Docker looks for drivers; each call is a POST with a JSON document. A network of
//! this driver stands for the overlay as this node sees it, and needs no address management of Docker
//! (`--ipam-driver null`). Which instance a container is, the options of its endpoint say ([`options`]).
//!
//! ```text
//! docker start ─ CreateEndpoint ─ Join ─ the link is moved and set up ─ the first instruction ─ … ─ Leave ─ DeleteEndpoint
//! ```
//!
//! An error is `{"Err": "…"}`, whose text Docker shows to whoever started the container.

mod calls;
mod messages;
mod options;
mod peer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use peer::Peer;

/// Name of the driver of a node.
pub fn name(node_id: &str) -> String {
    format!("oakestra-{node_id}")
}

/// Where Docker finds the driver of a node, in the folder where it looks for them.
pub fn socket(folder: &Path, node_id: &str) -> PathBuf {
    folder.join(format!("{}.sock", name(node_id)))
}

/// Removes a socket that nobody serves any more. One that stays is in nobody's way: Docker asks again until somebody
/// answers.
pub fn remove(socket: &Path) {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, socket = %socket.display(), "cannot remove the socket of the network driver");
        }
        _ => {}
    }
}

/// Answers Docker until `stop`; calls that are under way are finished.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(node: Arc<Node>, listener: UnixListener, stop: CancellationToken) -> io::Result<()> {
    tracing::info!(name = name(&node.registration.node_id), "serving Docker");
    let service = router(node).into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/Plugin.Activate", post(calls::activate))
        .route("/NetworkDriver.GetCapabilities", post(calls::capabilities))
        .route("/NetworkDriver.CreateNetwork", post(calls::create_network))
        .route("/NetworkDriver.CreateEndpoint", post(calls::create_endpoint))
        .route("/NetworkDriver.Join", post(calls::join))
        .route("/NetworkDriver.Leave", post(calls::leave))
        .route("/NetworkDriver.DeleteEndpoint", post(calls::delete_endpoint))
        .route(
            "/NetworkDriver.EndpointOperInfo",
            post(calls::endpoint_information),
        )
        // A network has nothing of its own here, the data plane is outside of every container, and nodes find each
        // other without Docker.
        .route("/NetworkDriver.DeleteNetwork", post(calls::nothing))
        .route("/NetworkDriver.AllocateNetwork", post(calls::nothing))
        .route("/NetworkDriver.FreeNetwork", post(calls::nothing))
        .route("/NetworkDriver.ProgramExternalConnectivity", post(calls::nothing))
        .route("/NetworkDriver.RevokeExternalConnectivity", post(calls::nothing))
        .route("/NetworkDriver.DiscoverNew", post(calls::nothing))
        .route("/NetworkDriver.DiscoverDelete", post(calls::nothing))
        .fallback(calls::unknown)
        .with_state(node)
}
