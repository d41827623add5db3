//! What Docker sends and expects, as far as it is used here (libnetwork's `docs/remote.md`).

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Options by their names.
pub type Options = Map<String, Value>;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Activation {
    pub implements: [&'static str; 1],
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capabilities {
    pub scope: &'static str,
    pub connectivity_scope: &'static str,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CreateNetwork {
    #[serde(rename = "Options", default, deserialize_with = "null_as_default")]
    pub options: Options,
    #[serde(rename = "IPv4Data", default, deserialize_with = "null_as_default")]
    pub pools: Vec<Pool>,
    #[serde(rename = "IPv6Data", default, deserialize_with = "null_as_default")]
    pub pools_v6: Vec<Pool>,
}

/// Addresses that Docker would give out itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Pool {
    #[serde(rename = "Pool", default, deserialize_with = "null_as_default")]
    pub pool: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CreateEndpoint {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(rename = "Interface", default, deserialize_with = "null_as_default")]
    pub interface: Interface,
    #[serde(rename = "Options", default, deserialize_with = "null_as_default")]
    pub options: Options,
}

/// An interface. What Docker has set already must not be answered; empty texts are not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    #[serde(rename = "Address", default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(rename = "AddressIPv6", default, skip_serializing_if = "String::is_empty")]
    pub address_v6: String,
    #[serde(rename = "MacAddress", default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct CreatedEndpoint {
    #[serde(rename = "Interface")]
    pub interface: Interface,
}

/// The body of all calls about an endpoint that exists.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    pub interface_name: InterfaceName,
    pub gateway: Ipv4Addr,
    pub static_routes: [StaticRoute; 1],
    /// Docker must not add a bridge of its own for the way out.
    pub disable_gateway_service: bool,
}

/// Which link to move into the container, and what it is called there: the prefix and a number.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    pub src_name: String,
    pub dst_prefix: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    pub destination: String,
    pub route_type: u8,
}

impl StaticRoute {
    /// The destinations are neighbours on the link itself.
    pub const ON_LINK: u8 = 1;
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EndpointInformation {
    pub value: Options,
}

/// Go writes what is empty as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Option::<T>::deserialize(deserializer)?;
    Ok(value.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_are_read_as_docker_writes_them() {
        let created: CreateEndpoint = serde_json::from_value(json!({
            "NetworkID": "n", "EndpointID": "e", "Interface": null,
            "Options": {"oakestra.instance": "0", "com.docker.network.portmap": []},
        }))
        .expect("an endpoint");
        assert_eq!(created.interface, Interface::default());
        assert_eq!(created.options.len(), 2);
        let network: CreateNetwork = serde_json::from_value(json!({
            "NetworkID": "n", "Options": {"com.docker.network.generic": {}}, "IPv6Data": null,
            "IPv4Data": [{"AddressSpace": "null", "Pool": "0.0.0.0/0", "Gateway": "0.0.0.0/0", "AuxAddresses": null}],
        }))
        .expect("a network");
        assert_eq!(
            (network.pools[0].pool.as_str(), network.pools_v6.len()),
            ("0.0.0.0/0", 0)
        );
    }

    #[test]
    fn an_answer_to_join_names_the_link_the_gateway_and_the_way_to_it() {
        let joined = Joined {
            interface_name: InterfaceName {
                src_name: "oac0".to_owned(),
                dst_prefix: "eth",
            },
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            static_routes: [StaticRoute {
                destination: "169.254.1.1/32".to_owned(),
                route_type: StaticRoute::ON_LINK,
            }],
            disable_gateway_service: true,
        };
        let expected = json!({
            "InterfaceName": {"SrcName": "oac0", "DstPrefix": "eth"},
            "Gateway": "169.254.1.1",
            "StaticRoutes": [{"Destination": "169.254.1.1/32", "RouteType": 1}],
            "DisableGatewayService": true,
        });
        assert_eq!(serde_json::to_value(joined).expect("JSON"), expected);
    }
}
