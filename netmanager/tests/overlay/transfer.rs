//! Bulk transfers, by the programs that people use for it.

use std::net::Ipv4Addr;

use lab::Namespace;
use serde_json::Value;

use crate::fixture::{DEADLINE, NEAR_SERVICE, Overlay};

/// Seconds of each transfer.
const SECONDS: &str = "2";

#[test]
fn n53_transfers_both_ways_have_no_wrong_checksums_and_few_retransmissions() {
    let overlay = Overlay::new("transfer");
    let far_client = &overlay.far_servers[1];
    let near_client = &overlay.client;
    let namespaces: Vec<&Namespace> = vec![
        near_client,
        far_client,
        &overlay.near_server,
        overlay.near.host(),
        overlay.far.host(),
    ];
    let before: Vec<_> = namespaces
        .iter()
        .map(|namespace| checksum_errors(namespace))
        .collect();
    let mut command = overlay.near_server.command("iperf3").expect("a command");
    command.args(["--server"]);
    let _server = overlay.near_server.daemon("iperf3", command).expect("started");
    lab::wait_for("iperf3 to listen", DEADLINE, || {
        let sockets = overlay.near_server.run("ss", &["-Hltn", "sport = :5201"])?;
        Ok(!sockets.stdout.is_empty())
    })
    .expect("it listens");

    for (what, client) in [
        ("from the far host", far_client),
        ("on the same host", near_client),
    ] {
        for direction in [&[][..], &["--reverse"][..]] {
            let report = iperf3(client, NEAR_SERVICE, direction);
            let sent = number(&report, "/end/sum_sent/bytes");
            let received = number(&report, "/end/sum_received/bytes");
            assert!(received > 50e6, "{what} {direction:?}: {received} bytes");
            let retransmitted = number(&report, "/end/sum_sent/retransmits") * 1_400.0;
            assert!(
                retransmitted < 0.05 * sent,
                "{what} {direction:?}: {retransmitted} of {sent} bytes sent again"
            );

            let udp = [&["--udp", "--bitrate", "50M", "--length", "1200"], direction].concat();
            let unread = || sum(&namespaces, "RcvbufErrors");
            let unread_before = unread();
            let report = iperf3(client, NEAR_SERVICE, &udp);
            // What has arrived and its receiver had no processor to read in time is not lost on the way.
            let lost = number(&report, "/end/sum/lost_packets") - (unread() - unread_before);
            let sent = number(&report, "/end/sum/packets");
            assert!(sent > 5_000.0, "{what} {direction:?}: {sent} datagrams");
            assert!(
                lost < 0.02 * sent,
                "{what} {direction:?}: {lost} of {sent} datagrams lost"
            );
        }
    }
    let after: Vec<_> = namespaces
        .iter()
        .map(|namespace| checksum_errors(namespace))
        .collect();
    assert_eq!(before, after, "wrong checksums");
}

fn iperf3(client: &Namespace, server: Ipv4Addr, options: &[&str]) -> Value {
    let server = server.to_string();
    let mut arguments = vec!["--client", &server, "--time", SECONDS, "--json"];
    arguments.extend(options);
    let output = client.run("iperf3", &arguments).expect("iperf3 succeeds");
    serde_json::from_slice(&output.stdout).expect("iperf3 reports JSON")
}

fn number(report: &Value, path: &str) -> f64 {
    report
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} is missing in {report}"))
}

/// Every counter of wrong checksums that the kernel has.
fn checksum_errors(namespace: &Namespace) -> Vec<(String, String)> {
    let mut counters = counters(namespace);
    counters.retain(|(name, _)| name.contains("CsumErrors"));
    counters
}

/// The sum of all counters of this name.
fn sum(namespaces: &[&Namespace], name: &str) -> f64 {
    let counters = namespaces.iter().flat_map(|namespace| counters(namespace));
    let values = counters
        .filter(|(found, _)| found == name)
        .map(|(_, value)| value);
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

/// All counters of the kernel's protocols, by name.
fn counters(namespace: &Namespace) -> Vec<(String, String)> {
    let text = namespace
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))
        .expect("entered")
        .expect("read");
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines
        .chunks(2)
        .flat_map(|pair| pair[0].split_whitespace().zip(pair[1].split_whitespace()));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
