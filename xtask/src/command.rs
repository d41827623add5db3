//! Running programs, shown before they run.

use std::env;
use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::workspace::{root, target_directory};

/// Cargo in the root of the repository. Which toolchain it is, `rust-toolchain.toml` decides: a `+toolchain` that
/// this program was started with would build the programs with a compiler that fits no `bpf-linker`.
pub fn cargo() -> Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(root()).env_remove("RUSTUP_TOOLCHAIN");
    if env::var_os("CARGO_TARGET_DIR").is_some() {
        command.env("CARGO_TARGET_DIR", target_directory()?);
    }
    Ok(command)
}

/// Shows a command, runs it, and fails if it does.
pub fn execute(command: &mut Command) -> Result<()> {
    show(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", text(command)))?;
    ensure!(status.success(), "{} failed ({status})", text(command));
    Ok(())
}

/// What a command prints, without showing it; for questions, not for work.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run {}", text(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            text(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", text(command)))
}

/// Shows a command on stderr, dimmed, in a form that can be pasted.
pub fn show(command: &Command) {
    let text = text(command);
    if stderr().is_terminal() {
        eprintln!("\x1b[2m$ {text}\x1b[0m");
    } else {
        eprintln!("$ {text}");
    }
}

/// A command with the variables that were set for it, and paths as seen from the root of the repository.
fn text(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!(
            "{}={}",
            name.to_string_lossy(),
            quoted(&value?.to_string_lossy())
        ))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    let text = variables.chain(words).collect::<Vec<_>>().join(" ");
    text.replace(&format!("{}/", root().display()), "")
}

fn quoted(word: &str) -> String {
    // What separates flags in CARGO_ENCODED_RUSTFLAGS, the way bash writes it.
    if word.contains('\x1f') {
        return format!("$'{}'", word.replace('\x1f', "\\x1f"));
    }
    let is_plain = |character: char| character.is_alphanumeric() || "-_=+./:,@%".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}

/// Where a program is, if PATH leads to it.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Fails with a hint where something needs root and this is not root.
pub fn need_root(why: &str) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "{why} needs root: run it as root, or with `sudo env PATH=\"$PATH\" cargo xtask ...`"
    );
    Ok(())
}

/// A path as seen from the root of the repository, where it is below.
pub fn short(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_so_that_it_can_be_pasted() {
        let mut command = Command::new("cargo");
        command
            .env("FLAGS", "--cfg\x1fa=\"b\"")
            .env("EMPTY", "")
            .env_remove("GONE");
        command
            .args(["build", "--target-dir"])
            .arg(root().join("target/bpf"))
            .arg("two words");
        let expected = "EMPTY='' FLAGS=$'--cfg\\x1fa=\"b\"' cargo build --target-dir target/bpf 'two words'";
        assert_eq!(expected, text(&command));
    }
}
