//! `up`: the system on this machine, to be used.

pub mod network;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use lab::images::import_missing;
use lab::system::client::{PASSWORD, USER};
use lab::system::{Plan, ROOT_PORT, Seat, System};
use lab::{Docker, DockerClient, Namespace, kill_programs};

use crate::command::need_root;
use crate::daemons::{self, DAEMONS, Profile};
use crate::down::take_down;
use crate::standing::{DIRECTORY, Standing};
use crate::workspace::root;
use crate::{images, setup};

/// The folder of copies of the daemons, in the system's folder: a build must not change what runs.
pub const PROGRAMS: &str = "bin";

/// How its own Docker is called among the processes.
const DOCKER: &str = "docker";

/// Starts root, cluster and workers on this machine, in the background, and ends when they are ready.
///
/// Root, cluster and one worker run in the machine's own network, further workers in network namespaces of their own.
/// Containers run in the machine's Docker, or, where none answers, in one that is started for them. State and logs
/// are in /var/lib/oakt-up. Where it is up already, nothing changes; where a part of it has ended, all is started
/// again with its state. `cargo xtask status` shows how it fares, `cargo xtask down` ends it and leaves nothing.
#[derive(clap::Args)]
pub struct Options {
    /// How many workers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=50))]
    workers: u8,
    /// Another folder than the usual one, as tests need it; its name begins with `oakt-`.
    #[arg(long, hide = true, default_value = DIRECTORY)]
    directory: PathBuf,
    /// The folders of built daemons and of images, which are then not made.
    #[arg(long, hide = true, num_args = 2, value_names = ["PROGRAMS", "IMAGES"])]
    built: Option<Vec<PathBuf>>,
}

pub fn run(options: Options) -> Result<()> {
    let Options {
        workers,
        directory,
        built,
    } = options;
    need_root("running the system")?;
    let directory = directory.as_path();
    let before = Standing::load(directory)?;
    if let Some(standing) = &before {
        let running = standing.plan.workers.len();
        if running != usize::from(workers) {
            bail!("it is up with {running} workers: `cargo xtask down` first, or the same number");
        }
        if standing.is_whole() {
            println!("it is up already");
            tell(&standing.plan);
            return Ok(());
        }
        println!("not all of it runs any more: starting it again");
    }

    let (built, archive) = match built.as_deref() {
        Some([built, archive]) => (built.clone(), archive.clone()),
        Some(_) | None => {
            setup::ensure_complete()?;
            (daemons::build(Profile::Release)?, images::ensure()?)
        }
    };
    let fresh = before.is_none();
    if fresh {
        // What one that was killed before it had written anything down has left.
        take_down(directory)?;
    }
    match start(directory, &built, &archive, workers, before.as_ref()) {
        Ok(plan) => {
            tell(&plan);
            Ok(())
        }
        Err(error) if fresh => match take_down(directory) {
            Ok(()) => Err(error.context("it did not come up, and was taken down")),
            Err(another) => Err(error.context(format!("{another:#}, after"))),
        },
        // What it had to remember is not thrown away for a failed start.
        Err(error) => Err(error.context(format!(
            "it did not come up; its state and logs are in {DIRECTORY}"
        ))),
    }
}

