//! Reading what other daemons write: list elements that fail alone, empty texts in place of addresses, ports
//! as numbers or texts.

use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// An element of a list that is read on its own: when it is not what it should be, the rest of the list
/// still is.
#[derive(Clone, Debug, PartialEq)]
pub enum Lenient<T> {
    /// The element as it should be.
    Read(T),
    /// What stands in its place, and why it is not a `T`.
    Malformed { raw: Value, error: String },
}

impl<T> From<T> for Lenient<T> {
    fn from(element: T) -> Self {
        Self::Read(element)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        Ok(match T::deserialize(&raw) {
            Ok(element) => Self::Read(element),
            Err(error) => Self::Malformed {
                error: error.to_string(),
                raw,
            },
        })
    }
}

impl<T: Serialize> Serialize for Lenient<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Read(element) => element.serialize(serializer),
            Self::Malformed { raw, .. } => raw.serialize(serializer),
        }
    }
}

/// Reads an absent, null or empty text as `None` and anything else as an address.
pub(super) fn address<'de, A, D>(deserializer: D) -> Result<Option<A>, D::Error>
where
    A: FromStr,
    A::Err: std::fmt::Display,
    D: Deserializer<'de>,
{
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(error) => Err(D::Error::custom(format!("{text:?}: {error}"))),
    }
}

/// Reads anything that is not an IPv6 address as `None`: nodes without IPv6 write all sorts of placeholders,
/// and none of them may cost the IPv4 address beside it.
pub(super) fn address_v6<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv6Addr>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|text| text.parse().ok()))
}

/// Writes an address that may be missing as a text that may be empty.
pub(super) fn address_or_empty<A, S>(address: &Option<A>, serializer: S) -> Result<S::Ok, S::Error>
where
    A: ToString,
    S: Serializer,
{
    let text = address.as_ref().map(A::to_string).unwrap_or_default();
    serializer.serialize_str(&text)
}

/// Reads a port written as a number or as a text; an absent, null or empty one is `None`.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let port = match &value {
        Value::Null => return Ok(None),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    match port {
        Some(port) => Ok(Some(port)),
        None => Err(D::Error::custom(format!("{value} is not a port from 0 to 65535"))),
    }
}

/// Writes a port as the text that the wire wants there.
pub(super) fn port_as_text<S: Serializer>(port: &Option<u16>, serializer: S) -> Result<S::Ok, S::Error> {
    address_or_empty(port, serializer)
}

/// Reads null like an absent field.
pub(super) fn null_as_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
