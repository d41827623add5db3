//! A service as it travels: the *job*, and its placement.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::network::{ServiceAddress, ServiceName};

/// What a service needs to run, and everything else that its descriptor says. Keys that this version does not know
/// are kept and travel along.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The service's id, 24 hexadecimal digits.
    #[serde(rename = "microserviceID")]
    pub id: String,
    /// `application.namespace.service.namespace`.
    pub job_name: ServiceName,
    #[serde(rename = "applicationID", default)]
    pub application_id: String,
    /// Reference of the container's image, or addresses of the unikernel's, separated by commas.
    pub image: String,
    /// `docker`, `unikernel`, or the name of another runtime.
    pub virtualization: String,
    /// Replaces entry point and arguments of the image; empty for those of the image.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `KEY=value`.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Published ports, `host:container[/tcp|/udp]` separated by `;`.
    #[serde(default)]
    pub port: String,
    /// MiB; 0 for no limit and no reservation.
    #[serde(default)]
    pub memory: u64,
    /// Cores; 0 for no limit and no reservation.
    #[serde(default)]
    pub vcpus: u64,
    #[serde(default)]
    pub vgpus: u64,
    /// MiB.
    #[serde(default)]
    pub storage: u64,
    /// Whether its end with exit code 0 is its completion.
    #[serde(default)]
    pub one_shot: bool,
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Where a service may be placed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// `direct`, `clusters`, or something that is accepted and not acted on.
    #[serde(rename = "type")]
    pub kind: String,
    /// `direct`: the cluster's name; empty for any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// `direct`: names of hosts, separated by `;`; empty for any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// `clusters`: names of clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One instance of a job, with the addresses that are its own. On the wire the fields of the job stand beside the
/// others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    #[serde(flatten)]
    pub job: Job,
    pub instance_number: u32,
    /// Number of this placement, never used for another one. The root counts in steps of
    /// [`INCARNATION_STEP`]; a cluster that places the instance anew counts up in between.
    #[serde(default)]
    pub incarnation: u64,
    /// The instance's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ip_v6: Option<Ipv6Addr>,
    /// The addresses of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_ip: Vec<ServiceAddress>,
    /// Number of the application in the data plane.
    #[serde(rename = "appId", default)]
    pub app_id: u32,
}

/// How far apart the incarnations are that the root gives.
pub const INCARNATION_STEP: u64 = 1 << 16;

/// One instance of one service, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    pub job_name: ServiceName,
    pub instance_number: u32,
}

impl Placement {
    /// Which instance this is a placement of.
    pub fn key(&self) -> InstanceKey {
        InstanceKey {
            job_name: self.job.job_name.clone(),
            instance_number: self.instance_number,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_placement_keeps_what_it_does_not_know() {
        let wire = json!({
            "microserviceID": "65f0", "job_name": "a.b.c.d", "applicationID": "65ef", "image": "nginx",
            "virtualization": "docker", "cmd": ["sh"], "environment": [], "port": "80:80", "memory": 100,
            "vcpus": 1, "vgpus": 0, "storage": 0, "one_shot": false,
            "constraints": [{"type": "direct", "cluster": "c1", "needs": ["x"]}],
            "instance_number": 2, "incarnation": 131072, "instance_ip": "10.30.0.5", "appId": 7,
            "service_ip": [{"IpType": "RR", "Address": "10.30.55.55", "Address_v6": ""}],
            "arch": ["amd64"], "bandwidth_in": 3
        });
        let placement: Placement = serde_json::from_value(wire.clone()).expect("placement");
        assert_eq!(placement.job.rest["arch"], json!(["amd64"]));
        assert_eq!(placement.key().instance_number, 2);
        assert_eq!(serde_json::to_value(&placement).expect("placement"), wire);
    }
}
