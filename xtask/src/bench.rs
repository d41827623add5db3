//! `bench`: builds everything as it is delivered, and measures.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;
use lab::images::FOLDER_VARIABLE;
use lab::system::PROGRAMS_VARIABLE;

use crate::command::{cargo, execute, need_root};
use crate::daemons::{self, Profile};
use crate::programs::{self, OBJECT_VARIABLE};
use crate::workspace::binary;
use crate::{images, setup};

/// What the bench calls the measurement that needs all daemons.
const SYSTEM: &str = "system";
/// What the bench calls the measurement that needs the programs, and a way to run them on one packet.
const PROGRAMS: &str = "programs";

/// Builds programs, daemons and the bench as they are delivered, and runs a measurement.
///
/// All that follows goes to the bench: `cargo xtask bench overlay --json FILE` writes the figures of the overlay
/// against plain routing, `cargo xtask bench programs` measures what each program costs per packet,
/// `cargo xtask bench system` measures how long an instance takes to run and what the daemons need at rest,
/// `cargo xtask bench -- --help` tells what else there is to measure. Needs root, and a machine that does nothing else
/// meanwhile.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure, and options of the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(options: Options) -> Result<()> {
    let Options { arguments } = options;
    need_root("measuring")?;
    let asks_for = |name: &str| arguments.iter().any(|argument| argument == name);
    let (needs_all, needs_programs) = (asks_for(SYSTEM), asks_for(PROGRAMS));
    let object = programs::build()?;
    let mut build = cargo()?;
    build.args(["build", "--locked", "-p", "bench", "-p", "netmanager"]);
    if needs_programs {
        // The kernel takes the time itself: how the rest is built makes no difference.
        build.args(["--bin", "bench", "--example", "measure"]);
    } else {
        build.arg("--release");
    }
    let profile = if needs_programs { "debug" } else { "release" };
    let mut bench = Command::new(binary(profile, "bench")?);
    bench.args(arguments);
    if needs_all {
        setup::ensure_complete()?;
        bench
            .env(PROGRAMS_VARIABLE, daemons::build(Profile::Release)?)
            .env(FOLDER_VARIABLE, images::ensure()?);
    } else if needs_programs {
        bench.env("MEASURE", binary(profile, "examples/measure")?);
    } else {
        bench.env("NETMANAGER", binary(profile, "NetManager")?);
    }
    execute(build.env(OBJECT_VARIABLE, object))?;
    // In the folder it is called from, so that a file it is to write is found there.
    execute(&mut bench)
}
