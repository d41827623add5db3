//! What is left of a run outside of its namespaces: processes, containers, mounts, pins, sockets in shared folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::Pid;
use serde_json::Value;

use crate::namespace::MARKER;
use crate::process::{KILL_DEADLINE, kill_all, processes};
use crate::wait::wait_for;

/// Where dockerd looks for the sockets of network drivers, whatever it is told about other folders.
pub const PLUGIN_DIRECTORY: &str = "/run/docker/plugins";
/// Where the parents of containers (containerd-shim) have their sockets, whatever containerd is told.
pub(crate) const SHIM_DIRECTORY: &str = "/run/containerd/s";
/// Where a NetManager keeps its state, below its root folder.
const NODE_STATE: &str = "var/lib/oakestra/netmanager/state.json";

/// Kills what was started for the run of this name, wherever it lives. This process is spared.
pub(crate) fn kill_marked(run: &str) -> Result<()> {
    kill_all("killed processes to be gone", || marked(run))
}

/// Kills what was started for the run that a folder is named after and executes one of these files.
pub fn kill_programs(directory: &Path, programs: &[PathBuf]) -> Result<()> {
    let run = directory.file_name().and_then(|name| name.to_str());
    let run = run.with_context(|| format!("{} is no folder of a run", directory.display()))?;
    kill_all("killed daemons to be gone", || {
        let executes =
            |pid: &Pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|file| programs.contains(&file));
        Ok(marked(run)?.into_iter().filter(executes).collect())
    })
}

fn marked(run: &str) -> Result<Vec<Pid>> {
    let mut variable = format!("{MARKER}={run}").into_bytes();
    variable.push(0);
    let is_marked = |pid: &Pid| {
        // A process that ends while it is looked at, or is dead already, has no environment.
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| begins_a_variable(&environment, &variable))
    };
    Ok(processes()?.into_iter().filter(is_marked).collect())
}

/// Kills what a dockerd started: processes whose command line names its folder, containerd and containers' parents.
pub(crate) fn kill_docker(directory: &Path) -> Result<()> {
    let exec = directory.join("exec/containerd/");
    let exec = exec.as_os_str().as_bytes();
    kill_all("what dockerd started to be gone", || {
        let is_its = |pid: &Pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|argument| argument.starts_with(exec))
            })
        };
        Ok(processes()?.into_iter().filter(is_its).collect())
    })
}

/// Whether a variable stands in an environment, which is variables that end with a zero each.
fn begins_a_variable(environment: &[u8], variable: &[u8]) -> bool {
    environment
        .split_inclusive(|byte| *byte == 0)
        .any(|entry| entry == variable)
}

/// Kills the containers of the run's own Docker, all of which are in a control group of the run's name, and removes
/// that group.
pub fn remove_control_groups(run: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(run);
        if !group.exists() {
            continue;
        }
        let groups = below(&group)?;
        kill_all("killed containers to be gone", || {
            let mut members = Vec::new();
            for group in &groups {
                // A group that is gone has nobody in it.
                let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                members.extend(
                    list.lines()
                        .filter_map(|line| line.parse().ok())
                        .map(Pid::from_raw),
                );
            }
            Ok(members)
        })?;
        // The kernel lets a group go a moment after its last process.
        wait_for(&format!("{} to be free", group.display()), KILL_DEADLINE, || {
            for group in groups.iter().rev() {
                match fs::remove_dir(group) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    outcome => outcome.with_context(|| format!("cannot remove {}", group.display()))?,
                }
            }
            Ok(true)
        })?;
    }
    Ok(())
}

/// Names of the control groups at the top of all hierarchies.
pub(crate) fn control_groups() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for entry in entries(&hierarchy)? {
            if entry.is_dir() {
                names.extend(entry.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(names)
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = mounts()?;
    let is_hierarchy = |mount: &Mount| mount.kind == "cgroup" || mount.kind == "cgroup2";
    Ok(mounts
        .into_iter()
        .filter(is_hierarchy)
        .map(|mount| mount.point)
        .collect())
}

/// A folder and all folders in it, parents first.
fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let children = entries(directory)?;
        found.extend(children.into_iter().filter(|path| path.is_dir()));
        next += 1;
    }
    Ok(found)
}

