//! The rounds: every comparison in every figure, both paths back to back in random order.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::Rng;

use super::comparison::{Comparison, Metric};
use super::topology::Topology;
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
    /// Of each measurement.
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
        let mut line = format!("round {} of {rounds}:", round + 1);
        for comparison in Comparison::ALL {
            let Comparison { measured, baseline } = comparison;
            line.push_str(&format!(" {}", measured.name()));
            for load in Load::ALL {
                let run = |path: &Path| load.run(path, round as usize, processors, duration);
                let failed = || {
                    format!(
                        "round {}, {} against {}",
                        round + 1,
                        measured.name(),
                        baseline.name()
                    )
                };
                let (baseline, measured) = (topology.path(baseline), topology.path(measured));
                // Neither is always the one that finds the machine as the other has left it.
                let (baseline, measured) = if random.random() {
                    let baseline = run(baseline).with_context(failed)?;
                    (baseline, run(measured).with_context(failed)?)
                } else {
                    let measured = run(measured).with_context(failed)?;
                    (run(baseline).with_context(failed)?, measured)
                };
                for ((metric, baseline), (_, measured)) in baseline.into_iter().zip(measured) {
                    let pair = Pair { baseline, measured };
                    line.push_str(&format!(" {:.3}", pair.ratio()));
                    for series in &mut all {
                        if series.comparison == comparison && series.metric == metric {
                            series.pairs.push(pair);
                        }
                    }
                }
            }
            line.push(';');
        }
        eprintln!("{}", line.trim_end_matches(';'));
    }
    Ok(all)
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

    fn run(
        self,
        path: &Path,
        turn: usize,
        processors: &Processors,
        duration: Duration,
    ) -> Result<Vec<(Metric, f64)>> {
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
