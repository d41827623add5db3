//! `bench programs`: what each program of the data plane costs per packet.

mod report;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::geteuid;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::report::{Measured, Report, rows};
use crate::machine::{Processors, busy_share, kernel_release, pin, processors_online};
use crate::statistics::Verdict;

/// Names the program that measures: an example of netmanager, which knows programs and tables.
const MEASURE_VARIABLE: &str = "MEASURE";

/// How long the machine is looked at before anything runs.
const QUIET_LOOK: Duration = Duration::from_secs(1);

/// Measures what each program of the data plane costs per packet, on each path. Needs root.
///
/// The kernel runs the real programs on crafted frames, one run for each packet, and takes the time itself. Beside them
/// run a program that does nothing, whose time is taken off all others, and one that only looks a flow up. Nothing is
/// attached, and no interface is touched.
///
/// Exit code: 1 for an error, or with --enforce for a missed bar.
#[derive(clap::Args)]
pub struct Options {
    /// How many times everything is measured, in an order that changes.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets of each kind in each round.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    packets: u32,
    /// Also writes everything to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exits with 1 when a bar is missed.
    #[arg(long)]
    enforce: bool,
    /// Of the resamples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Options {
        rounds,
        packets,
        json,
        enforce,
        seed,
    } = options;
    ensure!(geteuid().is_root(), "running programs in the kernel needs root");
    // Before the minutes of measuring, not after them.
    if let Some(file) = &json {
        fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let busy_before = busy_share(QUIET_LOOK)?;
    let measured = measure(rounds, packets)?;
    let rows = rows(&measured.series, &mut StdRng::seed_from_u64(seed))?;
    let report = Report {
        kernel: kernel_release()?,
        cpus: processors_online()?,
        rounds,
        packets,
        seed,
        busy_before,
        compiled: measured.compiled,
        programs: measured.programs,
        rows,
        series: measured.series,
    };
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", report.text()).context("cannot write to stdout")?;
    if let Some(file) = &json {
        let text = serde_json::to_string_pretty(&report).context("cannot make JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let missed = report.rows.iter().any(|row| row.verdict == Some(Verdict::Missed));
    Ok(if enforce && missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn measure(rounds: u32, packets: u32) -> Result<Measured> {
    let program = env::var_os(MEASURE_VARIABLE).with_context(|| {
        format!(
            "{MEASURE_VARIABLE} is not set: `cargo xtask bench programs` builds what is needed and sets it"
        )
    })?;
    // The child stays on the processor that this thread is on: a change in between would count as a cost.
    pin(Processors::find()?.client)?;
    let output = Command::new(&program)
        .args(["--rounds", &rounds.to_string(), "--packets", &packets.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): see above",
        program.display(),
        output.status
    );
    serde_json::from_slice(&output.stdout).context("cannot read what the measuring program printed")
}
