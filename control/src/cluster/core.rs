//! What a cluster knows and decides. No sockets, no clock, no disk: events come in by methods, and what follows from
//! them is collected in [`Effects`], which the caller carries out before the next event: first to the disk, then to
//! the nodes and the root.

mod draining;
mod network;
mod nodes;
mod peers;
mod placements;
mod reports;
mod root;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use protocol::cluster::FromCluster;
use protocol::job::{InstanceKey, Placement};
use protocol::node::NodeInformation;
use serde::Serialize;
use tracing::error;

use self::network::Network;
pub use self::nodes::NodeView;
use super::records::{self, INSTANCES, InstanceRecord, NODES, NodeRecord, STOPS, StopKey, StopRecord};
use super::rights::covers;
use crate::store::{Condition, Store, StoreError, Transaction};

/// How patient a cluster is.
#[derive(Clone, Debug)]
pub struct Patience {
    /// After how long a silence a node is inactive.
    pub silence: Duration,
    /// How long the instances of an inactive node wait for it.
    pub grace: Duration,
    /// After what time a command that is not acknowledged is sent again.
    pub resend: Duration,
    /// How often the root hears of what is used.
    pub usage: Duration,
    /// How often the root hears of the capacity, whether it changed or not.
    pub capacity: Duration,
    /// How long the root may take to answer.
    pub root: Duration,
    /// How long an answer to a node waits for other nodes to hear of it first.
    pub peers: Duration,
    /// How long an instance that is to be stopped still serves what it has begun to; zero to stop it at once.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            resend: Duration::from_secs(5),
            usage: Duration::from_secs(5),
            capacity: Duration::from_secs(3),
            root: Duration::from_secs(2),
            peers: Duration::from_millis(50),
            drain: Duration::from_secs(3),
        }
    }
}

/// The state of a cluster.
pub struct Core {
    name: String,
    /// Empty until a root has told it.
    id: String,
    patience: Patience,
    now: Instant,
    connected: bool,
    nodes: BTreeMap<String, Node>,
    instances: BTreeMap<InstanceKey, Instance>,
    stops: BTreeMap<StopKey, Stop>,
    network: Network,
    /// The parts that have come of what is desired.
    desired_so_far: Vec<Placement>,
    /// When the root heard of what, last.
    usage_told: Instant,
    capacity_told: Instant,
    /// Whether something changed that may give room to what waits.
    room: bool,
    dirty: Dirty,
    effects: Effects,
}

struct Node {
    record: NodeRecord,
    last_seen: Instant,
    /// Since when it is not active, if it is not.
    inactive_since: Option<Instant>,
    /// What it said last; only what changes is of interest.
    latest: NodeInformation,
}

struct Instance {
    record: InstanceRecord,
    /// When the node was told last.
    sent: Option<Instant>,
    /// When a node of another make reported it last.
    reported: Option<Instant>,
    usage: Usage,
    usage_changed: bool,
}

#[derive(Clone, Default, PartialEq)]
struct Usage {
    cpu_percent: String,
    memory_percent: String,
    disk: String,
    logs: String,
}

struct Stop {
    record: StopRecord,
    /// When the node was told for the first time, since this process runs.
    first_sent: Option<Instant>,
    /// When the node was told last.
    sent: Option<Instant>,
}

impl Stop {
    fn new(record: StopRecord) -> Self {
        Self {
            record,
            first_sent: None,
            sent: None,
        }
    }
}

/// What differs from what is stored.
#[derive(Default)]
struct Dirty {
    nodes: BTreeSet<String>,
    instances: BTreeSet<InstanceKey>,
    stops: BTreeSet<StopKey>,
}

/// What follows from an event.
#[derive(Default)]
pub struct Effects {
    /// To be on the disk before anybody hears of anything.
    pub transaction: Transaction,
    /// Topic and payload.
    pub publish: Vec<(String, Vec<u8>)>,
    pub root: Vec<FromCluster>,
}

