//! `setup`: finds what the machine lacks, and installs it.

mod packages;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::command::{cargo, execute, need_root, output, which};
use crate::workspace::root;
use packages::{PACKAGES, Package};

/// Fits the compiler in `rust-toolchain.toml`: it links with the same version of LLVM.
const BPF_LINKER: &str = "0.10.1";
const BPFFS: &str = "/sys/fs/bpf";

/// Finds what is missing to build, test and measure, says what it installs and why, and installs it.
///
/// Looks for: commands of Debian packages (iproute2, nftables, ...), the compiler that `rust-toolchain.toml` names
/// with its sources, clippy and rustfmt, the linker of the kernel programs, and a mounted bpf file system. What is
/// there is left alone, so the second time does nothing. Installs with apt-get, rustup and cargo; where there is no
/// apt-get or rustup it says what to install by hand. Needs root if packages are missing.
#[derive(clap::Args)]
pub struct Options {
    /// Only list what is missing.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(options: Options) -> Result<()> {
    let Options { dry_run } = options;
    if dry_run {
        let missing = missing()?;
        missing.iter().for_each(Missing::print);
        println!("{} missing", missing.len());
        return Ok(());
    }
    ensure_complete()?;
    println!("nothing is missing");
    Ok(())
}

/// Installs what is missing; silent if nothing is.
pub fn ensure_complete() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    missing.iter().for_each(Missing::print);
    install(&missing)?;

    let still: Vec<String> = self::missing()?.iter().map(Missing::name).collect();
    ensure!(
        still.is_empty(),
        "installed, but still not found: {}. Is there a folder that PATH lacks (/usr/sbin, ~/.cargo/bin)?",
        still.join(", ")
    );
    Ok(())
}

/// A thing that is not there.
enum Missing {
    Package(&'static Package),
    /// The toolchain of this version, or a component of it.
    Toolchain(String),
    BpfLinker,
    Bpffs,
}

impl Missing {
    fn name(&self) -> String {
        match self {
            Self::Package(package) => package.command.to_owned(),
            Self::Toolchain(version) => format!("Rust {version} with rust-src, clippy and rustfmt"),
            Self::BpfLinker => format!("bpf-linker {BPF_LINKER}"),
            Self::Bpffs => BPFFS.to_owned(),
        }
    }

    fn print(&self) {
        let name = self.name();
        match self {
            Self::Package(Package { package, why, .. }) => {
                println!("{name}: {why} (Debian package {package})")
            }
            Self::Toolchain(_) => {
                println!("{name}: one compiler builds everything, programs included (rustup)")
            }
            Self::BpfLinker => {
                println!("{name}: links the kernel programs (cargo install, about two minutes)")
            }
            Self::Bpffs => {
                println!("{name}: keeps programs alive without a process (mount, until the next boot)")
            }
        }
    }
}

fn missing() -> Result<Vec<Missing>> {
    let mut missing: Vec<Missing> = PACKAGES
        .iter()
        .filter(|package| which(package.command).is_none())
        .map(Missing::Package)
        .collect();
    let version = wanted_toolchain()?;
    if !has_toolchain(&version) {
        missing.push(Missing::Toolchain(version));
    }
    if !has_bpf_linker() {
        missing.push(Missing::BpfLinker);
    }
    if statfs(BPFFS).map(|status| status.filesystem_type()) != Ok(BPF_FS_MAGIC) {
        missing.push(Missing::Bpffs);
    }
    Ok(missing)
}

fn install(missing: &[Missing]) -> Result<()> {
    let packages: Vec<&Package> = missing
        .iter()
        .filter_map(|thing| match thing {
            Missing::Package(package) => Some(*package),
            Missing::Toolchain(_) | Missing::BpfLinker | Missing::Bpffs => None,
        })
        .collect();
    if !packages.is_empty() {
        packages::install(&packages)?;
    }
    for thing in missing {
        match thing {
            Missing::Package(_) => {}
            Missing::Toolchain(version) => install_toolchain(version)?,
            // From the root of the repository, whose toolchain it has to be built with.
            Missing::BpfLinker => {
                execute(cargo()?.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]))?;
            }
            Missing::Bpffs => {
                need_root("mounting the bpf file system")?;
                execute(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
            }
        }
    }
    Ok(())
}

fn wanted_toolchain() -> Result<String> {
    let path = root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("channel"));
    let version = line
        .and_then(|line| line.split('"').nth(1))
        .context("rust-toolchain.toml names no channel")?;
    Ok(version.to_owned())
}

/// Asks the compiler itself, not rustup, which takes longer and may not be what installed it.
fn has_toolchain(version: &str) -> bool {
    let ask = |question: &[&str]| {
        output(
            Command::new("rustc")
                .args(question)
                .current_dir(root())
                .env_remove("RUSTUP_TOOLCHAIN"),
        )
    };
    let Ok(found) = ask(&["--version"]) else {
        return false;
    };
    let Ok(sysroot) = ask(&["--print", "sysroot"]) else {
        return false;
    };
    let parts = [
        "lib/rustlib/src/rust/library/core/Cargo.toml",
        "bin/cargo-clippy",
        "bin/cargo-fmt",
    ];
    found.split(' ').nth(1) == Some(version)
        && parts
            .iter()
            .all(|part| root().join(sysroot.trim()).join(part).is_file())
}

fn install_toolchain(version: &str) -> Result<()> {
    if which("rustup").is_none() {
        bail!(
            "there is no rustup: install Rust {version} with rust-src, clippy and rustfmt, or rustup from rustup.rs"
        );
    }
    let mut command = Command::new("rustup");
    command.args([
        "toolchain",
        "install",
        version,
        "--no-self-update",
        "--profile",
        "minimal",
    ]);
    execute(command.args(["-c", "rust-src", "-c", "clippy", "-c", "rustfmt"]))
}

fn has_bpf_linker() -> bool {
    which("bpf-linker").is_some()
        && output(Command::new("bpf-linker").arg("--version"))
            .is_ok_and(|text| text.split_ascii_whitespace().any(|word| word == BPF_LINKER))
}
