//! `test`: all tests there are, and nothing left behind.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::ops::AddAssign;
use std::process::{ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::images::FOLDER_VARIABLE;
use lab::system::PROGRAMS_VARIABLE;
use lab::{Lab, Snapshot, wait_for};

use crate::command::{cargo, need_root, show};
use crate::daemons::{self, Profile};
use crate::programs::{self, OBJECT_VARIABLE};
use crate::workspace::kernel_test_features;
use crate::{build_ebpf, images, kernels, mutants, setup};

/// How long the kernel may take to be rid of the last namespaces: it removes their links in the background.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// Runs all tests: on the host, of the programs in the running kernel, and between hosts made of namespaces.
///
/// Installs what is missing (`setup`), builds and loads the programs (`build-ebpf`), builds the daemons and makes the
/// images (`images`), runs every test of the workspace, and looks whether one has left something behind: in the
/// machine's network, mounts, control groups, containers. Ends with how many passed,
/// failed and were ignored; an ignored test is a failure too. Needs root. Everything happens in network namespaces of
/// its own: the machine's network is not touched.
#[derive(clap::Args)]
pub struct Options {
    /// Runs only tests whose name contains this.
    filter: Option<String>,
    /// How many tests of a crate run at the same time.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Instead of running the tests, seeds defects into the programs, one after the other, and looks whether the tests
    /// find each of them. Takes some minutes.
    #[arg(long, conflicts_with = "threads")]
    mutants: bool,
    /// Instead of running the tests here, boots Debian's kernel of this version (`6.1`, `6.12`) in qemu and runs the tests
    /// of programs and nodes there; may be given several times. Downloads the kernel, and takes most of an hour each.
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["threads", "mutants"])]
    kernel: Vec<String>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Options {
        filter,
        threads,
        mutants,
        kernel,
    } = options;
    need_root("testing in network namespaces")?;
    setup::ensure_complete()?;
    let object = programs::build()?;
    if mutants {
        return mutants::run(&object, filter.as_deref());
    }
    if !kernel.is_empty() {
        return kernels::run(&object, &kernel, filter.as_deref());
    }
    build_ebpf::load(&object)?;
    let daemons = daemons::build(Profile::Debug)?;
    let images = images::ensure()?;

    lab::sweep()?;
    warm_up()?;
    let before = Snapshot::take()?;

    let features = kernel_test_features()?;
    let mut command = cargo()?;
    command
        .env(OBJECT_VARIABLE, object)
        .env(PROGRAMS_VARIABLE, daemons)
        .env(FOLDER_VARIABLE, images)
        .args([
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--features",
            &features,
        ])
        .args(["--", &format!("--test-threads={threads}")])
        .args(&filter)
        .stdout(Stdio::piped());
    show(&command);
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child
        .stdout
        .take()
        .context("the output of cargo test is not piped")?;
    let counts = pass_on(output)?;
    let status = child.wait().context("cannot wait for cargo test")?;

    let mut reasons = Vec::new();
    if !status.success() && counts.failed == 0 {
        reasons.push(format!(
            "cargo test failed without a failed test ({status}): see above"
        ));
    }
    if counts.passed + counts.failed + counts.ignored == 0 {
        reasons.push("not one test ran".to_owned());
    }
    let left = left_behind(&before)?;
    if !left.is_empty() {
        reasons.push(format!(
            "the machine is not as it was before:\n  {}",
            left.join("\n  ")
        ));
    }
    for reason in &reasons {
        println!("{reason}");
    }
    println!("{counts}");
    let good = status.success() && reasons.is_empty() && counts.failed == 0 && counts.ignored == 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes a lab as tests do, so that the kernel modules that bring sysctls of their own are loaded before the
/// machine is looked at, and so that a kernel that can't is found out with one clear error.
fn warm_up() -> Result<()> {
    let lab = Lab::new("warm-up")?;
    let host = lab.host("a")?;
    host.run(
        "nft",
        &[
            "add table ip warm; add chain ip warm post { type nat hook postrouting priority 100; }; \
           add rule ip warm post ct state new masquerade",
        ],
    )?;
    host.ip("tuntap add mode tap name warm vnet_hdr")?;
    lab.remove()
}

/// What is different from before, when it stays so.
fn left_behind(before: &Snapshot) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let outcome = wait_for("the machine to be as before", SETTLE_DEADLINE, || {
        left = before.difference(&Snapshot::take()?);
        Ok(left.is_empty())
    });
    match outcome {
        // With nothing left it is the looking that failed.
        Err(error) if left.is_empty() => Err(error),
        Ok(()) | Err(_) => Ok(left),
    }
}

/// Passes the output of `cargo test` on, and adds up what its test programs say in the end.
fn pass_on(output: ChildStdout) -> Result<Counts> {
    let mut counts = Counts::default();
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.context("cannot read the output of cargo test")?;
        if let Some(result) = Counts::parse(&String::from_utf8_lossy(&line)) {
            counts += result;
        }
        line.push(b'\n');
        stdout().write_all(&line).context("cannot write")?;
    }
    Ok(counts)
}

/// What test programs say in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            ignored,
        } = self;
        write!(formatter, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`
    pub fn parse(line: &str) -> Option<Self> {
        let (_, figures) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let figure = |name: &str| {
            figures
                .split("; ")
                .find_map(|figure| figure.strip_suffix(name)?.trim_end().parse().ok())
        };
        Some(Self {
            passed: figure("passed")?,
            failed: figure("failed")?,
            ignored: figure("ignored")?,
        })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            ignored,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_added_up() {
        let lines = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 1.50s",
            "test test_result ... ok",
        ];
        let mut sum = Counts::default();
        for result in lines.into_iter().filter_map(Counts::parse) {
            sum += result;
        }
        assert_eq!(
            Counts {
                passed: 13,
                failed: 2,
                ignored: 1
            },
            sum
        );
    }
}
