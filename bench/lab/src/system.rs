//! The whole system: a root, a cluster, workers, and the Docker that they share.
//!
//! ```text
//!        root ── 192.0.2.1   RootOrchestrator
//!     cluster ── 192.0.2.2   ClusterOrchestrator
//!    worker-1 ── 192.0.2.3   NetManager, NodeEngine ─┐
//!    worker-2 ── 192.0.2.4   NetManager, NodeEngine ─┴─ dockerd, outside of the lab's hosts
//! ```

pub mod client;
mod node;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http::{Request, send};
use crate::process::in_session;
use crate::{Daemon, Docker, DockerClient, Lab, Namespace, PLUGIN_DIRECTORY, images, wait_for};
use client::Client;
pub use node::Node;

/// Variable that tells tests in which folder the daemons' programs are.
pub const PROGRAMS_VARIABLE: &str = "OAKESTRA_BINARIES";

/// The daemons' programs, by the names of their files.
pub const ROOT_PROGRAM: &str = "RootOrchestrator";
pub const CLUSTER_PROGRAM: &str = "ClusterOrchestrator";
pub const NETMANAGER_PROGRAM: &str = "NetManager";
pub const ENGINE_PROGRAM: &str = "NodeEngine";

/// TCP ports of root and cluster, HTTP both.
pub const ROOT_PORT: u16 = 10000;
pub const CLUSTER_PORT: u16 = 10100;
/// TCP port of the cluster's broker.
pub const BROKER_PORT: u16 = 10003;

/// How the one cluster is called.
pub const CLUSTER_NAME: &str = "cluster-1";
/// Where it says that it is.
const CLUSTER_LOCATION: &str = "48.262,11.668,1000";

/// NetManager's socket below the root folder of its node.
const NETMANAGER_SOCKET: &str = "etc/netmanager/netmanager.sock";
/// How many lines of each log are shown where something failed.
const LOG_LINES: usize = 12;
/// How long the system may take to be ready, on a slow machine.
const READY: Duration = Duration::from_secs(60);

/// Where daemons of one role run.
#[derive(Clone, Debug)]
pub struct Seat {
    /// `root`, `cluster`, `worker-1`, …: its folder's name, and what its logs' names begin with.
    pub name: String,
    pub namespace: Namespace,
    /// The address by which the others reach it.
    pub address: Ipv4Addr,
}

/// Where everything of a system runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// State, configuration and logs.
    pub directory: PathBuf,
    /// The folder of the daemons' programs.
    pub programs: PathBuf,
    pub docker: DockerClient,
    pub root: Seat,
    pub cluster: Seat,
    pub workers: Vec<Seat>,
    /// Whether the daemons are to live on when the terminal is closed.
    pub background: bool,
}

impl Plan {
    /// Hosts `root`, `cluster`, `worker-1`… of a lab.
    pub fn in_lab(lab: &Lab, programs: &Path, docker: &DockerClient, workers: usize) -> Result<Self> {
        let seat = |name: String| -> Result<Seat> {
            let host = lab.host(&name)?;
            Ok(Seat {
                name,
                address: host.address(),
                namespace: Namespace::clone(&host),
            })
        };
        Ok(Self {
            directory: lab.directory().to_owned(),
            programs: programs.to_owned(),
            docker: docker.clone(),
            root: seat("root".to_owned())?,
            cluster: seat("cluster".to_owned())?,
            workers: (1..=workers)
                .map(|number| seat(format!("worker-{number}")))
                .collect::<Result<_>>()?,
            background: false,
        })
    }

    /// Speaks to the root, from where the root is.
    #[must_use]
    pub fn client(&self) -> Client {
        let Seat {
            namespace, address, ..
        } = &self.root;
        Client::new(namespace, &format!("http://{address}:{ROOT_PORT}"))
    }

    /// The cluster's nodes, as it lists them.
    pub fn nodes(&self) -> Result<Vec<Value>> {
        let answer = self.ask_cluster("/api/nodes")?;
        let list = answer.as_array().context("the cluster lists no nodes")?;
        Ok(list.clone())
    }

    /// What the cluster says of itself.
    pub fn cluster_status(&self) -> Result<Value> {
        self.ask_cluster("/api/cluster/status")
    }

    fn ask_cluster(&self, path: &str) -> Result<Value> {
        let Seat {
            namespace, address, ..
        } = &self.cluster;
        let url = format!("http://{address}:{CLUSTER_PORT}{path}");
        let request = Request {
            url: &url,
            ..Request::default()
        };
        let answer = send(namespace, request)?;
        ensure!(answer.code == 200, "GET {url}: {} {}", answer.code, answer.body);
        answer.json()
    }

