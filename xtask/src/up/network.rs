//! How workers in namespaces of their own reach the machine: by a bridge that is made for them.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use lab::{Namespace, UPLINK};

use crate::command::{output, which};

/// The bridge, and how the names of its ports begin.
const BRIDGE: &str = "oakt-up";
/// What hides the workers behind the machine's addresses.
const TABLE: &str = "oakt_up";
/// Docker drops what the machine forwards, also from one port of a bridge to another: what comes from the workers, and
/// what answers them.
const RULES: [&[&str]; 2] = [
    &["-i", BRIDGE],
    &[
        "-o",
        BRIDGE,
        "-m",
        "conntrack",
        "--ctstate",
        "RELATED,ESTABLISHED",
    ],
];
/// What the workers' network is: TEST-NET-2, which nobody else has.
const NETWORK: [u8; 3] = [198, 51, 100];
/// Nothing is sent there: it only tells which address the machine has towards all others.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 1), 9);

/// The address by which others reach this machine; none if it has no way to anywhere.
pub fn machine_address() -> Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
    if socket.connect(ELSEWHERE).is_err() {
        return Ok(None);
    }
    match socket.local_addr().context("a socket has no address")?.ip() {
        std::net::IpAddr::V4(address) => Ok(Some(address)),
        std::net::IpAddr::V6(_) => Ok(None),
    }
}

/// Makes the bridge unless it is there. The machine's address on it.
pub fn bridge() -> Result<Ipv4Addr> {
    let address = address(1);
    if !exists(BRIDGE) {
        ip(&format!(
            "link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
    }
    ip(&format!("address replace {address}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    let [a, b, c] = NETWORK;
    nft(&format!(
        "table ip {TABLE}; delete table ip {TABLE}; table ip {TABLE} {{ chain postrouting {{ \
         type nat hook postrouting priority srcnat; \
         ip saddr {a}.{b}.{c}.0/24 oifname != \"{BRIDGE}\" masquerade; }}; }}"
    ))?;
    if has_docker_rules() {
        for rule in RULES {
            if iptables("-C", rule).is_err() {
                iptables("-I", rule)?;
            }
        }
    }
    Ok(address)
}

/// Makes the namespace of a worker unless it is there, plugged into the bridge. Its address there.
pub fn namespace(directory: &Path, number: u8) -> Result<(Namespace, Ipv4Addr)> {
    let name = format!("{BRIDGE}-worker-{number}");
    let address = address(number);
    let namespace = Namespace::named(&name, directory);
    if namespace.path().exists() {
        return Ok((namespace, address));
    }
    let namespace = Namespace::create(&name, directory)?;
    let port = format!("{BRIDGE}-{number}");
    ip(&format!(
        "link add {port} type veth peer name {UPLINK} netns {name}"
    ))?;
    ip(&format!("link set {port} master {BRIDGE} up"))?;
    namespace.ip(&format!("address add {address}/24 dev {UPLINK}"))?;
    namespace.ip(&format!("link set {UPLINK} up"))?;
    namespace.ip(&format!("route add default via {}", self::address(1)))?;
    namespace.wait_until_up(UPLINK)?;
    Ok((namespace, address))
}

/// Removes the bridge and its rules; ports go with their namespaces.
pub fn remove() -> Result<()> {
    if has_docker_rules() {
        for rule in RULES {
            if iptables("-C", rule).is_ok() {
                iptables("-D", rule)?;
            }
        }
    }
    if which("nft").is_some() {
        // Adding it first makes this right where there is none.
        nft(&format!("table ip {TABLE}; delete table ip {TABLE}"))?;
    }
    if exists(BRIDGE) {
        ip(&format!("link delete {BRIDGE}"))?;
    }
    Ok(())
}

fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}

fn exists(link: &str) -> bool {
    ip(&format!("link show {link}")).is_ok()
}

fn has_docker_rules() -> bool {
    which("iptables").is_some()
        && output(Command::new("iptables").args(["-w", "-n", "-L", "DOCKER-USER"])).is_ok()
}

/// Looks for a rule, puts it in, or takes it away.
fn iptables(verb: &str, rule: &[&str]) -> Result<()> {
    let mut command = Command::new("iptables");
    command.args(["-w", verb, "DOCKER-USER"]).args(rule);
    output(command.args(["-j", "ACCEPT"]))?;
    Ok(())
}

fn nft(script: &str) -> Result<()> {
    output(Command::new("nft").arg(script))?;
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    output(Command::new("ip").args(arguments.split_ascii_whitespace()))?;
    Ok(())
}
