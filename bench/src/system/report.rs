//! What came out: rows, each with its bar where there is one, and how they are shown.

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use rand::Rng;
use serde::Serialize;

use super::footprint::Footprint;
use super::starts::{LOOK, Starts};
use crate::statistics::{Pair, Verdict, bootstrap, median};

/// Samples that are drawn for an interval.
const RESAMPLES: usize = 10_000;
/// Level of the intervals.
const LEVEL: f64 = 0.95;

/// What a start may take beyond Docker's own, in milliseconds.
const START_BAR: f64 = 100.0;
/// What the daemons of one machine may have together, in MiB.
const CONTROL_BAR: f64 = 40.0;
const WORKER_BAR: f64 = 25.0;
/// What a daemon may use at rest, in percent of one processor.
const PROCESSOR_BAR: f64 = 0.5;

const MILLISECONDS: &str = "ms";
const MEBIBYTES: &str = "MiB";
const PERCENT: &str = "% of a core";

/// Everything about a run, as it is written to the file.
#[derive(Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub cpus: usize,
    pub rounds: u32,
    /// How long the daemons were looked at while nothing happened.
    pub idle_seconds: f64,
    pub seed: u64,
    /// Which share of the machine others used before anything was measured.
    pub busy_before: f64,
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, PartialEq, Serialize)]
pub struct Row {
    pub figure: String,
    pub value: f64,
    /// Of the median, where it is one of many values.
    pub interval: Option<(f64, f64)>,
    pub unit: &'static str,
    /// What it may be at most.
    pub at_most: Option<f64>,
    pub verdict: Option<Verdict>,
    /// What it was made of, round by round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Pair>,
}

impl Row {
    fn plain(figure: String, value: f64, unit: &'static str, at_most: Option<f64>) -> Self {
        Self::with_interval(figure, value, None, unit, at_most)
    }

    fn with_interval(
        figure: String,
        value: f64,
        interval: Option<(f64, f64)>,
        unit: &'static str,
        at_most: Option<f64>,
    ) -> Self {
        let verdict = at_most.map(|bar| {
            let low = interval.map_or(value, |(low, _high)| low);
            Verdict::at_most(bar, value, low)
        });
        Self {
            figure,
            value,
            interval,
            unit,
            at_most,
            verdict,
            rounds: Vec::new(),
        }
    }
}

/// The rows of the starts: both ways in both figures, and what the system's takes more.
pub fn of_starts(starts: &Starts, random: &mut impl Rng) -> Result<Vec<Row>> {
    let figures = [
        ("process runs", &starts.process),
        ("told that it runs", &starts.told),
    ];
    let mut rows = Vec::new();
    for (what, pairs) in figures {
        let mut row = |figure: String, value: fn(&Pair) -> f64, at_most| -> Result<()> {
            let values: Vec<f64> = pairs.iter().map(value).collect();
            let estimate = bootstrap(&values, LEVEL, RESAMPLES, random)?;
            let interval = Some((estimate.low, estimate.high));
            rows.push(Row::with_interval(
                figure,
                median(&values)?,
                interval,
                MILLISECONDS,
                at_most,
            ));
            Ok(())
        };
        row(format!("POST until {what}"), |pair| pair.measured, None)?;
        row(
            format!("Docker's create and start until {what}"),
            |pair| pair.baseline,
            None,
        )?;
        row(
            format!("difference until {what}"),
            |pair| pair.measured - pair.baseline,
            Some(START_BAR),
        )?;
        if let Some(difference) = rows.last_mut() {
            difference.rounds.clone_from(pairs);
        }
    }
    Ok(rows)
}

