//! The HTTP API of NetManager, spoken by the node engine.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::lenient;
use super::{ServiceAddress, ServiceName};

/// Body of `POST /register`: which node this is and where its cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRequest {
    /// The node's id, and its client id at the broker.
    pub client_id: String,
    /// Host name or address of the cluster's broker; empty when the configuration file names it.
    #[serde(default, deserialize_with = "lenient::null_as_default")]
    pub cluster_address: String,
    /// Extension: how to log in at the broker; without a login when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerAccess>,
}

/// How a node logs in at the broker of its cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAccess {
    /// The configured port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub user: String,
    pub password: String,
}

/// Without the password: this ends up in logs.
impl std::fmt::Debug for BrokerAccess {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BrokerAccess")
            .field("port", &self.port)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Body of `POST /container/deploy`: a process that is to be given the network of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployRequest {
    /// A process in the network namespace that is to be attached.
    pub pid: u32,
    pub service_name: ServiceName,
    pub instance_number: u32,
    /// Published ports, in the form of [`PortMappings`](crate::ports::PortMappings); empty for none.
    #[serde(default, deserialize_with = "lenient::null_as_default")]
    pub port_mappings: String,
    /// The instance's own address, where the caller knows it.
    #[serde(
        default,
        deserialize_with = "lenient::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip: Option<Ipv4Addr>,
    /// The instance's own IPv6 address, where the caller knows it.
    #[serde(
        default,
        deserialize_with = "lenient::address_v6",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_ip_v6: Option<Ipv6Addr>,
    /// The addresses of the service that the instance belongs to.
    #[serde(
        default,
        deserialize_with = "lenient::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_ips: Vec<ServiceAddress>,
    /// The number of this placement of the instance, never used for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// The application that the service belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<u32>,
}

/// Answer to `POST /container/deploy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployResponse {
    #[serde(rename = "serviceName")]
    pub service_name: ServiceName,
    /// The instance's address inside the node's subnet.
    #[serde(rename = "nsAddress")]
    pub namespace_address: Ipv4Addr,
    /// The same for IPv6; an empty text when there is none.
    #[serde(
        rename = "nsAddressv6",
        default,
        deserialize_with = "lenient::address_v6",
        serialize_with = "lenient::address_or_empty"
    )]
    pub namespace_address_v6: Option<Ipv6Addr>,
}

/// Body of `POST /container/undeploy`. A `pid` that comes with it says nothing that the name and the number
/// do not say, and is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UndeployRequest {
    pub service_name: ServiceName,
    pub instance_number: u32,
}

/// The one shape of every error of an HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status code.
    pub code: u16,
    /// The reason phrase of the status code.
    pub status: String,
    /// What is wrong, for a person.
    #[serde(default)]
    pub message: String,
    /// The field or the resource that the error is about; empty when it is about the whole request.
    #[serde(default)]
    pub path: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::IpType;

    #[test]
    fn registration_reads_with_and_without_a_cluster() {
        let whole: RegisterRequest =
            serde_json::from_str(r#"{"client_id":"65f0a1","cluster_address":"192.0.2.1"}"#).expect("whole");
        assert_eq!(
            whole,
            RegisterRequest {
                client_id: "65f0a1".into(),
                cluster_address: "192.0.2.1".into(),
                broker: None,
            }
        );
        for text in [
            r#"{"client_id":"65f0a1"}"#,
            r#"{"client_id":"65f0a1","cluster_address":null}"#,
        ] {
            let bare: RegisterRequest = serde_json::from_str(text).expect(text);
            assert_eq!(bare.cluster_address, "", "{text}");
        }
    }

    #[test]
    fn a_plain_deployment_round_trips_without_extensions() {
        let wire = json!({
            "pid": 4711, "serviceName": "a.b.c.d", "instanceNumber": 0, "portMappings": "8080:80/tcp;53:53/udp"
        });
        let request: DeployRequest = serde_json::from_value(wire.clone()).expect("plain");
        assert_eq!(request.pid, 4711);
        assert_eq!(request.instance_ip, None);
        assert_eq!(serde_json::to_value(&request).expect("plain"), wire);
    }

    #[test]
    fn a_deployment_carries_the_optional_fields() {
        let wire = json!({
            "pid": 1, "serviceName": "a.b.c.d", "instanceNumber": 3, "portMappings": "",
            "instanceIp": "10.30.1.2", "instanceIpV6": "fdff::5", "incarnation": 18446744073709551615_u64,
            "appId": 7,
            "serviceIps": [{"IpType": "RR", "Address": "10.30.55.55", "Address_v6": "fdff:2000::1"}]
        });
        let request: DeployRequest = serde_json::from_value(wire.clone()).expect("extended");
        assert_eq!(request.instance_ip, Some(Ipv4Addr::new(10, 30, 1, 2)));
        assert_eq!(request.service_ips[0].kind, IpType::RoundRobin);
        assert_eq!((request.incarnation, request.app_id), (Some(u64::MAX), Some(7)));
        assert_eq!(serde_json::to_value(&request).expect("extended"), wire);
    }

    #[test]
    fn a_bad_deployment_names_what_is_wrong() {
        let cases = [
            (
                r#"{"serviceName":"a.b.c.d","instanceNumber":0}"#,
                "missing field `pid`",
            ),
            (
                r#"{"pid":1,"serviceName":"a.b.c","instanceNumber":0}"#,
                "has 3 dot-separated parts",
            ),
            (
                r#"{"pid":1,"serviceName":"a.b.c.d","instanceNumber":-1}"#,
                "invalid value: integer `-1`",
            ),
            (
                r#"{"pid":1,"serviceName":"a.b.c.d","instanceNumber":0,"instanceIp":"10.30.1"}"#,
                "\"10.30.1\"",
            ),
        ];
        for (text, expected) in cases {
            let error = serde_json::from_str::<DeployRequest>(text)
                .expect_err(text)
                .to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn answers_and_errors_have_the_names_of_the_wire() {
        let response = DeployResponse {
            service_name: "a.b.c.d".parse().expect("name"),
            namespace_address: Ipv4Addr::new(10, 18, 0, 2),
            namespace_address_v6: None,
        };
        assert_eq!(
            serde_json::to_value(&response).expect("response"),
            json!({"serviceName": "a.b.c.d", "nsAddress": "10.18.0.2", "nsAddressv6": ""})
        );
        let undeploy: UndeployRequest =
            serde_json::from_str(r#"{"serviceName":"a.b.c.d","instanceNumber":2,"pid":9}"#)
                .expect("undeploy");
        assert_eq!(undeploy.instance_number, 2);
        let error = ErrorBody {
            code: 400,
            status: "Bad Request".into(),
            message: "not registered".into(),
            path: "/container/deploy".into(),
        };
        assert_eq!(
            serde_json::to_value(&error).expect("error"),
            json!({
                "code": 400, "status": "Bad Request", "message": "not registered", "path": "/container/deploy"
            })
        );
    }
}