    /// What keeps the system from being ready, nothing if it is: the root lets us in, the cluster is active there, all
    /// workers are active in the cluster and counted at the root, and their NetManagers can ask the cluster.
    pub fn obstacle(&self) -> Result<Option<String>> {
        let clusters = self.client().active_clusters()?;
        let Some(cluster) = clusters
            .iter()
            .find(|cluster| cluster["cluster_name"] == CLUSTER_NAME)
        else {
            return Ok(Some("the cluster is not active at the root".to_owned()));
        };
        let nodes = self.nodes()?;
        let active = nodes
            .iter()
            .filter(|node| node["active"].as_bool() == Some(true))
            .count();
        let wanted = self.workers.len();
        if active < wanted {
            return Ok(Some(format!(
                "{active} of {wanted} workers are active in the cluster"
            )));
        }
        let counted = cluster["active_nodes"].as_u64().unwrap_or_default();
        if counted < wanted as u64 {
            return Ok(Some(format!(
                "the root has heard of {counted} of {wanted} workers"
            )));
        }
        for seat in &self.workers {
            let status = match node::ask(&seat.namespace, &self.folder(seat), "/status") {
                Ok(status) => status,
                Err(error) => return Ok(Some(format!("NetManager of {}: {error:#}", seat.name))),
            };
            if status["connected"] != true {
                return Ok(Some(format!(
                    "NetManager of {} cannot ask the cluster: {}",
                    seat.name, status["connection"]
                )));
            }
        }
        Ok(None)
    }

    fn root_daemon(&self) -> Result<Daemon> {
        let mut command = self.command(&self.root, ROOT_PROGRAM)?;
        command.args(["--listen", &format!("0.0.0.0:{ROOT_PORT}")]);
        self.daemon(&self.root, "root", command)
    }

    fn cluster_daemon(&self) -> Result<Daemon> {
        let mut command = self.command(&self.cluster, CLUSTER_PROGRAM)?;
        command
            .args(["--listen", &format!("0.0.0.0:{CLUSTER_PORT}")])
            .args(["--broker-listen", &format!("0.0.0.0:{BROKER_PORT}")])
            .args(["--system-manager-url", &self.root.address.to_string()])
            .args(["--name", CLUSTER_NAME, "--location", CLUSTER_LOCATION]);
        self.daemon(&self.cluster, "cluster", command)
    }

    /// Starts the NetManager of a worker.
    pub fn netmanager(&self, seat: &Seat) -> Result<Daemon> {
        let mut command = self.command_with_verb(seat, NETMANAGER_PROGRAM, &["run"])?;
        command.args(["--docker-plugins", PLUGIN_DIRECTORY]);
        self.daemon(seat, "netmanager", command)
    }

    /// Asks the NetManager of a worker over its socket, which must succeed.
    pub fn ask_netmanager(&self, seat: &Seat, path: &str) -> Result<Value> {
        node::ask(&seat.namespace, &self.folder(seat), path)
    }

    fn node(&self, seat: &Seat) -> Result<Node> {
        let root = self.folder(seat);
        configure(&root, seat.address)?;
        let netmanager = self.netmanager(seat)?;
        let mut engine = self.command(seat, ENGINE_PROGRAM)?;
        engine
            .args(["-a", &self.cluster.address.to_string()])
            .args(["-p", &CLUSTER_PORT.to_string()])
            .args(["--docker", &self.docker.variable()])
            .args(["--hostname-override", &seat.name]);
        let engine = self.daemon(seat, "nodeengine", engine)?;
        Ok(Node {
            seat: seat.clone(),
            program: self.programs.join(NETMANAGER_PROGRAM),
            root,
            netmanager,
            engine,
        })
    }

    fn folder(&self, seat: &Seat) -> PathBuf {
        self.directory.join(&seat.name)
    }

    fn command(&self, seat: &Seat, program: &str) -> Result<Command> {
        self.command_with_verb(seat, program, &[])
    }

    fn command_with_verb(&self, seat: &Seat, program: &str, verb: &[&str]) -> Result<Command> {
        let path = self.programs.join(program);
        ensure!(
            path.is_file(),
            "there is no {}: build the daemons first",
            path.display()
        );
        let folder = self.folder(seat);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = seat.namespace.command(&path.display().to_string())?;
        command.args(verb).arg("--root").arg(folder);
        Ok(command)
    }

    fn daemon(&self, seat: &Seat, name: &str, mut command: Command) -> Result<Daemon> {
        if self.background {
            in_session(&mut command);
        }
        let name = if seat.name == name {
            name.to_owned()
        } else {
            format!("{}-{name}", seat.name)
        };
        Daemon::start(&name, command, &self.directory)
    }
}

/// A running system. Dropped, its daemons are killed.
#[derive(Debug)]
pub struct System {
    plan: Plan,
    root: Daemon,
    cluster: Daemon,
    nodes: Vec<Node>,
    // Last, so that it goes after who uses it.
    docker: Option<Docker>,
}