fn start(
    directory: &Path,
    built: &Path,
    archive: &Path,
    workers: u8,
    before: Option<&Standing>,
) -> Result<Plan> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let programs = directory.join(PROGRAMS);
    // Those that still run of an earlier start.
    let running: Vec<PathBuf> = DAEMONS.iter().map(|name| programs.join(name)).collect();
    kill_programs(directory, &running)?;
    copy_programs(built, &programs)?;

    let (docker, mut own) = docker(directory, archive)?;
    let seats = seats(directory, workers)?;
    let machine = |name: &str| Seat {
        name: name.to_owned(),
        ..seats[0].clone()
    };
    let plan = Plan {
        directory: directory.to_owned(),
        programs,
        docker,
        root: machine("root"),
        cluster: machine("cluster"),
        workers: seats.clone(),
        background: true,
    };
    Standing::planned(&plan).save()?;
    let mut system = System::launch(plan.clone())?;
    system.wait_until_ready()?;
    let mut standing = Standing::of(&mut system);
    // Its own Docker is not started again while it runs.
    let earlier = before.and_then(|before| before.processes.iter().find(|process| process.name == DOCKER));
    match (&mut own, earlier) {
        (Some(docker), _) => standing.add(DOCKER, docker.daemon().pid()),
        (None, Some(earlier)) => standing.add(DOCKER, earlier.pid),
        (None, None) => {}
    }
    standing.save()?;
    system.release();
    if let Some(docker) = &mut own {
        docker.release();
    }
    Ok(plan)
}

fn copy_programs(built: &Path, programs: &Path) -> Result<()> {
    fs::create_dir_all(programs).with_context(|| format!("cannot make {}", programs.display()))?;
    for daemon in DAEMONS {
        fs::copy(built.join(daemon), programs.join(daemon))
            .with_context(|| format!("cannot copy {daemon} to {}", programs.display()))?;
    }
    Ok(())
}

/// The machine's Docker, or else one of the system's own, in either case with the images of the example.
fn docker(directory: &Path, archive: &Path) -> Result<(DockerClient, Option<Docker>)> {
    let machine = DockerClient::at(Path::new(DockerClient::MACHINE));
    if machine.answers() {
        images::provide(&machine, archive)?;
        return Ok((machine, None));
    }
    let earlier = Docker::client_of(directory);
    if earlier.answers() {
        return Ok((earlier, None));
    }
    eprintln!("no Docker answers at {}: starting one", DockerClient::MACHINE);
    let own = Docker::start_standing(directory)?;
    import_missing(own.client(), archive)?;
    Ok((own.client().clone(), Some(own)))
}

/// Where the workers are: the first on the machine itself, each other in a namespace of its own.
fn seats(directory: &Path, workers: u8) -> Result<Vec<Seat>> {
    let machine = |address: Ipv4Addr| Seat {
        name: "worker-1".to_owned(),
        namespace: Namespace::machine(directory),
        address,
    };
    if workers == 1
        && let Some(address) = network::machine_address()?
    {
        return Ok(vec![machine(address)]);
    }
    let mut seats = vec![machine(network::bridge()?)];
    for number in 2..=workers {
        let (namespace, address) = network::namespace(directory, number)?;
        seats.push(Seat {
            name: format!("worker-{number}"),
            namespace,
            address,
        });
    }
    Ok(seats)
}

/// Says what is there, and what to do with it.
fn tell(plan: &Plan) {
    let url = format!("http://{}:{ROOT_PORT}", plan.root.address);
    let descriptor = root().join("xtask/demo/client-server.json");
    println!();
    println!("root        {url}, user {USER}, password {PASSWORD}");
    println!(
        "cluster     {}:{}",
        plan.cluster.address,
        lab::system::CLUSTER_PORT
    );
    for worker in &plan.workers {
        println!("{:<11} {}", worker.name, worker.address);
    }
    println!("docker      {}", plan.docker.variable());
    println!("state, logs {}", plan.directory.display());
    println!("\nTry:\n");
    println!("    cargo xtask status");
    println!(
        "    TOKEN=$(curl -s {url}/api/auth/login -H 'content-type: application/json' \\\n        \
         -d '{{\"username\":\"{USER}\",\"password\":\"{PASSWORD}\"}}' | sed 's/.*\"token\": *\"\\([^\"]*\\)\".*/\\1/')"
    );
    println!(
        "    curl -s {url}/api/application -H \"authorization: Bearer $TOKEN\" \\\n        \
         -H 'content-type: application/json' -d @{}",
        descriptor.display()
    );
    println!("\n`cargo xtask down` ends it and leaves nothing.");
}
