//! The command line's side of the API.

use std::io;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::network::ErrorBody;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no NetManager answers at {path}; is it running? ({source})")]
    Away { path: String, source: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("talking to NetManager")]
    Http(#[from] hyper::Error),
    #[error("NetManager's answer cannot be read; is it of another version?")]
    Content(#[from] serde_json::Error),
}

/// Asks the daemon behind `socket` for `path`.
///
/// # Errors
/// When it does not answer, refuses, or answers something else.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let away = |source| ClientError::Away {
        path: socket.display().to_string(),
        source,
    };
    let stream = UnixStream::connect(socket).await.map_err(away)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(hyper::header::HOST, "netmanager")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ClientError::Refused(error.to_string()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice(&body)?);
    }
    let error: ErrorBody = serde_json::from_slice(&body)?;
    Err(ClientError::Refused(error.message))
}
