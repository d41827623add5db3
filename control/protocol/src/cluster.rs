//! The wire between a cluster and its root: a WebSocket that the cluster opens, with one JSON text per frame.
//!
//! ```text
//!   cluster                                    root
//!   Hello {who, session, received} ──────────►
//!             ◄────────── Welcome {cluster_id, session, received, resumed}   or   Refused {message}
//!   Message {1, FromCluster} ────────────────►
//!             ◄──────────────────────────────── Acknowledge {1}
//!             ◄──────────────────────────────── Message {1, FromRoot}
//!   Acknowledge {1} ─────────────────────────►
//! ```
//!
//! Each side numbers its messages from 1 within a session and keeps them until they are acknowledged;
//! acknowledgements are cumulative. When the connection breaks, the next one resumes the session where both sides
//! still know it: what was not acknowledged is sent again, what was received already is left out by its number.
//! Where one side has lost it, a new session begins, and each side says everything first:
//! [`FromRoot::Desired`] and [`FromCluster::State`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::instance::InstanceStatus;
use crate::job::{InstanceKey, Placement};
use crate::network::{InstanceRow, ServiceName, TableQuery, TableResult};

/// Where the root takes connections.
pub const PATH: &str = "/api/clusters/connect";

/// Version of everything in this module. A root refuses a cluster of another one.
pub const VERSION: u32 = 1;

/// One frame; `M` is what this direction carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum Frame<M> {
    /// First frame of the cluster.
    Hello(Hello),
    /// First frame of the root.
    Welcome(Welcome),
    /// First and last frame of a root that does not want this cluster.
    Refused {
        message: String,
    },
    Message {
        number: u64,
        message: M,
    },
    /// Everything up to this number has been taken in durably.
    Acknowledge {
        number: u64,
    },
}

/// A cluster introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub cluster_name: String,
    #[serde(default)]
    pub cluster_location: String,
    /// A secret that the cluster made once. It ties the name to this cluster; who shows another one for the same
    /// name is refused.
    pub cluster_key: String,
    /// Where nodes register.
    pub port: u16,
    /// The session to resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The last message of the root that was taken in, in that session.
    #[serde(default)]
    pub received: u64,
}

/// The root takes a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u32,
    /// 24 hexadecimal digits.
    pub cluster_id: String,
    pub session: String,
    /// Whether it is the session that the cluster asked for.
    pub resumed: bool,
    /// The last message of the cluster that was taken in, in that session.
    #[serde(default)]
    pub received: u64,
}

/// What a root tells a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FromRoot {
    /// Everything that is to run in this cluster; what is not listed is to go.
    Desired {
        placements: Vec<Placement>,
        /// Whether the list goes on in the next message, since one frame does not hold it.
        #[serde(default)]
        more: bool,
    },
    /// One more.
    Deploy { placement: Box<Placement> },
    /// One less. Placements with a later incarnation are not meant.
    Undeploy {
        #[serde(flatten)]
        key: InstanceKey,
        incarnation: u64,
    },
    /// Answer to [`FromCluster::LeaseRequest`].
    Lease { node_id: String, lease: Lease },
    /// The other answer to it.
    LeaseRefused { node_id: String, message: String },
    /// Answer to [`FromCluster::Lookup`], with what is in other clusters too. From then on the cluster hears of
    /// changes of the service.
    Table { query: TableQuery, result: TableResult },
    /// A service that the cluster looked up has changed; it is to be looked up again.
    ServiceChanged { job_name: ServiceName },
}

/// The addresses of a node. They are the node's for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// First address of a /26.
    pub subnet: Ipv4Addr,
    /// First address of a /120.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_v6: Option<Ipv6Addr>,
    /// The address by which the node itself is reached in the overlay.
    pub instance_ip: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ip_v6: Option<Ipv6Addr>,
}

/// The addresses that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    pub node_id: String,
    /// Digest of the node's own secret. It ties the addresses to the node: who shows another one for the same id
    /// does not get them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub lease: Lease,
}

