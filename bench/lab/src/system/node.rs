//! A worker node: a NetManager and a NodeEngine.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Seat;
use crate::http::{Request, send};
use crate::{Daemon, Namespace};

/// A worker with its two daemons and the folder that both have as their root.
#[derive(Debug)]
pub struct Node {
    pub(super) seat: Seat,
    pub(super) program: PathBuf,
    pub(super) root: PathBuf,
    pub(super) netmanager: Daemon,
    pub(super) engine: Daemon,
}

impl Node {
    /// Where it is.
    #[must_use]
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The folder below which its configuration, state and sockets lie.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its NetManager's process.
    pub fn netmanager(&mut self) -> &mut Daemon {
        &mut self.netmanager
    }

    /// Its NodeEngine's process.
    pub fn engine(&mut self) -> &mut Daemon {
        &mut self.engine
    }

    /// Asks NetManager over its socket, which must succeed.
    pub fn ask(&self, path: &str) -> Result<Value> {
        ask(&self.seat.namespace, &self.root, path)
    }

    /// Every counter of its data plane that is not zero, as (hook, action or drop reason, packets).
    pub fn counters(&self) -> Result<Vec<(String, String, u64)>> {
        let rows = self.ask("/drops")?;
        let rows = rows.as_array().context("NetManager lists no counters")?;
        let row = |row: &Value| {
            let text = |key: &str| row[key].as_str().map(str::to_owned);
            Some((text("hook")?, text("name")?, row["packets"].as_u64()?))
        };
        Ok(rows.iter().filter_map(row).filter(|row| row.2 > 0).collect())
    }

    /// The counter of an action or drop reason at a hook; zero when it was never counted.
    pub fn counter(&self, hook: &str, name: &str) -> Result<u64> {
        let found = self
            .counters()?
            .into_iter()
            .find(|row| row.0 == hook && row.1 == name);
        Ok(found.map_or(0, |row| row.2))
    }

    /// The id that the cluster knows it by, once it is registered.
    pub fn id(&self) -> Result<String> {
        let status = self.ask("/status")?;
        let id = status["node_id"].as_str().or_else(|| status["nodeId"].as_str());
        Ok(id.with_context(|| format!("no node id in {status}"))?.to_owned())
    }

    /// Runs NetManager's command line on this node.
    pub fn command_line(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.seat.namespace.command(&self.program.display().to_string())?;
        command.arg("--root").arg(&self.root).args(arguments);
        command.output().context("cannot run NetManager's command line")
    }
}

/// Asks the NetManager with this root folder over its socket, which must succeed.
pub(super) fn ask(namespace: &Namespace, root: &Path, path: &str) -> Result<Value> {
    let socket = root.join(super::NETMANAGER_SOCKET).display().to_string();
    let request = Request {
        url: &format!("http://netmanager{path}"),
        socket: Some(&socket),
        ..Request::default()
    };
    let answer = send(namespace, request)?;
    ensure!(answer.code == 200, "GET {path}: {} {}", answer.code, answer.body);
    answer.json()
}
