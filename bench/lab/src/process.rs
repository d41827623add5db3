//! Running commands, and finding the processes that live in a namespace.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::wait::wait_for;

/// How long a killed process may take to be gone. One that sits in the kernel's work may be slow on a loaded
/// machine.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a command to its end; what it wrote to stderr becomes the error where it fails.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, stderr.trim());
    }
    Ok(output)
}

/// Has a command run in a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
pub(crate) fn in_session(command: &mut Command) {
    // SAFETY: one system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
}

/// A command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

/// What makes a namespace the same namespace. The number alone is used again as soon as a namespace is gone, so
/// it says something only while the namespace is held, as one with a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(path: &str) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// Kills every process that lives in one of the namespaces, and returns when they are gone. This process is
/// spared, and so is everything in its own namespace.
pub(crate) fn kill_inside(namespaces: &[Identity]) -> Result<()> {
    let own = Identity::of("/proc/self/ns/net").context("cannot see the namespace of this process")?;
    let doomed: Vec<Identity> = namespaces
        .iter()
        .copied()
        .filter(|identity| *identity != own)
        .collect();
    if doomed.is_empty() {
        return Ok(());
    }
    kill_all("killed processes to leave their namespaces", || {
        inhabitants(&doomed)
    })
}

/// Kills the processes that are found, again and again, since a process may start another while it is being killed,
/// until none is found. This process is spared.
pub(crate) fn kill_all(what: &str, mut find: impl FnMut() -> Result<Vec<Pid>>) -> Result<()> {
    let own = Pid::this();
    wait_for(what, KILL_DEADLINE, || {
        let mut doomed = find()?;
        doomed.retain(|pid| *pid != own);
        for pid in &doomed {
            match kill(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot kill process {pid}")),
            }
        }
        Ok(doomed.is_empty())
    })
}

/// All processes of the machine, as far as this one sees.
pub(crate) fn processes() -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(number.map(Pid::from_raw));
    }
    Ok(found)
}

/// The processes in the namespaces. One that is dead but not yet reaped has no namespace any more.
fn inhabitants(namespaces: &[Identity]) -> Result<Vec<Pid>> {
    let lives_there = |pid: &Pid| {
        // A process that ends while it is looked at is none.
        Identity::of(&format!("/proc/{pid}/ns/net")).is_ok_and(|identity| namespaces.contains(&identity))
    };
    Ok(processes()?.into_iter().filter(lives_there).collect())
}
