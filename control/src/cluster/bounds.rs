//! How much of what a node says is believed and kept. A node says what it likes; what it says is stored, added up with
//! what others say, and told to the root.

use std::net::IpAddr;

use protocol::node::{JobReport, NodeInformation, ServiceUsage};

/// Most bytes of a name.
const NAME: usize = 253;
/// Most bytes of a figure, which is a text on this wire.
const FIGURE: usize = 64;
/// Most bytes of the reason for a status.
const DETAIL: usize = 1024;
/// Most bytes of an instance's output.
const LOGS: usize = 1024;
/// Most names in a list.
const LIST: usize = 32;
/// Most cores of a node, of either kind.
const CORES: u64 = 1 << 16;
/// Most MiB of a node.
const MEMORY: u64 = 1 << 40;

/// What a node says of itself when it registers. What nobody asks for is not kept.
pub fn registration(information: NodeInformation) -> NodeInformation {
    let names = |list: Vec<String>| list.into_iter().take(LIST).map(|name| head(name, NAME)).collect();
    let amount = |number: Option<u64>, most: u64| number.map(|number| number.min(most));
    let ip = information.ip.parse().ok().filter(|ip| is_outer(*ip));
    NodeInformation {
        id: information.id,
        node_key: information.node_key,
        host: head(information.host, NAME),
        ip: ip.map(|ip: IpAddr| ip.to_string()).unwrap_or_default(),
        port: head(information.port, FIGURE),
        cpu_percent: information.cpu_percent.map(percent),
        memory_percent: information.memory_percent.map(percent),
        vcpus: amount(information.vcpus, CORES),
        memory: amount(information.memory, MEMORY),
        memory_total: amount(information.memory_total, MEMORY),
        architecture: head(information.architecture, FIGURE),
        vgpus: amount(information.vgpus, CORES),
        virtualization: names(information.virtualization),
        ..NodeInformation::default()
    }
}

/// A share of a whole.
pub fn percent(figure: f64) -> f64 {
    figure.clamp(0.0, 100.0)
}

/// A change of a status.
pub fn job_report(report: JobReport) -> JobReport {
    JobReport {
        status_detail: head(report.status_detail, DETAIL),
        publicip: head(report.publicip, FIGURE),
        ..report
    }
}

/// What an instance uses.
pub fn usage(usage: ServiceUsage) -> ServiceUsage {
    ServiceUsage {
        cpu_percent: head(usage.cpu_percent, FIGURE),
        memory_percent: head(usage.memory_percent, FIGURE),
        disk: head(usage.disk, FIGURE),
        logs: tail(usage.logs, LOGS),
        status_detail: head(usage.status_detail, DETAIL),
        ..usage
    }
}

/// Whether a tunnel can end there: at no address of the overlay, 10.16.0.0/12, and at none that is not one host's, or
/// is another host on each host.
pub fn is_outer(address: IpAddr) -> bool {
    let in_overlay = match address {
        IpAddr::V4(address) => address.octets()[0] == 10 && address.octets()[1] & 0xf0 == 16,
        IpAddr::V6(_) => false,
    };
    let is_broadcast = address == IpAddr::from([255; 4]);
    !(in_overlay
        || is_broadcast
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback())
}

fn head(mut text: String, most: usize) -> String {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn tail(mut text: String, most: usize) -> String {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.drain(..start);
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_node_says_of_itself_has_bounds() {
        let said: NodeInformation = serde_json::from_value(json!({
            "host": "ä".repeat(1000), "ip": "10.30.0.7", "vcpus": u64::MAX, "memory": u64::MAX,
            "memory_total": u64::MAX, "vgpus": u64::MAX, "cpu_percent": 1e308, "memory_percent": -1.0,
            "virtualization": vec!["x".repeat(1000); 1000], "system_info": {"a": "b".repeat(1000)},
            "something": "x".repeat(1000)
        }))
        .expect("information");
        let kept = registration(said);
        assert_eq!((kept.host.len(), kept.ip.as_str()), (252, ""));
        assert_eq!((kept.cpu_percent, kept.memory_percent), (Some(100.0), Some(0.0)));
        assert_eq!((kept.vcpus, kept.memory_total), (Some(1 << 16), Some(1 << 40)));
        let size = serde_json::to_string(&kept).expect("text").len();
        assert!(size < 10_000, "{size}");
    }

    #[test]
    fn the_end_of_an_output_and_the_beginning_of_a_reason_are_kept() {
        let said: ServiceUsage = serde_json::from_value(json!({
            "logs": format!("ä{}", "x".repeat(1023)), "status_detail": format!("{}ä", "y".repeat(1023)),
            "job_name": "a.b.c.d", "instance": 0
        }))
        .expect("usage");
        let kept = usage(said);
        assert_eq!((kept.logs.len(), kept.status_detail.len()), (1023, 1023));
    }

    #[test]
    fn tunnels_end_at_hosts() {
        for address in ["192.0.2.1", "10.15.0.1", "10.32.0.1", "172.16.0.1", "2001:db8::1"] {
            assert!(is_outer(address.parse().expect("address")), "{address}");
        }
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "10.16.0.1",
            "10.30.0.1",
            "10.31.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert!(!is_outer(address.parse().expect("address")), "{address}");
        }
    }
}
