//! The clock of the programs.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Monotonic time in ns, as `bpf_ktime_get_ns` tells it.
pub fn monotonic_nanoseconds() -> u64 {
    // Every Linux has this clock; were it missing, no time stamp would be valid, which is safe.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
