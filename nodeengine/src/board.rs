//! How every instance fares, and what the cluster has yet to hear of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Placement};
use protocol::node::{Acknowledgement, JobReport};
use tokio::sync::Notify;
use tracing::info;

use crate::runtime::Container;

/// Messages that wait for the broker; what does not fit is lost, and the cluster orders or hears it again.
const LONGEST_QUEUE: usize = 10_000;

/// One instance, as the cluster is told.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) incarnation: u64,
    pub(crate) status: InstanceStatus,
    pub(crate) detail: String,
    pub(crate) virtualization: String,
    /// To measure and to read logs from.
    pub(crate) container: Option<Container>,
}

/// A message that must not be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Job(JobReport),
    Acknowledgement(Acknowledgement),
}

#[derive(Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    instances: BTreeMap<InstanceKey, Shown>,
    queue: VecDeque<Outgoing>,
    is_connected: bool,
    public_address: String,
}

impl Board {
    /// An instance has this status now; the cluster hears of it when that is new.
    pub(crate) fn report(&self, placement: &Placement, status: InstanceStatus, detail: &str) {
        let key = placement.key();
        let mut inner = self.lock();
        let container = match inner.instances.get(&key) {
            Some(shown) if shown.incarnation == placement.incarnation => {
                if shown.status == status && shown.detail == detail {
                    return;
                }
                shown.container.clone()
            }
            Some(_) | None => None,
        };
        info!(service = %key.job_name, instance = key.instance_number, incarnation = placement.incarnation,
            %status, detail, "instance");
        let shown = Shown {
            incarnation: placement.incarnation,
            status,
            detail: detail.to_owned(),
            virtualization: placement.job.virtualization.clone(),
            container,
        };
        inner.push_report(&key, &shown);
        inner.instances.insert(key, shown);
        self.changed.notify_one();
    }

    /// The container of an instance has been looked at.
    pub(crate) fn set_container(&self, key: &InstanceKey, container: &Container) {
        if let Some(shown) = self.lock().instances.get_mut(key)
            && shown.container.as_ref() != Some(container)
        {
            shown.container = Some(container.clone());
        }
    }

    /// The cluster has repeated an order: it hears the status again.
    pub(crate) fn repeat(&self, key: &InstanceKey) {
        let mut inner = self.lock();
        if let Some(shown) = inner.instances.get(key).cloned() {
            inner.push_report(key, &shown);
            self.changed.notify_one();
        }
    }

    /// An instance is gone, or was never there.
    pub(crate) fn undeployed(&self, key: &InstanceKey, incarnation: Option<u64>) {
        info!(service = %key.job_name, instance = key.instance_number, incarnation, "undeployed");
        let mut inner = self.lock();
        inner.instances.remove(key);
        let report = inner.job_report(key, InstanceStatus::Undeployed, "", incarnation);
        inner.push(Outgoing::Job(report));
        self.changed.notify_one();
    }

    /// An order for `key` was refused.
    pub(crate) fn refused(&self, key: &InstanceKey, incarnation: Option<u64>, reason: &str) {
        let mut inner = self.lock();
        let report = inner.job_report(key, InstanceStatus::Failed, reason, incarnation);
        inner.push(Outgoing::Job(report));
        self.changed.notify_one();
    }

    pub(crate) fn acknowledge(&self, acknowledgement: Acknowledgement) {
        self.lock().push(Outgoing::Acknowledgement(acknowledgement));
        self.changed.notify_one();
    }

    pub(crate) fn set_public_address(&self, address: String) {
        self.lock().public_address = address;
    }

