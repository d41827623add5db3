//! What came out: rows, whether the run counts, and how both are shown.

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use rand::Rng;
use serde::Serialize;

use super::comparison::{Bar, Metric, Route};
use super::rounds::Series;
use crate::statistics::{Estimate, Pair, bootstrap, median};

/// Samples that are drawn for an interval.
const RESAMPLES: usize = 10_000;
/// Level of the interval of a ratio.
const LEVEL: f64 = 0.95;
/// Level of the intervals of the A/A rows, of which there is one for each figure: all of them together contain 1.0
/// with probability [`LEVEL`], so that of good runs one in twenty is void, and not one in five.
const CONTROL_LEVEL: f64 = 1.0 - (1.0 - LEVEL) / Metric::ALL.len() as f64;
/// The widest that half an interval of an A/A row may be.
const WIDEST: f64 = 0.05;

/// Everything about a run, as it is written to the file.
#[derive(Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub cpus: usize,
    pub mtu: u32,
    pub offloads: &'static str,
    pub congestion_control: &'static str,
    pub rounds: u32,
    pub seconds: f64,
    pub seed: u64,
    /// Which share of the machine others used before anything was measured.
    pub busy_before: f64,
    pub void: bool,
    /// Why it is.
    pub void_because: Vec<String>,
    pub rows: Vec<Row>,
}

/// One comparison in one figure.
#[derive(Debug, Serialize)]
pub struct Row {
    pub path: Route,
    pub baseline: Route,
    pub metric: Metric,
    /// Median over the rounds of path divided by baseline.
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
    /// Level of the interval.
    pub level: f64,
    /// The path's own median.
    pub median: f64,
    pub baseline_median: f64,
    pub unit: &'static str,
    pub bar: Option<Bar>,
    pub verdict: Option<Verdict>,
    /// What it was made of, round by round: of the baseline and of the path.
    pub rounds: Vec<Pair>,
}

/// How a row stands to its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The ratio does.
    Holds,
    /// The ratio does not, but its interval reaches the bar.
    Unsure,
    /// The whole interval lies beyond the bar.
    Missed,
}

impl Row {
    pub fn new(series: &Series, random: &mut impl Rng) -> Result<Self> {
        let Series {
            comparison,
            metric,
            pairs,
        } = series;
        let column = |value: fn(&Pair) -> f64| pairs.iter().map(value).collect::<Vec<f64>>();
        let level = if comparison.is_control() {
            CONTROL_LEVEL
        } else {
            LEVEL
        };
        let estimate = bootstrap(&column(|pair| pair.ratio()), level, RESAMPLES, random)?;
        let bar = comparison.bar(*metric);
        Ok(Self {
            path: comparison.measured,
            baseline: comparison.baseline,
            metric: *metric,
            ratio: estimate.median,
            low: estimate.low,
            high: estimate.high,
            level,
            median: median(&column(|pair| pair.measured))?,
            baseline_median: median(&column(|pair| pair.baseline))?,
            unit: metric.unit(),
            bar,
            verdict: bar.map(|bar| verdict(bar, estimate)),
            rounds: pairs.clone(),
        })
    }

    fn estimate(&self) -> Estimate {
        Estimate {
            median: self.ratio,
            low: self.low,
            high: self.high,
        }
    }
}

fn verdict(bar: Bar, estimate: Estimate) -> Verdict {
    let (holds, reaches) = match bar {
        Bar::AtLeast(least) => (estimate.median >= least, estimate.high >= least),
        Bar::AtMost(most) => (estimate.median <= most, estimate.low <= most),
    };
    match (holds, reaches) {
        (true, _) => Verdict::Holds,
        (false, true) => Verdict::Unsure,
        (false, false) => Verdict::Missed,
    }
}

/// Why a run with these rows tells nothing: its A/A rows show a difference where there is none, or could not have
/// shown one.
pub fn void_because(rows: &[Row]) -> Vec<String> {
    let mut reasons = Vec::new();
    for row in rows.iter().filter(|row| row.path == row.baseline) {
        let (name, estimate) = (row.metric.name(), row.estimate());
        if !estimate.contains(1.0) {
            reasons.push(format!(
                "{name}, A/A: {:.3}–{:.3} does not contain 1",
                row.low, row.high
            ));
        }
        if estimate.half_width() > WIDEST {
            reasons.push(format!(
                "{name}, A/A: half of {:.3}–{:.3} is more than {:.0} %",
                row.low,
                row.high,
                WIDEST * 100.0
            ));
        }
    }
    reasons
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let head = format!(
            "Linux {}, {} CPUs, MTU {} at every endpoint, wire: {}, {}\n\
             {} rounds, {} s each; ratio: median over the rounds of path / baseline, with its {:.0} % interval\n\
             (A/A rows: {:.2} %, which is {:.0} % for all of them together); {RESAMPLES} resamples, seed {}",
            self.kernel,
            self.cpus,
            self.mtu,
            self.offloads,
            self.congestion_control,
            self.rounds,
            self.seconds,
            LEVEL * 100.0,
            CONTROL_LEVEL * 100.0,
            LEVEL * 100.0,
            self.seed,
        );
        let mut text = format!("{head}\n\n{}\n", self.table());
        for reason in &self.void_because {
            text.push_str(&format!("\nVOID: {reason}"));
        }
        if self.void {
            text.push_str(&format!(
                "\nThis run tells nothing. Others used {:.0} % of the machine just before it.\n",
                self.busy_before * 100.0
            ));
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "PATH",
            "BASELINE",
            "FIGURE",
            "RATIO",
            "INTERVAL",
            "MEDIAN",
            "BASELINE'S",
            "UNIT",
            "BAR",
        ]);
        for index in 3..=6 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in &self.rows {
            let digits = row.metric.digits();
            let control = if row.path == row.baseline { " (A/A)" } else { "" };
            table.add_row([
                format!("{}{control}", row.path.name()),
                row.baseline.name().to_owned(),
                row.metric.name().to_owned(),
                format!("{:.3}", row.ratio),
                format!("{:.3}–{:.3}", row.low, row.high),
                format!("{:.digits$}", row.median),
                format!("{:.digits$}", row.baseline_median),
                row.unit.to_owned(),
                bar_text(row.bar, row.verdict),
            ]);
        }
        table
    }
}

