//! What was ordered, on the disk: one file per instance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use protocol::job::{InstanceKey, Placement};
use serde::{Deserialize, Serialize};

use crate::files;

/// Version of the files' format.
const VERSION: u32 = 1;
const EXTENSION: &str = "json";

/// Why orders cannot be noted or remembered.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} does not hold an instance: {reason}")]
    Content { path: String, reason: String },
}

/// One instance, as it is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) phase: Phase,
    pub(crate) placement: Placement,
}

/// What is to become of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// It is to run.
    Wanted,
    /// It was one-shot and has done its work; its container is kept for its logs.
    Completed,
    /// It is to be removed. The incarnation is the one that the order named, for its acknowledgement.
    Unwanted { incarnation: Option<u64> },
}

impl Record {
    pub(crate) fn new(placement: Placement) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Wanted,
            placement,
        }
    }

    /// The same instance, with something else to become of it.
    pub(crate) fn with_phase(&self, phase: Phase) -> Self {
        Self {
            phase,
            ..self.clone()
        }
    }
}

/// The folder of the files.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    folder: PathBuf,
}

impl Ledger {
    /// The ledger in `folder`, and everything noted in it. The caller holds the lock of the state folder.
    ///
    /// # Errors
    /// When a file cannot be read; an instance that is forgotten would be removed.
    pub(crate) fn open(folder: &Path) -> Result<(Self, BTreeMap<InstanceKey, Record>), LedgerError> {
        fs::create_dir_all(folder).map_err(failed("creating", folder))?;
        files::remove_unfinished(folder).map_err(failed("cleaning", folder))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed("reading", folder))? {
            let path = entry.map_err(failed("reading", folder))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let record = read(&path)?;
            records.insert(record.placement.key(), record);
        }
        let ledger = Self {
            folder: folder.to_owned(),
        };
        Ok((ledger, records))
    }

    /// Notes `record`; it is on the disk when this returns.
    ///
    /// # Errors
    /// When the folder cannot be written; what was noted before stays.
    pub(crate) fn note(&self, record: &Record) -> Result<(), LedgerError> {
        let path = self.path(&record.placement.key());
        let text = serde_json::to_vec(record).map_err(|error| LedgerError::Content {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        // The environment of a service may hold secrets.
        files::replace(&path, &text, 0o600).map_err(failed("writing", &path))
    }

    /// Strikes out an instance.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn strike(&self, key: &InstanceKey) -> Result<(), LedgerError> {
        let path = self.path(key);
        files::remove(&path).map_err(failed("removing", &path))
    }

    /// A service's name has letters, digits and dots only.
    fn path(&self, key: &InstanceKey) -> PathBuf {
        self.folder
            .join(format!("{}.{}.{EXTENSION}", key.job_name, key.instance_number))
    }
}

fn read(path: &Path) -> Result<Record, LedgerError> {
    let broken = |reason: String| LedgerError::Content {
        path: path.display().to_string(),
        reason,
    };
    let text = fs::read(path).map_err(failed("reading", path))?;
    let record: Record = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
    if record.version != VERSION {
        let reason = format!("format {}, this version knows {VERSION}", record.version);
        return Err(broken(reason));
    }
    Ok(record)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.display().to_string();
    move |source| LedgerError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn placement(number: u32) -> Placement {
        serde_json::from_value(json!({
            "microserviceID": "65f0", "job_name": "a.b.c.d", "image": "x", "virtualization": "docker",
            "instance_number": number, "incarnation": 65536
        }))
        .expect("placement")
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let (ledger, records) = Ledger::open(folder.path()).expect("ledger");
        assert!(records.is_empty());
        let mut second = Record::new(placement(1));
        ledger.note(&Record::new(placement(0))).expect("note");
        ledger.note(&second).expect("note");
        second.phase = Phase::Unwanted {
            incarnation: Some(65536),
        };
        ledger.note(&second).expect("note");
        ledger.strike(&placement(0).key()).expect("strike");
        ledger.strike(&placement(0).key()).expect("strike again");
        fs::write(folder.path().join(".unfinished-x"), "{").expect("debris");

        let (_, records) = Ledger::open(folder.path()).expect("ledger");
        assert_eq!(records.into_values().collect::<Vec<_>>(), [second]);
        assert!(!folder.path().join(".unfinished-x").exists());
    }

    #[test]
    fn a_broken_file_is_said_and_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.b.c.d.0.json");
        fs::write(&path, "{}").expect("write");
        let error = Ledger::open(folder.path()).expect_err("broken").to_string();
        assert!(error.contains("a.b.c.d.0.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "{}");
    }
}
