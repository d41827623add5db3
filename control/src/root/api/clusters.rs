//! Clusters: as they are, for everybody, and given up by Admin.

use axum::extract::State;
use serde_json::{Value, json};

use super::Problem;
use super::extract::{Admin, Segments};
use crate::root::{Root, clusters, documents};

pub async fn list(State(root): State<Root>) -> axum::Json<Value> {
    axum::Json(root.read(|state, live| {
        let clusters = state.clusters.values();
        clusters
            .map(|cluster| documents::cluster(live, cluster))
            .collect()
    }))
}

pub async fn list_active(State(root): State<Root>) -> axum::Json<Value> {
    axum::Json(root.read(|state, live| {
        let connected = |id: &str| live.clusters.get(id).is_some_and(|known| known.connected);
        let clusters = state.clusters.values().filter(|cluster| connected(&cluster.id));
        clusters
            .map(|cluster| documents::cluster(live, cluster))
            .collect()
    }))
}

/// Gives up a cluster that does not come back.
pub async fn forget(
    State(root): State<Root>,
    _: Admin,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let key = id.clone();
    root.change(move |draft| clusters::forget(draft, &key)).await?;
    // What it was still to hear is of no use to anybody.
    root.0.server.forget(&id);
    Ok(axum::Json(json!({ "message": "Cluster deleted" })))
}
