//! Runs the instances of services on a worker.
//!
//! ```text
//!   cluster ── MQTT ──► cluster::commands ──► ledger (disk) ──► one task per instance ──► runtime (Docker)
//!      ▲                                                              │
//!      └───────────────── board (statuses, reports) ◄────────────────┘
//!   NetManager ◄── overlay (registration)
//! ```
//!
//! What the cluster orders is noted on the disk before it is acknowledged. Each instance has a task that compares
//! what was noted with what the runtime has, and does the next step from the one to the other; it does the same
//! after a crash of this daemon, of Docker, or of the container, so there is one way for all of them.
#![forbid(unsafe_code)]

mod backoff;
mod board;
mod cluster;
pub mod config;
pub mod daemon;
mod engine;
mod files;
pub mod identity;
mod instance;
mod ledger;
mod lock;
mod measure;
mod overlay;
pub mod paths;
pub mod purge;
mod runtime;
pub mod status;

pub use lock::{Lock, LockError};
