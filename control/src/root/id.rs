//! Ids as everybody expects them: 24 hexadecimal digits.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::Rng as _;

/// A new id: four bytes of time, so that ids sort by age, and eight of chance.
pub fn new() -> String {
    format!("{:08x}{:016x}", now() as u32, rand::rng().random::<u64>())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// The same with fractions, as documents carry it.
pub fn timestamp() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
