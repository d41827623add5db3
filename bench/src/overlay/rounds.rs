//! The rounds: every comparison under every load, both paths back to back in random order.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::Rng;

use super::comparison::{Comparison, Metric};
use super::topology::Topology;
use crate::interrupt;
use crate::load::{Path, connections_per_second, median_exchange, stream};
use crate::machine::Processors;
use crate::statistics::Pair;

/// The pairs of one comparison in one figure, one of each round.
#[derive(Clone, Debug)]
pub struct Series {
    pub comparison: Comparison,
    pub metric: Metric,
    pub pairs: Vec<Pair>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub rounds: u32,
    /// Of what is measured of a path in a round, in each figure.
    pub duration: Duration,
}

/// Measures everything, and tells on stderr how far it is.
pub fn measure(
    topology: &Topology,
    processors: &Processors,
    extent: Extent,
    random: &mut impl Rng,
) -> Result<Vec<Series>> {
    let Extent { rounds, duration } = extent;
    let mut all: Vec<Series> = Comparison::ALL
        .into_iter()
        .flat_map(|comparison| {
            Metric::ALL.map(|metric| Series {
                comparison,
                metric,
                pairs: Vec::new(),
            })
        })
        .collect();
    for round in 0..rounds {
        let mut line = format!("round {} of {rounds}", round + 1);
        for comparison in Comparison::ALL {
            let Comparison { measured, baseline } = comparison;
            line.push_str(&format!("; {}", measured.name()));
            for load in Load::ALL {
                let pairs = Order::any(random)
                    .measure(topology.path(baseline), topology.path(measured), |path| {
                        interrupt::check()?;
                        load.run(path, round as usize, processors, duration / HALVES)
                    })
                    .with_context(|| {
                        let (measured, baseline) = (measured.name(), baseline.name());
                        format!("round {}, {measured} against {baseline}", round + 1)
                    })?;
                for (metric, pair) in pairs {
                    line.push_str(&format!(" {:.3}", pair.ratio()));
                    for series in &mut all {
                        if series.comparison == comparison && series.metric == metric {
                            series.pairs.push(pair);
                        }
                    }
                }
            }
        }
        eprintln!("{line}");
    }
    Ok(all)
}

/// In so many parts each path of a pair is measured: once before and once after the other, or the other way round.
/// So what the machine's state drifts by meanwhile falls on both alike.
const HALVES: u32 = 2;

/// Which path goes first, and last.
#[derive(Clone, Copy)]
enum Order {
    BaselineOutside,
    MeasuredOutside,
}

impl Order {
    fn any(random: &mut impl Rng) -> Self {
        if random.random() {
            Self::BaselineOutside
        } else {
            Self::MeasuredOutside
        }
    }

    /// Measures both paths in this order; the pairs are the means of their halves.
    fn measure<P>(
        self,
        baseline: &P,
        measured: &P,
        run: impl Fn(&P) -> Result<Figures>,
    ) -> Result<Vec<(Metric, Pair)>> {
        let (outside, inside) = match self {
            Self::BaselineOutside => (baseline, measured),
            Self::MeasuredOutside => (measured, baseline),
        };
        let first = run(outside)?;
        let between = mean(run(inside)?, run(inside)?);
        let around = mean(first, run(outside)?);
        let (baseline, measured) = match self {
            Self::BaselineOutside => (around, between),
            Self::MeasuredOutside => (between, around),
        };
        let pairs = baseline.into_iter().zip(measured);
        Ok(pairs
            .map(|((metric, baseline), (_, measured))| (metric, Pair { baseline, measured }))
            .collect())
    }
}

/// What a load gives, the same figures in the same order each time.
type Figures = Vec<(Metric, f64)>;

fn mean(one: Figures, other: Figures) -> Figures {
    let both = one.into_iter().zip(other);
    both.map(|((metric, one), (_, other))| (metric, f64::midpoint(one, other)))
        .collect()
}

/// What runs over a path for a while; one load may give several figures.
#[derive(Clone, Copy)]
enum Load {
    Stream,
    Exchange,
    Connections,
}

impl Load {
    const ALL: [Self; 3] = [Self::Stream, Self::Exchange, Self::Connections];

    fn run(self, path: &Path, turn: usize, processors: &Processors, duration: Duration) -> Result<Figures> {
        Ok(match self {
            Self::Stream => {
                let stream = stream(path, turn, processors, duration)?;
                vec![
                    (Metric::Throughput, stream.gigabits_per_second),
                    (Metric::Cost, stream.busy_seconds_per_gigabyte),
                ]
            }
            Self::Exchange => vec![(
                Metric::Exchange,
                median_exchange(path, turn, processors, duration)?,
            )],
            Self::Connections => vec![(
                Metric::Connections,
                connections_per_second(path, processors, duration)?,
            )],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_steady_drift_of_the_machine_does_not_touch_the_ratio() {
        for order in [Order::BaselineOutside, Order::MeasuredOutside] {
            let machine = Cell::new(100.0);
            let run = |speed: &f64| {
                machine.set(machine.get() + 10.0);
                Ok(vec![(Metric::Throughput, speed * machine.get())])
            };
            let pairs = order.measure(&1.0, &2.0, run).expect("figures");
            let [(Metric::Throughput, pair)] = pairs[..] else {
                panic!("one figure, not {pairs:?}");
            };
            assert_eq!(pair.ratio(), 2.0);
        }
    }
}
