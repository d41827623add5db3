//! Errors as answers: one shape for all of them.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use protocol::network::ErrorBody;

use crate::manager::RegisterError;
use crate::node::AttachError;

/// An answer that says what is wrong and where.
#[derive(Debug)]
pub struct ApiError {
    code: StatusCode,
    message: String,
    /// The field of the request that it is about; empty for the whole.
    path: &'static str,
}

impl ApiError {
    pub fn new(code: StatusCode, path: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            path,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { code, message, path } = self;
        let status = code.canonical_reason().unwrap_or_default().to_owned();
        let body = ErrorBody {
            code: code.as_u16(),
            status,
            message,
            path: path.to_owned(),
        };
        (code, Json(body)).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "", rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "", rejection.body_text())
    }
}

impl From<AttachError> for ApiError {
    fn from(error: AttachError) -> Self {
        let (code, path) = match &error {
            AttachError::NoInstanceAddress { .. } => (StatusCode::SERVICE_UNAVAILABLE, "instanceIp"),
            AttachError::AddressTaken { .. } => (StatusCode::CONFLICT, "instanceIp"),
            AttachError::PortTaken { .. } => (StatusCode::CONFLICT, "portMappings"),
            AttachError::NotNoted(_) => (StatusCode::NOT_FOUND, ""),
            AttachError::Exhausted(_) => (StatusCode::INSUFFICIENT_STORAGE, ""),
            AttachError::Endpoint(crate::endpoint::Error::HostNamespace(_)) => {
                (StatusCode::BAD_REQUEST, "pid")
            }
            AttachError::Endpoint(crate::endpoint::Error::Namespace { .. }) => (StatusCode::NOT_FOUND, "pid"),
            AttachError::Endpoint(_)
            | AttachError::Dataplane(_)
            | AttachError::State(_)
            | AttachError::Injected(_)
            | AttachError::Ports(_)
            | AttachError::Link(_) => (StatusCode::INTERNAL_SERVER_ERROR, ""),
        };
        Self::new(code, path, chain(&error))
    }
}

impl From<RegisterError> for ApiError {
    fn from(error: RegisterError) -> Self {
        let (code, path) = match &error {
            RegisterError::NotRegistered => (StatusCode::BAD_REQUEST, ""),
            RegisterError::NodeId(_) | RegisterError::Other { .. } => (StatusCode::BAD_REQUEST, "client_id"),
            RegisterError::NotStarted { .. } => (StatusCode::SERVICE_UNAVAILABLE, ""),
            RegisterError::HostAddress { .. } => (StatusCode::CONFLICT, ""),
            RegisterError::Lease(_) => (StatusCode::SERVICE_UNAVAILABLE, "cluster_address"),
            RegisterError::StaticAnswers(_) | RegisterError::Start(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        };
        Self::new(code, path, chain(&error))
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", format!("{error:#}"))
    }
}

pub async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "",
        format!("there is nothing at {}", uri.path()),
    )
}

pub async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "",
        format!("{} does not take {method}", uri.path()),
    )
}

/// The error with its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = Vec::new();
    for text in causes.map(ToString::to_string) {
        // Some errors say what their cause says.
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}