/// The rows of the daemons at rest: `control` and `worker`, each with its sum.
pub fn of_footprints(control: &[Footprint], worker: &[Footprint]) -> Vec<Row> {
    let mut rows = Vec::new();
    let groups = [
        (control, "root and cluster", CONTROL_BAR),
        (worker, "NetManager and NodeEngine", WORKER_BAR),
    ];
    for (group, name, bar) in groups {
        for daemon in group {
            let Footprint {
                name,
                memory,
                anonymous,
                threads,
                processor: _,
            } = daemon;
            let figure =
                format!("memory of {name} ({anonymous:.1} of it no part of a file; {threads} threads)");
            rows.push(Row::plain(figure, *memory, MEBIBYTES, None));
        }
        let sum = group.iter().map(|daemon| daemon.memory).sum();
        rows.push(Row::plain(
            format!("memory of {name} together"),
            sum,
            MEBIBYTES,
            Some(bar),
        ));
    }
    for daemon in control.iter().chain(worker) {
        let figure = format!("processor of {}", daemon.name);
        rows.push(Row::plain(figure, daemon.processor, PERCENT, Some(PROCESSOR_BAR)));
    }
    rows
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        format!(
            "Linux {}, {} CPUs; others used {:.0} % of the machine before\n\
             {} rounds, both ways in each in random order; medians with their {:.0} % interval, differences within the \
             rounds;\n{RESAMPLES} resamples, seed {}\n\
             process runs: from the request until State.StartedAt of the container; told: until the root says RUNNING\n\
             (looked at every {} ms over one connection), until Docker has answered the start. Docker alone starts the \
             same\nimage with the same limits and no network, by its API over one connection. The image is present.\n\
             Memory: proportional set (PSS) with one instance running, {} s after the last change. BPF maps are the \
             kernel's\nand not in it.\n\n{}\n",
            self.kernel,
            self.cpus,
            self.busy_before * 100.0,
            self.rounds,
            LEVEL * 100.0,
            self.seed,
            LOOK.as_millis(),
            self.idle_seconds,
            self.table()
        )
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_header(["FIGURE", "VALUE", "INTERVAL", "UNIT", "BAR"]);
        for index in 1..=2 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in &self.rows {
            let digits = match row.unit {
                MILLISECONDS => 0,
                PERCENT => 2,
                _ => 1,
            };
            let interval = row.interval.map(|(low, high)| format!("{low:.0}–{high:.0}"));
            table.add_row([
                row.figure.clone(),
                format!("{:.digits$}", row.value),
                interval.unwrap_or_default(),
                row.unit.to_owned(),
                bar_text(row.at_most, row.verdict),
            ]);
        }
        table
    }
}

fn bar_text(bar: Option<f64>, verdict: Option<Verdict>) -> String {
    let Some(bar) = bar else {
        return String::new();
    };
    let verdict = match verdict {
        Some(Verdict::Holds) => ": holds",
        Some(Verdict::Unsure) => ": unsure",
        Some(Verdict::Missed) => ": MISSED",
        None => "",
    };
    format!("at most {bar}{verdict}")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn difference(differences: &[f64]) -> Row {
        let pair = |difference: &f64| Pair {
            baseline: 300.0,
            measured: 300.0 + difference,
        };
        let starts = Starts {
            process: differences.iter().map(pair).collect(),
            told: differences.iter().map(pair).collect(),
        };
        let rows = of_starts(&starts, &mut StdRng::seed_from_u64(1)).expect("rows");
        assert_eq!(rows.len(), 6);
        rows.into_iter().nth(2).expect("the first difference")
    }

    #[test]
    fn a_difference_is_held_against_its_bar() {
        let row = difference(&[100.0; 10]);
        assert_eq!((row.value, row.verdict), (100.0, Some(Verdict::Holds)));
        assert_eq!(difference(&[101.0; 10]).verdict, Some(Verdict::Missed));
        let wide = [90.0, 95.0, 99.0, 100.0, 101.0, 103.0, 104.0, 110.0, 120.0, 130.0];
        assert_eq!(difference(&wide).verdict, Some(Verdict::Unsure));
    }

    #[test]
    fn memory_is_summed_and_the_processor_is_not() {
        let daemon = |name: &str, memory, processor| Footprint {
            name: name.to_owned(),
            memory,
            anonymous: 1.0,
            threads: 3,
            processor,
        };
        let rows = of_footprints(
            &[daemon("root", 15.0, 0.1), daemon("cluster", 25.0, 0.6)],
            &[daemon("netmanager", 20.0, 0.0), daemon("nodeengine", 6.0, 0.0)],
        );
        let verdict = |figure: &str| rows.iter().find(|row| row.figure == figure)?.verdict;
        assert_eq!(
            verdict("memory of root and cluster together"),
            Some(Verdict::Holds)
        );
        assert_eq!(
            verdict("memory of NetManager and NodeEngine together"),
            Some(Verdict::Missed)
        );
        assert_eq!(verdict("processor of root"), Some(Verdict::Holds));
        assert_eq!(verdict("processor of cluster"), Some(Verdict::Missed));
    }
}
