//! Who tells whom: before a node hears where something is, the node over there hears who is about to talk to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use protocol::network::{
    InstanceRow, Lenient, PeerRow, Peers, PeersAcknowledgement, ServiceName, TableQuery, topic,
};
use rand::Rng as _;
use tokio::sync::oneshot;

use super::Core;
use super::table::rows;

/// Which instance a row is about.
type RowKey = (ServiceName, u32);

/// Messages to a node that are not acknowledged: beyond that, what they say comes with the next answer.
const UNACKNOWLEDGED: usize = 64;

/// What which node has been told of others.
pub(super) struct PeersState {
    /// Which count the versions belong to.
    epoch: u64,
    version: u64,
    /// By node: the rows that it has acknowledged.
    installed: BTreeMap<String, BTreeMap<RowKey, InstanceRow>>,
    /// By node and version.
    pending: BTreeMap<(String, u64), Pending>,
}

struct Pending {
    rows: Vec<PeerRow>,
    sent: Instant,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Default for PeersState {
    fn default() -> Self {
        Self {
            epoch: rand::rng().random(),
            version: 0,
            installed: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }
}

impl Core {
    /// Tells the nodes that are named in the answer to a question who asks. What is returned comes when they have it.
    pub fn tell_peers(&mut self, asking: &str, query: &TableQuery) -> Vec<oneshot::Receiver<()>> {
        let Some(service) = self.find(query) else {
            return Vec::new();
        };
        let targets = self.nodes_of(&service, asking);
        targets
            .into_iter()
            .filter_map(|target| self.tell_peer(&target, asking, true))
            .collect()
    }

    /// The rows of a node have changed: all that it may be talking to hear of it.
    pub(super) fn tell_reach(&mut self, of: &str) {
        let interests = self.network.interests.iter();
        let services: Vec<ServiceName> = interests
            .filter(|(_, nodes)| nodes.contains(of))
            .map(|(service, _)| service.clone())
            .collect();
        let targets: BTreeSet<String> = services
            .iter()
            .flat_map(|service| self.nodes_of(service, of))
            .collect();
        for target in targets {
            self.tell_peer(&target, of, false);
        }
    }

    /// The active nodes of this cluster that have instances of a service, but for one.
    fn nodes_of(&self, service: &ServiceName, but: &str) -> BTreeSet<String> {
        let table = self.table(service).unwrap_or_default();
        rows(&table.instance_list)
            .filter(|row| row.namespace_ip.is_some())
            .filter_map(|row| row.node_id.clone())
            .filter(|id| id != but && self.nodes.get(id).is_some_and(super::Node::is_active))
            .collect()
    }

    fn tell_peer(&mut self, target: &str, of: &str, wait: bool) -> Option<oneshot::Receiver<()>> {
        let mut rows = self.rows_of_node(of);
        let state = &mut self.network.peers;
        if let Some(installed) = state.installed.get(target) {
            rows.retain(|peer| installed.get(&row_key(peer)) != Some(&peer.row));
        }
        if rows.is_empty() {
            return None;
        }
        let (waiter, receiver) = oneshot::channel();
        let waiters: Vec<_> = wait.then_some(waiter).into_iter().collect();
        let same = state
            .pending
            .iter_mut()
            .find(|((to, _), pending)| to == target && pending.rows == rows);
        if let Some((_, pending)) = same {
            pending.waiters.extend(waiters);
            return wait.then_some(receiver);
        }
        state.version += 1;
        let key = (target.to_owned(), state.version);
        let pending = Pending {
            rows,
            sent: self.now,
            waiters,
        };
        state.pending.insert(key.clone(), pending);
        let mine = (target.to_owned(), 0)..=(target.to_owned(), u64::MAX);
        let mut oldest: Vec<_> = state.pending.range(mine).map(|(key, _)| key.clone()).collect();
        oldest.truncate(oldest.len().saturating_sub(UNACKNOWLEDGED));
        for old in oldest {
            state.pending.remove(&old);
        }
        self.send_peers(&key);
        wait.then_some(receiver)
    }

    fn send_peers(&mut self, key: &(String, u64)) {
        let state = &mut self.network.peers;
        let Some(pending) = state.pending.get_mut(key) else {
            return;
        };
        pending.sent = self.now;
        let message = Peers {
            version: key.1,
            epoch: Some(state.epoch),
            rows: pending.rows.iter().cloned().map(Lenient::Read).collect(),
        };
        self.publish(topic::peers(&key.0), &message);
    }

    /// A node has installed what it was told.
    pub fn peers_acknowledged(&mut self, node: &str, acknowledgement: PeersAcknowledgement) {
        let state = &mut self.network.peers;
        if acknowledgement.epoch.is_some_and(|epoch| epoch != state.epoch) {
            return;
        }
        let Some(pending) = state.pending.remove(&(node.to_owned(), acknowledgement.version)) else {
            return;
        };
        let installed = state.installed.entry(node.to_owned()).or_default();
        for peer in pending.rows {
            installed.insert(row_key(&peer), peer.row);
        }
        for waiter in pending.waiters {
            // Who waited may have answered already.
            waiter.send(()).unwrap_or_default();
        }
    }

    /// A node has begun to listen: what it had may be gone.
    pub(super) fn peers_again(&mut self, node: &str) {
        self.network.peers.installed.remove(node);
        let mine = (node.to_owned(), 0)..=(node.to_owned(), u64::MAX);
        let pending: Vec<_> = self
            .network
            .peers
            .pending
            .range(mine)
            .map(|(key, _)| key.clone())
            .collect();
        for key in pending {
            self.send_peers(&key);
        }
    }

    /// A node has lost interest in a service: the nodes that have its instances may forget that one. Before it talks to
    /// them again, they are told again.
    pub(super) fn peers_part(&mut self, node: &str, service: &ServiceName) {
        let apart = self.nodes_of(service, node);
        let interests = self.network.interests.iter();
        let still: BTreeSet<String> = interests
            .filter(|(_, nodes)| nodes.contains(node))
            .flat_map(|(service, _)| self.nodes_of(service, node))
            .collect();
        let rows: Vec<RowKey> = self.rows_of_node(node).iter().map(row_key).collect();
        for target in apart.difference(&still) {
            if let Some(installed) = self.network.peers.installed.get_mut(target) {
                installed.retain(|key, _| !rows.contains(key));
            }
        }
    }

    pub(super) fn send_overdue_peers(&mut self) {
        let overdue: Vec<_> = self
            .network
            .peers
            .pending
            .iter()
            .filter(|(_, pending)| self.is_due(Some(pending.sent)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in overdue {
            if self.nodes.get(&key.0).is_some_and(super::Node::is_active) {
                self.send_peers(&key);
            } else {
                self.network.peers.pending.remove(&key);
            }
        }
    }
}

fn row_key(peer: &PeerRow) -> RowKey {
    (peer.app_name.clone(), peer.row.instance_number)
}