impl System {
    /// Starts a Docker and a system in a lab, and waits until it is ready: the images that are in the folder
    /// ([`images::make`]) are there, and every worker is registered.
    pub fn start(lab: &Lab, programs: &Path, images: &Path, workers: usize) -> Result<Self> {
        let docker = Docker::start(lab.directory())?;
        let client = docker.client().clone();
        let plan = Plan::in_lab(lab, programs, &client, workers)?;
        // Both take seconds, and neither needs the other.
        let (imported, system) = std::thread::scope(|scope| {
            let importing = scope.spawn(|| images::import_missing(&client, images));
            let system = Self::launch(plan).and_then(|mut system| {
                system.wait_until_ready()?;
                Ok(system)
            });
            (importing.join(), system)
        });
        match imported {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let mut system = system?;
        system.docker = Some(docker);
        Ok(system)
    }

    /// Starts the daemons, all at once: in which order they come up is nobody's business.
    pub fn launch(plan: Plan) -> Result<Self> {
        let root = plan.root_daemon()?;
        let cluster = plan.cluster_daemon()?;
        let nodes = plan
            .workers
            .iter()
            .map(|seat| plan.node(seat))
            .collect::<Result<_>>()?;
        Ok(Self {
            plan,
            root,
            cluster,
            nodes,
            docker: None,
        })
    }

    /// Waits until nothing keeps it from being ready. A daemon that ends instead is told with its log.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let mut obstacle = None;
        let mut dead = None;
        let outcome = wait_for("the system to be ready", READY, || {
            dead = self.dead()?;
            if dead.is_some() {
                return Ok(true);
            }
            obstacle = self.plan.obstacle()?;
            Ok(obstacle.is_none())
        });
        if let Some(text) = dead {
            bail!(text);
        }
        outcome.with_context(|| {
            let obstacle = obstacle.unwrap_or_else(|| "it does not answer".to_owned());
            format!("{}\n{obstacle}", self.log_ends())
        })
    }

    /// The ends of all logs, for people who want to know why something failed.
    pub fn log_ends(&mut self) -> String {
        let end = |daemon: &mut Daemon| {
            let text = daemon.log_end(LOG_LINES);
            let text = text.unwrap_or_else(|error| format!("{error:#}\n"));
            format!("--- {}:\n{text}", daemon.name())
        };
        self.daemons().into_iter().map(end).collect()
    }

    fn dead(&mut self) -> Result<Option<String>> {
        for daemon in self.daemons() {
            if let Some(status) = daemon.ended()? {
                return Ok(Some(format!(
                    "{} has ended ({status}):\n{}",
                    daemon.name(),
                    daemon.log_end(LOG_LINES)?
                )));
            }
        }
        Ok(None)
    }

    /// All processes: root, cluster, then NetManager and NodeEngine of each worker.
    pub fn daemons(&mut self) -> Vec<&mut Daemon> {
        let mut all = vec![&mut self.root, &mut self.cluster];
        for node in &mut self.nodes {
            all.push(&mut node.netmanager);
            all.push(&mut node.engine);
        }
        all
    }

    /// Where everything runs.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Speaks to the root.
    #[must_use]
    pub fn client(&self) -> Client {
        self.plan.client()
    }

    /// Speaks to the Docker that the workers use.
    #[must_use]
    pub fn docker(&self) -> &DockerClient {
        &self.plan.docker
    }

    /// The Docker itself, where the system has one of its own.
    pub fn own_docker(&mut self) -> Option<&mut Docker> {
        self.docker.as_mut()
    }

    /// The RootOrchestrator's process.
    pub fn root(&mut self) -> &mut Daemon {
        &mut self.root
    }

    /// The ClusterOrchestrator's process.
    pub fn cluster(&mut self) -> &mut Daemon {
        &mut self.cluster
    }

    /// The workers, `worker-1` first.
    #[must_use]
    pub fn workers(&self) -> &[Node] {
        &self.nodes
    }

    /// The workers, to be killed and started again.
    pub fn workers_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The worker at an address, which is what `host_ip` of an instance says.
    #[must_use]
    pub fn worker_at(&self, address: &str) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node.seat.address.to_string() == address)
    }

    /// Leaves all processes running when this is dropped.
    pub fn release(&mut self) {
        for daemon in self.daemons() {
            daemon.release();
        }
        if let Some(docker) = &mut self.docker {
            docker.release();
        }
    }
}

/// NetManager's configuration, as a person writes it: the address that others reach the node by.
fn configure(root: &Path, address: Ipv4Addr) -> Result<()> {
    let folder = root.join("etc/netmanager");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join("netcfg.json");
    let document = json!({"NodePublicAddress": address, "NodePublicPort": "50103"});
    fs::write(&file, document.to_string()).with_context(|| format!("cannot write {}", file.display()))
}
