//! What this process may do.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::facts::{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, chosen, effective_capabilities};
use super::{Check, State};

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

pub fn checks() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = effective_capabilities(&status);
    let mut checks: Vec<Check> = [
        (
            "CAP_BPF",
            1u64 << CAP_BPF | 1 << CAP_SYS_ADMIN,
            "load programs and make maps",
        ),
        (
            "CAP_NET_ADMIN",
            1 << CAP_NET_ADMIN,
            "make links, routes and firewall rules, and attach programs",
        ),
        (
            "CAP_SYS_ADMIN",
            1 << CAP_SYS_ADMIN,
            "enter the network namespaces of containers",
        ),
    ]
    .map(|(name, any_of, purpose)| capability(name, capabilities, any_of, purpose))
    .to_vec();
    checks.push(lockdown());
    checks.push(memory_lock());
    checks
}

fn capability(name: &str, found: Option<u64>, any_of: u64, purpose: &str) -> Check {
    let (state, detail) = match found {
        Some(found) if found & any_of != 0 => (State::Open, format!("held: to {purpose}")),
        Some(_) => (State::Missing, format!("not held: needed to {purpose}")),
        None => (
            State::Unknown,
            "/proc/self/status does not say what this process may do".to_owned(),
        ),
    };
    Check::new(name, state, detail)
        .advise("run NetManager as root, in no container and under no service that takes rights away")
}

fn lockdown() -> Check {
    let (state, detail) = match fs::read_to_string(LOCKDOWN) {
        Ok(text) => match chosen(&text) {
            Some("confidentiality") => (
                State::Missing,
                "the kernel is locked down for confidentiality: programs may not read what they have to"
                    .to_owned(),
            ),
            Some(mode) => (State::Open, format!("lockdown is {mode}")),
            None => (State::Unknown, format!("{LOCKDOWN} says {:?}", text.trim())),
        },
        // Without the file there is nothing that locks.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (
            State::Open,
            "the kernel knows no lockdown, or does not show it".to_owned(),
        ),
        Err(error) => (State::Unknown, format!("{LOCKDOWN}: {error}")),
    };
    Check::new("lockdown", state, detail)
        .advise("start the kernel with lockdown=integrity, or without lockdown")
}

fn memory_lock() -> Check {
    let check = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => Check::new("memlock", State::Open, "unlimited"),
        // Since Linux 5.11 maps count against the control group instead.
        Ok((soft, _)) => Check::new(
            "memlock",
            State::Open,
            format!("{} KiB; maps are counted by the control group", soft / 1024),
        ),
        Err(error) => Check::new("memlock", State::Unknown, error.to_string()),
    };
    check.optional().advise("ulimit -l unlimited")
}
