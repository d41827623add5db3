//! Ports of an instance that a node publishes at its own addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most mappings in one list.
pub const MOST_MAPPINGS: usize = 256;

/// The transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportProtocol {
    #[default]
    Tcp,
    Udp,
}

impl TransportProtocol {
    /// The name as it stands behind the slash.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for TransportProtocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One published port: `host[:container][/protocol]`, with the container's port that of the host and TCP
/// unless said otherwise. Neither port is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMapping {
    /// The port at the node's addresses.
    pub host: u16,
    /// The port at the instance.
    pub container: u16,
    pub protocol: TransportProtocol,
}

/// Published ports, separated by `;`. No two have the same host port and protocol. An empty text is an empty
/// list, and an empty part is ignored, so that a list may end in `;`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMappings(Vec<PortMapping>);

/// Why a text is not a list of published ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortMappingsError {
    /// A part has another shape than `host[:container][/protocol]`.
    #[error("port mapping {part:?} is not of the form host[:container][/tcp|/udp], such as 8080:80/tcp")]
    Shape { part: String },
    /// A port is not a number from 1 to 65535.
    #[error("port {port:?} in port mapping {part:?} is not a number from 1 to 65535")]
    Port { part: String, port: String },
    /// The protocol is neither tcp nor udp.
    #[error("protocol {protocol:?} in port mapping {part:?} is neither tcp nor udp")]
    Protocol { part: String, protocol: String },
    /// Two mappings of one list want the same port of the host.
    #[error("host port {port}/{protocol} is mapped twice")]
    Duplicate { port: u16, protocol: TransportProtocol },
    /// More than [`MOST_MAPPINGS`] mappings.
    #[error("{found} port mappings, {MOST_MAPPINGS} at most are taken")]
    Many { found: usize },
}

impl PortMappings {
    /// The mappings in the order in which they were given.
    pub fn iter(&self) -> std::slice::Iter<'_, PortMapping> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'list> IntoIterator for &'list PortMappings {
    type Item = &'list PortMapping;
    type IntoIter = std::slice::Iter<'list, PortMapping>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromStr for PortMapping {
    type Err = PortMappingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = text.trim();
        let shape = || PortMappingsError::Shape {
            part: part.to_owned(),
        };
        let (ports, protocol) = match part.split_once('/') {
            Some((ports, name)) => (ports, protocol(part, name)?),
            None => (part, TransportProtocol::default()),
        };
        let (host, container) = match ports.split_once(':') {
            Some((host, container)) => (host, container),
            None => (ports, ports),
        };
        if host.is_empty() || container.is_empty() || container.contains(':') {
            return Err(shape());
        }
        Ok(Self {
            host: port(part, host)?,
            container: port(part, container)?,
            protocol,
        })
    }
}

fn protocol(part: &str, name: &str) -> Result<TransportProtocol, PortMappingsError> {
    if name.eq_ignore_ascii_case("tcp") {
        Ok(TransportProtocol::Tcp)
    } else if name.eq_ignore_ascii_case("udp") {
        Ok(TransportProtocol::Udp)
    } else {
        Err(PortMappingsError::Protocol {
            part: part.to_owned(),
            protocol: name.to_owned(),
        })
    }
}

/// A port in decimal digits, without a sign.
fn port(part: &str, digits: &str) -> Result<u16, PortMappingsError> {
    let number = if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse::<u16>().ok()
    } else {
        None
    };
    match number {
        Some(port) if port != 0 => Ok(port),
        Some(_) | None => Err(PortMappingsError::Port {
            part: part.to_owned(),
            port: digits.to_owned(),
        }),
    }
}

impl FromStr for PortMappings {
    type Err = PortMappingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let found = parts().count();
        if found > MOST_MAPPINGS {
            return Err(PortMappingsError::Many { found });
        }
        parts()
            .map(PortMapping::from_str)
            .collect::<Result<Vec<_>, _>>()?
            .try_into()
    }
}

impl TryFrom<Vec<PortMapping>> for PortMappings {
    type Error = PortMappingsError;

    fn try_from(mappings: Vec<PortMapping>) -> Result<Self, Self::Error> {
        if mappings.len() > MOST_MAPPINGS {
            return Err(PortMappingsError::Many {
                found: mappings.len(),
            });
        }
        for (position, mapping) in mappings.iter().enumerate() {
            let same = |other: &PortMapping| (other.host, other.protocol) == (mapping.host, mapping.protocol);
            if mappings[..position].iter().any(same) {
                return Err(PortMappingsError::Duplicate {
                    port: mapping.host,
                    protocol: mapping.protocol,
                });
            }
        }
        Ok(Self(mappings))
    }
}

impl TryFrom<String> for PortMapping {
    type Error = PortMappingsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for PortMappings {
    type Error = PortMappingsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortMapping> for String {
    fn from(mapping: PortMapping) -> Self {
        mapping.to_string()
    }
}

impl From<PortMappings> for String {
    fn from(mappings: PortMappings) -> Self {
        mappings.to_string()
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}/{}", self.host, self.container, self.protocol)
    }
}

impl fmt::Display for PortMappings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, mapping) in self.0.iter().enumerate() {
            if position > 0 {
                formatter.write_str(";")?;
            }
            write!(formatter, "{mapping}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_in_full() {
        let cases = [
            ("", ""),
            (" ; ", ""),
            ("80", "80:80/tcp"),
            ("80:8080", "80:8080/tcp"),
            ("80:80/tcp", "80:80/tcp"),
            ("53/udp", "53:53/udp"),
            ("80/TCP", "80:80/tcp"),
            (
                "8080:80;53:5353/udp; 443 ;",
                "8080:80/tcp;53:5353/udp;443:443/tcp",
            ),
            ("53:53/udp;53:53/tcp", "53:53/udp;53:53/tcp"),
            ("65535:1", "65535:1/tcp"),
        ];
        for (text, expected) in cases {
            let mappings: PortMappings = text.parse().expect(text);
            assert_eq!(mappings.to_string(), expected, "{text}");
            let json = serde_json::to_value(&mappings).expect(text);
            assert_eq!(json, expected, "{text}");
            assert_eq!(
                serde_json::from_value::<PortMappings>(json).expect(text),
                mappings
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = (1..=MOST_MAPPINGS + 1)
            .map(|port| format!("{port};"))
            .collect::<String>();
        let cases = [
            ("80:", "\"80:\" is not of the form"),
            (":80", "\":80\" is not of the form"),
            ("/tcp", "\"/tcp\" is not of the form"),
            ("80:80:80", "\"80:80:80\" is not of the form"),
            ("0:80", "port \"0\" in port mapping \"0:80\""),
            ("80:65536", "port \"65536\""),
            ("+80", "port \"+80\""),
            ("eighty:80", "port \"eighty\""),
            ("80:80/sctp", "protocol \"sctp\" in port mapping \"80:80/sctp\""),
            ("80:80/", "protocol \"\""),
            ("80;443;80:81", "host port 80/tcp is mapped twice"),
            ("53/udp;53:1/udp", "host port 53/udp is mapped twice"),
            (many.as_str(), "257 port mappings, 256 at most"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<PortMappings>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
