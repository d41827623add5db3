//! Flows that have ended: how long each may rest, and what becomes of those whose instance is gone.
//!
//! The programs enter flows and note how they stand; only user space takes them out of `FLOWS`. Every few seconds, and
//! at once when an instance ends, one [`sweep`] looks at every entry of both tables:
//!
//! - A flow that has rested for its [lifetime](Lifetimes) is removed, both entries of it. The later of the two times at
//!   which its entries were used counts, and it is read once more right before.
//! - A flow whose instance is gone leads nowhere: the programs compare incarnations. One of UDP or ICMP is removed, one of
//!   TCP stays for a moment, in which its client is [made to speak](reminder) and is told by a reset.
//! - What flows were seen is told to whoever decides what else is still needed.
//!
//! What a sweep removes follows from the entries themselves and from `INSTANCES`, never from a record that has not
//! come yet. All the same a process that has just started removes only flows of instances that ended under its eyes
//! until the cluster has confirmed what the tables hold, unless `FLOWS` is nearly full.

mod fill;
mod lifetimes;
mod maps;
pub mod reminder;
mod sweep;

pub use fill::{Crossing, Fill, Level, Watermark};
pub use lifetimes::{Lifetimes, UNIT, rested};
pub use maps::{FlowError, FlowMaps};
pub use sweep::{FlowStore, Scope, Sweep, Table, sweep};
