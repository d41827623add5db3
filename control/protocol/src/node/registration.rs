//! A node introduces itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a node says of itself: everything when it registers, and then every few seconds what changes. A field that
/// is absent or empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInformation {
    /// The id that the node keeps; empty when it has none yet.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Extension: a secret that the node made together with its id. Who shows another one for the same id is
    /// another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_key: Option<String>,
    /// Name of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub system_info: BTreeMap<String, Value>,
    /// Percent of all cores together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<f64>,
    /// Logical cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// MiB that are available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Extension: MiB there are in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total: Option<u64>,
    /// `amd64`, `arm64`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub disk_info: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub network_info: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vgpus: Option<u64>,
    /// Runtimes: `docker`, `unikernel`, …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub virtualization: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supported_addons: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Answer to a registration.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The node's id, 24 hexadecimal digits.
    pub id: String,
    #[serde(rename = "MQTT_BROKER_PORT")]
    pub broker_port: String,
    /// Extension: how both daemons of the node log in at the broker. Their client ids are the id itself and the id
    /// followed by `-` and more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mqtt_user: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mqtt_password: String,
    /// Extension: first address of the node's /26.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Addr>,
    /// Extension: first address of the node's /120.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_v6: Option<Ipv6Addr>,
    /// Extension: the address by which the node itself is reached in the overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ip_v6: Option<Ipv6Addr>,
}

/// Without the password: this ends up in logs.
impl std::fmt::Debug for Registered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Registered")
            .field("id", &self.id)
            .field("broker_port", &self.broker_port)
            .field("mqtt_user", &self.mqtt_user)
            .field("subnet", &self.subnet)
            .field("instance_ip", &self.instance_ip)
            .finish_non_exhaustive()
    }
}
