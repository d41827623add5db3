//! `build-ebpf`: the programs, and what the kernel says to them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, execute, need_root, short, show};
use crate::programs::{self, OBJECT_VARIABLE};
use crate::table::print_table;
use crate::workspace::binary;

/// Builds the kernel programs, loads each into the running kernel, and prints what the verifier made of them.
///
/// The first table shows for each program its instructions and how many the verifier processed (at most a million),
/// the second the maps and their memory when full. If the kernel refuses a program, its log is shown. Nothing stays
/// loaded. Loading needs root; the tool chain comes from `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Options {
    /// Only build; needs no root.
    #[arg(long)]
    no_load: bool,
}

pub fn run(options: Options) -> Result<()> {
    let Options { no_load } = options;
    let object = programs::build()?;
    eprintln!("built {}", short(&object));
    if no_load { Ok(()) } else { load(&object) }
}

/// Loads the programs by the NetManager that carries them, since that is how they will be loaded.
pub fn load(object: &Path) -> Result<()> {
    need_root("loading programs into the kernel")?;
    execute(
        cargo()?
            .args(["build", "--locked", "-p", "netmanager", "--bin", "NetManager"])
            .env(OBJECT_VARIABLE, object),
    )?;
    let mut command = Command::new(binary("debug", "NetManager")?);
    command.args(["verify", "-o", "json"]);
    show(&command);
    // Its stderr, with the verifier's log, is not kept back.
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run NetManager")?;
    ensure!(
        output.status.success(),
        "NetManager can't load the programs ({}): see above",
        output.status
    );
    let report: Value =
        serde_json::from_slice(&output.stdout).context("cannot read what NetManager verify printed")?;
    let programs = rows(
        &report["programs"],
        &["name", "instructions", "verified_instructions"],
    )?;
    ensure!(!programs.is_empty(), "NetManager carries no programs");
    print_table(&["program", "instructions", "verified"], &programs);
    println!();
    let fields = [
        "name",
        "kind",
        "key_bytes",
        "value_bytes",
        "max_entries",
        "memory_bytes",
    ];
    let mut maps = rows(&report["maps"], &fields)?;
    let memory = report["maps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|map| map["memory_bytes"].as_u64())
        .sum();
    let [name, kind, key, value, entries] = ["all", "", "", "", ""].map(str::to_owned);
    maps.push(vec![name, kind, key, value, entries, grouped(memory)]);
    print_table(&["map", "kind", "key", "value", "entries", "bytes"], &maps);
    Ok(())
}

/// The named fields of each object in a list, as text.
fn rows(list: &Value, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let list = list
        .as_array()
        .context("NetManager verify printed no list where one belongs")?;
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .or_else(|| value.as_u64().map(grouped))
    };
    let row = |object: &Value| {
        let missing = |field: &str| format!("NetManager verify printed no {field} in {object}");
        fields
            .iter()
            .map(|field| text(&object[field]).with_context(|| missing(field)))
            .collect()
    };
    list.iter().map(row).collect()
}

/// A number with a comma between each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (262_144, "262,144"),
            (1_234_567, "1,234,567"),
        ];
        for (number, expected) in cases {
            assert_eq!(expected, grouped(number));
        }
    }

    #[test]
    fn a_report_without_a_figure_is_refused() {
        let report = serde_json::json!([{ "name": "from_uplink", "instructions": 1234 }]);
        assert_eq!(
            vec![vec!["from_uplink".to_owned(), "1,234".to_owned()]],
            rows(&report, &["name", "instructions"]).expect("both are there")
        );
        rows(&report, &["name", "verified_instructions"]).expect_err("one is missing");
    }
}
