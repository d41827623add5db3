//! The MQTT messages between a NetManager and its cluster; [`topic`](super::topic) says which goes where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{InstanceRow, Lenient, PeerRow, ServiceAddress, ServiceName, lenient};

/// What a node wants of its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubnetMethod {
    #[serde(rename = "GET")]
    Get,
    #[serde(rename = "DELETE")]
    Delete,
}

/// A node asks for its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRequest {
    #[serde(rename = "METHOD")]
    pub method: SubnetMethod,
}

/// The subnet leased to a node, without masks: a /26 and a /120.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetResult {
    pub address: Ipv4Addr,
    #[serde(
        default,
        deserialize_with = "lenient::address_v6",
        serialize_with = "lenient::address_or_empty"
    )]
    pub addressv6: Option<Ipv6Addr>,
    /// Extension: the address by which the node itself is reached and is known to others.
    #[serde(
        rename = "instanceIp",
        default,
        deserialize_with = "lenient::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip: Option<Ipv4Addr>,
    /// Extension: the same for IPv6.
    #[serde(
        rename = "instanceIpV6",
        default,
        deserialize_with = "lenient::address_v6",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip_v6: Option<Ipv6Addr>,
    /// Extension: the application that the node itself counts as.
    #[serde(rename = "appId", default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<u32>,
}

/// What an announcement says about its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnnouncementStatus {
    #[serde(rename = "DEPLOYED")]
    Deployed,
    #[serde(rename = "UNDEPLOYED")]
    Undeployed,
    /// Neither: the announcement is about the node's address.
    #[serde(rename = "")]
    Unchanged,
}

/// A node says where one of its instances is, was, or by which tunnel address it is reached from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAnnouncement {
    pub appname: ServiceName,
    pub status: AnnouncementStatus,
    pub instance_number: u32,
    #[serde(
        default,
        deserialize_with = "lenient::address",
        serialize_with = "lenient::address_or_empty"
    )]
    pub nsip: Option<Ipv4Addr>,
    #[serde(
        default,
        deserialize_with = "lenient::address_v6",
        serialize_with = "lenient::address_or_empty"
    )]
    pub nsipv6: Option<Ipv6Addr>,
    /// The UDP port of the node's tunnel; written as a text, read also from a number.
    #[serde(
        default,
        deserialize_with = "lenient::port",
        serialize_with = "lenient::port_as_text"
    )]
    pub host_port: Option<u16>,
    /// The tunnel address of the node.
    #[serde(
        default,
        deserialize_with = "lenient::address",
        serialize_with = "lenient::address_or_empty"
    )]
    pub host_ip: Option<IpAddr>,
    /// Extension: the number of the placement that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// A node asks where a service is, by its name or by one of its addresses; the address wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableQuery {
    #[serde(default)]
    pub sname: String,
    #[serde(default)]
    pub sip: String,
}

impl TableQuery {
    /// Asks by name.
    pub fn by_name(name: &ServiceName) -> Self {
        Self {
            sname: name.as_str().to_owned(),
            sip: String::new(),
        }
    }

    /// Asks by a service or instance address.
    pub fn by_address(address: Ipv4Addr) -> Self {
        Self {
            sname: String::new(),
            sip: address.to_string(),
        }
    }
}

/// The answer to a [`TableQuery`]: the service, and each of its instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableResult {
    /// The service; `None` when nothing is known under the key.
    #[serde(default)]
    pub app_name: Option<ServiceName>,
    #[serde(default, deserialize_with = "lenient::null_as_default")]
    pub instance_list: Vec<Lenient<InstanceRow>>,
    /// The name or the address that was asked for.
    #[serde(default, deserialize_with = "lenient::null_as_default")]
    pub query_key: String,
    /// Extension: the addresses of the service, which a service without instances has too.
    #[serde(
        default,
        deserialize_with = "lenient::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_ip: Vec<ServiceAddress>,
}

/// A node no longer wants to hear of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterestRemoval {
    pub appname: String,
}

/// What happened to a service. Whatever it was, its table is to be asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum UpdateKind {
    Deployment,
    Undeployment,
    /// Something that this version does not know.
    Other(String),
}

impl From<String> for UpdateKind {
    fn from(text: String) -> Self {
        match text.as_str() {
            "DEPLOYMENT" => Self::Deployment,
            "UNDEPLOYMENT" => Self::Undeployment,
            _ => Self::Other(text),
        }
    }
}

impl From<UpdateKind> for String {
    fn from(kind: UpdateKind) -> Self {
        match kind {
            UpdateKind::Deployment => "DEPLOYMENT".to_owned(),
            UpdateKind::Undeployment => "UNDEPLOYMENT".to_owned(),
            UpdateKind::Other(text) => text,
        }
    }
}

/// The cluster says that a service changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatesAvailable {
    #[serde(rename = "type")]
    pub kind: UpdateKind,
}

/// The cluster tells a node, before anything asks, who is about to talk to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// Grows with every message to this node.
    pub version: u64,
    /// Which count the version belongs to: a cluster that begins to count anew chooses another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default)]
    pub rows: Vec<Lenient<PeerRow>>,
}

