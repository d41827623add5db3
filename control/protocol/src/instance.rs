//! The life of an instance: its statuses, and which may follow which.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an instance stands. The texts are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstanceStatus {
    /// Wished for; no cluster has it yet.
    #[serde(rename = "REQUESTED")]
    Requested,
    /// A cluster was chosen and is choosing a node.
    #[serde(rename = "CLUSTER_SCHEDULED")]
    ClusterScheduled,
    /// A node was chosen and was told.
    #[serde(rename = "NODE_SCHEDULED")]
    NodeScheduled,
    /// The node has the order: it pulls and creates.
    #[serde(rename = "CREATING")]
    Creating,
    /// The container exists and is about to start.
    #[serde(rename = "CREATED")]
    Created,
    /// Its process runs.
    #[serde(rename = "RUNNING")]
    Running,
    /// It could not be started, or its node was lost.
    #[serde(rename = "FAILED")]
    Failed,
    /// Its process ended; it is started again.
    #[serde(rename = "DEAD")]
    Dead,
    /// A one-shot instance ended with exit code 0. Final.
    #[serde(rename = "COMPLETED")]
    Completed,
    /// It was taken away. Final.
    #[serde(rename = "UNDEPLOYED")]
    Undeployed,
    /// The descriptor names a cluster that does not exist.
    #[serde(rename = "TargetClusterNotFound")]
    TargetClusterNotFound,
    /// No cluster is connected, or not the one that the descriptor names.
    #[serde(rename = "TargetClusterNotActive")]
    TargetClusterNotActive,
    /// The cluster that the descriptor names has no room.
    #[serde(rename = "TargetClusterNoCapacity")]
    TargetClusterNoCapacity,
    /// No connected cluster has room.
    #[serde(rename = "NoActiveClusterWithCapacity")]
    NoActiveClusterWithCapacity,
    /// The cluster has nodes that would fit, and no room on them.
    #[serde(rename = "NO_WORKER_CAPACITY")]
    NoWorkerCapacity,
    /// The cluster has no node that fits the descriptor.
    #[serde(rename = "NO_QUALIFIED_WORKER_FOUND")]
    NoQualifiedWorkerFound,
    /// The cluster has no active node.
    #[serde(rename = "NO_NODE_FOUND")]
    NoNodeFound,
}

use InstanceStatus::{
    ClusterScheduled, Completed, Created, Creating, Dead, Failed, NoActiveClusterWithCapacity, NoNodeFound,
    NoQualifiedWorkerFound, NoWorkerCapacity, NodeScheduled, Requested, Running, TargetClusterNoCapacity,
    TargetClusterNotActive, TargetClusterNotFound, Undeployed,
};

impl InstanceStatus {
    /// Every status.
    pub const ALL: [Self; 17] = [
        Requested,
        ClusterScheduled,
        NodeScheduled,
        Creating,
        Created,
        Running,
        Failed,
        Dead,
        Completed,
        Undeployed,
        TargetClusterNotFound,
        TargetClusterNotActive,
        TargetClusterNoCapacity,
        NoActiveClusterWithCapacity,
        NoWorkerCapacity,
        NoQualifiedWorkerFound,
        NoNodeFound,
    ];

