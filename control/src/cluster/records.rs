//! What a cluster keeps over restarts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol::cluster::Lease;
use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Job, Placement};
use protocol::node::NodeInformation;
use serde::{Deserialize, Serialize};

use super::secret::Digest;
use crate::store::{Condition, Store, StoreError, Transaction};

/// Key of [`Identity`].
const IDENTITY: &str = "identity";
/// Prefix of the keys of [`NodeRecord`].
pub(super) const NODES: &str = "nodes/";
/// Prefix of the keys of [`InstanceRecord`].
pub(super) const INSTANCES: &str = "instances/";
/// Prefix of the keys of [`StopRecord`].
pub(super) const STOPS: &str = "stops/";

/// Who this cluster is to its root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The secret that ties the name to this cluster.
    pub key: String,
}

impl Identity {
    /// The identity in the store; made now, when there is none.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        if let Some(record) = store.get(IDENTITY).await? {
            return record.read();
        }
        let identity = Self {
            key: super::secret::secret(),
        };
        let mut transaction = Transaction::new();
        transaction.put(IDENTITY, Condition::Absent, &identity)?;
        store.commit(transaction).await?;
        Ok(identity)
    }
}

/// A node that has registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) id: String,
    /// Absent for a node that has shown none.
    pub(super) key: Option<Digest>,
    /// The password that was given last, and the one before: one of the node's two daemons may have it still.
    pub(super) passwords: Vec<Digest>,
    /// As of the registration.
    pub(super) information: NodeInformation,
    /// Where the registration came from.
    pub(super) address: Option<IpAddr>,
    pub(super) lease: Option<Lease>,
    /// Where its tunnel ends, once it has said so.
    pub(super) tunnel: Option<Tunnel>,
}

/// Outer address and UDP port of a node's tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tunnel {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// An instance that is to run in this cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct InstanceRecord {
    /// What the root ordered, with the incarnation that it gave.
    pub(super) placement: Placement,
    /// That of the root, or a later one of this cluster.
    pub(super) incarnation: u64,
    /// None while it fits nowhere.
    pub(super) node: Option<String>,
    /// Whether the node has noted the order.
    pub(super) acknowledged: bool,
    pub(super) status: InstanceStatus,
    pub(super) status_detail: String,
    pub(super) publicip: String,
    /// Its addresses in the subnet of the node, once it is attached.
    pub(super) attached: Option<Attached>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attached {
    pub(super) namespace_ip: Ipv4Addr,
    pub(super) namespace_ip_v6: Option<Ipv6Addr>,
}

/// A placement that a node is to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StopRecord {
    pub(super) node: String,
    pub(super) key: InstanceKey,
    /// Any, when absent.
    pub(super) incarnation: Option<u64>,
    /// What it still occupies on the node, where that is known.
    pub(super) job: Option<Job>,
    /// Whether the root is to hear when it is done.
    pub(super) report: bool,
    /// What others see of it while it still serves what it has begun to; none where nobody is to see it any more.
    #[serde(default)]
    pub(super) draining: Option<Box<Draining>>,
}

/// A placement that takes nothing new and is still attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Draining {
    pub(super) placement: Placement,
    pub(super) attached: Attached,
}

/// Which stop it is; the last part is its incarnation.
pub(super) type StopKey = (String, InstanceKey, Option<u64>);

impl StopRecord {
    pub(super) fn stop_key(&self) -> StopKey {
        (self.node.clone(), self.key.clone(), self.incarnation)
    }
}

pub(super) fn node_key(id: &str) -> String {
    format!("{NODES}{id}")
}

pub(super) fn instance_key(key: &InstanceKey) -> String {
    format!("{INSTANCES}{}/{}", key.job_name, key.instance_number)
}

pub(super) fn stop_key((node, key, incarnation): &StopKey) -> String {
    let incarnation = incarnation.map_or_else(|| "any".to_owned(), |number| number.to_string());
    format!(
        "{STOPS}{node}/{}/{}/{incarnation}",
        key.job_name, key.instance_number
    )
}
