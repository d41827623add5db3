//! Round trip and loss, smoothed.

use std::time::Duration;

/// Weight of a new measurement in the mean and in the deviation (RFC 6298, section 2), and in the loss.
const MEAN: u64 = 8;
const DEVIATION: u64 = 4;
const LOSS: f64 = 16.0;
/// A distance has changed when so many measurements in a row say so: by a fifth at least, and by a millisecond.
const LASTING: u32 = 4;
const SHARE: u32 = 5;
const LEAST: u32 = 1_000;
/// Measurements before there is a distance at all: from then on a restart knows that the node has answered.
const FIRST: u32 = 1;

/// The least difference that makes a distance another, in microseconds.
pub(super) fn tolerance(distance: u32) -> u32 {
    (distance / SHARE).max(LEAST)
}

/// What the measurements of one node say.
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    /// Nanoseconds; mean and mean deviation.
    round_trip: Option<(u64, u64)>,
    measured: u32,
    loss: f64,
    /// Microseconds; what others go by. It stays as it is while measurements only jitter.
    distance: Option<u32>,
    /// How many measurements in a row have said that it is too small, and too large.
    too_small: u32,
    too_large: u32,
}

impl Estimate {
    /// A probe took this long. The distance, where it is another now.
    pub fn measure(&mut self, nanoseconds: u64) -> Option<u32> {
        let (mean, deviation) = match self.round_trip {
            None => (nanoseconds, nanoseconds / 2),
            Some((mean, deviation)) => (
                (mean * (MEAN - 1) + nanoseconds) / MEAN,
                (deviation * (DEVIATION - 1) + mean.abs_diff(nanoseconds)) / DEVIATION,
            ),
        };
        self.round_trip = Some((mean, deviation));
        self.measured = self.measured.saturating_add(1);
        let microseconds = u32::try_from(mean / 1_000).unwrap_or(u32::MAX).max(1);
        let Some(distance) = self.distance else {
            return (self.measured >= FIRST).then(|| self.settle(microseconds));
        };
        let is_another = microseconds.abs_diff(distance) > tolerance(distance);
        self.too_small = if is_another && microseconds > distance {
            self.too_small + 1
        } else {
            0
        };
        self.too_large = if is_another && microseconds < distance {
            self.too_large + 1
        } else {
            0
        };
        (self.too_small.max(self.too_large) >= LASTING).then(|| self.settle(microseconds))
    }

    /// A probe was answered, or was not.
    pub fn note(&mut self, lost: bool) {
        let outcome = if lost { 1.0 } else { 0.0 };
        self.loss += (outcome - self.loss) / LOSS;
    }

    /// Mean and mean deviation.
    pub fn round_trip(&self) -> Option<(Duration, Duration)> {
        self.round_trip
            .map(|(mean, deviation)| (Duration::from_nanos(mean), Duration::from_nanos(deviation)))
    }

    /// The share of probes that are lost.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// Whether there is a distance.
    pub fn is_settled(&self) -> bool {
        self.distance.is_some()
    }

    fn settle(&mut self, microseconds: u32) -> u32 {
        self.distance = Some(microseconds);
        (self.too_small, self.too_large) = (0, 0);
        microseconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn settled(milliseconds: u64) -> Estimate {
        let mut estimate = Estimate::default();
        let distances: Vec<_> = (0..FIRST)
            .filter_map(|_| estimate.measure(milliseconds * MILLISECOND))
            .collect();
        assert_eq!(distances, [u32::try_from(milliseconds * 1_000).expect("small")]);
        estimate
    }

    #[test]
    fn mean_and_deviation_are_those_of_rfc_6298() {
        let mut estimate = Estimate::default();
        estimate.measure(8_000);
        assert_eq!(estimate.round_trip, Some((8_000, 4_000)));
        estimate.measure(16_000);
        assert_eq!(estimate.round_trip, Some((9_000, 5_000)));
    }

    #[test]
    fn p16_jitter_does_not_change_the_distance() {
        let mut estimate = settled(10);
        for round in 0..10_000_u64 {
            // Up to three times as long now and then, half as long often.
            let milliseconds = [10, 5, 12, 9, 30, 8, 5, 7][(round % 8) as usize];
            assert_eq!(estimate.measure(milliseconds * MILLISECOND), None, "{round}");
        }
        let mut near = settled(1);
        for round in 0..1_000_u64 {
            // Less than a millisecond is no difference, however large its share.
            assert_eq!(near.measure(1_900_000 - round % 2 * 1_700_000), None, "{round}");
        }
    }

    #[test]
    fn p16_a_lasting_change_is_another_distance() {
        for (before, after) in [(10, 20), (20, 10), (1, 4), (300, 100)] {
            let mut estimate = settled(before);
            let changes: Vec<(u32, u32)> = (1..=60)
                .filter_map(|number| Some((number, estimate.measure(after * MILLISECOND)?)))
                .collect();
            let (first, _) = *changes.first().expect("it is noticed");
            assert!(
                first > LASTING && first <= 16,
                "{before} to {after}: after {first}"
            );
            let (_, last) = *changes.last().expect("it is noticed");
            let after = u32::try_from(after * 1_000).expect("small");
            assert!(
                last.abs_diff(after) <= tolerance(last),
                "{before} to {after}: {changes:?}"
            );
            assert!(changes.len() <= 4, "{before} to {after}: {changes:?}");
        }
    }

    #[test]
    fn loss_follows_what_is_lost() {
        let mut estimate = Estimate::default();
        (0..100).for_each(|_| estimate.note(true));
        assert!(estimate.loss() > 0.99);
        (0..100).for_each(|_| estimate.note(false));
        assert!(estimate.loss() < 0.01);
        (0..1_000).for_each(|number| estimate.note(number % 4 == 0));
        assert!((0.15..0.35).contains(&estimate.loss()), "{}", estimate.loss());
    }
}
