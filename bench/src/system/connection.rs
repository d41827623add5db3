//! One HTTP connection, kept open: neither starting a program nor connecting is part of what is timed.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use lab::Namespace;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Runtime};

/// Speaks HTTP/1.1 to one server, request after request.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    bearer: Option<String>,
    // Drives the connection, whenever an answer is waited for.
    runtime: Runtime,
}

impl Connection {
    /// Connects from inside a namespace, and names itself by a token in every request.
    pub fn tcp(namespace: &Namespace, address: SocketAddr, bearer: String) -> Result<Self> {
        let stream = namespace
            .enter(|| TcpStream::connect(address))?
            .with_context(|| format!("cannot connect to {address}"))?;
        // What is measured is small and waits for its answer.
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let runtime = runtime()?;
        let stream = {
            let _inside = runtime.enter();
            tokio::net::TcpStream::from_std(stream)?
        };
        Self::over(runtime, stream, address.to_string(), Some(bearer))
    }

    /// Connects to a unix socket.
    pub fn unix(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_nonblocking(true)?;
        let runtime = runtime()?;
        let stream = {
            let _inside = runtime.enter();
            tokio::net::UnixStream::from_std(stream)?
        };
        Self::over(runtime, stream, "docker".to_owned(), None)
    }

    fn over(
        runtime: Runtime,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        authority: String,
        bearer: Option<String>,
    ) -> Result<Self> {
        let (sender, connection) = runtime
            .block_on(handshake(TokioIo::new(stream)))
            .context("cannot speak HTTP")?;
        // How it ends is told to whoever sends the next request.
        runtime.spawn(connection);
        Ok(Self {
            sender,
            authority,
            bearer,
            runtime,
        })
    }

    /// Sends a request, which must succeed; `null` for an answer without content.
    pub fn request(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let what = format!("{method} {path}");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority);
        if let Some(token) = &self.bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request
            .body(Full::new(body))
            .with_context(|| format!("{what} is no request"))?;
        let (status, body) = self
            .runtime
            .block_on(async {
                self.sender.ready().await?;
                let answer = self.sender.send_request(request).await?;
                let status = answer.status();
                hyper::Result::Ok((status, answer.into_body().collect().await?.to_bytes()))
            })
            .with_context(|| format!("no answer to {what}"))?;
        ensure!(
            status.is_success(),
            "{what}: {status} {}",
            String::from_utf8_lossy(&body).trim()
        );
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| format!("the answer to {what} is no JSON"))
    }
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot start a runtime")
}
