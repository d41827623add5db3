//! Why a candidate cannot take a placement.

use std::fmt;

use protocol::instance::InstanceStatus;

use super::{HostPort, Tier};

/// One reason of one candidate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is not active")]
    Inactive,
    #[error("the descriptor wants cluster {wanted:?}")]
    OtherCluster { wanted: String },
    #[error("the descriptor wants host {wanted:?}")]
    OtherHost { wanted: String },
    #[error("the descriptor allows the clusters {allowed:?}")]
    ClusterNotAllowed { allowed: Vec<String> },
    #[error("it does not run {wanted:?}, only {available:?}")]
    Virtualization { wanted: String, available: Vec<String> },
    #[error("architecture {wanted:?} is wanted, it has {available:?}")]
    Architecture {
        wanted: Vec<String>,
        available: Vec<String>,
    },
    #[error("{wanted} vCPUs are wanted, it has {there_are} in all")]
    TooFewVcpus { wanted: u64, there_are: u64 },
    #[error("{wanted} MiB of memory are wanted, it has {there_are} in all")]
    TooLittleMemory { wanted: u64, there_are: u64 },
    #[error("{wanted} GPUs are wanted, it has {there_are}")]
    Vgpus { wanted: u64, there_are: u64 },
    #[error("{wanted} vCPUs are wanted, {free} are free{}", on_one_node(*tier))]
    Vcpus { wanted: u64, free: u64, tier: Tier },
    #[error("{wanted} MiB of memory are wanted, {free} are free{}", on_one_node(*tier))]
    Memory { wanted: u64, free: u64, tier: Tier },
    #[error("{wanted} GPUs are wanted, {free} are free")]
    VgpusTaken { wanted: u64, free: u64 },
    #[error("{port} is published by another instance")]
    Port { port: HostPort },
}

fn on_one_node(tier: Tier) -> &'static str {
    match tier {
        Tier::Cluster => " on one node",
        Tier::Node => "",
    }
}

impl Refusal {
    /// Whether it would go away if others gave room.
    pub fn is_about_room(&self) -> bool {
        match self {
            Self::Vcpus { .. } | Self::Memory { .. } | Self::VgpusTaken { .. } | Self::Port { .. } => true,
            Self::Inactive
            | Self::OtherCluster { .. }
            | Self::OtherHost { .. }
            | Self::ClusterNotAllowed { .. }
            | Self::Virtualization { .. }
            | Self::Architecture { .. }
            | Self::TooFewVcpus { .. }
            | Self::TooLittleMemory { .. }
            | Self::Vgpus { .. } => false,
        }
    }
}

/// No candidate can take it; for each, by its name, all reasons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Nowhere {
    pub refusals: Vec<(String, Vec<Refusal>)>,
}

impl Nowhere {
    /// What that means for an instance in a cluster.
    pub fn status_of_nodes(&self) -> InstanceStatus {
        let active = |reasons: &Vec<Refusal>| !reasons.contains(&Refusal::Inactive);
        let mut active = self
            .refusals
            .iter()
            .map(|(_, reasons)| reasons)
            .filter(|reasons| active(reasons))
            .peekable();
        if active.peek().is_none() {
            InstanceStatus::NoNodeFound
        } else if active.any(|reasons| reasons.iter().all(Refusal::is_about_room)) {
            InstanceStatus::NoWorkerCapacity
        } else {
            InstanceStatus::NoQualifiedWorkerFound
        }
    }
}

/// `name: reason, reason; name: reason`
impl fmt::Display for Nowhere {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refusals.is_empty() {
            return formatter.write_str("there is nothing to place it on");
        }
        for (index, (name, reasons)) in self.refusals.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{name}: ")?;
            for (index, reason) in reasons.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                write!(formatter, "{separator}{reason}")?;
            }
        }
        Ok(())
    }
}