/// A mounted file system.
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
}

/// What is mounted, in the order of mounting.
pub(crate) fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(Mount::parse).collect())
}

impl Mount {
    /// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: the point is the fifth
    /// field, the kind the first after the hyphen.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescaped(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Self {
            point: PathBuf::from(std::ffi::OsString::from_vec(point)),
            kind: String::from_utf8_lossy(kind).into_owned(),
        })
    }
}

/// The kernel writes blanks and backslashes as `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digit: &u8| digit.is_ascii_digit().then(|| digit - b'0');
        let escaped = match (*first, tail) {
            (b'\\', [a, b, c, ..]) => octal(a).zip(octal(b)).zip(octal(c)),
            _ => None,
        };
        match escaped {
            Some(((a, b), c)) => {
                bytes.push((a << 6) | (b << 3) | c);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Unmounts everything at or below a folder, so that removing the folder removes nothing of anybody else.
pub(crate) fn unmount_below(directory: &Path) -> Result<()> {
    for mount in mounts()?.iter().rev() {
        if mount.point.starts_with(directory) {
            match umount2(&mount.point, MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("cannot unmount {}", mount.point.display()));
                }
            }
        }
    }
    Ok(())
}

/// Removes the sockets that containers' parents of the run's own Docker had, which `docker` is the folder of.
pub(crate) fn remove_shim_sockets(docker: &Path) -> Result<()> {
    let tasks = docker.join("exec/containerd/daemon/io.containerd.runtime.v2.task/moby");
    for task in entries(&tasks)? {
        let Ok(address) = fs::read_to_string(task.join("address")) else {
            continue;
        };
        let path = Path::new(address.trim().trim_start_matches("unix://"));
        if path.starts_with(SHIM_DIRECTORY) {
            ignore_absent(fs::remove_file(path))
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The ids of the nodes whose root folders lie in a folder. A state that can't be read names no node.
pub fn node_ids(directory: &Path) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for root in entries(directory)? {
        let Ok(text) = fs::read(root.join(NODE_STATE)) else {
            continue;
        };
        let state: Value = serde_json::from_slice(&text).unwrap_or_default();
        let id = state["registration"]["node_id"].as_str();
        // It becomes a part of paths.
        ids.extend(
            id.filter(|id| !id.is_empty() && !id.contains('/'))
                .map(str::to_owned),
        );
    }
    Ok(ids)
}

/// Removes the sockets of a node's network driver.
pub(crate) fn remove_plugins(node: &str) -> Result<()> {
    for path in entries(Path::new(PLUGIN_DIRECTORY))? {
        let is_its = path
            .file_name()
            .map(OsStr::as_bytes)
            .is_some_and(|name| name.windows(node.len()).any(|part| part == node.as_bytes()));
        if is_its {
            ignore_absent(fs::remove_file(&path))
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// What is in a folder, nothing if there is no such folder.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(directory) {
        Ok(list) => list,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
    };
    let mut paths = Vec::new();
    for entry in list {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            // A process or group that ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
        }
    }
    Ok(paths)
}

/// Another sweep may be faster, and what is gone is gone.
pub(crate) fn ignore_absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_blanks() {
        let line = b"36 35 98:0 / /mnt/a\\040b\\134c rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let mount = Mount::parse(line).expect("it is well-formed");
        assert_eq!(
            (Path::new("/mnt/a b\\c"), "ext3"),
            (&*mount.point, mount.kind.as_str())
        );
        assert!(Mount::parse(b"").is_none());
    }

    #[test]
    fn a_variable_is_found_as_a_whole() {
        let environment = b"A=1\0OAKT_RUN=oakt-x\0B=OAKT_RUN=oakt-y\0";
        assert!(begins_a_variable(environment, b"OAKT_RUN=oakt-x\0"));
        assert!(!begins_a_variable(environment, b"OAKT_RUN=oakt-\0"));
        assert!(!begins_a_variable(environment, b"OAKT_RUN=oakt-y\0"));
    }
}
