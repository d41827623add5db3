//! Runs `nft`, as a child and therefore in the network namespace of the calling thread.
//!
//! The `nftables` crate's own runner blocks, leaves nft's message on standard error, and reads counters into
//! 32 bits; its types make the transaction, and the answers are read here.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;

use nftables::batch::Batch;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NamedCounter;
use crate::host::{Error, Result};

pub(super) async fn apply(operation: &'static str, object: &str, batch: Batch<'_>) -> Result<()> {
    let transaction = serde_json::to_vec(&batch.to_nftables())
        .map_err(|error| Error::kernel(operation, object, io::Error::other(error)))?;
    run(operation, object, &["-f", "-"], &transaction).await?;
    Ok(())
}

pub(super) async fn counters(table: &str) -> Result<Vec<NamedCounter>> {
    // Those of all tables: to ask for one of a table that is not there would be an error.
    let answer = run("list counters of", table, &["list", "counters"], &[]).await?;
    parse_counters(&answer, table)
}

pub(super) async fn addresses_and_ports(table: &str, set: &str) -> Result<BTreeSet<SocketAddrV4>> {
    let answer = run(
        "list tunnels of",
        table,
        &["list", "set", "inet", table, set],
        &[],
    )
    .await?;
    parse_addresses_and_ports(&answer, table)
}

/// Whether a table has a chain of this name.
pub(in crate::host) async fn has_chain(family: &str, table: &str, chain: &str) -> Result<bool> {
    // Those of all tables, as in `counters`.
    let answer = run("list chains of", table, &["list", "chains"], &[]).await?;
    let chains = parse(&answer, table)?
        .nftables
        .into_iter()
        .filter_map(|object| object.chain);
    let mut same =
        chains.filter(|found| found.family == family && found.table == table && found.name == chain);
    Ok(same.next().is_some())
}

async fn run(operation: &'static str, object: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let failed = |source| Error::kernel(operation, format!("{object} with nft"), source);
    let mut child = Command::new("nft")
        .arg("-j")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    // nft reads everything before it writes anything, so neither waits for the other. The pipe closes with
    // the end of the block.
    if let Some(mut pipe) = child.stdin.take() {
        match pipe.write_all(input).await {
            // It has ended early, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            outcome => outcome.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Nft {
        operation,
        object: object.to_owned(),
        message,
    })
}

/// The part of nft's answers that is read here; everything else is skipped.
#[derive(Deserialize)]
struct Answer {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    counter: Option<CounterObject>,
    set: Option<SetObject>,
    chain: Option<ChainObject>,
}

#[derive(Deserialize)]
struct ChainObject {
    family: String,
    table: String,
    name: String,
}

#[derive(Deserialize)]
struct CounterObject {
    family: String,
    table: String,
    name: String,
    packets: u64,
    bytes: u64,
}

#[derive(Deserialize)]
struct SetObject {
    #[serde(default)]
    elem: Vec<ElementObject>,
}

#[derive(Deserialize)]
struct ElementObject {
    concat: (Ipv4Addr, u16),
}

fn parse_counters(answer: &[u8], table: &str) -> Result<Vec<NamedCounter>> {
    let counters = parse(answer, table)?
        .nftables
        .into_iter()
        .filter_map(|object| object.counter);
    let own = counters.filter(|counter| counter.family == "inet" && counter.table == table);
    Ok(own
        .map(
            |CounterObject {
                 name, packets, bytes, ..
             }| NamedCounter { name, packets, bytes },
        )
        .collect())
}

fn parse_addresses_and_ports(answer: &[u8], table: &str) -> Result<BTreeSet<SocketAddrV4>> {
    let sets = parse(answer, table)?
        .nftables
        .into_iter()
        .filter_map(|object| object.set);
    let elements = sets.flat_map(|set| set.elem);
    Ok(elements
        .map(|element| SocketAddrV4::new(element.concat.0, element.concat.1))
        .collect())
}

fn parse(answer: &[u8], table: &str) -> Result<Answer> {
    serde_json::from_slice(answer).map_err(|source| Error::NftAnswer {
        object: table.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_hold_more_than_32_bits_and_only_the_own_are_taken() {
        let answer = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "a", "table": "oakestra_n", "handle": 1,
                         "packets": 5000000000, "bytes": 7000000000000}},
            {"counter": {"family": "ip", "name": "a", "table": "oakestra_n", "packets": 1, "bytes": 1}},
            {"counter": {"family": "inet", "name": "a", "table": "other", "packets": 1, "bytes": 1}}]}"#;
        let expected = NamedCounter {
            name: "a".to_owned(),
            packets: 5_000_000_000,
            bytes: 7_000_000_000_000,
        };
        assert_eq!(parse_counters(answer, "oakestra_n").expect("parses"), [expected]);
    }

    #[test]
    fn a_set_may_be_empty() {
        let empty = br#"{"nftables": [{"metainfo": {}}, {"set": {"family": "inet", "name": "tunnels"}}]}"#;
        assert!(parse_addresses_and_ports(empty, "t").expect("parses").is_empty());
        let one = br#"{"nftables": [{"set": {"elem": [{"concat": ["192.0.2.1", 50103]}]}}]}"#;
        let expected = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 50103);
        assert_eq!(
            parse_addresses_and_ports(one, "t").expect("parses"),
            BTreeSet::from([expected])
        );
    }
}
