//! What the engines of the nodes report, against what is desired.

use std::collections::BTreeSet;

use protocol::instance::InstanceStatus;
use protocol::job::InstanceKey;
use protocol::node::{Acknowledgement, Command, JobReport, ResourcesReport, ServiceUsage};
use tracing::{debug, info, warn};

use super::super::bounds;
use super::super::records::{StopKey, StopRecord};
use super::placements::name;
use super::{Core, Usage};

/// Most placements of which nothing is known that one node is told to stop at the same time.
const STRANGERS: usize = 256;

impl Core {
    /// A node has noted an order, or has carried out a stop.
    pub fn acknowledged(&mut self, node: &str, acknowledgement: Acknowledgement) {
        self.seen(node);
        let key = InstanceKey {
            job_name: acknowledgement.job_name,
            instance_number: acknowledgement.instance_number,
        };
        match acknowledgement.command {
            Command::Deploy => self.noted(node, &key, acknowledgement.incarnation),
            Command::Delete => {
                for stop in self.stops_of(node, &key, acknowledgement.incarnation) {
                    self.stopped(&stop);
                }
            }
        }
    }

    /// An instance has changed its status.
    pub fn job_report(&mut self, node: &str, report: JobReport) {
        self.seen(node);
        let report = bounds::job_report(report);
        let key = InstanceKey {
            job_name: report.sname,
            instance_number: report.instance,
        };
        if report.status == InstanceStatus::Undeployed {
            for stop in self.stops_of(node, &key, report.incarnation) {
                self.stopped(&stop);
            }
        }
        if !self.is_placed(node, &key, report.incarnation) {
            debug!(node, instance = %name(&key), status = %report.status, "report about what is not placed there");
            return;
        }
        self.noted(node, &key, report.incarnation);
        if let Some(instance) = self.instances.get_mut(&key)
            && !report.publicip.is_empty()
            && instance.record.publicip != report.publicip
        {
            instance.record.publicip = report.publicip;
            self.dirty.instances.insert(key.clone());
        }
        self.status(node, &key, report.status, report.status_detail);
    }

    /// Everything that is on a node.
    pub fn resources(&mut self, node: &str, report: ResourcesReport) {
        self.seen(node);
        let mut there = BTreeSet::new();
        let of_node = |stop: &&super::Stop| stop.record.node == node && stop.record.job.is_none();
        let mut strangers = self.stops.values().filter(of_node).count();
        for usage in report.services {
            let usage = bounds::usage(usage);
            let key = InstanceKey {
                job_name: usage.job_name.clone(),
                instance_number: usage.instance,
            };
            there.insert((key.clone(), usage.incarnation));
            if self.is_placed(node, &key, usage.incarnation) {
                self.noted(node, &key, usage.incarnation);
                self.used(node, &key, usage);
            } else {
                self.foreign(node, key, &usage, &mut strangers);
            }
        }
        self.missing(node, &there);
    }

    /// Whether a node is to have an instance with that incarnation; nodes of other makes name none.
    pub(super) fn is_placed(&self, node: &str, key: &InstanceKey, incarnation: Option<u64>) -> bool {
        self.instances.get(key).is_some_and(|instance| {
            instance.is_on(node) && incarnation.is_none_or(|number| number == instance.record.incarnation)
        })
    }

    fn noted(&mut self, node: &str, key: &InstanceKey, incarnation: Option<u64>) {
        if !self.is_placed(node, key, incarnation) {
            return;
        }
        if let Some(instance) = self.instances.get_mut(key)
            && !instance.record.acknowledged
        {
            instance.record.acknowledged = true;
            self.dirty.instances.insert(key.clone());
        }
    }

    fn stops_of(&self, node: &str, key: &InstanceKey, incarnation: Option<u64>) -> Vec<StopKey> {
        self.stops
            .keys()
            .filter(|(of, stopped, number)| {
                of == node && stopped == key && (incarnation.is_none() || *number == incarnation)
            })
            .cloned()
            .collect()
    }

