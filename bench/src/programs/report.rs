//! What came out: rows, each with its bar where there is one, and how they are shown.

use anyhow::{Context as _, Result, ensure};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::statistics::{Estimate, Verdict, bootstrap};

/// Samples that are drawn for an interval.
const RESAMPLES: usize = 10_000;
/// Level of the intervals.
const LEVEL: f64 = 0.95;

/// How many nanoseconds 100,000 flows may cost beyond one look-up in their table, and 10,000 services beyond it or, where
/// the same few of them are asked, at all.
const BAR: f64 = 100.0;

/// Names of paths, as the measuring program gives them.
const NOTHING_AT_ALL: &str = "nothing";
const LOOK_UP: &str = "look_up";
const OUT: &str = "tunnel";
const IN: &str = "deliver";
const NEW: &str = "new_flow";

/// What the measuring program prints.
#[derive(Debug, Deserialize)]
pub struct Measured {
    pub compiled: bool,
    pub programs: Vec<Program>,
    pub series: Vec<Series>,
}

/// A program as the kernel has taken it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Program {
    pub name: String,
    pub instructions: u32,
    /// Those that the verifier walked through, over all paths.
    pub verified_instructions: u32,
}

/// The figures of one kind of packet.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Series {
    pub path: String,
    /// None for what the others are compared with.
    pub program: Option<String>,
    /// Flows in the table, and how many of them the packets belong to, in turn.
    pub flows: u32,
    pub cycled: u32,
    /// Services that the node knows, and how many of them the packets go to, in turn.
    pub services: u32,
    pub asked: u32,
    /// Per packet, in each round, the measuring itself included.
    pub nanoseconds: Vec<f64>,
}

/// Everything about a run, as it is written to the file.
#[derive(Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub cpus: usize,
    pub rounds: u32,
    pub packets: u32,
    pub seed: u64,
    /// Which share of the machine others used before anything was measured.
    pub busy_before: f64,
    /// Whether the kernel translates programs to machine code.
    pub compiled: bool,
    pub programs: Vec<Program>,
    pub rows: Vec<Row>,
    pub series: Vec<Series>,
}

/// One figure, in nanoseconds per packet.
#[derive(Debug, Serialize)]
pub struct Row {
    pub figure: String,
    pub program: Option<String>,
    /// Median over the rounds, and its interval.
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// How many bare look-ups in a table as full it is worth; none for differences.
    pub look_ups: Option<f64>,
    /// What it may be at most.
    pub at_most: Option<f64>,
    pub verdict: Option<Verdict>,
}

/// A series by what it is.
struct Wanted {
    path: &'static str,
    flows: u32,
    services: u32,
    asked: u32,
}

impl Wanted {
    fn of(path: &'static str) -> Self {
        Self {
            path,
            flows: FEW,
            services: FEW,
            asked: FEW,
        }
    }
}

/// Flows and services where there are few or many.
const FEW: u32 = 10;
const MANY_FLOWS: u32 = 100_000;
const MANY_SERVICES: u32 = 10_000;

