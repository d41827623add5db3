//! What the root says, and what it is asked.

use protocol::cluster::{FromCluster, FromRoot, HeldLease, InstanceReport, Lease};
use protocol::instance::InstanceStatus;
use protocol::network::{ServiceName, TableQuery, TableResult, UpdateKind};
use protocol::node::of_overlay_name;
use tokio::sync::oneshot;
use tracing::warn;

use super::super::records::StopRecord;
use super::Core;

impl Core {
    /// The root has told this cluster its id.
    pub fn identified(&mut self, id: &str) {
        id.clone_into(&mut self.id);
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn is_connected(&self) -> bool {
        self.connected
    }

    pub fn connected(&mut self, connected: bool) {
        self.connected = connected;
        if connected {
            // What fits nowhere waited here while the root was away; now it can look elsewhere.
            self.room = true;
            self.tell_capacity();
        } else {
            // Whoever waits for the root is answered without it.
            self.network.lookups.clear();
        }
    }

    /// Everything there is to say at the beginning of a session.
    pub fn snapshot(&mut self) -> Vec<FromCluster> {
        self.capacity_told = self.now;
        self.desired_so_far.clear();
        let mut instances: Vec<InstanceReport> =
            self.instances.keys().filter_map(|key| self.report(key)).collect();
        // What a node has not stopped yet is still there, and its addresses with it.
        let stopping = self
            .stops
            .values()
            .map(|stop| &stop.record)
            .filter(|stop| stop.report);
        let stopping = stopping.filter(|stop| !self.instances.contains_key(&stop.key));
        instances.extend(stopping.map(still_there));
        let mut messages = vec![FromCluster::State {
            capacity: self.capacity(),
            instances,
            leases: self.held_leases(),
        }];
        for node in self.network.leases.keys().chain(&self.network.subnets_wanted) {
            messages.push(self.lease_request(node));
        }
        // This root may not know what this cluster has asked for.
        let asked: std::collections::BTreeSet<&ServiceName> = self
            .network
            .remote
            .keys()
            .chain(self.network.interests.keys())
            .collect();
        for service in asked
            .into_iter()
            .filter(|service| of_overlay_name(service).is_none())
        {
            messages.push(FromCluster::Lookup {
                query: TableQuery::by_name(service),
            });
        }
        messages
    }

    /// The root says something.
    pub fn heard(&mut self, message: FromRoot) {
        match message {
            FromRoot::Desired { placements, more } => {
                self.desired_so_far.extend(placements);
                if !more {
                    let placements = std::mem::take(&mut self.desired_so_far);
                    self.desired(placements);
                }
            }
            FromRoot::Deploy { placement } => self.deploy(*placement),
            FromRoot::Undeploy { key, incarnation } => self.undeploy(&key, incarnation),
            FromRoot::Lease { node_id, lease } => self.lease_granted(&node_id, &lease),
            FromRoot::LeaseRefused { node_id, message } => {
                warn!(node = node_id, message, "the root gives no addresses");
                for waiter in self.network.leases.remove(&node_id).unwrap_or_default() {
                    // Who waited may have given up.
                    waiter.send(Err(message.clone())).unwrap_or_default();
                }
            }
            FromRoot::Table { query, result } => self.looked_up(&query, result),
            FromRoot::ServiceChanged { job_name } => {
                if self.network.interests.contains_key(&job_name) {
                    drop(self.lookup(TableQuery::by_name(&job_name)));
                } else {
                    self.network.remote.remove(&job_name);
                }
            }
        }
    }

    fn lease_granted(&mut self, node: &str, lease: &Lease) {
        self.leased(node, lease.clone());
        for waiter in self.network.leases.remove(node).unwrap_or_default() {
            // Who waited may have given up.
            waiter.send(Ok(lease.clone())).unwrap_or_default();
        }
        if self.network.subnets_wanted.remove(node) {
            self.send_subnet(node, lease);
        }
    }

    /// Asks for the addresses of a node. The answer comes out of what is returned.
    pub fn await_lease(&mut self, node: &str) -> oneshot::Receiver<Result<Lease, String>> {
        let (waiter, receiver) = oneshot::channel();
        self.network
            .leases
            .entry(node.to_owned())
            .or_default()
            .push(waiter);
        self.ask_lease(node);
        receiver
    }

    pub(super) fn ask_lease(&mut self, node: &str) {
        let request = self.lease_request(node);
        self.tell_root(request);
    }

    fn lease_request(&self, node: &str) -> FromCluster {
        FromCluster::LeaseRequest {
            node_id: node.to_owned(),
            key: self.nodes.get(node).and_then(super::Node::key),
        }
    }

    fn held_leases(&self) -> Vec<HeldLease> {
        let held = |node: &super::Node| {
            Some(HeldLease {
                node_id: node.record.id.clone(),
                key: node.key(),
                lease: node.record.lease.clone()?,
            })
        };
        self.nodes.values().filter_map(held).collect()
    }

    /// Asks the root; what is returned comes when it has answered.
    pub(super) fn lookup(&mut self, query: TableQuery) -> oneshot::Receiver<()> {
        let (waiter, receiver) = oneshot::channel();
        let key = (query.sname.clone(), query.sip.clone());
        let waiters = self.network.lookups.entry(key).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(waiter);
        if waiters.len() == 1 {
            self.tell_root(FromCluster::Lookup { query });
        }
        receiver
    }

    /// Questions that nobody waits for any more.
    pub(super) fn forget_who_gave_up(&mut self) {
        self.network.lookups.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        self.network.leases.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
    }

    fn looked_up(&mut self, query: &TableQuery, result: TableResult) {
        let waiters = self
            .network
            .lookups
            .remove(&(query.sname.clone(), query.sip.clone()));
        match result.app_name.clone() {
            Some(service) => {
                let before = self.table(&service);
                self.network.remote.insert(service.clone(), result);
                if self.table(&service) != before {
                    self.changed(&service, UpdateKind::Deployment);
                }
            }
            None => {
                if let Ok(service) = query.sname.parse::<ServiceName>() {
                    let known = self.network.remote.remove(&service);
                    if known.is_some() {
                        self.changed(&service, UpdateKind::Undeployment);
                    }
                }
            }
        }
        for waiter in waiters.unwrap_or_default() {
            // Who waited may have answered already.
            waiter.send(()).unwrap_or_default();
        }
    }
}

/// What the root hears of a placement that is being stopped.
fn still_there(stop: &StopRecord) -> InstanceReport {
    InstanceReport {
        status_detail: "is being stopped".to_owned(),
        worker_id: stop.node.clone(),
        ..InstanceReport::bare(
            stop.key.clone(),
            stop.incarnation.unwrap_or_default(),
            InstanceStatus::Running,
        )
    }
}
