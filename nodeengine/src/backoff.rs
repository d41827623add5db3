//! How long to wait before something is tried again.

use std::time::Duration;

use rand::Rng as _;

/// Doubling pauses up to a limit.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            failures: 0,
        }
    }

    /// The pause after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.last)
    }

    /// The same, up to a quarter shorter by chance, so that many nodes do not come back in the same moment.
    pub(crate) fn next_with_jitter(&mut self) -> Duration {
        self.next().mul_f64(rand::rng().random_range(0.75..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let seconds: Vec<u64> = (0..8).map(|_| backoff.next().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..100 {
            assert_eq!(backoff.next().as_secs(), 60);
        }
        backoff.reset();
        let pause = backoff.next_with_jitter();
        assert!(
            pause <= Duration::from_secs(1) && pause >= Duration::from_millis(750),
            "{pause:?}"
        );
    }
}