    /// The broker is there, or not any more. On each connection the cluster hears the status of every instance:
    /// what was under way when the last one broke may be lost.
    pub(crate) fn set_connected(&self, is_connected: bool) {
        let mut inner = self.lock();
        inner.is_connected = is_connected;
        if is_connected {
            let instances: Vec<_> = inner.instances.clone().into_iter().collect();
            for (key, shown) in instances {
                inner.drop_reports(&key);
                inner.push_report(&key, &shown);
            }
            self.changed.notify_one();
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.lock().is_connected
    }

    /// All instances.
    pub(crate) fn instances(&self) -> BTreeMap<InstanceKey, Shown> {
        self.lock().instances.clone()
    }

    /// The next message for the broker, when there is one and the broker is there.
    pub(crate) async fn next(&self) -> Outgoing {
        loop {
            let changed = self.changed.notified();
            {
                let mut inner = self.lock();
                if inner.is_connected
                    && let Some(outgoing) = inner.queue.pop_front()
                {
                    return outgoing;
                }
            }
            changed.await;
        }
    }

    /// A message that could not be handed over waits again, before all others.
    pub(crate) fn put_back(&self, outgoing: Outgoing) {
        self.lock().queue.push_front(outgoing);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn job_report(
        &self,
        key: &InstanceKey,
        status: InstanceStatus,
        detail: &str,
        incarnation: Option<u64>,
    ) -> JobReport {
        JobReport {
            sname: key.job_name.clone(),
            status,
            status_detail: detail.to_owned(),
            instance: key.instance_number,
            publicip: self.public_address.clone(),
            incarnation,
        }
    }

    fn push_report(&mut self, key: &InstanceKey, shown: &Shown) {
        let report = self.job_report(key, shown.status, &shown.detail, Some(shown.incarnation));
        self.push(Outgoing::Job(report));
    }

    fn push(&mut self, outgoing: Outgoing) {
        if !self.is_connected {
            // Only the latest is worth keeping.
            match &outgoing {
                Outgoing::Job(report) => {
                    let key = InstanceKey {
                        job_name: report.sname.clone(),
                        instance_number: report.instance,
                    };
                    self.drop_reports(&key);
                }
                Outgoing::Acknowledgement(_) => self.queue.retain(|queued| *queued != outgoing),
            }
        }
        if self.queue.len() >= LONGEST_QUEUE {
            self.queue.pop_front();
        }
        self.queue.push_back(outgoing);
    }

    fn drop_reports(&mut self, key: &InstanceKey) {
        self.queue.retain(|queued| match queued {
            Outgoing::Job(report) => report.sname != key.job_name || report.instance != key.instance_number,
            Outgoing::Acknowledgement(_) => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn placement(number: u32) -> Placement {
        serde_json::from_value(json!({
            "microserviceID": "65f0", "job_name": "a.b.c.d", "image": "x", "virtualization": "docker",
            "instance_number": number, "incarnation": 65536
        }))
        .expect("placement")
    }

    async fn queued(board: &Board) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(outgoing) =
            tokio::time::timeout(std::time::Duration::from_millis(20), board.next()).await
        {
            said.push(match outgoing {
                Outgoing::Job(report) => format!("{}:{}", report.instance, report.status),
                Outgoing::Acknowledgement(_) => "ack".to_owned(),
            });
        }
        said
    }

    #[tokio::test]
    async fn the_latest_status_waits_for_the_broker() {
        let board = Board::default();
        for status in [
            InstanceStatus::Creating,
            InstanceStatus::Created,
            InstanceStatus::Running,
        ] {
            board.report(&placement(0), status, "");
        }
        board.report(&placement(1), InstanceStatus::Creating, "");
        board.undeployed(&placement(1).key(), Some(65536));
        assert!(queued(&board).await.is_empty());
        board.set_connected(true);
        assert_eq!(queued(&board).await, ["1:UNDEPLOYED", "0:RUNNING"]);
    }

    #[tokio::test]
    async fn each_transition_is_told_once_while_the_broker_is_there() {
        let board = Board::default();
        board.set_connected(true);
        for status in [
            InstanceStatus::Creating,
            InstanceStatus::Running,
            InstanceStatus::Running,
        ] {
            board.report(&placement(0), status, "");
        }
        assert_eq!(queued(&board).await, ["0:CREATING", "0:RUNNING"]);
        board.repeat(&placement(0).key());
        assert_eq!(queued(&board).await, ["0:RUNNING"]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let board = Board::default();
        for number in 0..LONGEST_QUEUE + 5 {
            let number = u32::try_from(number).expect("number");
            board.undeployed(&placement(number).key(), None);
        }
        assert_eq!(board.lock().queue.len(), LONGEST_QUEUE);
    }
}
