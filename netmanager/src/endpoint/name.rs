//! Names and Ethernet addresses of links, derived from what they stand for: a restarted NetManager finds its
//! links by them, and an endpoint that is wired again looks the same.

use std::net::Ipv4Addr;

use dataplane_ebpf::address::GATEWAY_MAC;

const PREFIX: &str = "oak";
/// What names of container's ends begin with that wait to be moved; never a host's end.
const WAITING: &str = "oac";
/// Longest alias that the kernel takes, in bytes.
const LONGEST_ALIAS: usize = 255;

/// FNV-1a over the parts, which are kept apart, and mixed so that any of its bits may be taken. Unlike the
/// standard library's hash it is the same in every build.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // MurmurHash3's finaliser: alone, the last byte hardly reaches the upper bits.
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// Name of the host's end: `oak`, four digits that stand for the node, eight that are the namespace address.
pub fn host_link(node_id: &str, address: Ipv4Addr) -> String {
    format!("{PREFIX}{:04x}{:08x}", node_digits(node_id), address.to_bits())
}

/// The names of all links that [`host_link`] makes for this node, and of some that it does not, as iptables takes
/// names that begin alike.
pub fn host_links(node_id: &str) -> String {
    format!("{PREFIX}{:04x}+", node_digits(node_id))
}

/// Name of a container's end as long as nobody has moved it into the container; the same digits as the host's end has.
pub(crate) fn waiting_link(node_id: &str, address: Ipv4Addr) -> String {
    format!("{WAITING}{:04x}{:08x}", node_digits(node_id), address.to_bits())
}

/// Whether a link of this name is the host's end of an endpoint, of any node.
pub fn is_host_link(name: &str) -> bool {
    digits(name).is_some()
}

/// The namespace address in a name that [`host_link`] made for this node.
pub fn address_in(name: &str, node_id: &str) -> Option<Ipv4Addr> {
    let (node, address) = digits(name)?;
    (node == node_digits(node_id)).then(|| Ipv4Addr::from_bits(address))
}

fn node_digits(node_id: &str) -> u16 {
    (hash(&[node_id.as_bytes()]) >> 48) as u16
}

fn digits(name: &str) -> Option<(u16, u32)> {
    let digits = name.strip_prefix(PREFIX)?;
    let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 12 || !digits.bytes().all(lower_hex) {
        return None;
    }
    Some((
        u16::from_str_radix(&digits[..4], 16).ok()?,
        u32::from_str_radix(&digits[4..], 16).ok()?,
    ))
}

/// Which end of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Host,
    Container,
}

/// A locally administered unicast address: the gateway's for every host's end, one of its own for a container's.
pub(crate) fn mac(node_id: &str, address: Ipv4Addr, end: End) -> [u8; 6] {
    match end {
        End::Host => GATEWAY_MAC,
        End::Container => {
            let [_, _, bytes @ ..] = hash(&[node_id.as_bytes(), &address.octets(), &[1]]).to_be_bytes();
            let mut mac: [u8; 6] = bytes;
            mac[0] = mac[0] & !0x01 | 0x02;
            mac
        }
    }
}

/// The alias of the host's end: whose it is, and what is behind it.
///
/// `None` when it could not be read back: the node id has a space in it or is empty, or all is too long.
pub(crate) fn alias(node_id: &str, endpoint: &str) -> Option<String> {
    let alias = format!("oakestra {node_id} {endpoint}");
    let readable = !node_id.is_empty() && !node_id.contains(char::is_whitespace);
    (readable && alias.len() <= LONGEST_ALIAS).then_some(alias)
}

/// The endpoint in an alias that [`alias`] made for this node.
pub(crate) fn endpoint_in<'a>(alias: &'a str, node_id: &str) -> Option<&'a str> {
    alias
        .strip_prefix("oakestra ")?
        .strip_prefix(node_id)?
        .strip_prefix(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 18, 0, 66);

    #[test]
    fn a_name_fits_and_gives_its_address_back_to_its_node_only() {
        let name = host_link("node-a", ADDRESS);
        assert_eq!((name.len(), &name[7..]), (15, "0a120042"));
        assert_eq!(address_in(&name, "node-a"), Some(ADDRESS));
        assert_eq!(address_in(&name, "node-b"), None);
        assert!(is_host_link(&name));
        let waiting = waiting_link("node-a", ADDRESS);
        assert_eq!((waiting.len(), is_host_link(&waiting)), (15, false));
        for foreign in [
            "oak0",
            "oakley",
            "oak12345678901",
            "oak1234567890aB",
            "eth0",
            "oak+23456789012",
        ] {
            assert!(!is_host_link(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_build() {
        assert_eq!(host_link("node-a", ADDRESS), "oak98460a120042");
    }

    #[test]
    fn parts_are_kept_apart() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }

    #[test]
    fn addresses_are_local_unicast_and_differ_between_the_ends() {
        let (host, container) = (mac("n", ADDRESS, End::Host), mac("n", ADDRESS, End::Container));
        assert_ne!(host, container);
        for mac in [host, container] {
            assert_eq!(mac[0] & 0x03, 0x02, "{mac:02x?}");
        }
    }

    #[test]
    fn an_alias_is_read_back_by_its_own_node() {
        let alias = alias("node-a", "app.ns.web.ns.0").expect("an alias");
        assert_eq!(endpoint_in(&alias, "node-a"), Some("app.ns.web.ns.0"));
        assert_eq!(endpoint_in(&alias, "node"), None);
        assert_eq!(endpoint_in("something", "node-a"), None);
    }

    #[test]
    fn an_alias_that_could_not_be_read_back_is_refused() {
        assert_eq!(super::alias("", "web.0"), None);
        assert_eq!(super::alias("node a", "web.0"), None);
        assert_eq!(super::alias("node", &"x".repeat(250)), None);
    }
}
