//! What handlers need of a request.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{LARGEST_BODY, Problem};
use crate::root::Root;
use crate::root::records::User;
use crate::root::tokens::{Kind, password_mark};

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who sends the request, by its access token.
pub struct Caller(pub User);

/// Shows that the caller may do everything.
pub struct Admin;

/// The same, by a refresh token.
pub struct Refreshing(pub User);

/// The variable parts of the path.
pub struct Segments<T>(pub T);

/// The body, whatever JSON it is.
pub struct Json(pub Value);

impl FromRequestParts<Root> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, root: &Root) -> Result<Self, Problem> {
        user(parts, root, Kind::Access).map(Self)
    }
}

impl FromRequestParts<Root> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, root: &Root) -> Result<Self, Problem> {
        let user = user(parts, root, Kind::Access)?;
        if user.is_admin() {
            Ok(Self)
        } else {
            let message = format!(
                "only users with the role Admin may do this, {} has not",
                user.name
            );
            Err(Problem::new(StatusCode::FORBIDDEN, message))
        }
    }
}

impl FromRequestParts<Root> for Refreshing {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, root: &Root) -> Result<Self, Problem> {
        user(parts, root, Kind::Refresh).map(Self)
    }
}

fn user(parts: &Parts, root: &Root, kind: Kind) -> Result<User, Problem> {
    let Some(header) = parts.headers.get(AUTHORIZATION) else {
        return Err(Problem::unauthorized(
            "the request has no token: send the header Authorization: Bearer <token>",
        ));
    };
    let split = header.to_str().ok().and_then(|text| text.split_once(' '));
    let Some((_, token)) = split.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")) else {
        return Err(Problem::unauthorized(
            "the header Authorization is not of the form: Bearer <token>",
        ));
    };
    let claims = root.0.tokens.read(token.trim(), kind)?;
    let user = root
        .read(|state, _| state.users.get(&claims.sub).cloned())
        .ok_or_else(|| Problem::unauthorized(format!("user {:?} does not exist any more", claims.sub)))?;
    // Access tokens end soon by themselves.
    if kind == Kind::Refresh && claims.password != password_mark(&user) {
        return Err(Problem::unauthorized(
            "the password has been changed since this token was made; log in again",
        ));
    }
    Ok(user)
}

impl<T: DeserializeOwned + Send> FromRequestParts<Root> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, root: &Root) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, root).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => {
                Err(Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path").at(parts.uri.path()))
            }
        }
    }
}

impl FromRequest<Root> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, _root: &Root) -> Result<Self, Problem> {
        check_headers(request.headers())?;
        let body = match timeout(PATIENCE, to_bytes(request.into_body(), LARGEST_BODY)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error);
                if source.is_some_and(|source| source.to_string().contains("length limit")) {
                    return Err(too_large());
                }
                return Err(Problem::bad_request("the body ended before it was complete"));
            }
            Err(_elapsed) => {
                return Err(Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time",
                ));
            }
        };
        match serde_json::from_slice(&body) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Problem::bad_request(format!("the body is not JSON: {error}"))),
        }
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers
        .get(CONTENT_TYPE)
        .map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    let essence = kind
        .as_deref()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let found = if essence.is_empty() { "missing" } else { essence };
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the header Content-Type is {found}, it has to be application/json"),
        ));
    }
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > LARGEST_BODY as u64) {
        return Err(too_large());
    }
    Ok(())
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body has more than {LARGEST_BODY} bytes"),
    )
}

impl Json {
    /// The body as an object.
    pub fn object(&self) -> Result<&Map<String, Value>, Problem> {
        self.0
            .as_object()
            .ok_or_else(|| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the body is not an object"))
    }

    /// A text of the object that has to be there.
    pub fn text(&self, key: &str) -> Result<&str, Problem> {
        let unprocessable = |message: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message).at(key);
        match self.object()?.get(key) {
            Some(Value::String(text)) => Ok(text),
            None | Some(Value::Null) => Err(unprocessable(format!("{key} is missing"))),
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(unprocessable(format!("{key} is not a text")))
            }
        }
    }
}