/// All figures: of each kind of packet what it costs, then what many flows and services make of it.
pub fn rows(series: &[Series], random: &mut impl Rng) -> Result<Vec<Row>> {
    let find = |wanted: Wanted| -> Result<Vec<f64>> {
        let Wanted {
            path,
            flows,
            services,
            asked,
        } = wanted;
        let is_wanted = |series: &&Series| {
            (series.path.as_str(), series.flows, series.services, series.asked)
                == (path, flows, services, asked)
        };
        let found = series
            .iter()
            .find(is_wanted)
            .with_context(|| format!("nothing was measured of {path}, {flows} flows, {services} services"))?;
        Ok(found.nanoseconds.clone())
    };
    let nothing = find(Wanted::of(NOTHING_AT_ALL))?;
    let look_up = difference(&find(Wanted::of(LOOK_UP))?, &nothing)?;
    let look_up_of_many = difference(
        &find(Wanted {
            flows: MANY_FLOWS,
            ..Wanted::of(LOOK_UP)
        })?,
        &nothing,
    )?;
    let mut estimate = |values: &[f64]| bootstrap(values, LEVEL, RESAMPLES, random);

    let mut rows = Vec::new();
    for series in series.iter().filter(|series| series.path != NOTHING_AT_ALL) {
        let cost = difference(&series.nanoseconds, &nothing)?;
        let baseline = if series.flows == MANY_FLOWS {
            &look_up_of_many
        } else {
            &look_up
        };
        let ratios: Vec<f64> = cost
            .iter()
            .zip(baseline)
            .map(|(cost, baseline)| cost / baseline)
            .collect();
        let Estimate { median, low, high } = estimate(&cost)?;
        rows.push(Row {
            figure: series.text(),
            program: series.program.clone(),
            value: median,
            low,
            high,
            look_ups: (series.path != LOOK_UP)
                .then(|| estimate(&ratios))
                .transpose()?
                .map(|ratio| ratio.median),
            at_most: None,
            verdict: None,
        });
    }

    let mut bar = |figure: &str, values: Vec<f64>| -> Result<()> {
        let Estimate { median, low, high } = estimate(&values)?;
        rows.push(Row {
            figure: figure.to_owned(),
            program: None,
            value: median,
            low,
            high,
            look_ups: None,
            at_most: Some(BAR),
            verdict: Some(Verdict::at_most(BAR, median, low)),
        });
        Ok(())
    };
    for (path, figure) in [
        (OUT, "tunnel, 100,000 flows instead of 10, beyond a bare look-up"),
        (IN, "deliver, 100,000 flows instead of 10, beyond a bare look-up"),
    ] {
        let many = find(Wanted {
            flows: MANY_FLOWS,
            ..Wanted::of(path)
        })?;
        let growth = difference(&many, &find(Wanted::of(path))?)?;
        bar(figure, difference(&growth, &look_up_of_many)?)?;
    }
    for (path, figure) in [
        (OUT, "tunnel, 10,000 services instead of 10"),
        (
            NEW,
            "new flow to one of the same 10, 10,000 services instead of 10",
        ),
    ] {
        let many = find(Wanted {
            services: MANY_SERVICES,
            ..Wanted::of(path)
        })?;
        bar(figure, difference(&many, &find(Wanted::of(path))?)?)?;
    }
    let all = find(Wanted {
        services: MANY_SERVICES,
        asked: MANY_SERVICES,
        ..Wanted::of(NEW)
    })?;
    let growth = difference(&all, &find(Wanted::of(NEW))?)?;
    bar(
        "new flow to one of 10,000 instead of 10, beyond a bare look-up",
        difference(&growth, &look_up_of_many)?,
    )?;
    Ok(rows)
}

/// Round by round.
fn difference(values: &[f64], from: &[f64]) -> Result<Vec<f64>> {
    ensure!(
        values.len() == from.len() && !values.is_empty(),
        "{} and {} rounds do not belong together",
        values.len(),
        from.len()
    );
    Ok(values
        .iter()
        .zip(from)
        .map(|(value, from)| value - from)
        .collect())
}

impl Series {
    /// For people: what the packets are, and how much of everything there is.
    fn text(&self) -> String {
        let path = match self.path.as_str() {
            LOOK_UP => "bare look-up in FLOWS",
            OUT => "established, to another node",
            IN => "established, from another node",
            "same_node" => "established, on this node",
            "published" => "to a published port",
            "published_answer" => "answer of a published port",
            "not_ours_out" => "not ours, out",
            "not_ours_in" => "not ours, in",
            NEW => "new flow, round robin",
            other => other,
        };
        let mut text = path.to_owned();
        if self.flows != FEW {
            text += &format!(", {} flows", self.flows);
        }
        if self.services != FEW {
            text += &format!(", {} services", self.services);
        }
        if self.asked != FEW {
            text += ", each in turn";
        }
        text
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        format!(
            "Linux {}, {} CPUs; others used {:.0} % of the machine before; programs are {}\n\
             {} rounds of {} packets of each kind; of a round the mean without the slowest 2 %, of the rounds the median \
             with\nits {:.0} % interval; {RESAMPLES} resamples, seed {}. What a program takes that does nothing is taken \
             off. Each packet\nis a run of its own by BPF_PROG_TEST_RUN: caches and branches are as after a system call, \
             not as in a loop.\n10 flows and 10 services where nothing else is said. LOOK-UPS: divided by a bare look-up \
             in a table as full.\n\n{}\n\n{}\n",
            self.kernel,
            self.cpus,
            self.busy_before * 100.0,
            if self.compiled {
                "machine code"
            } else {
                "interpreted"
            },
            self.rounds,
            self.packets,
            LEVEL * 100.0,
            self.seed,
            self.table(),
            self.sizes()
        )
    }

