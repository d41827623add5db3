//! Reading what the kernel says about itself. Pure but for the reading.

/// Numbers of the capabilities that are looked for (`linux/capability.h`).
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_BPF: u32 = 39;

/// The effective capabilities in a `/proc/<pid>/status`.
pub fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Major and minor number of a kernel's release.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

/// The choice that is in force in a list such as `none [integrity] confidentiality`.
pub fn chosen(list: &str) -> Option<&str> {
    let (_, rest) = list.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v74_capabilities_are_read_from_a_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        let found = effective_capabilities(status).expect("a line");
        for capability in [CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF] {
            assert_ne!(found & 1 << capability, 0, "{capability}");
        }
        assert_eq!(
            effective_capabilities("CapEff:\t0000000000001000"),
            Some(1 << CAP_NET_ADMIN)
        );
        assert_eq!(effective_capabilities("CapEff:\tzero"), None);
        assert_eq!(effective_capabilities(""), None);
    }

    #[test]
    fn v74_releases_of_all_makers_are_read() {
        for (release, expected) in [
            ("6.18.44", Some((6, 18))),
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            ("6.12-rc3", Some((6, 12))),
            ("7", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn v74_the_choice_in_force_is_found() {
        assert_eq!(chosen("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(chosen("[none] integrity confidentiality"), Some("none"));
        assert_eq!(chosen("none"), None);
    }
}
