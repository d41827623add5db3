//! The store of a single process: one `redb` file.
//!
//! Reads run on blocking threads and see the last commit. Writes go to one thread, which takes in one commit of the
//! file whatever transactions wait for it: under load many share one flush of the disk. Each of them still is
//! carried out whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};
use tokio::sync::{oneshot, watch};

use super::{Condition, Record, SCHEMA, Store, StoreError, Transaction};

/// Key → revision and value.
const RECORDS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("records");
/// `schema` and `revision`.
const PROPERTIES: TableDefinition<'_, &str, u64> = TableDefinition::new("properties");

const FILE: &str = "state.redb";
const LOCK: &str = "lock";

/// Bytes of pages kept in memory. An orchestrator keeps what it works with itself.
const CACHE: usize = 1 << 20;
/// Most transactions in one commit of the file.
const MOST_AT_ONCE: usize = 256;

/// A store in a folder of its own, which no other process can open at the same time.
pub struct Embedded {
    /// Gone only while the store is being dropped, as is the thread.
    writer: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    revision: watch::Receiver<u64>,
    database: Arc<Database>,
    /// Locked as long as it is open.
    _lock: File,
}

/// Waits for what is being written, so that the file is closed when the lock is released.
impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.writer.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(_panic)) = ended {
            tracing::error!("the writing thread of the store has panicked");
        }
    }
}

/// A transaction on its way to the writing thread.
struct Order {
    transaction: Transaction,
    answer: oneshot::Sender<Result<u64, StoreError>>,
}

impl Embedded {
    /// Opens the store in `folder`, which is made when it is missing. The file can be read by its owner only.
    ///
    /// Blocks until the file is ready: after a crash it is checked first.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Schema`], or what the disk says.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed(format!("create {}", folder.display())))?;
        let lock = lock(folder)?;
        let file = folder.join(FILE);
        if !file.exists() {
            create(folder, &file)?;
        }
        let database = open(&file)?;
        let revision = check(&database, &file)?;
        let database = Arc::new(database);
        let (announce, revision) = watch::channel(revision);
        let (writer, orders) = channel();
        let written = Arc::clone(&database);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(&written, &orders, &announce))
            .map_err(failed("start the writing thread"))?;
        Ok(Self {
            writer: Some(writer),
            thread: Some(thread),
            revision,
            database,
            _lock: lock,
        })
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let key = key.to_owned();
        read(&self.database, move |table| {
            let found = table.get(key.as_str()).map_err(failed("read"))?;
            Ok(found.map(|found| {
                let (revision, value) = found.value();
                Record {
                    key: key.clone(),
                    value: value.to_owned(),
                    revision,
                }
            }))
        })
        .await
    }

    async fn range(&self, prefix: &str) -> Result<Vec<Record>, StoreError> {
        let prefix = prefix.to_owned();
        read(&self.database, move |table| {
            let mut records = Vec::new();
            for entry in table.range(prefix.as_str()..).map_err(failed("read"))? {
                let (key, value) = entry.map_err(failed("read"))?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                let (revision, value) = value.value();
                records.push(Record {
                    key: key.value().to_owned(),
                    value: value.to_owned(),
                    revision,
                });
            }
            Ok(records)
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let (answer, answered) = oneshot::channel();
        let order = Order { transaction, answer };
        let sent = self
            .writer
            .as_ref()
            .is_some_and(|writer| writer.send(order).is_ok());
        if sent {
            answered.await.unwrap_or(Err(StoreError::Closed))
        } else {
            Err(StoreError::Closed)
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }
}

/// Takes the folder for this process.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed(format!("open {}", path.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            folder: folder.display().to_string(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(format!("lock {}", path.display()))(error)),
    }
}