impl Core {
    /// Reads what a cluster called `name` has stored. All nodes count as active until they have been silent for long
    /// enough, so that a restart moves nothing.
    pub async fn restore(
        name: &str,
        patience: Patience,
        store: &dyn Store,
        now: Instant,
    ) -> Result<Self, StoreError> {
        let mut core = Self::new(name, patience, now);
        for record in store.range(NODES).await? {
            let record: NodeRecord = record.read()?;
            core.nodes.insert(record.id.clone(), Node::new(record, now));
        }
        for record in store.range(INSTANCES).await? {
            let record: InstanceRecord = record.read()?;
            core.instances
                .insert(record.placement.key(), Instance::new(record));
        }
        for record in store.range(STOPS).await? {
            let record: StopRecord = record.read()?;
            core.stops.insert(record.stop_key(), Stop::new(record));
        }
        Ok(core)
    }

    fn new(name: &str, patience: Patience, now: Instant) -> Self {
        Self {
            name: name.to_owned(),
            id: String::new(),
            patience,
            now,
            connected: false,
            nodes: BTreeMap::new(),
            instances: BTreeMap::new(),
            stops: BTreeMap::new(),
            network: Network::default(),
            desired_so_far: Vec::new(),
            usage_told: now,
            capacity_told: now,
            room: false,
            dirty: Dirty::default(),
            effects: Effects::default(),
        }
    }

    /// What time it is for the events that follow.
    pub fn at(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// What has to be carried out now.
    pub fn take_effects(&mut self) -> Result<Effects, StoreError> {
        self.use_room();
        let mut effects = std::mem::take(&mut self.effects);
        let dirty = std::mem::take(&mut self.dirty);
        let transaction = &mut effects.transaction;
        for id in dirty.nodes {
            let record = self.nodes.get(&id).map(|node| &node.record);
            write(transaction, records::node_key(&id), record)?;
        }
        for key in dirty.instances {
            let record = self.instances.get(&key).map(|instance| &instance.record);
            write(transaction, records::instance_key(&key), record)?;
        }
        for key in dirty.stops {
            let record = self.stops.get(&key).map(|stop| &stop.record);
            write(transaction, records::stop_key(&key), record)?;
        }
        Ok(effects)
    }

    /// A node hears of a filter from now on: what it was told before may not have reached it.
    pub fn subscribed(&mut self, node: &str, filter: &str) {
        if covers(filter, &protocol::node::topic::deploy(node)) {
            self.send_deployments_again(node);
        }
        if covers(filter, &protocol::node::topic::delete(node)) {
            self.send_stops_again(node);
        }
        if covers(filter, &protocol::network::topic::peers(node)) {
            self.peers_again(node);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        self.find_silent_nodes();
        self.tell_stops_of_silent_nodes();
        self.end_drains_of_silent_nodes();
        self.move_from_lost_nodes();
        self.send_overdue_commands();
        self.send_overdue_peers();
        self.tell_usage();
        self.forget_who_gave_up();
        if self.now.duration_since(self.capacity_told) >= self.patience.capacity {
            self.tell_capacity();
        }
    }

    fn publish<T: Serialize>(&mut self, topic: String, message: &T) {
        match serde_json::to_vec(message) {
            Ok(payload) => self.effects.publish.push((topic, payload)),
            Err(error) => error!(topic, %error, "message cannot be written"),
        }
    }

    fn tell_root(&mut self, message: FromCluster) {
        self.effects.root.push(message);
    }
}

impl Node {
    fn new(record: NodeRecord, now: Instant) -> Self {
        Self {
            latest: record.information.clone(),
            record,
            last_seen: now,
            inactive_since: None,
        }
    }

    fn is_active(&self) -> bool {
        self.inactive_since.is_none()
    }

    /// Digest of its own secret.
    fn key(&self) -> Option<String> {
        let key = self.record.key.as_ref()?;
        Some(key.as_str().to_owned())
    }

    /// What people call it.
    fn host(&self) -> &str {
        &self.record.information.host
    }
}

impl Instance {
    fn new(record: InstanceRecord) -> Self {
        Self {
            record,
            sent: None,
            reported: None,
            usage: Usage::default(),
            usage_changed: false,
        }
    }

    fn is_on(&self, node: &str) -> bool {
        self.record.node.as_deref() == Some(node)
    }
}

fn write<T: Serialize>(
    transaction: &mut Transaction,
    key: String,
    record: Option<&T>,
) -> Result<(), StoreError> {
    match record {
        Some(record) => transaction.put(key, Condition::Any, record),
        None => {
            transaction.delete(key, Condition::Any);
            Ok(())
        }
    }
}
