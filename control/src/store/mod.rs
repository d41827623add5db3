//! What must survive a crash: texts as keys, JSON as values, each with the revision at which it was written.
//!
//! An orchestrator is the only writer of its store, or one of several where the store is shared; both write with
//! conditions. A [`Transaction`] is carried out whole or not at all, and is on the disk before [`Store::commit`]
//! answers.

mod embedded;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use embedded::Embedded;

/// The layout of what is stored. A store of another layout is not opened.
pub const SCHEMA: u64 = 1;

/// A place that keeps what must not be lost.
#[async_trait]
pub trait Store: Send + Sync {
    /// What is stored under `key`.
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// Everything whose key begins with `prefix`, in the order of the keys.
    async fn range(&self, prefix: &str) -> Result<Vec<Record>, StoreError>;

    /// Carries out all writes of a transaction, or none. The answer is the revision of what was written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a condition does not hold; nothing has changed then.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// The latest revision, as it grows.
    fn watch(&self) -> watch::Receiver<u64>;
}

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    /// JSON.
    pub value: Vec<u8>,
    /// Grows with every transaction of the store; this is that of the transaction that wrote the value.
    pub revision: u64,
}

impl Record {
    /// Reads the value.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when it is not a `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        match serde_json::from_slice(&self.value) {
            Ok(value) => Ok(value),
            Err(source) => Err(StoreError::Malformed {
                key: self.key.clone(),
                source,
            }),
        }
    }
}

/// What must be true of a key before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Whatever is there is replaced.
    Any,
    /// Nothing is there.
    Absent,
    /// What is there was written at this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    key: String,
    condition: Condition,
    /// `None` deletes.
    value: Option<Vec<u8>>,
}

/// Writes that belong together. Their conditions are about what was there before the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    writes: Vec<Write>,
}

impl Transaction {
    /// A transaction that writes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Writes `value` under `key`.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when the value has no JSON form.
    pub fn put<T: Serialize>(
        &mut self,
        key: impl Into<String>,
        condition: Condition,
        value: &T,
    ) -> Result<(), StoreError> {
        let key = key.into();
        match serde_json::to_vec(value) {
            Ok(value) => {
                self.writes.push(Write {
                    key,
                    condition,
                    value: Some(value),
                });
                Ok(())
            }
            Err(source) => Err(StoreError::Malformed { key, source }),
        }
    }

    /// Deletes `key`; with [`Condition::Any`] also when nothing is there.
    pub fn delete(&mut self, key: impl Into<String>, condition: Condition) {
        self.writes.push(Write {
            key: key.into(),
            condition,
            value: None,
        });
    }
}

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition does not hold.
    #[error("{key} has changed in the meantime")]
    Conflict { key: String },
    /// The folder belongs to another process.
    #[error("{folder} is in use by another process")]
    InUse { folder: String },
    /// The store was written by a version with another layout.
    #[error("{file} has schema {found}, this version reads schema {SCHEMA}")]
    Schema { file: String, found: u64 },
    /// A value is not what belongs under its key.
    #[error("value of {key}")]
    Malformed { key: String, source: serde_json::Error },
    /// The disk, or the file on it.
    #[error("{action}")]
    Failed {
        action: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store has ended.
    #[error("the store is closed")]
    Closed,
}
