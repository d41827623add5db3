//! `net.ipv4.ip_local_reserved_ports`: ports that the kernel does not choose by itself for a connection of the
//! node, so that no answer to one arrives at the number of a published port.
//!
//! The setting is shared with whoever else reserves ports: only what was added here is taken away again.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;

use super::{Error, Result};

const PATH: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports that are reserved now.
///
/// # Errors
/// The setting cannot be read.
pub fn read() -> Result<BTreeSet<u16>> {
    let text = fs::read_to_string(PATH).map_err(|error| failed("read", error))?;
    parse(text.trim())
        .ok_or_else(|| failed("read", io::Error::other(format!("{text:?} is no list of ports"))))
}

/// Reserves these ports and no others.
///
/// # Errors
/// The setting cannot be written.
pub fn write(ports: &BTreeSet<u16>) -> Result<()> {
    // With a line's end: an empty text would be no write at all.
    fs::write(PATH, format!("{}\n", list(ports))).map_err(|error| failed("write", error))
}

fn failed(operation: &'static str, error: io::Error) -> Error {
    Error::kernel(operation, "sysctl net.ipv4.ip_local_reserved_ports", error)
}

fn parse(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ports.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(ports)
}

/// Stretches of ports, as the kernel writes them.
fn list(ports: &BTreeSet<u16>) -> String {
    let mut text = String::new();
    let mut rest = ports.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while let Some(next) = rest.next_if(|next| Some(*next) == last.checked_add(1)) {
            last = next;
        }
        let separator = if text.is_empty() { "" } else { "," };
        // Writing to a text cannot fail.
        let _infallible = if first == last {
            write!(text, "{separator}{first}")
        } else {
            write!(text, "{separator}{first}-{last}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let cases: [(&str, &[u16]); 4] = [
            ("", &[]),
            ("80", &[80]),
            ("79-81,443", &[79, 80, 81, 443]),
            ("1-2,65534-65535", &[1, 2, 65_534, 65_535]),
        ];
        for (text, ports) in cases {
            let ports: BTreeSet<u16> = ports.iter().copied().collect();
            assert_eq!(parse(text), Some(ports.clone()), "{text}");
            assert_eq!(list(&ports), text);
        }
        for wrong in ["x", "1-", "70000", "-"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
