//! The options of an endpoint: which instance a container is. All values are texts.
//!
//! | option | value |
//! |---|---|
//! | `oakestra.service` | name of the service, `application.namespace.service.namespace` |
//! | `oakestra.instance` | number of the instance |
//! | `oakestra.instance_ip` | its own address; without it the cluster is asked |
//! | `oakestra.instance_ip_v6` | the same for IPv6; checked, and of no effect yet |
//! | `oakestra.incarnation` | number of the placement; without it one is made up |
//! | `oakestra.app_id` | number of the application |
//! | `oakestra.port_mappings` | published ports, `host:container[/tcp\|/udp]` separated by `;` |
//! | `oakestra.service_ips` | addresses of the service, a JSON array as in `/container/deploy`; checked, and of no effect yet |

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use protocol::network::{ServiceAddress, ServiceName};
use serde_json::Value;

use super::messages::Options;
use crate::node::DockerWish;

/// What names of options begin with that Docker itself adds.
const OF_DOCKER: &str = "com.docker.";
/// Where Docker puts `--publish`.
const PORT_MAP: &str = "com.docker.network.portmap";
/// Where Docker puts the options of a network.
const GENERIC: &str = "com.docker.network.generic";

const SERVICE: &str = "oakestra.service";
const INSTANCE: &str = "oakestra.instance";
const INSTANCE_IP: &str = "oakestra.instance_ip";
const INSTANCE_IP_V6: &str = "oakestra.instance_ip_v6";
const INCARNATION: &str = "oakestra.incarnation";
const APP_ID: &str = "oakestra.app_id";
const PORT_MAPPINGS: &str = "oakestra.port_mappings";
const SERVICE_IPS: &str = "oakestra.service_ips";

const KNOWN: [&str; 8] = [
    SERVICE,
    INSTANCE,
    INSTANCE_IP,
    INSTANCE_IP_V6,
    INCARNATION,
    APP_ID,
    PORT_MAPPINGS,
    SERVICE_IPS,
];

/// Why options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("the endpoint option {name} is not known here; known are {}", KNOWN.join(", "))]
    Unknown { name: String },
    #[error(
        "the endpoint option {name} is missing; a container of this network is one instance of a service: docker create \
         --network name=NETWORK,driver-opt={SERVICE}=APPLICATION.NAMESPACE.SERVICE.NAMESPACE,driver-opt={INSTANCE}=0 …"
    )]
    Missing { name: &'static str },
    #[error("the endpoint option {name} is {value:?}: {reason}")]
    Value {
        name: &'static str,
        value: String,
        reason: String,
    },
    #[error("ports are published by the endpoint option {PORT_MAPPINGS}, not by --publish")]
    Publish,
    #[error("a network of this driver takes no options; {name} is none")]
    OfNetwork { name: String },
}

/// Reads the options of an endpoint.
///
/// # Errors
/// One is missing, unknown or not what it should be.
pub fn read(options: &Options, mac: Option<[u8; 6]>) -> Result<DockerWish, OptionsError> {
    for (name, value) in options {
        if name == PORT_MAP && value.as_array().is_some_and(|ports| !ports.is_empty()) {
            return Err(OptionsError::Publish);
        }
        if !name.starts_with(OF_DOCKER) && !KNOWN.contains(&name.as_str()) {
            return Err(OptionsError::Unknown { name: name.clone() });
        }
    }
    parsed::<Ipv6Addr>(options, INSTANCE_IP_V6)?;
    if let Some(text) = text(options, SERVICE_IPS)? {
        serde_json::from_str::<Vec<ServiceAddress>>(text).map_err(|error| bad(SERVICE_IPS, text, error))?;
    }
    Ok(DockerWish {
        service: parsed::<ServiceName>(options, SERVICE)?.ok_or(OptionsError::Missing { name: SERVICE })?,
        number: parsed(options, INSTANCE)?.ok_or(OptionsError::Missing { name: INSTANCE })?,
        instance_address: parsed::<Ipv4Addr>(options, INSTANCE_IP)?,
        incarnation: parsed(options, INCARNATION)?,
        application: parsed(options, APP_ID)?.unwrap_or_default(),
        ports: parsed(options, PORT_MAPPINGS)?.unwrap_or_default(),
        mac,
    })
}

