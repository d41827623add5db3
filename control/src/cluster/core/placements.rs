//! What is to run, where it goes, and what the nodes are told of it.

use protocol::cluster::{FromCluster, InstanceReport};
use protocol::instance::InstanceStatus;
use protocol::job::{INCARNATION_STEP, InstanceKey, Placement};
use protocol::network::UpdateKind;
use protocol::node::{DeleteCommand, topic};
use tracing::{info, warn};

use super::super::records::{InstanceRecord, StopKey, StopRecord};
use super::{Core, Instance, Stop};
use crate::scheduler::{MostUnreserved, choose};

/// How many times longer nodes of other makes may take.
const FOR_OTHER_MAKES: u32 = 12;

impl Core {
    /// The root wants one more. Said again, it changes nothing.
    pub fn deploy(&mut self, placement: Placement) {
        let key = placement.key();
        if let Some(instance) = self.instances.get(&key) {
            let known = &instance.record;
            if (known.placement.incarnation..=known.incarnation).contains(&placement.incarnation) {
                return;
            }
            if placement.incarnation < known.placement.incarnation {
                info!(instance = %name(&key), incarnation = placement.incarnation, "older placement ignored");
                return;
            }
            self.remove(&key, false);
        }
        let record = InstanceRecord {
            incarnation: placement.incarnation,
            placement,
            node: None,
            acknowledged: false,
            status: InstanceStatus::ClusterScheduled,
            status_detail: String::new(),
            publicip: String::new(),
            attached: None,
        };
        self.instances.insert(key.clone(), Instance::new(record));
        self.dirty.instances.insert(key.clone());
        self.place(&key);
    }

    /// The root wants one less.
    pub fn undeploy(&mut self, key: &InstanceKey, incarnation: u64) {
        match self.instances.get(key) {
            Some(instance) if instance.record.placement.incarnation <= incarnation => self.remove(key, true),
            Some(_) => info!(instance = %name(key), incarnation, "a later placement stays"),
            None => {
                // Maybe it was said before and the root has not heard that it is done; else nothing is there.
                let of_this = |number: u64| number / INCARNATION_STEP == incarnation / INCARNATION_STEP;
                let pending = self
                    .stops
                    .values_mut()
                    .find(|stop| stop.record.key == *key && stop.record.incarnation.is_some_and(of_this));
                match pending {
                    Some(stop) => stop.record.report = true,
                    None => self.tell_undeployed(key.clone(), incarnation, String::new()),
                }
            }
        }
    }

    /// The root wants this and nothing else.
    pub fn desired(&mut self, placements: Vec<Placement>) {
        let wanted: std::collections::BTreeSet<InstanceKey> = placements.iter().map(Placement::key).collect();
        let unwanted: Vec<InstanceKey> = self
            .instances
            .keys()
            .filter(|key| !wanted.contains(*key))
            .cloned()
            .collect();
        for key in unwanted {
            self.remove(&key, true);
        }
        for placement in placements {
            self.deploy(placement);
        }
    }

    /// Forgets an instance and has its node stop it.
    fn remove(&mut self, key: &InstanceKey, report: bool) {
        let Some(instance) = self.instances.remove(key) else {
            return;
        };
        self.dirty.instances.insert(key.clone());
        self.room = true;
        let record = instance.record;
        info!(instance = %name(key), incarnation = record.incarnation, "to be stopped");
        let draining = self.draining(key, &record, report);
        match record.node {
            Some(node) => self.stop(StopRecord {
                node,
                key: key.clone(),
                incarnation: Some(record.incarnation),
                job: Some(record.placement.job),
                report,
                draining,
            }),
            None if report => self.tell_undeployed(key.clone(), record.incarnation, String::new()),
            None => {}
        }
        if record.attached.is_some() {
            self.changed(&key.job_name, UpdateKind::Undeployment);
        }
    }

    /// Has a node stop a placement.
    pub(super) fn stop(&mut self, mut record: StopRecord) {
        let active = self.nodes.get(&record.node).is_some_and(super::Node::is_active);
        if record.report && !active {
            // Nobody can wait for a node that may never come back; when it does, it is told.
            record.report = false;
            record.draining = None;
            let incarnation = record.incarnation.unwrap_or_default();
            self.tell_undeployed(record.key.clone(), incarnation, record.node.clone());
        }
        let key = record.stop_key();
        self.stops.insert(key.clone(), Stop::new(record));
        self.dirty.stops.insert(key.clone());
        self.send_stop(&key);
    }

    /// The root does not wait for what is to stop on nodes that went silent before they did: as in [`Self::stop`].
    pub(super) fn tell_stops_of_silent_nodes(&mut self) {
        let is_active = |node: &str| self.nodes.get(node).is_some_and(super::Node::is_active);
        let in_vain = self
            .stops
            .iter()
            .filter(|(_, stop)| stop.record.report && !is_active(&stop.record.node));
        let in_vain: Vec<StopKey> = in_vain.map(|(key, _)| key.clone()).collect();
        for key in in_vain {
            let Some(stop) = self.stops.get_mut(&key) else {
                continue;
            };
            stop.record.report = false;
            let record = stop.record.clone();
            self.dirty.stops.insert(key);
            self.tell_undeployed(record.key, record.incarnation.unwrap_or_default(), record.node);
        }
    }

