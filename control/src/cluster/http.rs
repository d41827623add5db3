//! The HTTP API of a cluster: nodes register, and people look.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use protocol::network::ErrorBody;
use protocol::node::NodeInformation;
use serde_json::json;
use tracing::{error, warn};

use super::service::{NotStored, RegistrationError, Service};

/// Bytes of a body.
const LARGEST_BODY: usize = 1 << 20;

/// All routes, with and without a slash at the end.
pub(super) fn router(service: Arc<Service>) -> Router {
    let routes: [(&str, MethodRouter<Arc<Service>>); 3] = [
        ("/api/node/register", post(register)),
        ("/api/cluster/status", get(status)),
        ("/api/nodes", get(nodes)),
    ];
    let mut router = Router::new();
    for (path, handler) in routes {
        router = router
            .route(path, handler.clone())
            .route(&format!("{path}/"), handler);
    }
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(service)
}

async fn register(
    State(service): State<Arc<Service>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    uri: Uri,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return refusal(rejection.status(), rejection.body_text(), &uri),
    };
    let information: NodeInformation = match serde_json::from_slice(&body) {
        Ok(information) => information,
        Err(error) => {
            let message = format!("the body is not a node's description: {error}");
            return refusal(StatusCode::BAD_REQUEST, message, &uri);
        }
    };
    // A node that hangs up does not stop it half-way.
    let registering = tokio::spawn(async move { service.register(information, Some(peer.ip())).await });
    match registering.await {
        Ok(Ok(registered)) => Json(registered).into_response(),
        Ok(Err(error)) => {
            warn!(%peer, %error, "registration without success");
            let status = match error {
                RegistrationError::RootAway | RegistrationError::RootLate | RegistrationError::Refused(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                RegistrationError::NotStored(NotStored) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refusal(status, error.to_string(), &uri)
        }
        Err(error) => {
            error!(%peer, %error, "registration has panicked");
            refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a defect of the cluster; its log says more".to_owned(),
                &uri,
            )
        }
    }
}

async fn status(State(service): State<Arc<Service>>, uri: Uri) -> Response {
    match service.status().await {
        Ok((id, connected)) => {
            let id = Some(id).filter(|id| !id.is_empty());
            Json(json!({"cluster_name": service.name(), "cluster_id": id, "connected_to_root": connected}))
                .into_response()
        }
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), &uri),
    }
}

async fn nodes(State(service): State<Arc<Service>>, uri: Uri) -> Response {
    match service.nodes().await {
        Ok(nodes) => Json(nodes).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), &uri),
    }
}

async fn unknown(uri: Uri) -> Response {
    let message = format!("there is nothing at {}", uri.path());
    refusal(StatusCode::NOT_FOUND, message, &uri)
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not answer to {method}", uri.path());
    refusal(StatusCode::METHOD_NOT_ALLOWED, message, &uri)
}

fn refusal(status: StatusCode, message: String, uri: &Uri) -> Response {
    let body = ErrorBody {
        code: status.as_u16(),
        status: status.canonical_reason().unwrap_or_default().to_owned(),
        message,
        path: uri.path().to_owned(),
    };
    (status, Json(body)).into_response()
}
