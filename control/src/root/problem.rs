//! Why a request is refused.

use axum::http::StatusCode;
use protocol::descriptor::Finding;

use crate::store::StoreError;

/// What a client did wrong, or what went wrong here; becomes the body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub status: StatusCode,
    /// A sentence for a person.
    pub message: String,
    /// The place in the document or the name of the resource; empty for the whole request.
    pub path: String,
}

impl Problem {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            path: String::new(),
        }
    }

    /// The same, about a place.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// There is no such thing, or not for this user: both sound the same.
    pub fn unknown(kind: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {kind} {id:?}")).at(id)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something that is not the client's fault; the reason goes to the log.
    pub fn internal(reason: &dyn std::fmt::Display) -> Self {
        tracing::error!("a request failed: {reason}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the root could not do this; its log says why",
        )
    }
}

/// A descriptor that is not right.
impl From<Finding> for Problem {
    fn from(finding: Finding) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, finding.message).at(finding.path)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::internal(&text)
    }
}