    /// A node has stopped something, or never had it.
    pub(super) fn stopped(&mut self, key: &StopKey) {
        let Some(stop) = self.stops.remove(key) else {
            return;
        };
        self.dirty.stops.insert(key.clone());
        self.room = true;
        let record = stop.record;
        info!(instance = %name(&record.key), node = record.node, "stopped");
        if record.draining.is_some() {
            self.changed(&record.key.job_name, UpdateKind::Undeployment);
        }
        self.tell_capacity();
        if record.report {
            self.tell_undeployed(record.key, record.incarnation.unwrap_or_default(), record.node);
        }
    }

    /// Looks for a node, and tells it; or tells the root that there is none.
    fn place(&mut self, key: &InstanceKey) {
        let candidates = self.candidates(Some(key));
        let later = self.candidates_without_stops();
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let record = &mut instance.record;
        self.dirty.instances.insert(key.clone());
        match choose(&MostUnreserved, &record.placement.job, &candidates) {
            Ok(node) => {
                info!(instance = %name(key), incarnation = record.incarnation, node = node.id, host = node.name, "placed");
                record.node = Some(node.id.clone());
                record.acknowledged = false;
                record.status = InstanceStatus::NodeScheduled;
                record.status_detail = String::new();
                self.send_deploy(key);
                self.tell_instance(key);
                self.tell_capacity();
            }
            Err(_) if choose(&MostUnreserved, &record.placement.job, &later).is_ok() => {
                // It gets what is being stopped right now.
                record.status = InstanceStatus::ClusterScheduled;
                record.status_detail = "waits for others to stop".to_owned();
            }
            Err(nowhere) => {
                let status = nowhere.status_of_nodes();
                let detail = nowhere.to_string();
                if record.status != status || record.status_detail != detail {
                    warn!(instance = %name(key), %status, detail, "fits nowhere");
                }
                record.status = status;
                record.status_detail = detail;
                if self.connected {
                    self.refuse(key);
                }
            }
        }
    }

    /// Leaves a placement to the root, which looks elsewhere.
    fn refuse(&mut self, key: &InstanceKey) {
        let Some(instance) = self.instances.remove(key) else {
            return;
        };
        self.dirty.instances.insert(key.clone());
        let record = instance.record;
        self.tell_root(FromCluster::Refusal {
            key: key.clone(),
            incarnation: record.incarnation,
            status: record.status,
            detail: record.status_detail,
        });
    }

    fn waiting(&self) -> Vec<InstanceKey> {
        let waits = |instance: &Instance| instance.record.node.is_none();
        let waiting = self.instances.iter().filter(|(_, instance)| waits(instance));
        waiting.map(|(key, _)| key.clone()).collect()
    }

    /// Tries again what waits, when there may be room.
    pub(super) fn use_room(&mut self) {
        if std::mem::take(&mut self.room) {
            for key in self.waiting() {
                self.place(&key);
            }
        }
    }

    /// Its node is lost: another placement of the same instance, somewhere else.
    pub(super) fn place_anew(&mut self, key: &InstanceKey) {
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let record = &mut instance.record;
        let before = record.incarnation;
        let highest = record.placement.incarnation.saturating_add(INCARNATION_STEP - 1);
        let Some(node) = record.node.take() else { return };
        warn!(instance = %name(key), node, incarnation = before, "its node is lost");
        record.acknowledged = false;
        record.publicip = String::new();
        let was_attached = record.attached.take().is_some();
        let job = record.placement.job.clone();
        record.incarnation = before + 1;
        let exhausted = record.incarnation > highest;
        record.status = InstanceStatus::Failed;
        record.status_detail = "the node of the instance does not answer".to_owned();
        instance.usage = super::Usage::default();
        instance.sent = None;
        self.stop(StopRecord {
            node,
            key: key.clone(),
            incarnation: Some(before),
            job: Some(job),
            report: false,
            draining: None,
        });
        if was_attached {
            self.changed(&key.job_name, UpdateKind::Undeployment);
        }
        self.dirty.instances.insert(key.clone());
        if exhausted {
            // Later numbers are the root's.
            self.refuse(key);
        } else {
            self.place(key);
        }
    }

    pub(super) fn send_deploy(&mut self, key: &InstanceKey) {
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let Some(node) = instance.record.node.clone() else {
            return;
        };
        instance.sent = Some(self.now);
        let placement = Placement {
            incarnation: instance.record.incarnation,
            ..instance.record.placement.clone()
        };
        self.publish(topic::deploy(&node), &placement);
    }

