//! Routes that look inside.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::dataplane::CounterRow;
use crate::directory::NodeView;
use crate::manager::Manager;
use crate::node::{FlowFilter, FlowsView, METRICS_CONTENT_TYPE, Watcher};
use crate::trace::{Question, Trace};

type Asked<T> = Result<Query<T>, QueryRejection>;

/// Which counters to show; without anything those that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropFilter {
    /// Name of a hook.
    pub hook: Option<String>,
    /// Name of an action or drop reason.
    pub reason: Option<String>,
    /// Also what was never counted.
    #[serde(default)]
    pub all: bool,
    /// Only what was dropped.
    #[serde(default)]
    pub dropped: bool,
}

impl DropFilter {
    /// Whether to show the row.
    #[must_use]
    pub fn matches(&self, row: &CounterRow) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        is(&self.hook, &row.hook)
            && is(&self.reason, &row.name)
            && (self.all || row.packets > 0)
            && (!self.dropped || row.dropped)
    }
}

pub async fn flows(
    State(manager): State<Arc<Manager>>,
    filter: Asked<FlowFilter>,
) -> Result<Json<FlowsView>, ApiError> {
    let Query(filter) = filter?;
    Ok(Json(manager.node().await?.flows(filter).await?))
}

pub async fn nodes(State(manager): State<Arc<Manager>>) -> Result<Json<Vec<NodeView>>, ApiError> {
    Ok(Json(manager.node().await?.nodes()?))
}

pub async fn trace(
    State(manager): State<Arc<Manager>>,
    question: Asked<Question>,
) -> Result<Json<Trace>, ApiError> {
    let Query(question) = question?;
    Ok(Json(manager.node().await?.trace(&question)?))
}

/// One line of JSON per event, for as long as the caller reads.
pub async fn watch(State(manager): State<Arc<Manager>>) -> Result<Response, ApiError> {
    let watcher = manager.node().await?.watch().map_err(anyhow::Error::from)?;
    // An empty line at once, so that the caller knows from when on it is told everything.
    let lines = stream::unfold((watcher, true), |(mut watcher, is_first)| async move {
        let chunk = if is_first {
            Bytes::from_static(b"\n")
        } else {
            next_lines(&mut watcher).await?
        };
        Some((Ok::<_, Infallible>(chunk), (watcher, false)))
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn next_lines(watcher: &mut Watcher) -> Option<Bytes> {
    let mut text = Vec::new();
    for event in watcher.next().await? {
        if let Err(error) = serde_json::to_writer(&mut text, &event) {
            tracing::warn!(%error, "an event that cannot be written down");
            continue;
        }
        text.push(b'\n');
    }
    Some(Bytes::from(text))
}

pub async fn metrics(State(manager): State<Arc<Manager>>) -> Result<Response, ApiError> {
    let text = manager.node().await?.metrics().await?;
    Ok(([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response())
}