/// Makes an empty store under another name and renames it, so that a crash leaves no half-made file.
fn create(folder: &Path, file: &Path) -> Result<(), StoreError> {
    let unfinished = folder.join(format!("{FILE}.new"));
    let making = || format!("create {}", file.display());
    if unfinished.exists() {
        fs::remove_file(&unfinished).map_err(failed(making()))?;
    }
    let database = open(&unfinished)?;
    let transaction = database.begin_write().map_err(failed(making()))?;
    {
        let mut properties = transaction.open_table(PROPERTIES).map_err(failed(making()))?;
        properties.insert("schema", SCHEMA).map_err(failed(making()))?;
        properties.insert("revision", 0).map_err(failed(making()))?;
        transaction.open_table(RECORDS).map_err(failed(making()))?;
    }
    transaction.commit().map_err(failed(making()))?;
    database.close().map_err(failed(making()))?;
    fs::rename(&unfinished, file).map_err(failed(making()))?;
    let folder = File::open(folder).map_err(failed(making()))?;
    folder.sync_all().map_err(failed(making()))
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let opening = || format!("open {}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed(opening()))?;
    Builder::new()
        .set_cache_size(CACHE)
        .create_with_backend(FileBackend::new(file).map_err(failed(opening()))?)
        .map_err(failed(opening()))
}

/// Whether the file has the layout that this version knows, and the revision at which it stands.
fn check(database: &Database, file: &Path) -> Result<u64, StoreError> {
    let transaction = database.begin_read().map_err(failed("read"))?;
    let property = |name| match transaction.open_table(PROPERTIES) {
        Ok(properties) => Ok(properties
            .get(name)
            .map_err(failed("read"))?
            .map_or(0, |value| value.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(failed("read")(error)),
    };
    match property("schema")? {
        SCHEMA => property("revision"),
        found => Err(StoreError::Schema {
            file: file.display().to_string(),
            found,
        }),
    }
}

/// Reads the last commit on a blocking thread.
async fn read<T: Send + 'static>(
    database: &Arc<Database>,
    read: impl FnOnce(&redb::ReadOnlyTable<&'static str, (u64, &'static [u8])>) -> Result<T, StoreError>
    + Send
    + 'static,
) -> Result<T, StoreError> {
    let database = Arc::clone(database);
    let reading = tokio::task::spawn_blocking(move || {
        let transaction = database.begin_read().map_err(failed("read"))?;
        read(&transaction.open_table(RECORDS).map_err(failed("read"))?)
    });
    match reading.await {
        Ok(result) => result,
        Err(error) => Err(failed("read")(error)),
    }
}

/// The writing thread. It ends with the store.
fn write_all(database: &Database, orders: &Receiver<Order>, announce: &watch::Sender<u64>) {
    while let Ok(first) = orders.recv() {
        let mut batch = vec![first];
        batch.extend(orders.try_iter().take(MOST_AT_ONCE - 1));
        let before = *announce.borrow();
        match write_batch(database, &batch, before) {
            Ok((outcomes, revision)) => {
                if revision != before {
                    announce.send_replace(revision);
                }
                for (order, outcome) in batch.into_iter().zip(outcomes) {
                    reply(order, outcome);
                }
            }
            Err(error) => {
                let text = chain(&error);
                tracing::error!("nothing can be stored: {text}");
                for order in batch {
                    reply(order, Err(failed("write")(text.clone())));
                }
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Who asked may have gone; the commit stands all the same.
fn reply(order: Order, outcome: Result<u64, StoreError>) {
    if order.answer.send(outcome).is_err() {
        tracing::debug!("nobody waits for the outcome of a commit any more");
    }
}

/// Carries out each transaction whose conditions hold, all in one commit of the file.
fn write_batch(
    database: &Database,
    batch: &[Order],
    mut revision: u64,
) -> Result<(Vec<Result<u64, StoreError>>, u64), StoreError> {
    let transaction = database.begin_write().map_err(failed("write"))?;
    let mut outcomes = Vec::with_capacity(batch.len());
    let before = revision;
    {
        let mut records = transaction.open_table(RECORDS).map_err(failed("write"))?;
        for order in batch {
            let outcome = match first_conflict(&records, &order.transaction)? {
                Some(key) => Err(StoreError::Conflict { key }),
                None => {
                    revision += 1;
                    apply(&mut records, &order.transaction, revision)?;
                    Ok(revision)
                }
            };
            outcomes.push(outcome);
        }
    }
    if revision == before {
        transaction.abort().map_err(failed("write"))?;
    } else {
        finish(transaction, revision)?;
    }
    Ok((outcomes, revision))
}

fn finish(transaction: WriteTransaction, revision: u64) -> Result<(), StoreError> {
    transaction
        .open_table(PROPERTIES)
        .map_err(failed("write"))?
        .insert("revision", revision)
        .map_err(failed("write"))?;
    transaction.commit().map_err(failed("write"))
}

/// The first key whose condition does not hold. Conditions are about what was there before the transaction.
fn first_conflict(
    records: &Table<'_, &str, (u64, &[u8])>,
    transaction: &Transaction,
) -> Result<Option<String>, StoreError> {
    for write in &transaction.writes {
        if write.condition == Condition::Any {
            continue;
        }
        let found = records.get(write.key.as_str()).map_err(failed("read"))?;
        let holds = match (write.condition, found.map(|found| found.value().0)) {
            (Condition::Any, _) | (Condition::Absent, None) => true,
            (Condition::Revision(wanted), Some(found)) => wanted == found,
            (Condition::Absent, Some(_)) | (Condition::Revision(_), None) => false,
        };
        if !holds {
            return Ok(Some(write.key.clone()));
        }
    }
    Ok(None)
}

fn apply(
    records: &mut Table<'_, &str, (u64, &[u8])>,
    transaction: &Transaction,
    revision: u64,
) -> Result<(), StoreError> {
    for write in &transaction.writes {
        match &write.value {
            Some(value) => {
                records
                    .insert(write.key.as_str(), (revision, value.as_slice()))
                    .map_err(failed("write"))?;
            }
            None => {
                records.remove(write.key.as_str()).map_err(failed("write"))?;
            }
        }
    }
    Ok(())
}

/// Says what was being done when something failed.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    action: impl Into<String>,
) -> impl FnOnce(E) -> StoreError {
    let action = action.into();
    move |error| StoreError::Failed {
        action,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests;
