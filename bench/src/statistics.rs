//! Ratios of paired measurements: their median, and how sure it is.

use anyhow::{Result, ensure};
use rand::Rng;
use serde::Serialize;

/// One measurement of each path, taken back to back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    pub baseline: f64,
    pub measured: f64,
}

impl Pair {
    /// How many times the baseline the measured path has.
    pub fn ratio(self) -> f64 {
        self.measured / self.baseline
    }
}

/// A median with an interval that contains the true one at the level it was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    pub fn contains(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// How a figure stands to its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Holds,
    /// It does not hold, but the interval reaches the bar.
    Unsure,
    Missed,
}

impl Verdict {
    /// Of a figure that is to be at most `bar`, with the lower end of its interval.
    pub fn at_most(bar: f64, value: f64, low: f64) -> Self {
        match (value <= bar, low <= bar) {
            (true, _) => Self::Holds,
            (false, true) => Self::Unsure,
            (false, false) => Self::Missed,
        }
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Result<f64> {
    ensure!(!values.is_empty(), "the median of nothing");
    Ok(median_of_sorted(&sorted(values.to_vec())))
}

/// The median with its percentile bootstrap interval: as many samples with replacement, each as large as the
/// original, and of their medians the range that leaves out the same share on both sides.
///
/// It asks nothing of the distribution, which for ratios of measurements on a shared machine is nothing regular.
pub fn bootstrap(values: &[f64], level: f64, resamples: usize, random: &mut impl Rng) -> Result<Estimate> {
    let median = median(values)?;
    ensure!(resamples > 0, "no samples to draw");
    let mut sample = vec![0.0; values.len()];
    let medians = (0..resamples).map(|_| {
        for place in &mut sample {
            *place = values[random.random_range(0..values.len())];
        }
        sample.sort_unstable_by(f64::total_cmp);
        median_of_sorted(&sample)
    });
    let medians = sorted(medians.collect());
    let left_out = (1.0 - level) / 2.0;
    let last = (resamples - 1) as f64;
    // Rounded outwards on both sides.
    let low = medians[(left_out * last).floor() as usize];
    let high = medians[((1.0 - left_out) * last).ceil() as usize];
    Ok(Estimate { median, low, high })
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Of at least one value.
fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    const RESAMPLES: usize = 10_000;

    fn random() -> StdRng {
        StdRng::seed_from_u64(1)
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0]).expect("a value"), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]).expect("values"), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]).expect("values"), 3.0);
        assert!(median(&[]).is_err(), "nothing has no median");
    }

    #[test]
    fn a_path_that_does_more_than_the_baseline_has_a_ratio_above_one() {
        let pair = |baseline, measured| Pair { baseline, measured }.ratio();
        assert_eq!(pair(10.0, 20.0), 2.0);
        assert_eq!(pair(20.0, 10.0), 0.5);
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let estimate = bootstrap(&[0.97; 15], 0.95, RESAMPLES, &mut random()).expect("values");
        assert_eq!((estimate.median, estimate.low, estimate.high), (0.97, 0.97, 0.97));
        assert_eq!(estimate.half_width(), 0.0);
    }

    /// Of 15 values, the median of a sample with replacement is at most the k-th smallest when at least 8 draws
    /// are: a probability of 0.004 for the 3rd, of 0.0255 for the 4th and of 0.088 for the 5th. So the lower end
    /// at 0.025 is the 4th, or in an unlucky drawing the 5th.
    #[test]
    fn the_interval_of_fifteen_values_is_that_of_the_binomial_distribution() {
        let values: Vec<f64> = (1..=15).map(f64::from).collect();
        let estimate = bootstrap(&values, 0.95, RESAMPLES, &mut random()).expect("values");
        assert_eq!(estimate.median, 8.0);
        assert!(estimate.low == 4.0 || estimate.low == 5.0, "{estimate:?}");
        assert!(estimate.high == 11.0 || estimate.high == 12.0, "{estimate:?}");
        assert!(estimate.contains(8.0) && !estimate.contains(3.9) && !estimate.contains(12.1));
    }

    #[test]
    fn a_higher_level_gives_a_wider_interval() {
        let values: Vec<f64> = (1..=15).map(f64::from).collect();
        let [narrow, wide] =
            [0.5, 0.99].map(|level| bootstrap(&values, level, RESAMPLES, &mut random()).expect("values"));
        assert!(wide.half_width() > narrow.half_width(), "{narrow:?} {wide:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values: Vec<f64> = (1..=20).map(|value| f64::from(value).sqrt()).collect();
        let [first, second] =
            [0, 1].map(|_| bootstrap(&values, 0.95, RESAMPLES, &mut random()).expect("values"));
        assert_eq!(first, second);
    }

    #[test]
    fn one_outlier_among_fifteen_does_not_move_the_interval_to_it() {
        let mut values = [1.0; 15];
        values[7] = 100.0;
        let estimate = bootstrap(&values, 0.95, RESAMPLES, &mut random()).expect("values");
        assert_eq!((estimate.low, estimate.high), (1.0, 1.0));
    }
}
