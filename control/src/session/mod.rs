//! The numbered and acknowledged wire between a cluster and its root.
//!
//! [`Outbox`] is what one side has to say to the other: it numbers messages, keeps them until they are acknowledged,
//! and knows which session they belong to. [`drive`](drive) carries one connection; [`client`] dials (a cluster),
//! [`server`] takes connections (a root). Each message is handed to the [`Handler`] once and in order, however often the
//! connection breaks, as long as both sides live; where one of them has started anew, or has more to say than an
//! outbox holds, a new session begins with everything there is.

pub mod client;
mod drive;
mod outbox;
pub mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;

pub use drive::{Counters, Wire, WireError, WireEvent};
pub use outbox::Outbox;

/// How patient a side is.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How often the other side is asked for a sign of life.
    pub keep_alive: Duration,
    /// After how long a silence the connection is given up.
    pub dead_after: Duration,
    /// How long connecting, and the first frames, may take.
    pub handshake: Duration,
    /// The first pause between two attempts to connect; it doubles with each failure.
    pub first_pause: Duration,
    /// The longest pause between two attempts.
    pub longest_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(2),
            dead_after: Duration::from_secs(6),
            handshake: Duration::from_secs(5),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
        }
    }
}

/// The largest frame that is read, in bytes. A snapshot of some thousand placements fits.
pub const LARGEST_FRAME: usize = 64 << 20;

/// Why a message could not be taken in. It is not acknowledged, the connection ends, and the message comes again.
#[derive(Debug, thiserror::Error)]
#[error("message not taken in: {0}")]
pub struct NotTaken(pub String);

/// What one side does with what the other says. `In` is what it hears, `Out` what it says.
#[async_trait]
pub trait Handler<In, Out>: Send + Sync + 'static {
    /// A new session has begun. The handler has to call [`Outbox::begin`] with everything there is to say, in the same
    /// critical section in which it otherwise calls [`Outbox::send`]; until then what is sent is left out, because
    /// the snapshot says it.
    async fn begin(&self, outbox: &Outbox<Out>);

    /// A message. It is acknowledged when this returns, so it has to be durable by then.
    async fn message(&self, message: In) -> Result<(), NotTaken>;

    /// The connection is up (after [`Self::begin`], where there is a new session), or is not any more.
    async fn connected(&self, connected: bool);
}
