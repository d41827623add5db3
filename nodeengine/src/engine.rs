//! The instances of this node: what was ordered, and the task of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Placement};
use protocol::node::{Acknowledgement, Command, DeleteCommand};
use serde::Serialize;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::board::Board;
use crate::instance::{Instance, Message, Seen};
use crate::ledger::{Ledger, LedgerError, Phase, Record};
use crate::runtime::{ContainerEvent, ContainerEventKind, Runtime, RuntimeError};

/// Pauses between attempts to reach the runtime.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// However long an order lets an instance go on, it does not go on for longer.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);

/// Whether containers can be connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub(crate) enum Overlay {
    /// There is none on this node.
    Off,
    /// NetManager is not there, or not ready, and why.
    Waiting(String),
    /// NetManager takes containers.
    Ready,
}

/// Whether the runtime answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub(crate) enum Presence {
    /// It does not, and why.
    Away(String),
    /// It does. The number is that of the connection.
    Here(u64),
}

/// Shared by all tasks.
pub(crate) struct Engine {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) board: Board,
    pub(crate) presence: watch::Sender<Presence>,
    pub(crate) overlay: watch::Sender<Overlay>,
    ledger: Ledger,
    entries: Mutex<BTreeMap<InstanceKey, Entry>>,
}

/// An instance and its task.
struct Entry {
    /// `None` for a container that nobody ordered: its task removes it.
    record: Option<Record>,
    mailbox: mpsc::UnboundedSender<Message>,
    /// Until when it goes on although it is not wanted any more. A later process does not know it, and stops it at once.
    drains_until: Option<Instant>,
}

/// What became of an order to deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deployed {
    /// It is noted, or was already.
    Noted,
    /// A later one is there.
    Outdated { present: u64 },
}

