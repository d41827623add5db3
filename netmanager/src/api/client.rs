//! The command line's side of the API.

use std::io;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::network::ErrorBody;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

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

/// An answer that comes line by line.
pub struct Lines {
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    rest: Vec<u8>,
}

/// Asks the daemon behind `socket` for `path`.
///
/// # Errors
/// When it does not answer, refuses, or answers something else.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let (response, connection) = send(socket, path).await?;
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(serde_json::from_slice(&body)?)
}

/// Asks the daemon behind `socket` for `path`, which it answers line by line.
///
/// # Errors
/// When it does not answer, or refuses.
pub async fn lines(socket: &Path, path: &str) -> Result<Lines, ClientError> {
    let (response, connection) = send(socket, path).await?;
    Ok(Lines {
        body: response.into_body(),
        connection,
        rest: Vec::new(),
    })
}

impl Lines {
    /// The next lines, one or more; `None` when there are no more.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                let whole = std::mem::replace(&mut self.rest, rest);
                let text = String::from_utf8_lossy(&whole);
                return Ok(Some(text.lines().map(str::to_owned).collect()));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Some(data) = frame?.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

type Answer = (Response<Incoming>, JoinHandle<hyper::Result<()>>);

/// An answer that is not a refusal, and the connection that its body comes by.
async fn send(socket: &Path, path: &str) -> Result<Answer, ClientError> {
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
    if response.status() == StatusCode::OK {
        return Ok((response, connection));
    }
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    let error: ErrorBody = serde_json::from_slice(&body)?;
    Err(ClientError::Refused(error.message))
}
