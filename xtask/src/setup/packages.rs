//! What comes from Debian.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{execute, need_root, which};

/// A command and the package that brings it.
pub struct Package {
    pub command: &'static str,
    pub package: &'static str,
    pub why: &'static str,
}

/// Each is looked for by its command: who has it from elsewhere needs no package.
pub const PACKAGES: &[Package] = &[
    Package {
        command: "ip",
        package: "iproute2",
        why: "makes the lab's namespaces and links",
    },
    Package {
        command: "ethtool",
        package: "ethtool",
        why: "makes the lab's wire behave like a network card",
    },
    Package {
        command: "nft",
        package: "nftables",
        why: "applies NetManager's rules, and shows that none is left",
    },
    Package {
        command: "bpftool",
        package: "bpftool",
        why: "shows that no program stays attached after the tests",
    },
    Package {
        command: "iperf3",
        package: "iperf3",
        why: "measures throughput, and loads the wire in tests",
    },
    Package {
        command: MOSQUITTO,
        package: MOSQUITTO,
        why: "is the broker that NetManager talks to in tests",
    },
];

/// The one package that would start a service.
const MOSQUITTO: &str = "mosquitto";

/// Where Debian's packages ask whether they may start their service when they are installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// "Action forbidden by policy".
const POLICY_FORBIDS: &str = "#!/bin/sh\nexit 101\n";

/// Installs packages without their recommendations, and leaves no service behind that would not be there without.
pub fn install(packages: &[&Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.package).collect();
    if which("apt-get").is_none() {
        let commands: Vec<&str> = packages.iter().map(|package| package.command).collect();
        bail!(
            "there is no apt-get: install the commands {} by your system's own means (Debian has them in {})",
            commands.join(", "),
            names.join(", ")
        );
    }
    need_root("installing packages")?;
    execute(Command::new("apt-get").args(["update", "-q"]))?;
    let forbidden = Forbidden::new()?;
    let installed = execute(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    );
    forbidden.end()?;
    installed?;
    // Not started now, the broker would still start with the next boot: the tests start one of their own.
    if names.contains(&MOSQUITTO) {
        execute(Command::new("update-rc.d").args([MOSQUITTO, "disable"]))?;
    }
    Ok(())
}

/// As long as it exists, no package starts its service. Where the administrator has a policy already, that one
/// decides.
struct Forbidden {
    ours: bool,
}

impl Forbidden {
    fn new() -> Result<Self> {
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
        {
            Ok(mut file) => {
                let forbidden = Self { ours: true };
                file.write_all(POLICY_FORBIDS.as_bytes())
                    .with_context(|| format!("cannot write {POLICY}"))?;
                Ok(forbidden)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).with_context(|| format!("cannot make {POLICY}")),
        }
    }

    fn end(mut self) -> Result<()> {
        self.remove().with_context(|| format!("cannot remove {POLICY}"))
    }

    fn remove(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.ours) {
            fs::remove_file(POLICY)
        } else {
            Ok(())
        }
    }
}

impl Drop for Forbidden {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{POLICY} forbids services to start and can't be removed: {error}");
        }
    }
}