/// What a cluster tells its root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FromCluster {
    /// Everything there is: how each placement that the cluster knows fares.
    State {
        capacity: Capacity,
        instances: Vec<InstanceReport>,
        /// What the nodes have, for a root that has lost it.
        #[serde(default)]
        leases: Vec<HeldLease>,
    },
    /// The sum of the nodes has changed; also the sign of life, every few seconds.
    Capacity { capacity: Capacity },
    /// Something about one instance has changed.
    Instance { report: Box<InstanceReport> },
    /// No node takes this placement; the root is to look elsewhere, and not to count on this cluster for it until
    /// its capacity changes.
    Refusal {
        #[serde(flatten)]
        key: InstanceKey,
        incarnation: u64,
        status: InstanceStatus,
        /// The reason of each node.
        detail: String,
    },
    /// A node needs its addresses.
    LeaseRequest {
        node_id: String,
        /// See [`HeldLease::key`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A node asks for a service that this cluster does not know.
    Lookup { query: TableQuery },
}

/// The sum of a cluster's active nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    pub active_nodes: u32,
    /// Mean over the nodes.
    pub cpu_percent: f64,
    pub memory_percent: f64,
    /// Cores there are.
    pub vcpus: u64,
    /// Cores that no placement has reserved.
    pub vcpus_free: u64,
    /// MiB there are.
    pub memory: u64,
    /// MiB that no placement has reserved.
    pub memory_free: u64,
    /// The most that one node has free, so that what fits nowhere is not sent.
    pub largest_vcpus: u64,
    /// MiB.
    pub largest_memory: u64,
    pub vgpus: u64,
    /// Runtimes that at least one node has.
    pub virtualization: Vec<String>,
    pub architectures: Vec<String>,
    /// Names of the hosts, for direct constraints.
    pub hosts: Vec<String>,
}

/// How one placement fares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    #[serde(flatten)]
    pub key: InstanceKey,
    /// That of the root or, where the cluster placed it anew, a later one below the root's next.
    pub incarnation: u64,
    pub status: InstanceStatus,
    #[serde(default)]
    pub status_detail: String,
    /// The node; empty while there is none.
    #[serde(default)]
    pub worker_id: String,
    /// Name of the node's host.
    #[serde(default)]
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    #[serde(default)]
    pub publicip: String,
    #[serde(default)]
    pub cpu_percent: String,
    #[serde(default)]
    pub memory_percent: String,
    #[serde(default)]
    pub disk: String,
    #[serde(default)]
    pub logs: String,
    /// Its row of the translation table, once it is attached, for nodes of other clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<InstanceRow>,
}

impl InstanceReport {
    /// A report that says only this.
    pub fn bare(key: InstanceKey, incarnation: u64, status: InstanceStatus) -> Self {
        Self {
            key,
            incarnation,
            status,
            status_detail: String::new(),
            worker_id: String::new(),
            host: String::new(),
            host_ip: None,
            publicip: String::new(),
            cpu_percent: String::new(),
            memory_percent: String::new(),
            disk: String::new(),
            logs: String::new(),
            row: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_and_messages_round_trip() {
        let key = InstanceKey {
            job_name: "a.b.c.d".parse().expect("name"),
            instance_number: 1,
        };
        let undeploy = Frame::Message {
            number: 7,
            message: FromRoot::Undeploy {
                key,
                incarnation: 65536,
            },
        };
        let wire = json!({
            "frame": "message", "number": 7,
            "message": {"kind": "undeploy", "job_name": "a.b.c.d", "instance_number": 1, "incarnation": 65536}
        });
        assert_eq!(serde_json::to_value(&undeploy).expect("undeploy"), wire);
        assert_eq!(
            serde_json::from_value::<Frame<FromRoot>>(wire).expect("undeploy"),
            undeploy
        );

        let state: Frame<FromCluster> = serde_json::from_value(json!({
            "frame": "message", "number": 1, "message": {"kind": "state", "capacity": {}, "instances": [
                {"job_name": "a.b.c.d", "instance_number": 0, "incarnation": 65537, "status": "RUNNING"}
            ]}
        }))
        .expect("state");
        let Frame::Message {
            message: FromCluster::State { instances, .. },
            ..
        } = state
        else {
            panic!("not a state");
        };
        assert_eq!(instances[0].incarnation, 65537);
    }
}