impl Engine {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, ledger: Ledger, overlay: Overlay) -> Self {
        Self {
            runtime,
            board: Board::default(),
            presence: watch::Sender::new(Presence::Away("not asked yet".to_owned())),
            overlay: watch::Sender::new(overlay),
            ledger,
            entries: Mutex::new(BTreeMap::new()),
        }
    }

    /// Begins a task for everything that an earlier process had noted.
    pub(crate) async fn resume(self: &Arc<Self>, records: BTreeMap<InstanceKey, Record>) {
        let mut entries = self.entries.lock().await;
        for (key, record) in records {
            if matches!(record.phase, Phase::Unwanted { .. }) {
                // The cluster takes what is not shown for gone, and figures that would leave one out are not sent.
                self.board
                    .report(&record.placement, InstanceStatus::Dead, "is being removed");
            }
            self.begin(&mut entries, key, Some(record), Seen::Unknown);
        }
    }

    /// Takes an order to deploy; it is on the disk when this returns.
    pub(crate) async fn deploy(self: &Arc<Self>, placement: Placement) -> Result<Deployed, LedgerError> {
        let key = placement.key();
        let incarnation = placement.incarnation;
        let mut entries = self.entries.lock().await;
        if let Some(record) = entries.get(&key).and_then(|entry| entry.record.as_ref()) {
            let present = record.placement.incarnation;
            if present > incarnation {
                return Ok(Deployed::Outdated { present });
            }
            let is_unwanted = matches!(record.phase, Phase::Unwanted { .. });
            if present == incarnation && !is_unwanted {
                self.acknowledge(Command::Deploy, &key, Some(incarnation));
                self.board.repeat(&key);
                return Ok(Deployed::Noted);
            }
        }
        let record = Record::new(placement);
        self.note(&record).await?;
        self.acknowledge(Command::Deploy, &key, Some(incarnation));
        if let Some(entry) = entries.get_mut(&key) {
            entry.record = Some(record);
            entry.drains_until = None;
            entry.tell(Message::Wish);
        } else {
            let seen = match *self.presence.borrow() {
                // Should there be one all the same, its name is found taken.
                Presence::Here(_) => Seen::Nothing,
                Presence::Away(_) => Seen::Unknown,
            };
            self.begin(&mut entries, key, Some(record), seen);
        }
        Ok(Deployed::Noted)
    }

    /// Takes an order to delete; it is on the disk when this returns, and acknowledged when it has been carried out.
    pub(crate) async fn delete(self: &Arc<Self>, command: &DeleteCommand) -> Result<(), LedgerError> {
        let key = InstanceKey {
            job_name: command.job_name.clone(),
            instance_number: command.instance_number,
        };
        let mut entries = self.entries.lock().await;
        let entry = entries.get_mut(&key);
        let Some((entry, record)) = entry.and_then(|entry| {
            let record = entry.record.clone()?;
            Some((entry, record))
        }) else {
            info!(service = %key.job_name, instance = key.instance_number, "asked to delete what is not here");
            self.board.undeployed(&key, command.incarnation);
            self.acknowledge(Command::Delete, &key, command.incarnation);
            return Ok(());
        };
        if command
            .incarnation
            .is_some_and(|incarnation| incarnation < record.placement.incarnation)
        {
            // What was meant is gone.
            self.acknowledge(Command::Delete, &key, command.incarnation);
            return Ok(());
        }
        // Said again, it gives no more time.
        let is_news = !matches!(record.phase, Phase::Unwanted { .. });
        let record = record.with_phase(Phase::Unwanted {
            incarnation: command.incarnation,
        });
        self.note(&record).await?;
        entry.record = Some(record);
        if is_news && let Some(milliseconds) = command.drain_ms {
            let drain = Duration::from_millis(milliseconds).min(LONGEST_DRAIN);
            info!(service = %key.job_name, instance = key.instance_number, ?drain, "serves what it has begun to, and is stopped then");
            entry.drains_until = Some(Instant::now() + drain);
        }
        entry.tell(Message::Wish);
        Ok(())
    }

    /// What is to become of an instance; `None` when nobody ordered it.
    pub(crate) async fn record(&self, key: &InstanceKey) -> Option<Record> {
        self.entries.lock().await.get(key)?.record.clone()
    }

    /// Until when an instance that is not wanted any more goes on, if that is not over.
    pub(crate) async fn drains_until(&self, key: &InstanceKey) -> Option<Instant> {
        let until = self.entries.lock().await.get(key)?.drains_until?;
        (until > Instant::now()).then_some(until)
    }

    /// How many instances were ordered.
    pub(crate) async fn ordered(&self) -> usize {
        let entries = self.entries.lock().await;
        entries.values().filter(|entry| entry.record.is_some()).count()
    }

    /// Notes that a one-shot placement has done its work.
    pub(crate) async fn complete(&self, key: &InstanceKey, incarnation: u64) -> Result<(), LedgerError> {
        let mut entries = self.entries.lock().await;
        let Some(entry) = entries.get_mut(key) else {
            return Ok(());
        };
        let Some(record) = &mut entry.record else {
            return Ok(());
        };
        if record.placement.incarnation == incarnation && record.phase == Phase::Wanted {
            let completed = record.with_phase(Phase::Completed);
            self.note(&completed).await?;
            *record = completed;
        }
        Ok(())
    }

    /// Strikes out an instance whose container is gone. Whether it was struck out: it may be wanted again by now.
    pub(crate) async fn forget(&self, key: &InstanceKey) -> Result<bool, LedgerError> {
        let mut entries = self.entries.lock().await;
        let record = entries.get(key).and_then(|entry| entry.record.as_ref());
        match record.map(|record| (record.phase, record.placement.incarnation)) {
            None => {}
            Some((Phase::Unwanted { incarnation: ordered }, incarnation)) => {
                let ledger = self.ledger.clone();
                let struck = key.clone();
                blocking(move || ledger.strike(&struck)).await?;
                self.board.undeployed(key, Some(incarnation));
                self.acknowledge(Command::Delete, key, ordered);
            }
            Some((Phase::Wanted | Phase::Completed, _)) => return Ok(false),
        }
        entries.remove(key);
        Ok(true)
    }

    /// Keeps in touch with the runtime: connects, looks for containers that nobody ordered, passes events on.
    pub(crate) async fn watch_runtime(self: Arc<Self>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut connections = 0;
        loop {
            let error = match self.runtime.connect().await {
                Err(error) => error,
                Ok(()) => {
                    connections += 1;
                    let error = self.follow_runtime(connections).await;
                    backoff.reset();
                    error
                }
            };
            let reason = error.to_string();
            if backoff.failures() == 0 {
                warn!("{reason}");
            }
            self.presence.send_replace(Presence::Away(reason));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn follow_runtime(self: &Arc<Self>, connection: u64) -> RuntimeError {
        // First listen, then look: nothing happens unseen.
        let mut events = self.runtime.events();
        if let Err(error) = self.remove_strays().await {
            return error;
        }
        info!("the runtime answers");
        self.presence.send_replace(Presence::Here(connection));
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    if let Err(error) = self.dispatch(event).await {
                        return error;
                    }
                }
                Some(Err(error)) => return error,
                None => return RuntimeError::Away("Docker has gone".to_owned()),
            }
        }
    }

    /// Sees to containers of this node that nobody has ordered.
    async fn remove_strays(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for listed in self.runtime.list().await? {
            match listed.key {
                Some(key) if listed.is_named_so => {
                    let mut entries = self.entries.lock().await;
                    if !entries.contains_key(&key) {
                        warn!(service = %key.job_name, instance = key.instance_number, "removing a container that nobody ordered");
                        self.begin(&mut entries, key, None, Seen::Unknown);
                    }
                }
                // Renamed by hand, or made by hand with the labels of this node: it would never be found again.
                Some(_) | None => {
                    warn!(
                        container = listed.id,
                        "removing a container with labels of this node and another name"
                    );
                    if let Err(error) = self.runtime.remove(&listed.id).await {
                        if matches!(error, RuntimeError::Away(_)) {
                            return Err(error);
                        }
                        warn!(container = listed.id, "not removed: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    async fn dispatch(self: &Arc<Self>, event: ContainerEvent) -> Result<(), RuntimeError> {
        {
            let entries = self.entries.lock().await;
            if let Some(entry) = entries.get(&event.key) {
                entry.tell(Message::Event(event));
                return Ok(());
            }
        }
        match event.kind {
            // By hand, or for an earlier process that was killed while Docker was at it.
            ContainerEventKind::Appeared => self.remove_strays().await,
            ContainerEventKind::Disappeared => Ok(()),
        }
    }

    fn begin(
        self: &Arc<Self>,
        entries: &mut BTreeMap<InstanceKey, Entry>,
        key: InstanceKey,
        record: Option<Record>,
        seen: Seen,
    ) {
        let (mailbox, messages) = mpsc::unbounded_channel();
        let instance = Instance::new(Arc::clone(self), key.clone(), messages, seen);
        tokio::spawn(instance.run());
        let entry = Entry {
            record,
            mailbox,
            drains_until: None,
        };
        entries.insert(key, entry);
    }

    async fn note(&self, record: &Record) -> Result<(), LedgerError> {
        let ledger = self.ledger.clone();
        let record = record.clone();
        blocking(move || ledger.note(&record)).await
    }

    fn acknowledge(&self, command: Command, key: &InstanceKey, incarnation: Option<u64>) {
        self.board.acknowledge(Acknowledgement {
            command,
            job_name: key.job_name.clone(),
            instance_number: key.instance_number,
            incarnation,
        });
    }
}

impl Entry {
    fn tell(&self, message: Message) {
        if self.mailbox.send(message).is_err() {
            error!("the task of an instance has ended before its instance");
        }
    }
}

/// Runs what waits for the disk where it holds up nothing else.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
