//! What the node has and uses.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use serde_json::{Value, json};

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

impl Memory {
    pub(crate) fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Self {
            total: field("MemTotal:").unwrap_or_default(),
            available: field("MemAvailable:").unwrap_or_default(),
        }
    }

    pub(crate) fn percent(self) -> f64 {
        percent(self.total.saturating_sub(self.available), self.total)
    }
}

/// Processor time of the whole machine, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Processor {
    all: u64,
    idle: u64,
}

impl Processor {
    pub(crate) fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let Some(line) = text.lines().next() else {
            return Self::default();
        };
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|text| text.parse().ok())
            .collect();
        Self {
            all: ticks.iter().sum(),
            idle: ticks.iter().skip(3).take(2).sum(),
        }
    }

    /// Percent of all cores that was used between `earlier` and this.
    pub(crate) fn percent_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        let idle = self.idle.saturating_sub(earlier.idle);
        percent(all.saturating_sub(idle), all)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage of amounts far below 2^53"
)]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    let percent = part as f64 * 100.0 / whole as f64;
    (percent * 100.0).round() / 100.0
}

/// Logical cores.
pub(crate) fn cores() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let cores = text
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    cores.max(1) as u64
}

/// Name of the host, as the kernel has it.
pub(crate) fn name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// The processor's kind, in the words of images.
pub(crate) fn architecture() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm",
        other => other,
    }
    .to_owned()
}

/// What does not change while the machine runs.
pub(crate) fn system() -> BTreeMap<String, Value> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    BTreeMap::from([
        ("kernel_version".to_owned(), json!(kernel.trim())),
        ("architecture".to_owned(), json!(architecture())),
        ("os_version".to_owned(), json!(std::env::consts::OS)),
    ])
}

/// The address by which `peer` reaches this node; where the peer is on this very machine, the one that leads out of
/// it.
pub(crate) fn address(peer: &str, port: u16) -> Option<IpAddr> {
    let outside = [
        (peer.to_owned(), port),
        ("192.0.2.255".to_owned(), 9),
        ("1.1.1.1".to_owned(), 9),
    ];
    let routed = outside.iter().find_map(|target| {
        let target = target.to_socket_addrs().ok()?.next()?;
        let any: IpAddr = if target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Nothing is sent: the kernel looks up the route.
        socket.connect(target).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    });
    routed.or_else(first_address)
}

/// The first address of an interface that is up.
fn first_address() -> Option<IpAddr> {
    getifaddrs().ok()?.find_map(|interface| {
        let is_usable = interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let address = interface.address?;
        is_usable.then(|| address.as_sockaddr_in().map(|address| address.ip().into()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_kernel() {
        let memory = Memory::parse("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n");
        assert_eq!((memory.total, memory.available), (1000, 250));
        assert!((memory.percent() - 75.0).abs() < 0.01);
        let before = Processor::parse("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1\n");
        let after = Processor::parse("cpu  150 0 150 750 150 0 0 0 99 0\ncpu0 1\n");
        assert!((after.percent_since(before) - 50.0).abs() < 0.01);
        assert!(before.percent_since(before).abs() < 0.01);
    }

    #[test]
    fn this_machine_has_memory_cores_and_a_name() {
        let memory = Memory::now();
        assert!(memory.total > 0 && memory.available <= memory.total);
        assert!(cores() >= 1 && !name().is_empty() && !system().is_empty());
    }
}
