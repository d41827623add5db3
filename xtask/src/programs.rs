//! Building the kernel programs.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::{cargo, execute, short, which};
use crate::workspace::target_directory;

/// Names the built object for the build of NetManager, which then carries it.
pub const OBJECT_VARIABLE: &str = "DATAPLANE_OBJECT";
const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "dataplane-ebpf";

/// Builds the programs, and says where the object is.
pub fn build() -> Result<PathBuf> {
    ensure!(
        which("bpf-linker").is_some(),
        "bpf-linker is not on PATH: run `cargo xtask setup` first"
    );
    execute(&mut cargo_for_programs("build")?)?;
    let object = object_in(&directory()?);
    ensure!(object.is_file(), "the build left no {}", short(&object));
    Ok(object)
}

/// Runs a verb of cargo for the programs, as they are built: with the compiler of the rest, told to allow what
/// only nightly compilers allow (`-Z build-std`), since its LLVM is that of `bpf-linker`.
pub fn cargo_for_programs(verb: &str) -> Result<Command> {
    let mut command = cargo()?;
    let directory = directory()?;
    for_programs(&mut command, verb, &directory);
    Ok(command)
}

/// The same for another checkout and target folder.
pub fn for_programs(command: &mut Command, verb: &str, directory: &Path) {
    command
        // The register layout that probes read is the host's.
        .env("CARGO_ENCODED_RUSTFLAGS", encoded_flags(ARCH))
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            verb,
            "--locked",
            "--release",
            "-p",
            PROGRAM,
            "--bin",
            PROGRAM,
            "--features",
            "programs",
        ])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(directory);
}

/// The object in a target folder.
pub fn object_in(directory: &Path) -> PathBuf {
    directory.join(TARGET).join("release").join(PROGRAM)
}

/// A folder of its own: flags and target differ from everything else, and builds don't wait for each other.
fn directory() -> Result<PathBuf> {
    Ok(target_directory()?.join("bpf"))
}

/// Flags joined as cargo wants them, so that the quotes in one survive. Debug information and `--btf` yield the
/// types that the loader and `bpftool` read; `v3` has the atomic and 32-bit instructions.
fn encoded_flags(architecture: &str) -> String {
    let architecture = format!("bpf_target_arch=\"{architecture}\"");
    [
        "--cfg",
        &architecture,
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Ctarget-cpu=v3",
    ]
    .join("\x1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_an_argument_of_its_own() {
        let flags = encoded_flags("x86_64");
        let expected = [
            "--cfg",
            "bpf_target_arch=\"x86_64\"",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Ctarget-cpu=v3",
        ];
        assert_eq!(expected.as_slice(), flags.split('\x1f').collect::<Vec<_>>());
    }
}
