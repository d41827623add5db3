//! Single values out of a configuration file, each checked, each refused with file, key and value.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::ConfigError;

/// The smallest packet that every IPv4 host takes whole, and the largest that fits one tunnel datagram: 20
/// bytes of IPv4 and 8 of UDP are around it.
pub(super) const MTU_RANGE: RangeInclusive<u16> = 576..=(u16::MAX - 28);
const PORT_RANGE: RangeInclusive<u16> = 1..=u16::MAX;
/// Shorter than that is no time to wait; longer than a week is a mistake.
const SECONDS_RANGE: RangeInclusive<f64> = 0.1..=604_800.0;

/// One configuration file.
pub(super) struct Document {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Document {
    /// Reads the file at `path`; a file that does not exist is one without values.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self {
                    path,
                    values: Map::new(),
                });
            }
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        match serde_json::from_slice(&content) {
            Ok(values) => Ok(Self { path, values }),
            Err(source) => Err(ConfigError::Json { path, source }),
        }
    }

    /// A text; `None` when it is absent, null or empty.
    pub(super) fn text(&self, key: &'static str) -> Result<Option<&str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim())),
            Some(value) => Err(self.refuse(key, value, "a text is needed")),
        }
    }

    /// A truth value; false when it is absent.
    pub(super) fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.refuse(key, value, "true or false is needed, without quotes")),
        }
    }

    /// A UDP or TCP port, as a number or as a text.
    pub(super) fn port(&self, key: &'static str, default: u16) -> Result<u16, ConfigError> {
        self.number(key, PORT_RANGE, default)
    }

    /// An MTU in bytes, as a number or as a text.
    pub(super) fn mtu(&self, key: &'static str, default: u16) -> Result<u16, ConfigError> {
        self.number(key, MTU_RANGE, default)
    }

    /// A time in seconds, also with a fraction, as a number or as a text.
    pub(super) fn seconds(&self, key: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        let seconds = match value {
            Value::String(text) if text.trim().is_empty() => return Ok(default),
            Value::String(text) => text.trim().parse().ok(),
            Value::Number(number) => number.as_f64(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let needed = || {
            let (shortest, longest) = (SECONDS_RANGE.start(), SECONDS_RANGE.end());
            self.refuse(
                key,
                value,
                &format!("a number of seconds from {shortest} to {longest} is needed"),
            )
        };
        seconds
            .filter(|seconds| SECONDS_RANGE.contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(needed)
    }

    /// An object in the document, whose values are read as those of the document itself; one without values when it is
    /// absent.
    pub(super) fn section(&self, key: &'static str) -> Result<Self, ConfigError> {
        let values = match self.value(key) {
            None => Map::new(),
            Some(Value::Object(values)) => values.clone(),
            Some(value) => return Err(self.refuse(key, value, "an object is needed")),
        };
        let path = self.path.clone();
        Ok(Self { path, values })
    }

    /// An IPv4 address.
    pub(super) fn address(&self, key: &'static str) -> Result<Option<Ipv4Addr>, ConfigError> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) if text.parse::<Ipv6Addr>().is_ok() => {
                Err(self.refuse(key, &text.into(), "tunnels between nodes are IPv4 only"))
            }
            Err(error) => Err(self.refuse(key, &text.into(), &error.to_string())),
        }
    }

    /// Checks an IPv6 address that nothing depends on yet.
    pub(super) fn check_address_v6(&self, key: &'static str) -> Result<(), ConfigError> {
        let Some(text) = self.text(key)? else {
            return Ok(());
        };
        match text.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refuse(key, &text.into(), &error.to_string())),
        }
    }

    /// Checks a prefix length that nothing depends on yet.
    pub(super) fn check_prefix_length_v6(&self, key: &'static str) -> Result<(), ConfigError> {
        self.number(key, 0..=128_u16, 0)?;
        Ok(())
    }

    /// The error that says that `value` does not do for `key`.
    pub(super) fn refuse(&self, key: &'static str, value: &Value, problem: &str) -> ConfigError {
        let path = self.path.clone();
        ConfigError::Value {
            path,
            key,
            value: value.to_string(),
            problem: problem.to_owned(),
        }
    }

    /// A whole number, as a number or as a text.
    pub(super) fn integer(
        &self,
        key: &'static str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, ConfigError> {
        self.number(key, range, default)
    }

    fn number<N>(&self, key: &'static str, range: RangeInclusive<N>, default: N) -> Result<N, ConfigError>
    where
        N: Copy + PartialOrd + Display + FromStr + TryFrom<u64>,
    {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        let number = match value {
            Value::String(text) if text.trim().is_empty() => return Ok(default),
            Value::String(text) => text.trim().parse().ok(),
            Value::Number(number) => number.as_u64().and_then(|number| N::try_from(number).ok()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.refuse(key, value, &needed(&range)))
    }

    /// The value of `key`; null is as good as absent. The files have always been read without regard to
    /// upper and lower case, an exact match going first.
    fn value(&self, key: &str) -> Option<&Value> {
        let exact = self.values.get(key);
        let any_case = || {
            self.values
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
        };
        exact
            .or_else(|| any_case().map(|(_, value)| value))
            .filter(|value| !value.is_null())
    }
}

/// An MTU in bytes out of the environment.
pub(super) fn mtu_of_variable(name: &'static str, value: &OsStr) -> Result<u16, ConfigError> {
    let value = value.to_string_lossy();
    let mtu = value.trim().parse().ok().filter(|mtu| MTU_RANGE.contains(mtu));
    mtu.ok_or_else(|| ConfigError::Variable {
        name,
        value: value.clone().into_owned(),
        problem: needed(&MTU_RANGE),
    })
}

fn needed<N: Display>(range: &RangeInclusive<N>) -> String {
    format!("a number from {} to {} is needed", range.start(), range.end())
}
