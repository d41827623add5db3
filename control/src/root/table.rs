//! Rows of the same kind: in the store, in memory, and as one change would leave them.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{Condition, Store, StoreError, Transaction};

/// Something that is stored under a key of its own.
pub trait Row: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    type Key: Ord + Clone + Send + Sync;

    /// Where all rows of the kind are, such as `service/`.
    const PREFIX: &'static str;

    /// What a new row is written on the condition of.
    const NEW: Condition = Condition::Absent;

    fn key(&self) -> Self::Key;

    /// The rest of the stored key.
    fn suffix(key: &Self::Key) -> String;
}

/// All rows of a kind, as they are stored.
pub type Table<R> = BTreeMap<<R as Row>::Key, R>;

/// What a change does to rows: `None` removes one.
pub type Changes<R> = BTreeMap<<R as Row>::Key, Option<R>>;

/// Reads a whole table.
pub async fn load<R: Row>(store: &dyn Store) -> Result<Table<R>, StoreError> {
    let records = store.range(R::PREFIX).await?;
    let rows = records.iter().map(|record| {
        let row: R = record.read()?;
        Ok((row.key(), row))
    });
    rows.collect()
}

/// Carries out changes in memory.
pub fn apply<R: Row>(table: &mut Table<R>, changes: Changes<R>) {
    for (key, change) in changes {
        match change {
            Some(row) => table.insert(key, row),
            None => table.remove(&key),
        };
    }
}

/// A table as it will be when a change is committed.
pub struct View<'state, R: Row> {
    table: &'state Table<R>,
    changes: Changes<R>,
}

impl<'state, R: Row> View<'state, R> {
    /// The table, unchanged yet.
    pub fn new(table: &'state Table<R>) -> Self {
        Self {
            table,
            changes: BTreeMap::new(),
        }
    }

    pub fn get(&self, key: &R::Key) -> Option<&R> {
        match self.changes.get(key) {
            Some(change) => change.as_ref(),
            None => self.table.get(key),
        }
    }

    pub fn contains(&self, key: &R::Key) -> bool {
        self.get(key).is_some()
    }

    /// Adds or replaces a row.
    pub fn put(&mut self, row: R) {
        self.changes.insert(row.key(), Some(row));
    }

    pub fn remove(&mut self, key: &R::Key) {
        self.changes.insert(key.clone(), None);
    }

    /// The rows of a range of keys: unchanged ones first.
    pub fn range(&self, range: impl RangeBounds<R::Key> + Clone) -> impl Iterator<Item = &R> {
        let unchanged = self
            .table
            .range(range.clone())
            .filter(|(key, _)| !self.changes.contains_key(key));
        let changed = self
            .changes
            .range(range)
            .filter_map(|(_, change)| change.as_ref());
        unchanged.map(|(_, row)| row).chain(changed)
    }

    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.range(..)
    }

    /// Adds the changes to a transaction.
    pub fn write(&self, transaction: &mut Transaction) -> Result<(), StoreError> {
        for (key, change) in &self.changes {
            let path = format!("{}{}", R::PREFIX, R::suffix(key));
            match change {
                Some(row) if self.table.contains_key(key) => transaction.put(path, Condition::Any, row)?,
                Some(row) => transaction.put(path, R::NEW, row)?,
                None => transaction.delete(path, Condition::Any),
            }
        }
        Ok(())
    }

    pub fn into_changes(self) -> Changes<R> {
        self.changes
    }
}
