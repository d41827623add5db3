//! Everything a developer or newcomer does, behind one door: `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    reason = "tables and summaries are what it is called for"
)]

mod bench;
mod build_ebpf;
mod command;
mod daemons;
mod demo;
mod down;
mod images;
mod interrupt;
mod kernels;
mod lint;
mod mutants;
mod programs;
mod setup;
mod standing;
mod status;
mod table;
mod test;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Prepares the machine, builds, shows, runs, tests and measures oakestra-ebpf.
///
/// On a fresh machine: `cargo xtask demo`, then `cargo xtask up`. What is missing is installed first. Every command that is run is shown before it
/// runs, so that it can be repeated by hand. Works from every folder of the repository.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
enum Verb {
    Setup(setup::Options),
    Demo(demo::Options),
    Up(up::Options),
    Status(status::Options),
    Down(down::Options),
    Images(images::Options),
    BuildEbpf(build_ebpf::Options),
    Test(test::Options),
    Lint(lint::Options),
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Setup(options) => setup::run(options).map(|()| ExitCode::SUCCESS),
        Verb::Demo(options) => demo::run(options),
        Verb::Up(options) => up::run(options).map(|()| ExitCode::SUCCESS),
        Verb::Status(options) => status::run(options),
        Verb::Down(options) => down::run(options).map(|()| ExitCode::SUCCESS),
        Verb::Images(options) => images::run(options).map(|()| ExitCode::SUCCESS),
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
