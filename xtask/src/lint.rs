//! `lint`: what a reviewer should not have to say.

use anyhow::{Result, bail};

use crate::command::{cargo, execute};
use crate::programs::cargo_for_programs;
use crate::workspace::kernel_test_features;

/// Checks the format, and runs clippy for the host and for the kernel programs; every warning is an error.
///
/// All checks run, also when an early one fails. `cargo fmt` mends the format.
#[derive(clap::Args)]
pub struct Options {}

pub fn run(options: Options) -> Result<()> {
    let Options {} = options;
    let mut format = cargo()?;
    format.args(["fmt", "--all", "--check"]);
    let mut host = cargo()?;
    host.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--features",
        &kernel_test_features()?,
    ]);
    let mut programs = cargo_for_programs("clippy")?;

    let mut failures = Vec::new();
    for command in [
        &mut format,
        host.args(["--", "-D", "warnings"]),
        programs.args(["--", "-D", "warnings"]),
    ] {
        if let Err(error) = execute(command) {
            failures.push(format!("{error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{} of 3 checks failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}