    fn status(&mut self, node: &str, key: &InstanceKey, status: InstanceStatus, detail: String) {
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let record = &mut instance.record;
        if record.status == status && record.status_detail == detail {
            return;
        }
        // Only the root takes an instance away, and only a cluster waits for room.
        let of_a_node = !status.is_waiting()
            && !matches!(
                status,
                InstanceStatus::Undeployed | InstanceStatus::ClusterScheduled | InstanceStatus::NodeScheduled
            );
        if !of_a_node || !record.status.allows(status) {
            debug!(node, instance = %name(key), from = %record.status, to = %status, "transition refused");
            return;
        }
        info!(node, instance = %name(key), from = %record.status, to = %status, detail, "status");
        let completed = status == InstanceStatus::Completed;
        record.status = status;
        record.status_detail = detail;
        self.dirty.instances.insert(key.clone());
        self.tell_instance(key);
        if completed {
            self.room = true;
            self.tell_capacity();
        }
    }

    fn used(&mut self, node: &str, key: &InstanceKey, usage: ServiceUsage) {
        let status = usage.status.unwrap_or(InstanceStatus::Running);
        self.status(node, key, status, usage.status_detail);
        let now = self.now;
        let keyless = self.nodes.get(node).is_some_and(|node| node.record.key.is_none());
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let usage = Usage {
            cpu_percent: usage.cpu_percent,
            memory_percent: usage.memory_percent,
            disk: usage.disk,
            logs: usage.logs,
        };
        if keyless {
            instance.reported = Some(now);
        }
        instance.usage_changed |= instance.usage != usage;
        instance.usage = usage;
    }

    /// Something runs on a node that is not to run there, or not any more.
    fn foreign(&mut self, node: &str, key: InstanceKey, usage: &ServiceUsage, strangers: &mut usize) {
        let stop = (node.to_owned(), key.clone(), usage.incarnation);
        let sent = self.stops.get(&stop).map(|stop| stop.sent);
        match sent {
            Some(sent) if self.is_due(sent) => self.send_stop(&stop),
            Some(_) => {}
            // The rest has its turn when these are gone.
            None if *strangers >= STRANGERS => {}
            None => {
                *strangers += 1;
                warn!(node, instance = %name(&key), incarnation = ?usage.incarnation, "does not belong there");
                self.stop(StopRecord {
                    node: node.to_owned(),
                    key,
                    incarnation: usage.incarnation,
                    job: None,
                    report: false,
                    draining: None,
                });
            }
        }
    }

    /// What a node does not have: it is gone where it was to be stopped, and ordered again where it was not.
    fn missing(&mut self, node: &str, there: &BTreeSet<(InstanceKey, Option<u64>)>) {
        let has = |key: &InstanceKey, incarnation: Option<u64>| {
            there.contains(&(key.clone(), incarnation)) || there.contains(&(key.clone(), None))
        };
        // A report may have been written before the command came.
        let gone: Vec<StopKey> = self
            .stops
            .iter()
            .filter(|((of, key, incarnation), stop)| {
                of == node
                    && stop.first_sent.is_some()
                    && self.is_due(stop.first_sent)
                    && !has(key, *incarnation)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.stopped(&key);
        }
        let lost: Vec<InstanceKey> = self
            .instances
            .iter()
            .filter(|(key, instance)| {
                let record = &instance.record;
                instance.is_on(node)
                    && record.acknowledged
                    && record.status != InstanceStatus::Completed
                    // Nodes of other makes report about each runtime on its own.
                    && self.is_due_to(Some(node), instance.sent.max(instance.reported))
                    && !has(key, Some(record.incarnation))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            warn!(node, instance = %name(&key), "the node has lost it and is told again");
            if let Some(instance) = self.instances.get_mut(&key) {
                instance.record.acknowledged = false;
                self.dirty.instances.insert(key.clone());
            }
            self.send_deploy(&key);
        }
    }
}
