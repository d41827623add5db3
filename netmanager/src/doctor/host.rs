//! What the host brings along: devices, tools, and addresses that are in the way.

use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::process::Command;

use dataplane_ebpf::address::{OVERLAY, OVERLAY_PREFIX_LENGTH, in_overlay};

use super::{Check, State};
use crate::endpoint::name::is_host_link;
use crate::host::{Netlink, oak0, overlap};

const TUN: &str = "/dev/net/tun";
/// The routes of the main table.
const ROUTES: &str = "/proc/net/route";

pub async fn checks() -> Vec<Check> {
    vec![tun(), firewall(), addresses().await, routes()]
}

fn tun() -> Check {
    let check = match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Check::new("TUN", State::Open, TUN),
        Err(error) => Check::new("TUN", State::Missing, format!("{TUN}: {error}")),
    };
    check.advise("modprobe tun; in a container, hand the device in")
}

fn firewall() -> Check {
    let name = "nft";
    let check = match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) if output.status.success() => Check::new(name, State::Open, "nftables answers"),
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr);
            let line = message.lines().next().unwrap_or_default().to_owned();
            Check::new(name, State::Missing, format!("nft list tables: {line}"))
        }
        Err(error) => Check::new(name, State::Missing, format!("the program nft: {error}")),
    };
    check.advise("install nftables, and a kernel with CONFIG_NF_TABLES")
}

async fn addresses() -> Check {
    let name = "addresses";
    let found = async { overlap::foreign_address(&Netlink::open()?).await };
    let check = match found.await {
        Ok(None) => Check::new(name, State::Open, "the host has none in 10.16.0.0/12"),
        Ok(Some((interface, address))) => Check::new(
            name,
            State::Missing,
            format!("{interface} has {address}, which is in the overlay's 10.16.0.0/12"),
        ),
        Err(error) => Check::new(name, State::Unknown, error.to_string()),
    };
    check.advise("give this host an address outside: with the overlay in place nothing would arrive there")
}

fn routes() -> Check {
    let name = "routes";
    let check = match fs::read_to_string(ROUTES) {
        Ok(table) => {
            let found = foreign_routes(&table);
            if found.is_empty() {
                Check::new(name, State::Open, "nobody else routes into 10.16.0.0/12")
            } else {
                Check::new(
                    name,
                    State::Missing,
                    format!("others route into 10.16.0.0/12: {}", found.join(", ")),
                )
            }
        }
        Err(error) => Check::new(name, State::Unknown, format!("{ROUTES}: {error}")),
    };
    // Only a route to the same destination is in the way of NetManager's; a narrower one takes its part away.
    check.optional().advise(
        "what is behind these routes cannot be reached by containers, and hides the part of the overlay that it covers",
    )
}

/// Routes of others that overlap 10.16.0.0/12 without holding all of it, as `destination/length by interface`.
fn foreign_routes(table: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(interface), Some(destination), Some(mask)) =
            (fields.first(), address(fields.get(1)), address(fields.get(7)))
        else {
            continue;
        };
        let length = u32::from(mask).leading_ones();
        // `*` stands for no interface: a destination that is unreachable, as NetManager makes the whole of it.
        let is_whole = destination.octets() == OVERLAY && length == u32::from(OVERLAY_PREFIX_LENGTH);
        let own = *interface == oak0::NAME || is_host_link(interface) || *interface == "*" && is_whole;
        if in_overlay(destination.octets()) && length >= u32::from(OVERLAY_PREFIX_LENGTH) && !own {
            found.push(format!("{destination}/{length} by {interface}"));
        }
    }
    found
}

/// An address as that table has it: the bytes in network order, shown as a number of this machine.
fn address(field: Option<&&str>) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(field?, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v74_only_routes_of_others_into_the_overlay_are_found() {
        let table = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
oak0\t00001E0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
*\t0000100A\t00000000\t0200\t0\t0\t0\t0000F0FF\t0\t0\t0
vpn0\t0000130A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";
        assert_eq!(foreign_routes(table), ["10.19.0.0/16 by vpn0"]);
    }
}
