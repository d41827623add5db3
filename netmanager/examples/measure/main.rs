//! Measures what each program costs per packet, for `bench programs`: the real object in the running kernel, fed by
//! `BPF_PROG_TEST_RUN`, which takes the time itself.
//!
//! It stands beside the tests because it knows what they know: the layout of the tables, and a topology of three nodes.
#![expect(clippy::print_stdout, reason = "what it found goes to standard output")]

mod kernel;
mod node;
mod series;

#[path = "../../tests/programs/frame.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod frame;
#[path = "../../tests/programs/topology.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod topology;

use std::fs;

use anyhow::{Context as _, Result};
use clap::Parser;
use netmanager::dataplane::{ProgramReport, verify};
use serde::Serialize;

use series::Series;

/// Measures what each program of the data plane costs per packet, and prints it as JSON. Needs root.
///
/// `cargo xtask bench programs` builds this, runs it, and says what it found. Nothing is attached or pinned.
#[derive(Parser)]
struct Options {
    /// How many times everything is measured, in an order that changes.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets of each kind in each round.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    packets: u32,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    /// Whether the kernel translates programs to machine code.
    compiled: bool,
    programs: Vec<ProgramReport>,
    series: Vec<Series>,
}

fn main() -> Result<()> {
    let Options { rounds, packets } = Options::parse();
    let compiled = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .context("cannot ask how programs are run")?
        .trim()
        != "0";
    let programs = verify().context("cannot load the programs")?.programs;
    let series = series::measure(rounds, packets)?;
    let report = Report {
        compiled,
        programs,
        series,
    };
    println!("{}", serde_json::to_string(&report).context("cannot make JSON")?);
    Ok(())
}
