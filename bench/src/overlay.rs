//! `bench overlay`: the overlay against plain routing.

mod comparison;
mod crowd;
mod report;
mod rounds;
mod topology;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::unistd::geteuid;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::report::{Report, Row, Verdict, void_because};
use self::rounds::Extent;
use self::topology::Topology;
use crate::interrupt;
use crate::load::CONGESTION_CONTROL;
use crate::machine::{Processors, busy_share, kernel_release, processors_online};

/// Where the NetManager to be measured is.
const PROGRAM_VARIABLE: &str = "NETMANAGER";
/// Fewer rounds leave the interval of a median too wide.
const FEWEST_ROUNDS: u32 = 15;
/// How long the machine is looked at before anything runs.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// Exit code of a run that tells nothing.
const VOID: u8 = 2;

/// Measures the overlay against plain routing. Needs root.
///
/// Four comparisons: routing against itself (A/A, which shows how well this machine measures), the overlay through
/// a round-robin address with two replicas on the other host (1,000 services and 10,000 flows present), the same on
/// one host, and, as the limit, host to host without endpoints at the endpoints' MTU. In each round both paths of
/// each comparison are measured back to back, in random order. A ratio is the median over the rounds of path /
/// baseline, with its bootstrap interval.
///
/// Exit code: 2 for a run that is void, because an A/A row does not contain 1 or is too wide; 1 for an error, or
/// with --enforce for a missed bar.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds, at least 15 unless --quick [default: 15, with --quick 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each path is measured in a round, for each of three loads [default: 1, with --quick 0.3].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Also writes everything to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few short rounds, for a first impression. The run will most likely be void.
    #[arg(long)]
    quick: bool,
    /// Exits with 1 when the whole interval of a ratio lies beyond its bar.
    #[arg(long)]
    enforce: bool,
    /// What the wire between the hosts does with frames longer than its MTU.
    #[arg(long, value_enum, default_value_t = Wire::Superframes)]
    wire: Wire,
    /// Of the order of paths and of the resamples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Wire {
    /// Superframes cross whole, as between virtual machines on one machine.
    Superframes,
    /// The sender segments and the receiver merges, as with a physical network card.
    Nic,
}

impl Wire {
    fn offloads(self) -> lab::Offloads {
        match self {
            Self::Superframes => lab::Offloads::Kept,
            Self::Nic => lab::Offloads::LikeNic,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Superframes => "superframes cross",
            Self::Nic => "like a NIC",
        }
    }
}

pub fn run(options: Options) -> Result<ExitCode> {
    let extent = extent(&options)?;
    let Options {
        json,
        enforce,
        wire,
        seed,
        ..
    } = options;
    ensure!(
        geteuid().is_root(),
        "the hosts are network namespaces, and making them needs root"
    );
    let program = program()?;
    // Before the minutes of measuring, not after them.
    if let Some(file) = &json {
        fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let processors = Processors::find()?;
    interrupt::catch()?;
    let busy_before = busy_share(QUIET_LOOK)?;
    eprintln!("building hosts, 1,000 services and 10,000 flows");
    let topology = Topology::build(&program, wire.offloads(), &processors)?;

    let mut random = StdRng::seed_from_u64(seed);
    let series = rounds::measure(&topology, &processors, extent, &mut random)?;
    let rows: Vec<Row> = series
        .iter()
        .map(|series| Row::new(series, &mut random))
        .collect::<Result<_>>()?;
    let void_because = void_because(&rows);
    let report = Report {
        kernel: kernel_release()?,
        cpus: processors_online()?,
        mtu: topology.mtu,
        offloads: wire.text(),
        congestion_control: CONGESTION_CONTROL,
        rounds: extent.rounds,
        seconds: extent.duration.as_secs_f64(),
        seed,
        busy_before,
        void: !void_because.is_empty(),
        void_because,
        rows,
    };
    drop(topology);

    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", report.text()).context("cannot write to stdout")?;
    if let Some(file) = &json {
        let text = serde_json::to_string_pretty(&report).context("cannot make JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let missed = report.rows.iter().any(|row| row.verdict == Some(Verdict::Missed));
    Ok(if report.void {
        ExitCode::from(VOID)
    } else if enforce && missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// How much to measure, checked.
fn extent(options: &Options) -> Result<Extent> {
    let (rounds, seconds) = if options.quick {
        (3, 0.3)
    } else {
        (FEWEST_ROUNDS, 1.0)
    };
    let rounds = options.rounds.unwrap_or(rounds);
    ensure!(
        options.quick || rounds >= FEWEST_ROUNDS,
        "{rounds} rounds are too few for an interval: at least {FEWEST_ROUNDS}, or --quick"
    );
    let seconds = options.seconds.unwrap_or(seconds);
    let sensible = 0.05..=60.0;
    ensure!(
        sensible.contains(&seconds),
        "a measurement of {seconds} s: it has to be between {} and {}",
        sensible.start(),
        sensible.end()
    );
    Ok(Extent {
        rounds,
        duration: Duration::from_secs_f64(seconds),
    })
}

/// The NetManager that is measured: named by the environment, or the one beside this program.
fn program() -> Result<PathBuf> {
    let path = match env::var_os(PROGRAM_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => env::current_exe()
            .context("cannot find this program's own folder")?
            .with_file_name("NetManager"),
    };
    if !Path::new(&path).is_file() {
        bail!(
            "there is no NetManager at {}; {PROGRAM_VARIABLE} may name another place",
            path.display()
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(rounds: Option<u32>, seconds: Option<f64>, quick: bool) -> Options {
        Options {
            rounds,
            seconds,
            json: None,
            quick,
            enforce: false,
            wire: Wire::Superframes,
            seed: 1,
        }
    }

    #[test]
    fn few_rounds_have_to_be_asked_for_twice() {
        let rounds = |options| extent(&options).map(|extent| extent.rounds).ok();
        assert_eq!(rounds(options(None, None, false)), Some(15));
        assert_eq!(rounds(options(None, None, true)), Some(3));
        assert_eq!(rounds(options(Some(14), None, false)), None);
        assert_eq!(rounds(options(Some(14), None, true)), Some(14));
        assert_eq!(rounds(options(Some(15), None, false)), Some(15));
    }

    #[test]
    fn a_measurement_takes_some_time_but_not_for_ever() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(extent(&options(None, Some(seconds), true)).is_err(), "{seconds}");
        }
    }
}
