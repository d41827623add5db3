//! Clusters, as they are for everybody.

use axum::extract::State;
use serde_json::Value;

use crate::root::{Root, documents};

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