    pub(super) fn send_stop(&mut self, key: &StopKey) {
        let Some(stop) = self.stops.get_mut(key) else {
            return;
        };
        stop.sent = Some(self.now);
        stop.first_sent.get_or_insert(self.now);
        let record = &stop.record;
        let command = DeleteCommand {
            job_name: record.key.job_name.clone(),
            virtualization: record
                .job
                .as_ref()
                .map(|job| job.virtualization.clone())
                .unwrap_or_default(),
            instance_number: record.key.instance_number,
            incarnation: record.incarnation,
            drain_ms: record
                .draining
                .is_some()
                .then(|| u64::try_from(self.patience.drain.as_millis()).unwrap_or(u64::MAX)),
        };
        let topic = topic::delete(&record.node);
        self.publish(topic, &command);
    }

    /// What a node has not acknowledged, once more.
    pub(super) fn send_deployments_again(&mut self, node: &str) {
        let unacknowledged = |instance: &Instance| instance.is_on(node) && !instance.record.acknowledged;
        let due = self
            .instances
            .iter()
            .filter(|(_, instance)| unacknowledged(instance));
        let due: Vec<InstanceKey> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            self.send_deploy(&key);
        }
    }

    pub(super) fn send_stops_again(&mut self, node: &str) {
        let due = self.stops.keys().filter(|(of, _, _)| of == node).cloned();
        let due: Vec<StopKey> = due.collect();
        for key in due {
            self.send_stop(&key);
        }
    }

    pub(super) fn send_overdue_commands(&mut self) {
        let is_active = |node: &str| self.nodes.get(node).is_some_and(super::Node::is_active);
        let due: Vec<InstanceKey> = self
            .instances
            .iter()
            .filter(|(_, instance)| {
                let record = &instance.record;
                !record.acknowledged
                    && record.node.as_deref().is_some_and(is_active)
                    && self.is_due_to(record.node.as_deref(), instance.sent)
            })
            .map(|(key, _)| key.clone())
            .collect();
        let stops: Vec<StopKey> = self
            .stops
            .iter()
            .filter(|((node, _, _), stop)| is_active(node) && self.is_due(stop.sent))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.send_deploy(&key);
        }
        for key in stops {
            self.send_stop(&key);
        }
    }

    /// Whether an order that was sent then is to be sent again. Nodes of other makes do not acknowledge, and do not
    /// expect to hear it twice: they get much longer.
    pub(super) fn is_due_to(&self, node: Option<&str>, sent: Option<std::time::Instant>) -> bool {
        let patience = if node.is_some_and(|node| self.is_of_another_make(node)) {
            self.patience.resend * FOR_OTHER_MAKES
        } else {
            self.patience.resend
        };
        sent.is_none_or(|sent| self.now.duration_since(sent) >= patience)
    }

    fn is_of_another_make(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.record.key.is_none())
    }

    /// Whether a command that was sent then is to be sent again.
    pub(super) fn is_due(&self, sent: Option<std::time::Instant>) -> bool {
        sent.is_none_or(|sent| self.now.duration_since(sent) >= self.patience.resend)
    }

    /// Tells the root how an instance fares.
    pub(super) fn tell_instance(&mut self, key: &InstanceKey) {
        if let Some(report) = self.report(key) {
            if let Some(instance) = self.instances.get_mut(key) {
                instance.usage_changed = false;
            }
            self.tell_root(FromCluster::Instance {
                report: Box::new(report),
            });
        }
    }

    pub(super) fn tell_usage(&mut self) {
        if self.now.duration_since(self.usage_told) < self.patience.usage {
            return;
        }
        self.usage_told = self.now;
        let changed = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.usage_changed);
        let changed: Vec<InstanceKey> = changed.map(|(key, _)| key.clone()).collect();
        for key in changed {
            self.tell_instance(&key);
        }
    }

    pub(super) fn report(&self, key: &InstanceKey) -> Option<InstanceReport> {
        let instance = self.instances.get(key)?;
        let record = &instance.record;
        let node = record.node.as_ref().and_then(|id| self.nodes.get(id));
        Some(InstanceReport {
            key: key.clone(),
            incarnation: record.incarnation,
            status: record.status,
            status_detail: record.status_detail.clone(),
            worker_id: record.node.clone().unwrap_or_default(),
            host: node.map(|node| node.host().to_owned()).unwrap_or_default(),
            host_ip: node.and_then(super::Node::address),
            publicip: record.publicip.clone(),
            cpu_percent: instance.usage.cpu_percent.clone(),
            memory_percent: instance.usage.memory_percent.clone(),
            disk: instance.usage.disk.clone(),
            logs: instance.usage.logs.clone(),
            row: record.attached.is_some().then(|| self.row(instance)),
        })
    }

    fn tell_undeployed(&mut self, key: InstanceKey, incarnation: u64, worker_id: String) {
        let report = InstanceReport {
            worker_id,
            ..InstanceReport::bare(key, incarnation, InstanceStatus::Undeployed)
        };
        self.tell_root(FromCluster::Instance {
            report: Box::new(report),
        });
    }
}

/// An instance, for people.
pub(super) fn name(key: &InstanceKey) -> String {
    format!("{}.{}", key.job_name, key.instance_number)
}
