//! What one side has to say, numbered, until it is acknowledged.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

/// Messages that wait for an acknowledgement. Beyond that it is cheaper to say everything anew.
const CAPACITY: usize = 8192;

/// One direction of a session, and how far the other direction has come.
pub struct Outbox<Out> {
    state: Mutex<State<Out>>,
    changed: Notify,
    capacity: usize,
}

struct State<Out> {
    session: Option<String>,
    /// Whether the snapshot of this session has been given.
    begun: bool,
    waiting: VecDeque<Out>,
    /// Number of the first message in `waiting`.
    first: u64,
    /// The last message that was written on the present connection.
    written: u64,
    /// The last message of the other side that was taken in.
    received: u64,
    /// The last acknowledgement that was written on the present connection.
    acknowledged: u64,
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<Out> {
    Acknowledge(u64),
    Message(u64, Out),
}

/// What a number says about the message that carries it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one.
    New,
    /// It was taken in before.
    Again,
}

/// A number that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("message {found} follows message {last}")]
    Gap { last: u64, found: u64 },
    #[error("message {found} is acknowledged, {lowest} to {highest} can be")]
    Acknowledged { lowest: u64, highest: u64, found: u64 },
    #[error("the session was given up")]
    NoSession,
}

impl<Out: Clone> Default for Outbox<Out> {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl<Out: Clone> Outbox<Out> {
    /// An outbox that gives its session up when more than `capacity` messages wait.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                session: None,
                begun: false,
                waiting: VecDeque::new(),
                first: 1,
                written: 0,
                received: 0,
                acknowledged: 0,
            }),
            changed: Notify::new(),
            capacity,
        }
    }

    /// Says something: now, when the connection is back, or, where there is no session, within the snapshot that
    /// begins the next one. Never waits.
    pub fn send(&self, message: Out) {
        {
            let mut state = self.lock();
            if state.session.is_none() || !state.begun {
                return;
            }
            if state.waiting.len() >= self.capacity {
                warn!(
                    waiting = state.waiting.len(),
                    "the other side is too far behind; everything will be said anew"
                );
                state.give_up();
            } else {
                state.waiting.push_back(message);
            }
        }
        self.changed.notify_one();
    }

    /// Opens a new session with everything there is to say.
    pub fn begin(&self, snapshot: impl IntoIterator<Item = Out>) {
        {
            let mut state = self.lock();
            if state.session.is_none() || state.begun {
                return;
            }
            state.begun = true;
            state.waiting.extend(snapshot);
        }
        self.changed.notify_one();
    }

    /// The session, and the last message of the other side in it.
    pub(super) fn session(&self) -> (Option<String>, u64) {
        let state = self.lock();
        let session = state.session.clone().filter(|_| state.begun);
        (session, state.received)
    }

    /// Begins a session in which nothing has been said.
    pub(super) fn start(&self, session: String) {
        *self.lock() = State {
            session: Some(session),
            begun: false,
            waiting: VecDeque::new(),
            first: 1,
            written: 0,
            received: 0,
            acknowledged: 0,
        };
    }

    /// Goes on with the session on a new connection, where the other side has got everything up to `received`.
    pub(super) fn resume(&self, received: u64) -> Result<(), Broken> {
        let mut state = self.lock();
        if state.session.is_none() {
            return Err(Broken::NoSession);
        }
        let result = state.acknowledge(received);
        match &result {
            Ok(()) => {
                state.written = received;
                state.acknowledged = state.received;
            }
            // The other side is not who it was, or this one is not.
            Err(_) => state.give_up(),
        }
        result
    }

    /// Waits for something to write. The other ends are told apart by the caller.
    pub(super) async fn next(&self) -> Result<Next<Out>, Broken> {
        loop {
            let changed = self.changed.notified();
            if let Some(next) = self.try_next()? {
                return Ok(next);
            }
            changed.await;
        }
    }

    fn try_next(&self) -> Result<Option<Next<Out>>, Broken> {
        let mut state = self.lock();
        if state.session.is_none() {
            return Err(Broken::NoSession);
        }
        if state.acknowledged < state.received {
            state.acknowledged = state.received;
            return Ok(Some(Next::Acknowledge(state.received)));
        }
        let number = state.written + 1;
        let index = usize::try_from(number - state.first).unwrap_or(usize::MAX);
        let Some(message) = state.waiting.get(index).cloned() else {
            return Ok(None);
        };
        state.written = number;
        Ok(Some(Next::Message(number, message)))
    }

    /// What the number of a message that has come says about it.
    pub(super) fn arrived(&self, number: u64) -> Result<Arrival, Broken> {
        let mut state = self.lock();
        if number == state.received + 1 {
            return Ok(Arrival::New);
        }
        if number > state.received || number == 0 {
            return Err(Broken::Gap {
                last: state.received,
                found: number,
            });
        }
        // So that it is acknowledged again.
        state.acknowledged = state.acknowledged.min(number - 1);
        drop(state);
        self.changed.notify_one();
        Ok(Arrival::Again)
    }

    /// A message has been taken in.
    pub(super) fn taken(&self, number: u64) {
        self.lock().received = number;
        self.changed.notify_one();
    }

    /// The other side has taken in everything up to `number`.
    pub(super) fn acknowledge(&self, number: u64) -> Result<(), Broken> {
        let mut state = self.lock();
        let result = state.acknowledge(number);
        if result.is_err() {
            state.give_up();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State<Out>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Out> State<Out> {
    fn acknowledge(&mut self, number: u64) -> Result<(), Broken> {
        let highest = self.first - 1 + self.waiting.len() as u64;
        if number + 1 < self.first || number > highest {
            return Err(Broken::Acknowledged {
                lowest: self.first - 1,
                highest,
                found: number,
            });
        }
        while self.first <= number {
            self.waiting.pop_front();
            self.first += 1;
        }
        self.written = self.written.max(number);
        Ok(())
    }

    fn give_up(&mut self) {
        self.session = None;
        self.begun = false;
        self.waiting = VecDeque::new();
    }
}
