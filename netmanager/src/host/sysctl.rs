//! Kernel settings: read first, written only when different, the value before kept so that it can be put
//! back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Errors, Result};

/// What the overlay needs to be set, and to what. Routing is needed for what containers send to the world;
/// reverse-path filters may stay as they are. Answers from published ports to the node's own processes come in by
/// `lo` with addresses of the node on both sides, and those from 127.0.0.1 with that.
pub const REQUIRED: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.lo.accept_local", "1"),
    ("net.ipv4.conf.lo.route_localnet", "1"),
];

/// The values that were there before. The caller keeps it in the state file, so that a later process can
/// restore what an earlier one has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    previous: BTreeMap<String, String>,
}

impl Sysctls {
    /// Sets `key` to `value`. The first value that was replaced is the one that [`Self::restore`] puts back.
    /// Whether something was changed.
    ///
    /// # Errors
    /// There is no such setting, or it cannot be written.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool> {
        let different = self.note(key, value)?;
        if different {
            write(key, value)?;
        }
        Ok(different)
    }

    /// Notes the present values of those settings that [`Self::set_required`] will change, so that the caller
    /// can save them before anything is changed.
    ///
    /// # Errors
    /// There is no such setting.
    pub fn note_required(&mut self) -> Result<()> {
        for (key, value) in REQUIRED {
            self.note(key, value)?;
        }
        Ok(())
    }

    /// Sets everything in [`REQUIRED`].
    ///
    /// # Errors
    /// As [`Self::set`]; what was set before the failure stays noted.
    pub fn set_required(&mut self) -> Result<()> {
        for (key, value) in REQUIRED {
            self.set(key, value)?;
        }
        Ok(())
    }

    /// Notes the present value of `key` unless it is `value` or an earlier one is noted. Whether it differs.
    fn note(&mut self, key: &str, value: &str) -> Result<bool> {
        let before = read(key)?;
        let different = before != value;
        if different {
            self.previous.entry(key.to_owned()).or_insert(before);
        }
        Ok(different)
    }

    /// Puts the previous values back and forgets those that are back.
    ///
    /// # Errors
    /// All settings that could not be put back, which stay noted. One that is gone is none of them.
    pub fn restore(&mut self) -> Result<(), Errors> {
        let mut errors = Errors::default();
        self.previous.retain(|key, value| {
            let outcome = write_if_different(key, value);
            let failed = outcome.is_err();
            errors.collect(outcome);
            failed
        });
        errors.into_result()
    }

    /// Whether there is nothing to restore.
    pub fn is_empty(&self) -> bool {
        self.previous.is_empty()
    }
}

/// Sets `key` to `value` unless it is that already, for settings that go with the object they belong to.
/// Whether the setting exists.
///
/// # Errors
/// It cannot be read or written for another reason than that there is none.
pub fn write_if_different(key: &str, value: &str) -> Result<bool> {
    match read(key) {
        Ok(before) if before == value => Ok(true),
        Ok(_) => write(key, value).map(|()| true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn read(key: &str) -> Result<String> {
    let text = fs::read_to_string(path(key)).map_err(|error| failed("read", key, error))?;
    Ok(text.trim_end().to_owned())
}

fn write(key: &str, value: &str) -> Result<()> {
    fs::write(path(key), value).map_err(|error| failed("write", key, error))
}

fn failed(operation: &'static str, key: &str, error: io::Error) -> Error {
    Error::kernel(operation, format!("sysctl {key}"), error)
}

/// As sysctl(8) does: dots separate, unless there is a slash, and then they belong to a name such as
/// `eth0.100`.
fn path(key: &str) -> PathBuf {
    let relative = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    PathBuf::from("/proc/sys").join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_separate_unless_there_is_a_slash() {
        let cases = [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.100/rp_filter",
                "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
            ),
        ];
        for (key, expected) in cases {
            assert_eq!(path(key), PathBuf::from(expected), "{key}");
        }
    }

    #[test]
    fn a_setting_that_does_not_exist_is_told_by_its_number() {
        let mut sysctls = Sysctls::default();
        let error = sysctls
            .set("net.ipv4.no_such_setting", "1")
            .map_err(|error| error.errno());
        assert_eq!(error, Err(Some(libc::ENOENT)));
        assert!(matches!(
            write_if_different("net.ipv4.no_such_setting", "1"),
            Ok(false)
        ));
        assert!(sysctls.is_empty());
    }

    #[test]
    fn the_state_survives_its_file() {
        let previous = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "0".to_owned())]);
        let sysctls = Sysctls { previous };
        let text = serde_json::to_string(&sysctls).expect("serialises");
        assert_eq!(serde_json::from_str::<Sysctls>(&text).expect("parses"), sysctls);
    }
}