/// A node has installed the rows of a [`Peers`] message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersAcknowledgement {
    pub version: u64,
    /// The count that the version belongs to, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Reads `wire`, checks that writing it gives the same again, and hands out what was read.
    fn round_trip<T: Serialize + serde::de::DeserializeOwned>(wire: Value) -> T {
        let message: T = serde_json::from_value(wire.clone()).expect("the wire is readable");
        assert_eq!(
            serde_json::to_value(&message).expect("the message is writable"),
            wire
        );
        message
    }

    #[test]
    fn subnets_round_trip() {
        let request: SubnetRequest = round_trip(json!({"METHOD": "GET"}));
        assert_eq!(request.method, SubnetMethod::Get);
        let plain: SubnetResult = round_trip(json!({"address": "10.18.0.64", "addressv6": "fc00::100"}));
        assert_eq!(
            (plain.address, plain.instance_ip),
            (Ipv4Addr::new(10, 18, 0, 64), None)
        );
        let extended: SubnetResult = round_trip(json!({
            "address": "10.18.0.64", "addressv6": "", "instanceIp": "10.30.0.9", "instanceIpV6": "fdff::9",
            "appId": 4
        }));
        assert_eq!((extended.addressv6, extended.app_id), (None, Some(4)));
        assert_eq!(extended.instance_ip, Some(Ipv4Addr::new(10, 30, 0, 9)));
    }

    #[test]
    fn announcements_round_trip_with_the_port_as_a_text() {
        let deployed: ServiceAnnouncement = round_trip(json!({
            "appname": "a.b.c.d", "status": "DEPLOYED", "instance_number": 2, "nsip": "10.18.0.2",
            "nsipv6": "fc00::2", "host_port": "50103", "host_ip": "192.0.2.11"
        }));
        assert_eq!(
            (deployed.host_port, deployed.status),
            (Some(50103), AnnouncementStatus::Deployed)
        );
        let undeployed: ServiceAnnouncement = round_trip(json!({
            "appname": "a.b.c.d", "status": "UNDEPLOYED", "instance_number": 2, "nsip": "10.18.0.2",
            "nsipv6": "", "host_port": "50103", "host_ip": "192.0.2.11", "incarnation": 12
        }));
        assert_eq!(undeployed.incarnation, Some(12));
        let changed: ServiceAnnouncement = round_trip(json!({
            "appname": "a.b.c.d", "status": "", "instance_number": 2, "nsip": "", "nsipv6": "",
            "host_port": "50103", "host_ip": "192.0.2.12"
        }));
        assert_eq!(
            (changed.nsip, changed.status),
            (None, AnnouncementStatus::Unchanged)
        );
    }

    #[test]
    fn queries_have_one_empty_half() {
        let name: ServiceName = "a.b.c.d".parse().expect("name");
        assert_eq!(
            serde_json::to_value(TableQuery::by_name(&name)).expect("by name"),
            json!({"sname": "a.b.c.d", "sip": ""})
        );
        assert_eq!(
            serde_json::to_value(TableQuery::by_address(Ipv4Addr::new(10, 30, 2, 1))).expect("by address"),
            json!({"sname": "", "sip": "10.30.2.1"})
        );
    }

    #[test]
    fn results_tolerate_the_unknown_service_and_single_bad_rows() {
        let unknown: TableResult =
            round_trip(json!({"app_name": null, "instance_list": [], "query_key": "10.30.2.1"}));
        assert_eq!(unknown.app_name, None);

        let result: TableResult = round_trip(json!({
            "app_name": "a.b.c.d", "query_key": "10.30.2.1",
            "instance_list": [
                {"instance_number": 0, "instance_ip": "10.30.2.2", "service_ip": []},
                {"instance_number": "zero"},
                17,
                {"instance_number": 3, "host_port": 50103, "service_ip": []}
            ]
        }));
        let read: Vec<Option<u32>> = result
            .instance_list
            .iter()
            .map(|row| match row {
                Lenient::Read(row) => Some(row.instance_number),
                Lenient::Malformed { .. } => None,
            })
            .collect();
        assert_eq!(read, [Some(0), None, None, Some(3)]);
    }

    #[test]
    fn updates_and_removals_round_trip() {
        let update: UpdatesAvailable = round_trip(json!({"type": "UNDEPLOYMENT"}));
        assert_eq!(update.kind, UpdateKind::Undeployment);
        let update: UpdatesAvailable = round_trip(json!({"type": "ROUTING_CHANGE"}));
        assert_eq!(update.kind, UpdateKind::Other("ROUTING_CHANGE".into()));
        let removal: InterestRemoval = round_trip(json!({"appname": "10.30.2.1"}));
        assert_eq!(removal.appname, "10.30.2.1");
    }

    #[test]
    fn peers_name_the_service_of_each_row() {
        let peers: Peers = round_trip(json!({
            "version": 7,
            "rows": [
                {
                    "app_name": "a.b.c.d", "instance_number": 0, "instance_ip": "10.30.2.2",
                    "namespace_ip": "10.18.0.66", "host_ip": "192.0.2.11", "host_port": 50103,
                    "service_ip": [], "incarnation": 5, "node_id": "n2", "appId": 3
                },
                {"app_name": "only.three.parts", "instance_number": 1}
            ]
        }));
        assert_eq!(peers.version, 7);
        let Lenient::Read(first) = &peers.rows[0] else {
            panic!("{:?}", peers.rows[0])
        };
        assert_eq!(
            (first.app_name.as_str(), first.row.host_port),
            ("a.b.c.d", Some(50103))
        );
        let Lenient::Malformed { error, .. } = &peers.rows[1] else {
            panic!("{:?}", peers.rows[1])
        };
        assert!(error.contains("has 3 dot-separated parts"), "{error}");

        let peers: Peers = serde_json::from_value(json!({
            "version": 1, "epoch": 9, "rows": [{"app_name": "a.b.c.d", "instance_number": 0, "host_port": "50104"}]
        }))
        .expect("a port as a text, also in a flattened row");
        let Lenient::Read(first) = &peers.rows[0] else {
            panic!("{:?}", peers.rows[0])
        };
        assert_eq!((first.row.host_port, peers.epoch), (Some(50104), Some(9)));
        let _acknowledgement: PeersAcknowledgement = round_trip(json!({"version": 7}));
    }
}
