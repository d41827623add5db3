//! What every test needs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::docker::Docker;
use crate::node::{Node, placement};

/// Everything that is waited for comes within this time, also on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, a Docker and a node.
pub struct Stage {
    pub cluster: Cluster,
    pub docker: Docker,
    pub node: Node,
}

impl Stage {
    pub async fn set() -> Self {
        let cluster = Cluster::new().await;
        let docker = Docker::new().await;
        let node = Node::new(&cluster, &docker).await;
        Self {
            cluster,
            docker,
            node,
        }
    }

    /// Orders a placement.
    pub async fn deploy(&self, name: &str, changes: &Value) {
        let order = placement(name, changes);
        self.cluster.say(&self.node.id, "control/deploy", &order).await;
    }

    /// Orders the removal of instance 0.
    pub async fn delete(&self, name: &str) {
        let order = json!({"job_name": name, "virtualization": "docker", "instance_number": 0});
        self.cluster.say(&self.node.id, "control/delete", &order).await;
    }

    /// Waits for a status of instance 0.
    pub async fn expect(&self, name: &str, status: &str) -> Value {
        self.cluster.expect_status(&self.node.id, name, 0, status).await
    }

    /// Waits for the acknowledgement of an order about instance 0.
    pub async fn expect_acknowledgement(&self, command: &str, name: &str) -> Value {
        let what = format!("{command} {name}");
        self.cluster
            .expect(&self.node.id, "control/ack", &what, |message| {
                message["command"] == command && message["job_name"] == name
            })
            .await
    }

    /// Deploys and waits until it runs.
    pub async fn run(&self, name: &str, changes: &Value) {
        self.deploy(name, changes).await;
        self.expect(name, "RUNNING").await;
    }

    /// Everything about the container of instance 0.
    pub fn inspect(&self, name: &str) -> Value {
        self.docker.inspect(&self.node.container(name, 0))
    }

    /// Deletes, and waits until only these containers are left.
    pub async fn end_besides(&self, name: &str, others: &[&str]) {
        self.delete(name).await;
        self.expect(name, "UNDEPLOYED").await;
        eventually("the others are left", || self.docker.containers() == others).await;
    }

    /// Deletes and waits until nothing is left.
    pub async fn end(&self, name: &str) {
        self.delete(name).await;
        self.expect(name, "UNDEPLOYED").await;
        self.docker.is_empty().await;
        self.node.has_forgotten().await;
    }
}

/// Waits for something that nobody tells.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
