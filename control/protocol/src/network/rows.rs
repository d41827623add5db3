//! Rows of the translation table: where an instance is and by which addresses it is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{ServiceName, lenient};

/// By which rule an address leads to instances.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum IpType {
    /// New flows go to the instances in turn.
    RoundRobin,
    /// New flows go to the nearest instance.
    Closest,
    /// The address belongs to one instance. Written `instance_ip`, read also as `InstanceNumber`.
    Instance,
    /// A rule that this version does not know.
    Other(String),
}

impl From<String> for IpType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "RR" => Self::RoundRobin,
            "Closest" | "closest" => Self::Closest,
            "instance_ip" | "InstanceNumber" => Self::Instance,
            _ => Self::Other(text),
        }
    }
}

impl From<IpType> for String {
    fn from(kind: IpType) -> Self {
        match kind {
            IpType::RoundRobin => "RR".to_owned(),
            IpType::Closest => "Closest".to_owned(),
            IpType::Instance => "instance_ip".to_owned(),
            IpType::Other(text) => text,
        }
    }
}

/// One address of a service, or of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    #[serde(rename = "IpType")]
    pub kind: IpType,
    #[serde(
        rename = "Address",
        default,
        deserialize_with = "lenient::address",
        serialize_with = "lenient::address_or_empty"
    )]
    pub address: Option<Ipv4Addr>,
    #[serde(
        rename = "Address_v6",
        default,
        deserialize_with = "lenient::address_v6",
        serialize_with = "lenient::address_or_empty"
    )]
    pub address_v6: Option<Ipv6Addr>,
}

/// One instance in the answer to a table query. An instance that is not running yet lacks the fields that
/// begin with `namespace` and `host`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    pub instance_number: u32,
    #[serde(
        default,
        deserialize_with = "lenient::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip: Option<Ipv4Addr>,
    #[serde(
        default,
        deserialize_with = "lenient::address_v6",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip_v6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    #[serde(
        default,
        deserialize_with = "lenient::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace_ip: Option<Ipv4Addr>,
    #[serde(
        default,
        deserialize_with = "lenient::address_v6",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace_ip_v6: Option<Ipv6Addr>,
    /// The tunnel address of the node.
    #[serde(
        default,
        deserialize_with = "lenient::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
    /// The UDP port of the node's tunnel; read from a number or a text, written as a number.
    #[serde(
        default,
        deserialize_with = "lenient::port",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_port: Option<u16>,
    #[serde(default, deserialize_with = "lenient::null_as_default")]
    pub service_ip: Vec<ServiceAddress>,
    /// Extension: the number of this placement of the instance, never used for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// Extension: the id of the node that the instance is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Extension: the application that the service belongs to.
    #[serde(rename = "appId", default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<u32>,
    /// Extension: the instance keeps its flows and takes no new ones.
    #[serde(
        default,
        deserialize_with = "lenient::null_as_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub draining: bool,
}

/// One instance of any service, as pushed to a node that is about to hear from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// The service that the instance belongs to.
    pub app_name: ServiceName,
    #[serde(flatten)]
    pub row: InstanceRow,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_row_round_trips() {
        let wire = json!({
            "instance_number": 0, "instance_ip": "10.30.0.2", "instance_ip_v6": "fdff::2",
            "cluster_id": "c1", "worker_id": "w1",
            "namespace_ip": "10.18.0.66", "namespace_ip_v6": "fc00::102",
            "host_ip": "192.0.2.11", "host_port": 50103,
            "service_ip": [
                {"IpType": "RR", "Address": "10.30.2.1", "Address_v6": "fdff:2000::1"},
                {"IpType": "instance_ip", "Address": "10.30.0.2", "Address_v6": "fdff::2"}
            ]
        });
        let row: InstanceRow = serde_json::from_value(wire.clone()).expect("running");
        assert_eq!(row.host_port, Some(50103));
        assert_eq!(row.service_ip[1].kind, IpType::Instance);
        assert_eq!(serde_json::to_value(&row).expect("running"), wire);
    }

    #[test]
    fn a_pending_row_lacks_its_place() {
        let wire = json!({
            "instance_number": 1, "instance_ip": "10.30.0.3", "cluster_id": null, "service_ip": []
        });
        let row: InstanceRow = serde_json::from_value(wire).expect("pending");
        assert_eq!((row.namespace_ip, row.host_ip, row.host_port), (None, None, None));
        assert_eq!(
            serde_json::to_value(&row).expect("pending"),
            json!({"instance_number": 1, "instance_ip": "10.30.0.3", "service_ip": []})
        );
    }

    #[test]
    fn extensions_round_trip_and_unknown_fields_do_no_harm() {
        let wire = json!({
            "instance_number": 1, "service_ip": [], "incarnation": 18446744073709551615_u64, "node_id": "n2",
            "appId": 3, "draining": true
        });
        let mut with_unknown = wire.clone();
        with_unknown["routing"] = json!([{"priority": 0.5, "IpType": "closest"}]);
        let row: InstanceRow = serde_json::from_value(with_unknown).expect("extended");
        assert_eq!(serde_json::to_value(&row).expect("extended"), wire);
    }

    #[test]
    fn placeholders_of_other_daemons_read_as_absent() {
        for (name, port) in [("text", json!("50104")), ("number", json!(50104))] {
            let row: InstanceRow = serde_json::from_value(json!({
                "instance_number": 1, "namespace_ip": "", "namespace_ip_v6": "<nil>", "host_ip": null,
                "host_port": port, "service_ip": null
            }))
            .expect(name);
            assert_eq!(row.host_port, Some(50104), "{name}");
            assert_eq!(
                (row.namespace_ip, row.namespace_ip_v6, row.host_ip),
                (None, None, None),
                "{name}"
            );
        }
        let row: InstanceRow =
            serde_json::from_str(r#"{"instance_number":1,"host_port":""}"#).expect("empty port");
        assert_eq!(row.host_port, None);
    }

    #[test]
    fn a_broken_row_says_why() {
        let cases = [
            (r#"{"instance_number":-1}"#, "integer `-1`"),
            (
                r#"{"instance_number":1,"host_port":70000}"#,
                "70000 is not a port",
            ),
            (r#"{"instance_number":1,"host_port":"x"}"#, "\"x\" is not a port"),
            (
                r#"{"instance_number":1,"namespace_ip":"10.18.0.300"}"#,
                "10.18.0.300",
            ),
            (
                r#"{"instance_ip":"10.30.0.2"}"#,
                "missing field `instance_number`",
            ),
        ];
        for (text, expected) in cases {
            let error = serde_json::from_str::<InstanceRow>(text)
                .expect_err(text)
                .to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn types_of_addresses_keep_what_they_do_not_know() {
        let cases = [
            ("RR", IpType::RoundRobin, "RR"),
            ("Closest", IpType::Closest, "Closest"),
            ("instance_ip", IpType::Instance, "instance_ip"),
            ("InstanceNumber", IpType::Instance, "instance_ip"),
            ("fps", IpType::Other("fps".into()), "fps"),
        ];
        for (wire, kind, written) in cases {
            let read: IpType = serde_json::from_value(wire.into()).expect(wire);
            assert_eq!(read, kind);
            assert_eq!(serde_json::to_value(&read).expect(wire), json!(written));
        }
    }
}
