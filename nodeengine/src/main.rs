//! The `NodeEngine` daemon and its command line.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line answers on standard output")]

mod commands;

use std::process::ExitCode;

use clap::Parser as _;

/// Exit code for a configuration that cannot be used (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("NodeEngine: {error:#}");
            let is_usage = error.downcast_ref::<nodeengine::config::ConfigError>().is_some();
            if is_usage {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