    /// The text of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Requested => "REQUESTED",
            ClusterScheduled => "CLUSTER_SCHEDULED",
            NodeScheduled => "NODE_SCHEDULED",
            Creating => "CREATING",
            Created => "CREATED",
            Running => "RUNNING",
            Failed => "FAILED",
            Dead => "DEAD",
            Completed => "COMPLETED",
            Undeployed => "UNDEPLOYED",
            TargetClusterNotFound => "TargetClusterNotFound",
            TargetClusterNotActive => "TargetClusterNotActive",
            TargetClusterNoCapacity => "TargetClusterNoCapacity",
            NoActiveClusterWithCapacity => "NoActiveClusterWithCapacity",
            NoWorkerCapacity => "NO_WORKER_CAPACITY",
            NoQualifiedWorkerFound => "NO_QUALIFIED_WORKER_FOUND",
            NoNodeFound => "NO_NODE_FOUND",
        }
    }

    /// Whether it waits for room: no cluster or node has taken it, and it is tried again when something changes.
    pub const fn is_waiting(self) -> bool {
        matches!(
            self,
            Requested
                | TargetClusterNotFound
                | TargetClusterNotActive
                | TargetClusterNoCapacity
                | NoActiveClusterWithCapacity
                | NoWorkerCapacity
                | NoQualifiedWorkerFound
                | NoNodeFound
        )
    }

    /// Whether nothing follows any more, but being taken away.
    pub const fn is_final(self) -> bool {
        matches!(self, Completed | Undeployed)
    }

    /// Whether `next` may follow `self` within one placement. The same status again always may: reports are
    /// repeated. A new placement (another incarnation) begins anew and is not a transition.
    pub fn allows(self, next: Self) -> bool {
        if self == next {
            return true;
        }
        match self {
            // Final: what comes later is the echo of a lost message.
            Undeployed => false,
            Completed => next == Undeployed,
            // Waiting: a cluster is found, or another reason for waiting.
            Requested
            | TargetClusterNotFound
            | TargetClusterNotActive
            | TargetClusterNoCapacity
            | NoActiveClusterWithCapacity
            | NoWorkerCapacity
            | NoQualifiedWorkerFound
            | NoNodeFound => {
                next.is_waiting() || matches!(next, ClusterScheduled | NodeScheduled | Undeployed)
            }
            // The cluster refuses, or places it. A report may overtake another or be lost, so steps may be skipped,
            // but not backwards.
            ClusterScheduled | NodeScheduled => {
                next.is_waiting()
                    || matches!(
                        next,
                        Creating | Created | Running | Failed | Dead | Completed | Undeployed
                    )
                    || (self == ClusterScheduled && next == NodeScheduled)
            }
            Creating => matches!(next, Created | Running | Failed | Dead | Completed | Undeployed),
            Created => matches!(next, Running | Failed | Dead | Completed | Undeployed),
            Running => matches!(next, Failed | Dead | Completed | Undeployed) || next == Requested,
            // Tried again on the node, or given up and placed anew.
            Failed | Dead => {
                next.is_waiting()
                    || matches!(
                        next,
                        Creating | Created | Running | Failed | Dead | Completed | Undeployed
                    )
            }
        }
    }
}

impl fmt::Display for InstanceStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_written_as_it_is_named() {
        for status in InstanceStatus::ALL {
            let text = serde_json::to_string(&status).expect("status");
            assert_eq!(text, format!("{:?}", status.as_str()));
            assert_eq!(
                serde_json::from_str::<InstanceStatus>(&text).expect("status"),
                status
            );
        }
        assert!(serde_json::from_str::<InstanceStatus>("\"BOGUS\"").is_err());
    }

    #[test]
    fn nothing_returns_from_the_end() {
        for next in InstanceStatus::ALL {
            assert_eq!(Undeployed.allows(next), next == Undeployed, "{next}");
            assert_eq!(
                Completed.allows(next),
                matches!(next, Completed | Undeployed),
                "{next}"
            );
        }
    }

    #[test]
    fn a_late_report_does_not_turn_the_clock_back() {
        let order = [ClusterScheduled, NodeScheduled, Creating, Created, Running];
        for (index, earlier) in order.iter().enumerate() {
            for later in &order[index + 1..] {
                assert!(!later.allows(*earlier), "{later} then {earlier}");
            }
        }
        assert!(Running.allows(Dead) && Dead.allows(Running) && Failed.allows(Requested));
    }

    #[test]
    fn everything_can_be_taken_away() {
        for status in InstanceStatus::ALL {
            assert!(status.allows(Undeployed), "{status}");
        }
    }
}
