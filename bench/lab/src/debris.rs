//! Removal of what a run made, by its names: used by the run's own end and, for the dead, by the next run.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::namespace::DIRECTORY as NAMESPACE_DIRECTORY;
use crate::process::{Identity, kill_inside};
use crate::remains::{
    ignore_absent, kill_marked, node_ids, remove_control_groups, remove_plugins, remove_shim_sockets,
    unmount_below,
};
use crate::run::{PREFIX, Run};

/// Where the nodes pin their programs and tables, each in a folder of its node id.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/oakestra";

/// Not what TMPDIR says: a later run has to find the debris, and a socket's path may be 107 bytes long at most.
const TEMPORARY_DIRECTORY: &str = "/tmp";

/// The folder of a run.
pub(crate) fn run_directory(run: &Run) -> PathBuf {
    Path::new(TEMPORARY_DIRECTORY).join(run.name())
}

/// The labs whose folder has a file of this name and whose owner lives: the folder and the owner's process id.
pub fn living(mark: &str) -> Result<Vec<(PathBuf, u32)>> {
    let names = names(Path::new(TEMPORARY_DIRECTORY))?;
    let runs = names.iter().filter_map(|name| Run::of(name));
    Ok(runs
        .filter(|run| run_directory(run).join(mark).exists() && run.owner_lives())
        .map(|run| (run_directory(&run), run.owner()))
        .collect())
}

/// Undoes what `ip netns` does with the folder of its names when the first one is made, if there is no name left.
/// Not for when others make namespaces at the same time.
pub fn forget_names() -> Result<()> {
    let directory = Path::new(NAMESPACE_DIRECTORY);
    if !directory.exists() || !names(directory)?.is_empty() {
        return Ok(());
    }
    // It is mounted onto itself, perhaps more than once. EINVAL: not mounted; EBUSY: a name has come.
    loop {
        match umount2(directory, MntFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::EBUSY) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("cannot unmount {NAMESPACE_DIRECTORY}")),
        }
    }
}

/// Removes what labs left behind whose owners are dead. Silent when all went well, and harmless beside another
/// sweep or a living lab.
pub fn sweep() -> Result<()> {
    let mut runs = BTreeSet::new();
    for directory in [NAMESPACE_DIRECTORY, TEMPORARY_DIRECTORY, PIN_DIRECTORY] {
        for name in names(Path::new(directory))? {
            runs.extend(Run::of(&name).filter(|run| !run.owner_lives()));
        }
    }
    let failures = runs.iter().filter_map(|run| remove(run).err()).collect();
    all_or_nothing("cannot sweep the debris of earlier runs", failures)
}

/// Removes everything that belongs to a folder `oakt-<name>` that no lab made: processes that were started with
/// [`Namespace::machine`](crate::Namespace::machine) of this folder, Docker's in it, namespaces `oakt-<name>-…`, pins
/// of its nodes, the folder itself. What such a node has in the machine's own namespace is not removed: that is its
/// `NetManager purge`, before this. Succeeds where there is nothing.
pub fn remove_standing(directory: &Path) -> Result<()> {
    let name = directory.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| name.starts_with(PREFIX));
    let name = name.with_context(|| format!("{} is no folder of ours", directory.display()))?;
    ensure!(Run::of(name).is_none(), "{name} is a lab");
    remove_all(name, directory)
}

pub(crate) fn remove(run: &Run) -> Result<()> {
    remove_all(&run.name(), &run_directory(run))
}

/// Removes a run: its processes first, containers next, then namespaces, mounts, folder and pins. In which order the
/// namespaces go does not matter: with nobody left inside nobody notices, and a link goes with whichever of its ends
/// goes first.
fn remove_all(run: &str, directory: &Path) -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |outcome: Result<()>| failures.extend(outcome.err());

    // Dockerd before its containers, so that nobody starts them again.
    attempt(kill_marked(run));
    attempt(remove_control_groups(run));
    let prefix = format!("{run}-");
    match names(Path::new(NAMESPACE_DIRECTORY)) {
        Ok(names) => {
            let paths: Vec<PathBuf> = names
                .iter()
                .filter(|name| name.starts_with(&prefix))
                .map(|name| Path::new(NAMESPACE_DIRECTORY).join(name))
                .collect();
            attempt(empty(&paths));
            for path in &paths {
                attempt(unname(path));
            }
        }
        Err(error) => attempt(Err(error)),
    }
    let mut nodes = Vec::new();
    match node_ids(directory) {
        Ok(ids) => nodes = ids,
        Err(error) => attempt(Err(error)),
    }
    for node in &nodes {
        attempt(remove_plugins(node));
    }
    attempt(remove_pins(|name| {
        name.starts_with(&prefix) || nodes.iter().any(|node| node == name)
    }));
    attempt(remove_dockers(directory));
    // Last of all, since it tells which nodes there were. Never with anything mounted in it: that would remove what
    // is not the run's.
    attempt(unmount_below(directory).and_then(|()| remove_tree(directory)));
    all_or_nothing(&format!("cannot remove all of {run}"), failures)
}

/// Removes one namespace and the processes in it.
pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    let path = Path::new(NAMESPACE_DIRECTORY).join(name);
    empty(std::slice::from_ref(&path))?;
    unname(&path)
}

fn empty(namespaces: &[PathBuf]) -> Result<()> {
    let mut identities = Vec::new();
    for path in namespaces {
        match Identity::of(&path.to_string_lossy()) {
            Ok(identity) => identities.push(identity),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
        }
    }
    kill_inside(&identities)
}

/// Takes a namespace's name away, and with the name goes the namespace. EINVAL: the name was made, but nothing
/// was mounted there yet when its owner died.
fn unname(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(errno).with_context(|| format!("cannot unmount {}", path.display())),
    }
    ignore_absent(fs::remove_file(path)).with_context(|| format!("cannot remove {}", path.display()))
}

fn remove_tree(path: &Path) -> Result<()> {
    ignore_absent(fs::remove_dir_all(path)).with_context(|| format!("cannot remove {}", path.display()))
}

/// What each Docker in the folder has elsewhere.
fn remove_dockers(directory: &Path) -> Result<()> {
    for name in names(directory)? {
        if name.starts_with(crate::docker::FOLDER) {
            remove_shim_sockets(&directory.join(name))?;
        }
    }
    Ok(())
}

fn remove_pins(is_doomed: impl Fn(&str) -> bool) -> Result<()> {
    let directory = Path::new(PIN_DIRECTORY);
    for name in names(directory)? {
        if is_doomed(&name) {
            remove_tree(&directory.join(name))?;
        }
    }
    // The parent goes with the last run, never from under a living one that is about to make its folder there.
    // Namespaces are gone before this, so of two runs that end at once the later one sees no other.
    if names(Path::new(NAMESPACE_DIRECTORY))?
        .iter()
        .any(|name| Run::of(name).is_some_and(|run| run.owner_lives()))
    {
        return Ok(());
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        outcome => ignore_absent(outcome).with_context(|| format!("cannot remove {PIN_DIRECTORY}")),
    }
}

/// The names in a folder, none if there is no such folder. Names that are not UTF-8 are not ours.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// One error that tells of all failures.
fn all_or_nothing(what: &str, failures: Vec<Error>) -> Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    Err(anyhow!("{what}: {}", texts.join("; ")))
}
