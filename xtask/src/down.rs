//! `down`: ends what `up` and `demo` left running, or left lying.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lab::system::{CLUSTER_PROGRAM, ENGINE_PROGRAM, NETMANAGER_PROGRAM, ROOT_PROGRAM, Seat};
use lab::{
    Daemon, DockerClient, forget_names, kill_programs, living, node_ids, remove_standing, started, wait_for,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{need_root, output};
use crate::standing::{DIRECTORY, MARK, Standing};
use crate::up::{PROGRAMS, network};

/// How long a demonstration may take to take itself down.
const GRACE: Duration = Duration::from_secs(60);

/// How long a NetManager may take to take over what a dead one had.
const REVIVAL: Duration = Duration::from_secs(10);

/// Ends what `up` or `demo --keep` started, and removes all that is left of them, also where they were killed.
///
/// Daemons, containers, links, rules, pins, settings, folders: nothing stays. With nothing there it succeeds, too.
#[derive(clap::Args)]
pub struct Options {
    /// Another folder than the usual one, as tests need it: nothing but what stands in it is ended.
    #[arg(long, hide = true)]
    directory: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<()> {
    let Options { directory } = options;
    need_root("removing namespaces and links")?;
    if let Some(directory) = directory {
        return take_down(&directory);
    }
    let demonstrations = end_demonstrations()?;
    let stood = Path::new(DIRECTORY).exists();
    take_down(Path::new(DIRECTORY))?;
    forget_names()?;
    match (stood, demonstrations) {
        (false, 0) => println!("nothing was running; nothing is left"),
        (true, 0) => println!("the system is down; nothing of it is left"),
        (false, _) => println!("the demonstration is down; nothing of it is left"),
        (true, _) => println!("the system and the demonstration are down; nothing of them is left"),
    }
    Ok(())
}

/// Ends demonstrations that run, whether or not they are to be kept, and removes what killed labs left. How many ran.
fn end_demonstrations() -> Result<usize> {
    let found = living(MARK)?;
    for (directory, owner) in &found {
        eprintln!("ending the demonstration in {}", directory.display());
        let pid = Pid::from_raw(owner.cast_signed());
        for (signal, grace) in [
            (Signal::SIGTERM, GRACE),
            (Signal::SIGKILL, Duration::from_secs(5)),
        ] {
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot end process {pid}")),
            }
            let gone = wait_for(
                "the demonstration to end",
                grace,
                || Ok(started(*owner).is_none()),
            );
            if gone.is_ok() {
                break;
            }
        }
    }
    lab::sweep()?;
    Ok(found.len())
}

/// Removes everything that `up` made in a folder, whatever of it is there. Goes on past failures.
pub fn take_down(directory: &Path) -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |outcome: Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{error:#}"));
        }
    };
    let programs = directory.join(PROGRAMS);
    let of = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(|name| programs.join(name)).collect() };

    // Who would start containers again goes first; who takes their network away stays until they are gone.
    attempt(kill_programs(
        directory,
        &of(&[ROOT_PROGRAM, CLUSTER_PROGRAM, ENGINE_PROGRAM]),
    ));
    match node_ids(directory) {
        Ok(nodes) => attempt(remove_containers(directory, &nodes)),
        Err(error) => attempt(Err(error)),
    }
    attempt(kill_programs(directory, &of(&[NETMANAGER_PROGRAM])));
    attempt(purge(directory, &programs.join(NETMANAGER_PROGRAM)));
    attempt(network::remove());
    attempt(remove_standing(directory));
    if failures.is_empty() {
        Ok(())
    } else {
        Err(anyhow!(
            "not everything could be taken down; try again after mending:\n  {}",
            failures.join("\n  ")
        ))
    }
}

/// Removes the containers and networks that nodes have in the machine's Docker. A Docker of the system's own goes
/// as a whole.
fn remove_containers(directory: &Path, nodes: &[String]) -> Result<()> {
    let docker = DockerClient::at(Path::new(DockerClient::MACHINE));
    if nodes.is_empty() || !docker.answers() {
        return Ok(());
    }
    let mut revived = None;
    for node in nodes {
        let containers = docker.containers(&[&format!("oakestra.node={node}")])?;
        if !containers.is_empty() {
            revived.get_or_insert_with(|| revive(directory));
            let mut arguments = vec!["rm", "--force", "--volumes"];
            arguments.extend(containers.iter().map(String::as_str));
            docker.run(&arguments)?;
        }
        let network = format!("oakestra-{node}");
        let filter = format!("name={network}");
        let found = docker.text(&["network", "ls", "--filter", &filter, "--format", "{{.Name}}"])?;
        if found.lines().any(|line| line == network) {
            revived.get_or_insert_with(|| revive(directory));
            docker.run(&["network", "rm", &network])?;
        }
    }
    Ok(())
}

/// Starts NetManagers that have ended: Docker asks them to take each container's network away, and waits half a
/// minute for each that does not answer. Where one can't be started, that is all that is lost.
fn revive(directory: &Path) -> Vec<Daemon> {
    let Ok(Some(standing)) = Standing::load(directory) else {
        return Vec::new();
    };
    let plan = &standing.plan;
    let dead = plan
        .workers
        .iter()
        .filter(|seat| plan.ask_netmanager(seat, "/status").is_err());
    let started: Vec<(&Seat, Daemon)> = dead
        .filter_map(|seat| Some((seat, plan.netmanager(seat).ok()?)))
        .collect();
    for (seat, _daemon) in &started {
        let answers = wait_for("NetManager to answer", REVIVAL, || {
            plan.ask_netmanager(seat, "/status")?;
            Ok(true)
        });
        if let Err(error) = answers {
            eprintln!("{}: {error:#}", seat.name);
        }
    }
    started.into_iter().map(|(_seat, daemon)| daemon).collect()
}

/// Has NetManager remove what the worker in the machine's own namespace has there, and put settings back. What
/// workers have in namespaces of their own goes with these.
fn purge(directory: &Path, netmanager: &Path) -> Result<()> {
    let root = directory.join("worker-1");
    if !netmanager.is_file() || !root.is_dir() {
        return Ok(());
    }
    output(Command::new(netmanager).arg("--root").arg(root).arg("reset"))?;
    Ok(())
}
