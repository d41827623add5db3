//! Everything a developer or newcomer does, behind one door: `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    reason = "tables and summaries are what it is called for"
)]

mod bench;
mod build_ebpf;
mod command;
mod lint;
mod programs;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Prepares the machine, builds, tests and measures oakestra-ebpf.
///
/// On a fresh machine: `cargo xtask setup`, then `cargo xtask test`. Every command that is run is shown before it
/// runs, so that it can be repeated by hand. Works from every folder of the repository.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
enum Verb {
    Setup(setup::Options),
    BuildEbpf(build_ebpf::Options),
    Test(test::Options),
    Lint(lint::Options),
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Setup(options) => setup::run(options).map(|()| ExitCode::SUCCESS),
        Verb::BuildEbpf(options) => build_ebpf::run(options).map(|()| ExitCode::SUCCESS),
        Verb::Test(options) => test::run(options),
        Verb::Lint(options) => lint::run(options).map(|()| ExitCode::SUCCESS),
        Verb::Bench(options) => bench::run(options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
