//! One connection, from its first numbered message to its end.

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::cluster::Frame;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::outbox::{Arrival, Broken, Next};
use super::{Handler, NotTaken, Outbox, Timing};

/// What a connection may bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireEvent {
    Text(String),
    /// A sign of life, or something that is none of ours.
    Other,
}

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("{0}")]
    Broken(String),
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    #[error("a newer connection has taken its place")]
    Replaced,
    #[error("the numbers of the session are broken: {0}")]
    Numbers(String),
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error("it did not begin as it should: {0}")]
    Handshake(String),
    /// The root does not want this cluster.
    #[error("refused: {0}")]
    Refused(String),
}

impl From<Broken> for WireError {
    fn from(broken: Broken) -> Self {
        Self::Numbers(broken.to_string())
    }
}

/// The two halves of a connection that carries texts.
pub trait Wire: Send {
    type Read: WireRead;
    type Write: WireWrite;

    fn split(self) -> (Self::Read, Self::Write);
}

/// The half that is read. Waiting may be given up and begun again at any time.
pub trait WireRead: Send {
    fn next(&mut self) -> impl Future<Output = Result<WireEvent, WireError>> + Send;
}

/// The half that is written.
pub trait WireWrite: Send {
    fn text(&mut self, text: String) -> impl Future<Output = Result<(), WireError>> + Send;
    fn ping(&mut self) -> impl Future<Output = Result<(), WireError>> + Send;
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// What went wrong without ending anything.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames and messages that could not be read.
    pub malformed: AtomicU64,
    /// Messages that came a second time.
    pub repeated: AtomicU64,
}

/// Writes one frame.
pub(super) async fn write_frame<W: WireWrite, M: Serialize>(
    write: &mut W,
    frame: &Frame<M>,
) -> Result<(), WireError> {
    let text = serde_json::to_string(frame).map_err(|error| WireError::Broken(error.to_string()))?;
    write.text(text).await
}

/// Reads the first frame, whatever it is.
pub(super) async fn first_frame<R: WireRead>(
    read: &mut R,
    timing: &Timing,
) -> Result<Frame<Value>, WireError> {
    let deadline = Instant::now() + timing.handshake;
    loop {
        let event = timeout_at(deadline, read.next())
            .await
            .map_err(|_elapsed| WireError::Silent(timing.handshake))??;
        match event {
            WireEvent::Text(text) => {
                return serde_json::from_str(&text).map_err(|error| WireError::Handshake(error.to_string()));
            }
            WireEvent::Other => {}
        }
    }
}

/// Carries a connection until it ends, and says why it did. A message that is being handled is handled to its end.
pub(super) async fn drive<R, W, In, Out>(
    (read, write): (&mut R, &mut W),
    outbox: &Outbox<Out>,
    handler: &dyn Handler<In, Out>,
    counters: &Counters,
    timing: &Timing,
    replaced: &CancellationToken,
) -> WireError
where
    R: WireRead,
    W: WireWrite,
    In: DeserializeOwned + Debug + Send + 'static,
    Out: Serialize + Clone + Send + Sync + 'static,
{
    let ended = replaced.child_token();
    let reading = async {
        let reason = read_all(read, outbox, handler, counters, timing, &ended).await;
        ended.cancel();
        reason
    };
    let writing = async {
        let reason = tokio::select! {
            () = ended.cancelled() => None,
            reason = write_all(write, outbox, timing) => Some(reason),
        };
        ended.cancel();
        reason
    };
    let (reading, writing) = tokio::join!(reading, writing);
    match (writing, reading) {
        _ if replaced.is_cancelled() => WireError::Replaced,
        (Some(reason), _) => reason,
        (None, Err(reason)) => reason,
        (None, Ok(())) => WireError::Closed,
    }
}

async fn write_all<W: WireWrite, Out: Serialize + Clone>(
    write: &mut W,
    outbox: &Outbox<Out>,
    timing: &Timing,
) -> WireError {
    let mut ticks = interval_at(Instant::now() + timing.keep_alive, timing.keep_alive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            next = outbox.next() => match next {
                Ok(Next::Acknowledge(number)) => write_frame(write, &Frame::<Value>::Acknowledge { number }).await,
                Ok(Next::Message(number, message)) => write_frame(write, &Frame::Message { number, message }).await,
                Err(broken) => Err(broken.into()),
            },
            _ = ticks.tick() => write.ping().await,
        };
        if let Err(error) = result {
            return error;
        }
    }
}

async fn read_all<R, In, Out>(
    read: &mut R,
    outbox: &Outbox<Out>,
    handler: &dyn Handler<In, Out>,
    counters: &Counters,
    timing: &Timing,
    ended: &CancellationToken,
) -> Result<(), WireError>
where
    R: WireRead,
    In: DeserializeOwned + Debug + 'static,
    Out: Clone + Send + Sync + 'static,
{
    loop {
        let event = tokio::select! {
            () = ended.cancelled() => return Ok(()),
            event = timeout_at(Instant::now() + timing.dead_after, read.next()) => {
                event.map_err(|_elapsed| WireError::Silent(timing.dead_after))??
            }
        };
        let text = match event {
            WireEvent::Text(text) => text,
            WireEvent::Other => continue,
        };
        match serde_json::from_str::<Frame<Value>>(&text) {
            Ok(Frame::Message { number, message }) => {
                take(number, message, outbox, handler, counters).await?;
            }
            Ok(Frame::Acknowledge { number }) => outbox.acknowledge(number)?,
            Ok(Frame::Refused { message }) => return Err(WireError::Refused(message)),
            Ok(Frame::Hello(_) | Frame::Welcome(_)) => {
                counters.malformed.fetch_add(1, Ordering::Relaxed);
                warn!("frame of a beginning in the middle of a session skipped");
            }
            Err(error) => {
                counters.malformed.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "frame skipped");
            }
        }
    }
}

async fn take<In: DeserializeOwned + 'static, Out: Clone + Send + Sync + 'static>(
    number: u64,
    message: Value,
    outbox: &Outbox<Out>,
    handler: &dyn Handler<In, Out>,
    counters: &Counters,
) -> Result<(), WireError> {
    match outbox.arrived(number)? {
        Arrival::New => match serde_json::from_value::<In>(message) {
            Ok(message) => handler.message(message).await?,
            Err(error) => {
                // Its number counts nevertheless: waiting for a better one would wait for ever.
                counters.malformed.fetch_add(1, Ordering::Relaxed);
                warn!(number, %error, "message skipped");
            }
        },
        Arrival::Again => {
            counters.repeated.fetch_add(1, Ordering::Relaxed);
            debug!(number, "message was here before");
            return Ok(());
        }
    }
    outbox.taken(number);
    Ok(())
}
