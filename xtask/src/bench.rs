//! `bench`: builds everything as it is delivered, and measures.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, execute, need_root};
use crate::programs::{self, OBJECT_VARIABLE};
use crate::workspace::binary;

/// Builds programs, NetManager and the bench in release mode, and runs a measurement.
///
/// All that follows goes to the bench: `cargo xtask bench overlay --json FILE` writes the figures of the overlay
/// against plain routing, `cargo xtask bench -- --help` tells what else there is to measure. Needs root, and a
/// machine that does nothing else meanwhile.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure, and options of the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(options: Options) -> Result<()> {
    let Options { arguments } = options;
    need_root("measuring")?;
    let object = programs::build()?;
    execute(
        cargo()?
            .args([
                "build",
                "--locked",
                "--release",
                "-p",
                "netmanager",
                "-p",
                "bench",
            ])
            .env(OBJECT_VARIABLE, object),
    )?;
    // In the folder it is called from, so that a file it is to write is found there.
    execute(
        Command::new(binary("release", "bench")?)
            .args(arguments)
            .env("NETMANAGER", binary("release", "NetManager")?),
    )
}
