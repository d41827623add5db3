//! `test --mutants`: whether the tests find defects that are known to be there.
//!
//! Each defect is one change to one file of the programs, made in a copy of the repository. The comparison of the programs
//! with their model has to fail for each; for the programs as they are it has to pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::command::{cargo, execute, show};
use crate::programs::{OBJECT_VARIABLE, for_programs, object_in};
use crate::workspace::{root, target_directory};

/// Names the object that the comparison is to load.
const MUTANT_VARIABLE: &str = "OAKESTRA_OBJECT";

/// A defect: in `file` of the programs, `right` (which is there once) becomes `wrong`.
struct Mutant {
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const MUTANTS: [Mutant; 17] = [
    Mutant {
        name: "an endpoint may use any endpoint's address",
        file: "programs/outbound.rs",
        right: "Some(endpoint) if endpoint.interface == packet::interface(ctx) => Ok(Some(endpoint)),",
        wrong: "Some(endpoint) => Ok(Some(endpoint)),",
    },
    Mutant {
        name: "an endpoint may speak to tunnels",
        file: "programs/outbound.rs",
        right: "        && maps::is_any_tunnel(ip.destination, port)\n",
        wrong: "        && maps::is_any_tunnel(ip.destination, port)\n        && ip.time_to_live == 0\n",
    },
    Mutant {
        name: "a segment of no flow takes a turn",
        file: "programs/outbound.rs",
        right: "Some(_) if !transport.begins => return Ok(Destination::Refused),",
        wrong: "Some(_) if !transport.begins && key.protocol == 0 => return Ok(Destination::Refused),",
    },
    Mutant {
        name: "ports are swapped",
        file: "programs/translate.rs",
        right: "[new.source_port, new.destination_port])",
        wrong: "[new.destination_port, new.source_port])",
    },
    Mutant {
        name: "the TCP checksum is elsewhere",
        file: "programs/translate.rs",
        right: "const TCP_CHECKSUM: usize = 16;",
        wrong: "const TCP_CHECKSUM: usize = 18;",
    },
    Mutant {
        name: "a datagram without a checksum gets one",
        file: "programs/translate.rs",
        right: "u64::from(BPF_F_MARK_MANGLED_0)),",
        wrong: "u64::from(BPF_F_MARK_MANGLED_0) & 0),",
    },
    Mutant {
        name: "an entry is written over another",
        file: "programs/flow.rs",
        right: "UNANSWERED.insert(key, entry, BPF_NOEXIST.into())?;",
        wrong: "UNANSWERED.insert(key, entry, 0)?;",
    },
    Mutant {
        name: "a reused address catches old flows",
        file: "programs/flow.rs",
        right: "Some(instance) if instance.incarnation == decision.incarnation => Ok(Some((decision, instance))),",
        wrong: "Some(instance) if instance.incarnation != 0 => Ok(Some((decision, instance))),",
    },
    Mutant {
        name: "a refused connection is kept for good",
        file: "programs/flow.rs",
        right: "PROTOCOL_TCP => tcp_flags & (TCP_SYN | TCP_RST) == 0,",
        wrong: "PROTOCOL_TCP => tcp_flags & TCP_SYN == 0,",
    },
    Mutant {
        name: "every second backend is left out",
        file: "programs/balance.rs",
        right: "(cursor, 1) };",
        wrong: "(cursor, 2) };",
    },
    Mutant {
        name: "an instance may speak from any node",
        file: "programs/admit.rs",
        right: "Some(path) if node != THIS_NODE && path.group == group => Ok(()),",
        wrong: "Some(path) if node != THIS_NODE && path.group <= 1000 + group => Ok(()),",
    },
    Mutant {
        name: "a peer may speak at any interface",
        file: "programs/admit.rs",
        right: "if peer.interface != packet::interface(ctx) {",
        wrong: "if peer.interface == 0 {",
    },
    Mutant {
        name: "the tunnel's headers are forgotten in the MTU",
        file: "programs/encap.rs",
        right: "longest + OVERHEAD <= node.mtu as usize",
        wrong: "longest <= node.mtu as usize",
    },
    Mutant {
        name: "a first fragment overtakes those that wait for it",
        file: "programs/fragment.rs",
        right: "            && found.waiting != 0\n",
        wrong: "            && found.waiting > 1\n",
    },
    Mutant {
        name: "a later fragment is taken for one with ports",
        file: "programs/translate.rs",
        right: "let is_later = header.part == Part::Later;",
        wrong: "let is_later = header.part == Part::Early;",
    },
    Mutant {
        name: "a source route is carried",
        file: "programs/fragment.rs",
        right: "OPTION_LOOSE_ROUTE | OPTION_STRICT_ROUTE => return",
        wrong: "OPTION_STRICT_ROUTE => return",
    },
    Mutant {
        name: "a reset does not count the SYN",
        file: "programs/reset.rs",
        right: "payload as u32 + u32::from(tcp.flags & TCP_SYN != 0)",
        wrong: "payload as u32 + u32::from(tcp.flags & TCP_SYN == 0x80)",
    },
];

/// Runs all mutants, or those whose name contains `filter`.
pub fn run(object: &Path, filter: Option<&str>) -> Result<ExitCode> {
    let folder = target_directory()?.join("mutants");
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).context("cannot remove the copy of an earlier run")?;
    }
    copy(root(), &tree)?;
    execute(
        cargo()?
            .args([
                "test",
                "--locked",
                "-p",
                "netmanager",
                "--features",
                "netmanager/kernel-tests",
            ])
            .args(["--test", "differential", "--no-run"])
            .env(OBJECT_VARIABLE, object),
    )?;
    ensure!(
        differs(object, object)?.is_none(),
        "the programs do something else than their model, without any defect: `cargo xtask test f81` shows what"
    );
    let mut missed = Vec::new();
    let chosen = MUTANTS
        .iter()
        .filter(|mutant| filter.is_none_or(|filter| mutant.name.contains(filter)));
    for mutant in chosen {
        let built = build(mutant, &tree, &folder)?;
        match differs(object, &built)? {
            Some(difference) => println!("found: {} ({difference})", mutant.name),
            None => missed.push(mutant.name),
        }
    }
    for name in &missed {
        println!("not found: {name}");
    }
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the programs with the defect, and leaves the copy as it was.
fn build(mutant: &Mutant, tree: &Path, folder: &Path) -> Result<PathBuf> {
    let path = tree.join("dataplane-ebpf/src").join(mutant.file);
    let source = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        source.matches(mutant.right).count() == 1,
        "{}: {} does not have {:?} exactly once; adapt the mutant",
        mutant.name,
        mutant.file,
        mutant.right
    );
    let write =
        |text: &str| fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()));
    write(&source.replace(mutant.right, mutant.wrong))?;
    let directory = folder.join("bpf");
    let mut command = Command::new("cargo");
    command.current_dir(tree).env_remove("RUSTUP_TOOLCHAIN");
    for_programs(&mut command, "build", &directory);
    command.arg("--quiet");
    let built = execute(&mut command);
    write(&source)?;
    built.with_context(|| format!("{}: the programs do not build; adapt the mutant", mutant.name))?;
    Ok(object_in(&directory))
}

