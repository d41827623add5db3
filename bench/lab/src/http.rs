//! HTTP from inside a namespace, by the command `curl`.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::Namespace;

/// A request; what is not given is not sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    pub method: &'a str,
    pub url: &'a str,
    /// Sent as it is, as JSON.
    pub body: Option<&'a str>,
    /// What proves who asks.
    pub bearer: Option<&'a str>,
    /// The unix socket to go by.
    pub socket: Option<&'a str>,
}

/// An answer, whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    pub body: String,
}

impl Answer {
    /// The body as JSON, `null` where it is empty.
    pub fn json(&self) -> Result<Value> {
        if self.body.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }
}

/// Seconds until nobody is there.
const CONNECT: &str = "5";
/// Seconds until an answer that does not come is given up.
const DEADLINE: &str = "60";

/// Sends a request from inside a namespace. Fails where no answer comes.
pub fn send(namespace: &Namespace, request: Request<'_>) -> Result<Answer> {
    let Request {
        method,
        url,
        body,
        bearer,
        socket,
    } = request;
    let mut command = namespace.command("curl")?;
    command.args(["--silent", "--show-error", "--noproxy", "*"]);
    command.args(["--connect-timeout", CONNECT, "--max-time", DEADLINE]);
    command.args(["--write-out", "\n%{http_code}"]);
    if !method.is_empty() {
        command.args(["--request", method]);
    }
    if let Some(socket) = socket {
        command.args(["--unix-socket", socket]);
    }
    if let Some(token) = bearer {
        command.args(["--header", &format!("authorization: Bearer {token}")]);
    }
    if let Some(body) = body {
        command.args([
            "--header",
            "content-type: application/json",
            "--data-binary",
            body,
        ]);
    }
    let output = command.arg(url).output().context("cannot run curl")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("no answer from {url}: {}", reason.trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, code) = text
        .rsplit_once('\n')
        .context("curl has not told the status code")?;
    Ok(Answer {
        code: code.parse().context("curl has told no status code")?,
        body: body.to_owned(),
    })
}
