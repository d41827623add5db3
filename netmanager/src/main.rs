//! The `NetManager` daemon and its command line.
#![expect(clippy::print_stdout, reason = "a command line answers on standard output")]

fn main() -> anyhow::Result<()> {
    println!(
        "{}",
        serde_json::to_string_pretty(&netmanager::dataplane::verify()?)?
    );
    Ok(())
}
