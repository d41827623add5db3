//! `bench system`: what the whole system costs beside the Docker that it uses.

mod connection;
mod footprint;
mod report;
mod starts;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::images::FOLDER_VARIABLE;
use lab::system::{PROGRAMS_VARIABLE, System};
use lab::{Daemon, Lab};
use nix::unistd::geteuid;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::footprint::{Process, look};
use self::report::{Report, of_footprints, of_starts};
use self::starts::Stage;
use crate::interrupt;
use crate::machine::{busy_share, kernel_release, processors_online};
use crate::statistics::Verdict;

/// How long the machine is looked at before anything runs.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// How long nothing happens before the daemons are looked at.
const REST: Duration = Duration::from_secs(5);

/// Measures the whole system: how long an instance takes to run, and what the daemons need at rest. Needs root.
///
/// Root, cluster and one worker run in a laboratory, with a Docker of their own. In each round an instance of the user's
/// nginx is deployed by the root's API and removed again, and Docker alone creates and starts the same image with the
/// same limits and no network. Then one instance runs, and memory and processor time of each daemon are looked at
/// while nothing happens.
///
/// Exit code: 1 for an error, or with --enforce for a missed bar.
#[derive(clap::Args)]
pub struct Options {
    /// How many times an instance is started each way.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// For how many seconds the daemons are looked at while nothing happens.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle: u64,
    /// Also writes everything to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exits with 1 when a bar is missed.
    #[arg(long)]
    enforce: bool,
    /// Of the order in the rounds and of the resamples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Options {
        rounds,
        idle,
        json,
        enforce,
        seed,
    } = options;
    ensure!(
        geteuid().is_root(),
        "the hosts are network namespaces, and making them needs root"
    );
    let programs = folder(PROGRAMS_VARIABLE)?;
    let images = folder(FOLDER_VARIABLE)?;
    // Before the minutes of measuring, not after them.
    if let Some(file) = &json {
        fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    }
    interrupt::catch()?;
    let busy_before = busy_share(QUIET_LOOK)?;
    eprintln!("starting root, cluster, one worker and their Docker");
    let lab = Lab::new("bench")?;
    let mut system = System::start(&lab, &programs, &images, 1)?;
    let control = [process(system.root()), process(system.cluster())];
    let worker = system
        .workers_mut()
        .first_mut()
        .context("the system has no worker")?;
    let worker = [process(worker.netmanager()), process(worker.engine())];

    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::set(&system)?;
    let starts = stage.measure(rounds, &mut random)?;
    stage.deploy()?;
    eprintln!("looking at the daemons for {idle} s while nothing happens");
    std::thread::sleep(REST);
    let footprints = look(&[control, worker].concat(), Duration::from_secs(idle))?;
    let (control, worker) = footprints.split_at(2);

    let mut rows = of_starts(&starts, &mut random)?;
    rows.extend(of_footprints(control, worker));
    let report = Report {
        kernel: kernel_release()?,
        cpus: processors_online()?,
        rounds,
        idle_seconds: REST.as_secs_f64() + idle as f64,
        seed,
        busy_before,
        rows,
    };
    drop(stage);
    drop(system);
    lab.remove()?;

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

fn process(daemon: &Daemon) -> Process {
    Process {
        name: daemon.name().to_owned(),
        id: daemon.pid(),
    }
}

fn folder(variable: &str) -> Result<PathBuf> {
    let folder = env::var_os(variable).with_context(|| {
        format!("{variable} is not set: `cargo xtask bench system` builds what is needed and sets it")
    })?;
    Ok(folder.into())
}