fn bar_text(bar: Option<Bar>, verdict: Option<Verdict>) -> String {
    let bar = match bar {
        Some(Bar::AtLeast(least)) => format!("at least {least}"),
        Some(Bar::AtMost(most)) => format!("at most {most}"),
        None => return String::new(),
    };
    match verdict {
        Some(Verdict::Holds) => format!("{bar}: holds"),
        Some(Verdict::Unsure) => format!("{bar}: unsure"),
        Some(Verdict::Missed) => format!("{bar}: MISSED"),
        None => bar,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::comparison::Comparison;
    use super::*;

    fn row(measured: Route, baseline: Route, metric: Metric, ratios: &[f64]) -> Row {
        let pair = |ratio: &f64| Pair {
            baseline: 10.0,
            measured: 10.0 * ratio,
        };
        let series = Series {
            comparison: Comparison { measured, baseline },
            metric,
            pairs: ratios.iter().map(pair).collect(),
        };
        Row::new(&series, &mut StdRng::seed_from_u64(1)).expect("a row")
    }

    #[test]
    fn a_row_tells_path_over_baseline() {
        let row = row(Route::Overlay, Route::Routing, Metric::Throughput, &[0.8; 15]);
        assert_eq!((row.ratio, row.median, row.baseline_median), (0.8, 8.0, 10.0));
        assert_eq!(row.bar, Some(Bar::AtLeast(0.9)));
        assert_eq!(row.verdict, Some(Verdict::Missed));
    }

    #[test]
    fn a_bar_is_missed_for_sure_only_where_the_whole_interval_is_beyond_it() {
        let estimate = |low, median, high| Estimate { median, low, high };
        let cases = [
            (Bar::AtLeast(0.9), estimate(0.85, 0.90, 0.95), Verdict::Holds),
            (Bar::AtLeast(0.9), estimate(0.85, 0.89, 0.90), Verdict::Unsure),
            (Bar::AtLeast(0.9), estimate(0.85, 0.87, 0.89), Verdict::Missed),
            (Bar::AtMost(1.15), estimate(1.10, 1.15, 1.20), Verdict::Holds),
            (Bar::AtMost(1.15), estimate(1.15, 1.16, 1.20), Verdict::Unsure),
            (Bar::AtMost(1.15), estimate(1.16, 1.18, 1.20), Verdict::Missed),
        ];
        for (bar, estimate, expected) in cases {
            assert_eq!(verdict(bar, estimate), expected, "{bar:?} {estimate:?}");
        }
    }

    #[test]
    fn a_run_is_void_by_its_controls_only() {
        let control = |ratios: &[f64]| row(Route::Routing, Route::Routing, Metric::Exchange, ratios);
        let calm = [
            0.98, 1.02, 1.01, 0.99, 1.0, 1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
        ];
        let wild = [
            0.5, 1.5, 0.6, 1.4, 0.7, 1.3, 0.8, 1.2, 0.9, 1.1, 1.0, 1.0, 0.5, 1.5, 1.0,
        ];
        let slow = row(
            Route::Overlay,
            Route::Routing,
            Metric::Exchange,
            &wild.map(|ratio| ratio * 3.0),
        );
        assert_eq!(void_because(&[control(&calm), slow]), Vec::<String>::new());
        assert_eq!(void_because(&[control(&wild)]).len(), 1, "too wide");
        assert_eq!(void_because(&[control(&[1.02; 15])]).len(), 1, "not 1");
    }

    #[test]
    fn the_file_has_the_names_that_were_agreed() {
        let row = row(Route::Overlay, Route::Routing, Metric::Exchange, &[1.1; 15]);
        let value = serde_json::to_value(&row).expect("JSON");
        assert_eq!(value["path"], "overlay");
        assert_eq!(value["baseline"], "routing");
        assert_eq!(value["metric"], "1-byte p50");
        assert_eq!(value["unit"], "µs");
        assert_eq!(value["bar"], serde_json::json!({"at_most": 1.15}));
        assert_eq!(value["verdict"], "holds");
        for name in ["ratio", "low", "high", "median", "baseline_median"] {
            assert!(value[name].is_f64(), "{name}");
        }
    }
}