/// Refuses options of a network: there are none.
///
/// # Errors
/// There is one.
pub fn refuse_of_network(options: &Options) -> Result<(), OptionsError> {
    let generic = options.get(GENERIC).and_then(Value::as_object);
    match generic.and_then(|generic| generic.keys().next()) {
        Some(name) => Err(OptionsError::OfNetwork { name: name.clone() }),
        None => Ok(()),
    }
}

/// The value of an option; none where it is not given, or empty.
fn text<'a>(options: &'a Options, name: &'static str) -> Result<Option<&'a str>, OptionsError> {
    match options.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(bad(name, &other.to_string(), "a text is needed")),
    }
}

fn parsed<T: FromStr<Err: Display>>(
    options: &Options,
    name: &'static str,
) -> Result<Option<T>, OptionsError> {
    let text = text(options, name)?;
    text.map(|text| text.parse().map_err(|error| bad(name, text, error)))
        .transpose()
}

fn bad(name: &'static str, value: &str, reason: impl Display) -> OptionsError {
    OptionsError::Value {
        name,
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(value: Value) -> Options {
        serde_json::from_value(value).expect("an object")
    }

    fn whole() -> Options {
        options(json!({
            "oakestra.service": "shop.test.web.test", "oakestra.instance": "3",
            "oakestra.instance_ip": "10.30.0.9", "oakestra.instance_ip_v6": "fdff::9",
            "oakestra.incarnation": "18446744073709551615", "oakestra.app_id": "7",
            "oakestra.port_mappings": "80:8080",
            "oakestra.service_ips": r#"[{"IpType":"RR","Address":"10.30.55.55"}]"#,
            "com.docker.network.portmap": [], "com.docker.network.endpoint.exposedports": [{"Port": 80}],
        }))
    }

    #[test]
    fn options_name_an_instance() {
        let wish = read(&whole(), Some([2; 6])).expect("all is well");
        let expected = DockerWish {
            service: "shop.test.web.test".parse().expect("a name"),
            number: 3,
            instance_address: Some(Ipv4Addr::new(10, 30, 0, 9)),
            incarnation: Some(u64::MAX),
            application: 7,
            ports: "80:8080".parse().expect("ports"),
            mac: Some([2; 6]),
        };
        assert_eq!(wish, expected);
    }

    #[test]
    fn what_is_optional_may_be_missing_or_empty() {
        let wish = read(
            &options(json!({
                "oakestra.service": "shop.test.web.test", "oakestra.instance": "0", "oakestra.app_id": "",
            })),
            None,
        );
        let wish = wish.expect("all is well");
        assert_eq!(
            (wish.instance_address, wish.incarnation, wish.application),
            (None, None, 0)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("oakestra.service", json!("web"), "oakestra.service"),
            ("oakestra.service", json!(""), "missing"),
            ("oakestra.instance", json!(3), "a text is needed"),
            ("oakestra.instance", json!("first"), "first"),
            ("oakestra.instance_ip", json!("10.30.0"), "10.30.0"),
            (
                "oakestra.instance_ip_v6",
                json!("10.30.0.1"),
                "oakestra.instance_ip_v6",
            ),
            ("oakestra.incarnation", json!("-1"), "-1"),
            (
                "oakestra.service_ips",
                json!("10.30.55.55"),
                "oakestra.service_ips",
            ),
            ("oakestra.port_mappings", json!("80:http"), "http"),
            ("oakestra.sevice", json!("a.b.c.d"), "oakestra.sevice"),
            ("colour", json!("red"), "colour"),
            ("com.docker.network.portmap", json!([{"Port": 80}]), "--publish"),
        ];
        for (name, value, text) in cases {
            let mut options = whole();
            options.insert(name.to_owned(), value.clone());
            let error = read(&options, None).expect_err(name).to_string();
            assert!(error.contains(text), "{name} {value}: {error}");
        }
    }

    #[test]
    fn a_network_has_no_options() {
        let network = |generic: Value| options(json!({"com.docker.network.generic": generic}));
        assert_eq!(refuse_of_network(&network(json!({}))), Ok(()));
        assert_eq!(refuse_of_network(&network(json!(null))), Ok(()));
        let error = refuse_of_network(&network(json!({"mtu": "9000"}))).expect_err("none is known");
        assert!(error.to_string().contains("mtu"), "{error}");
    }
}
