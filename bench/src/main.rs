//! Measures the overlay against plain routing, the system beside its Docker, and the programs packet by packet.

mod interrupt;
mod load;
mod machine;
mod overlay;
mod programs;
mod statistics;
mod system;

use std::process::ExitCode;

use clap::Parser;

/// Measures oakestra-ebpf in a laboratory of network namespaces. Needs root.
///
/// `cargo xtask bench` builds everything as it is delivered and calls this. What it measures are ratios, taken in
/// one run on one machine, or differences to what the machine does without it: they carry over to other machines, the
/// absolute figures beside them do not.
#[derive(Parser)]
#[command(name = "bench", version)]
enum Verb {
    Overlay(overlay::Options),
    Programs(programs::Options),
    System(system::Options),
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Overlay(options) => overlay::run(options),
        Verb::Programs(options) => programs::run(options),
        Verb::System(options) => system::run(options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
