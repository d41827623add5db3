//! What comes from Debian.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{execute, need_root, output, which};

/// A command and the package that brings it.
pub struct Package {
    pub command: &'static str,
    pub package: &'static str,
    /// Where a release does not have that package, this one brings the command.
    pub otherwise: Option<&'static str>,
    pub why: &'static str,
}

impl Package {
    const fn new(command: &'static str, package: &'static str, why: &'static str) -> Self {
        Self {
            command,
            package,
            otherwise: None,
            why,
        }
    }

    /// The package that this machine's release has.
    fn name(&self) -> &'static str {
        let Some(otherwise) = self.otherwise else {
            return self.package;
        };
        let known = output(Command::new("apt-cache").args(["show", "--no-all-versions", self.package]));
        if known.is_ok_and(|text| !text.trim().is_empty()) {
            self.package
        } else {
            otherwise
        }
    }
}

/// Each is looked for by its command: who has it from elsewhere needs no package.
pub const PACKAGES: &[Package] = &[
    Package::new("ip", "iproute2", "makes the lab's namespaces and links"),
    Package::new(
        "ethtool",
        "ethtool",
        "makes the lab's wire behave like a network card",
    ),
    Package::new(
        "nft",
        "nftables",
        "applies NetManager's rules, and shows that none is left",
    ),
    Package::new(
        "bpftool",
        "bpftool",
        "shows that no program stays attached after the tests",
    ),
    Package::new(
        "iperf3",
        "iperf3",
        "measures throughput, and loads the wire in tests",
    ),
    Package::new("curl", "curl", "speaks to the daemons' interfaces"),
    Package::new(
        "mosquitto",
        "mosquitto",
        "is the broker that NetManager talks to in tests",
    ),
    Package::new("dockerd", "docker.io", "runs the containers of workers"),
    Package {
        command: "docker",
        package: "docker-cli",
        // Up to Debian 12 both are one.
        otherwise: Some("docker.io"),
        why: "shows what the containers do",
    },
    Package::new(
        "iptables",
        "iptables",
        "is how Docker writes its rules, which NetManager has to live beside",
    ),
    Package::new(
        "mmdebstrap",
        "mmdebstrap",
        "makes the images of the example where no registry is at hand",
    ),
];

/// The services that packages bring: the package, its scripts in `/etc/init.d`, its units of systemd.
const SERVICES: &[(&str, &[&str], &[&str])] = &[
    ("mosquitto", &["mosquitto"], &["mosquitto.service"]),
    (
        "docker.io",
        &["docker"],
        &["docker.service", "docker.socket", "containerd.service"],
    ),
];

/// Where Debian's packages ask whether they may start their service when they are installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// "Action forbidden by policy".
const POLICY_FORBIDS: &str = "#!/bin/sh\nexit 101\n";

/// Installs packages without their recommendations, and leaves no service behind that would not be there without.
pub fn install(packages: &[&Package]) -> Result<()> {
    if which("apt-get").is_none() {
        let names: Vec<&str> = packages.iter().map(|package| package.package).collect();
        let commands: Vec<&str> = packages.iter().map(|package| package.command).collect();
        bail!(
            "there is no apt-get: install the commands {} by your system's own means (Debian has them in {})",
            commands.join(", "),
            names.join(", ")
        );
    }
    need_root("installing packages")?;
    execute(Command::new("apt-get").args(["update", "-q"]))?;
    // What the release has is known only now.
    let mut names: Vec<&str> = packages.iter().map(|package| package.name()).collect();
    names.sort_unstable();
    names.dedup();
    let forbidden = Forbidden::new()?;
    let installed = execute(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    );
    forbidden.end()?;
    installed?;
    // Not started now, they would still start with the next boot: tests and demonstrations start their own.
    for (_, scripts, units) in SERVICES.iter().filter(|(package, ..)| names.contains(package)) {
        if which("systemctl").is_some() {
            execute(
                Command::new("systemctl")
                    .args(["disable", "--quiet"])
                    .args(*units),
            )?;
        } else if which("update-rc.d").is_some() {
            for script in *scripts {
                execute(Command::new("update-rc.d").args([script, "disable"]))?;
            }
        }
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
