//! What a cluster orders of a node, and what the node reports.

use serde::{Deserialize, Serialize};

use crate::instance::InstanceStatus;
use crate::network::ServiceName;

/// Stop an instance and remove what it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteCommand {
    pub job_name: ServiceName,
    #[serde(default)]
    pub virtualization: String,
    pub instance_number: u32,
    /// Extension: only this placement; any, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// Extension: for how many milliseconds it still serves what it has begun to, before it is stopped; others have been
    /// told to begin nothing new with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
}

/// The cluster does not know the node any more; it is to register again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    pub message: String,
}

/// What was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    Deploy,
    Delete,
}

/// The node has noted an order durably and will carry it out (deploy), or has carried it out (delete).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub command: Command,
    pub job_name: ServiceName,
    pub instance_number: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// An instance has changed its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Name of the job.
    pub sname: ServiceName,
    pub status: InstanceStatus,
    #[serde(default)]
    pub status_detail: String,
    pub instance: u32,
    #[serde(default)]
    pub publicip: String,
    /// Extension: the placement that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// All instances on the node and what they use, every few seconds; an instance that is missing is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesReport {
    #[serde(default)]
    pub services: Vec<ServiceUsage>,
}

/// What one instance uses. Numbers are texts on this wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceUsage {
    /// Percent of one core.
    #[serde(default)]
    pub cpu_percent: String,
    /// Percent of its limit, or of the node's memory where it has none.
    #[serde(default)]
    pub memory_percent: String,
    /// Bytes that it has written beside its image.
    #[serde(default)]
    pub disk: String,
    /// The last kilobyte of its output.
    #[serde(default)]
    pub logs: String,
    pub job_name: ServiceName,
    #[serde(default)]
    pub virtualization: String,
    pub instance: u32,
    /// Extension: the placement that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// Extension: its status; it runs, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<InstanceStatus>,
    /// Extension: why it has that status.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_detail: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_of_other_workers_read() {
        let report: JobReport = serde_json::from_value(json!({
            "sname": "a.b.c.d", "status": "CREATED", "status_detail": "", "instance": 0, "publicip": "192.0.2.3"
        }))
        .expect("report");
        assert_eq!(report.status, InstanceStatus::Created);
        let usage: ResourcesReport = serde_json::from_value(json!({"services": [{
            "cpu_percent": "1.23", "memory_percent": "0.01", "disk": "12345", "logs": "x", "job_name": "a.b.c.d",
            "virtualization": "docker", "instance": 0
        }]}))
        .expect("usage");
        assert_eq!(usage.services[0].incarnation, None);
        let bogus = json!({"sname": "a.b.c.d", "status": "BOGUS", "instance": 0});
        assert!(serde_json::from_value::<JobReport>(bogus).is_err());
    }
}