    fn table(&self) -> Table {
        let mut table = table(&["FIGURE", "PROGRAM", "NS", "INTERVAL", "LOOK-UPS", "BAR"], 2..=4);
        for row in &self.rows {
            table.add_row([
                row.figure.clone(),
                row.program.clone().unwrap_or_default(),
                format!("{:.0}", row.value),
                format!("{:.0} to {:.0}", row.low, row.high),
                row.look_ups
                    .map(|ratio| format!("{ratio:.1}"))
                    .unwrap_or_default(),
                bar_text(row.at_most, row.verdict),
            ]);
        }
        table
    }

    fn sizes(&self) -> Table {
        let mut table = table(&["PROGRAM", "INSTRUCTIONS", "VERIFIED"], 1..=2);
        for program in &self.programs {
            table.add_row([
                program.name.clone(),
                program.instructions.to_string(),
                program.verified_instructions.to_string(),
            ]);
        }
        table
    }
}

fn table(header: &[&str], numbers: std::ops::RangeInclusive<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
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

    const ROUNDS: usize = 10;

    fn series(path: &str, flows: u32, services: u32, asked: u32, nanoseconds: f64) -> Series {
        Series {
            path: path.to_owned(),
            program: None,
            flows,
            cycled: flows,
            services,
            asked,
            nanoseconds: vec![nanoseconds; ROUNDS],
        }
    }

    /// A run in which everything is just good enough.
    fn run() -> Vec<Series> {
        vec![
            series(NOTHING_AT_ALL, FEW, FEW, FEW, 90.0),
            series(LOOK_UP, FEW, FEW, FEW, 190.0),
            series(LOOK_UP, MANY_FLOWS, FEW, FEW, 490.0),
            series(OUT, FEW, FEW, FEW, 590.0),
            series(OUT, MANY_FLOWS, FEW, FEW, 1090.0),
            series(OUT, FEW, MANY_SERVICES, FEW, 690.0),
            series(IN, FEW, FEW, FEW, 590.0),
            series(IN, MANY_FLOWS, FEW, FEW, 1090.0),
            series(NEW, FEW, FEW, FEW, 1500.0),
            series(NEW, FEW, MANY_SERVICES, FEW, 1600.0),
            series(NEW, FEW, MANY_SERVICES, MANY_SERVICES, 2000.0),
        ]
    }

    fn rows_of(series: &[Series]) -> Vec<Row> {
        rows(series, &mut StdRng::seed_from_u64(1)).expect("everything was measured")
    }

    fn verdicts(series: &[Series]) -> Vec<Verdict> {
        rows_of(series).iter().filter_map(|row| row.verdict).collect()
    }

    #[test]
    fn costs_are_what_is_beyond_a_program_that_does_nothing() {
        let rows = rows_of(&run());
        let tunnel = rows.get(2).expect("a row");
        assert_eq!((tunnel.value, tunnel.look_ups), (500.0, Some(5.0)));
        let of_many = rows.get(3).expect("a row");
        assert_eq!((of_many.value, of_many.look_ups), (1000.0, Some(2.5)));
    }

    #[test]
    fn what_reaches_its_bar_holds_and_what_is_beyond_it_is_missed() {
        assert_eq!(verdicts(&run()), [Verdict::Holds; 5]);
        for (changed, bar) in [(4, 0), (7, 1), (5, 2), (9, 3), (10, 4)] {
            let mut series = run();
            series[changed].nanoseconds = vec![series[changed].nanoseconds[0] + 1.0; ROUNDS];
            let mut expected = [Verdict::Holds; 5];
            expected[bar] = Verdict::Missed;
            assert_eq!(verdicts(&series), expected, "{}", series[changed].text());
        }
    }

    #[test]
    fn a_run_without_a_figure_is_refused() {
        let mut series = run();
        series.pop();
        rows(&series, &mut StdRng::seed_from_u64(1)).expect_err("one is missing");
    }
}
