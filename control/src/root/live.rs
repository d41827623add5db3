//! What the root knows only while it runs: who is connected, with how much room, and what instances use.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use protocol::cluster::{Capacity, InstanceReport};
use protocol::instance::InstanceStatus;
use protocol::network::ServiceName;

use super::id;
use super::records::InstanceId;

/// How many figures of a cluster's past are kept.
const HISTORY: usize = 100;
/// Most bytes of an instance's output that are kept.
const MOST_LOGS: usize = 1024;

/// Everything that a restart may forget.
#[derive(Default)]
pub struct Live {
    pub clusters: HashMap<String, LiveCluster>,
    pub usage: HashMap<InstanceId, Usage>,
    /// Which clusters have refused an instance, and why; until their capacity changes.
    pub refused: HashMap<InstanceId, BTreeMap<String, (InstanceStatus, String)>>,
}

/// A cluster that is connected, or was since the root started.
#[derive(Default)]
pub struct LiveCluster {
    pub connected: bool,
    /// When it was heard last; seconds since 1970.
    pub seen_at: f64,
    /// As it was told last.
    pub capacity: Capacity,
    /// Cores and MiB that were given away since then.
    pub promised: (u64, u64),
    /// The load, with the time of each figure.
    pub history: VecDeque<(f64, f64, f64)>,
    /// What it has looked up: it hears of changes.
    pub interest: BTreeSet<ServiceName>,
}

/// What an instance uses, as its cluster reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_percent: String,
    pub memory_percent: String,
    pub disk: String,
    pub logs: String,
}

impl LiveCluster {
    /// The room that is left, as far as the root can know.
    pub fn room(&self) -> Capacity {
        let mut capacity = self.capacity.clone();
        capacity.vcpus_free = capacity.vcpus_free.saturating_sub(self.promised.0);
        capacity.memory_free = capacity.memory_free.saturating_sub(self.promised.1);
        capacity
    }
}

impl Usage {
    pub fn of(report: &InstanceReport) -> Self {
        let mut start = report.logs.len().saturating_sub(MOST_LOGS);
        while !report.logs.is_char_boundary(start) {
            start += 1;
        }
        Self {
            cpu_percent: report.cpu_percent.clone(),
            memory_percent: report.memory_percent.clone(),
            disk: report.disk.clone(),
            logs: report.logs[start..].to_owned(),
        }
    }
}

impl Live {
    /// A sign of life with the room that a cluster has; whether there may be room now where there was none.
    pub fn note_capacity(&mut self, cluster: &str, capacity: Capacity) -> bool {
        let live = self.clusters.entry(cluster.to_owned()).or_default();
        let now = id::timestamp();
        live.seen_at = now;
        if live.history.len() >= HISTORY {
            live.history.pop_front();
        }
        live.history
            .push_back((now, capacity.cpu_percent, capacity.memory_percent));
        // The load is not what decides where something may go.
        let without_load = |capacity: &Capacity| Capacity {
            cpu_percent: 0.0,
            memory_percent: 0.0,
            ..capacity.clone()
        };
        let changed = without_load(&live.capacity) != without_load(&capacity);
        live.capacity = capacity;
        live.promised = (0, 0);
        if changed {
            self.forgive(cluster);
        }
        changed
    }

    /// Forgets what a cluster has refused.
    pub fn forgive(&mut self, cluster: &str) {
        self.refused.retain(|_, clusters| {
            clusters.remove(cluster);
            !clusters.is_empty()
        });
    }

    /// Notes that room was given away, until the cluster tells what it has left.
    pub fn reserve(&mut self, cluster: &str, vcpus: u64, memory: u64) {
        if let Some(live) = self.clusters.get_mut(cluster) {
            live.promised.0 = live.promised.0.saturating_add(vcpus);
            live.promised.1 = live.promised.1.saturating_add(memory);
        }
    }

    /// An instance is no more.
    pub fn forget(&mut self, instance: &InstanceId) {
        self.usage.remove(instance);
        self.refused.remove(instance);
    }
}
