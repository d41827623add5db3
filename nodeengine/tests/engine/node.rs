//! The daemon under test.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nodeengine::status::Status;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::docker::Docker;
use crate::stage::eventually;

const PROGRAM: &str = env!("CARGO_BIN_EXE_NodeEngine");

/// A node engine with a root folder of its own; killed at the end.
pub struct Node {
    root: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
    pub id: String,
}

impl Node {
    /// Starts one without an overlay and waits until it is connected.
    pub async fn new(cluster: &Cluster, docker: &Docker) -> Self {
        Self::with_network(cluster, docker, &["-n", "-1"]).await
    }

    /// Starts one with these arguments for the network.
    pub async fn with_network(cluster: &Cluster, docker: &Docker, network: &[&str]) -> Self {
        let mut node = Self::prepared(cluster, docker, network);
        node.start();
        node.is_connected().await;
        node
    }

    /// One that does not run yet.
    pub fn prepared(cluster: &Cluster, docker: &Docker, network: &[&str]) -> Self {
        let root = tempfile::Builder::new()
            .prefix("oakt-node-")
            .tempdir()
            .expect("temporary folder");
        let config = root.path().join("etc/oakestra/conf.json");
        std::fs::create_dir_all(config.parent().expect("parent")).expect("folder");
        std::fs::write(config, r#"{"stop_grace_seconds": 2}"#).expect("configuration");
        let mut arguments = vec!["--docker".to_owned(), docker.address()];
        arguments.extend(["-a".to_owned(), "127.0.0.1".to_owned()]);
        arguments.extend(["-p".to_owned(), cluster.port.to_string()]);
        arguments.extend(network.iter().map(|argument| (*argument).to_owned()));
        // Made here, so that a test knows the id of a node that has never run.
        let identity =
            nodeengine::identity::Identity::read_or_make(&root.path().join("var/lib/oakestra/nodeengine"))
                .expect("identity");
        Self {
            root,
            arguments,
            child: None,
            id: identity.id,
        }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn start(&mut self) {
        let child = self
            .command()
            .args(&self.arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("NodeEngine");
        self.child = Some(child);
    }

    /// The program with this root.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("--root")
            .arg(self.root.path())
            .env_remove("DOCKER_HOST")
            .env("RUST_LOG", "info");
        command
    }

    /// Runs a verb to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        command.output().await.expect("NodeEngine")
    }

    /// The arguments that the daemon is started with.
    pub fn arguments(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("a running daemon")
    }

    /// Ends it without a warning.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().await.expect("killed");
    }

    pub async fn is_connected(&self) {
        for _ in 0..400 {
            if self.status().await.is_some_and(|status| status.connected) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("not connected: {:?}", self.status().await);
    }

    pub async fn status(&self) -> Option<Status> {
        let socket = self.root.path().join("run/oakestra/nodeengine.sock");
        Status::ask(&socket).await.ok().flatten()
    }

    /// Files of instances.
    pub fn noted(&self) -> Vec<PathBuf> {
        let folder = self.root.path().join("var/lib/oakestra/nodeengine/instances");
        let entries = std::fs::read_dir(folder).expect("folder of the instances");
        entries.map(|entry| entry.expect("entry").path()).collect()
    }

    /// Waits until nothing of any instance is left.
    pub async fn has_forgotten(&self) {
        eventually("no instance is noted", || self.noted().is_empty()).await;
    }

    /// Waits until it is noted that an instance is not wanted any more.
    pub async fn is_draining(&self) {
        eventually("an instance is not wanted any more", || {
            // A file that is still being written is not noted yet.
            let is_whole = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "json");
            let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
            let noted = self.noted();
            noted
                .iter()
                .filter(is_whole)
                .any(|path| text(path).contains("unwanted"))
        })
        .await;
    }

    /// Name of an instance's container.
    pub fn container(&self, name: &str, number: u32) -> String {
        format!("{name}.instance.{number}-{}", &self.id[..8])
    }
}

/// A placement, with what differs from the usual.
pub fn placement(name: &str, changes: &Value) -> Value {
    let mut placement = json!({
        "microserviceID": "65f000000000000000000000", "job_name": name, "image": crate::docker::IMAGE,
        "virtualization": "docker", "cmd": [], "environment": [], "memory": 0, "vcpus": 0,
        "instance_number": 0, "incarnation": 65536
    });
    for (key, value) in changes.as_object().expect("changes") {
        placement[key] = value.clone();
    }
    placement
}