/// What the comparison says first, when it fails.
fn differs(object: &Path, mutant: &Path) -> Result<Option<String>> {
    let mut command = cargo()?;
    command
        .args([
            "test",
            "--quiet",
            "--locked",
            "-p",
            "netmanager",
            "--features",
            "netmanager/kernel-tests",
        ])
        .args(["--test", "differential"])
        .env(OBJECT_VARIABLE, object)
        .env(MUTANT_VARIABLE, mutant)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    show(&command);
    let output = command.output().context("cannot run cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(None);
    }
    ensure!(
        text.contains("test result: FAILED"),
        "cargo test failed without a failed test: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at"));
    let difference = lines.nth(1).unwrap_or("see the test").chars().take(120).collect();
    Ok(Some(difference))
}

/// Copies a checkout without what is built and what git keeps.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {}", from.display());
    fs::create_dir_all(to).with_context(context)?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let kind = entry.file_type().with_context(context)?;
        let destination = to.join(&name);
        if kind.is_dir() {
            copy(&entry.path(), &destination)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &destination).with_context(context)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_has_its_place_in_the_programs() {
        for mutant in MUTANTS {
            let path = root().join("dataplane-ebpf/src").join(mutant.file);
            let source = fs::read_to_string(&path).expect("a source file");
            assert_eq!(source.matches(mutant.right).count(), 1, "{}", mutant.name);
        }
    }
}
