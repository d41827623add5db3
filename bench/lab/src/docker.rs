//! A Docker of a lab's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{in_session, output};
use crate::remains::{ignore_absent, kill_docker, remove_control_groups, remove_shim_sockets, unmount_below};
use crate::{Daemon, Namespace, wait_for};

/// How the folder of a Docker is called, or begins, in the folder of its run.
pub(crate) const FOLDER: &str = "docker";
/// How its socket is called in its folder.
const SOCKET: &str = "docker.sock";
/// Leaves the network of its namespace alone.
const QUIET: [&str; 5] = [
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
];
/// Dockerd starts a containerd first, which takes seconds on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long dockerd may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// A dockerd with data, runtime state, socket and containerd of its own, beside the machine's if there is one.
/// Dropped, it ends, and with it its containers, images and volumes.
///
/// Where Docker looks for the sockets of network drivers is no setting: all Dockers of a machine share
/// [`PLUGIN_DIRECTORY`](crate::PLUGIN_DIRECTORY).
#[derive(Debug)]
pub struct Docker {
    client: DockerClient,
    control_group: String,
    directory: PathBuf,
    daemon: Daemon,
    released: bool,
}

impl Docker {
    /// Starts one in the machine's own namespace, whose network it leaves alone: no bridge, no rules, no forwarding.
    /// The folder is that of a lab ([`Lab::directory`](crate::Lab::directory)), or another that
    /// [`remove_standing`](crate::remove_standing) removes.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(&Namespace::machine(directory), directory, FOLDER, &QUIET, false)
    }

    /// As [`Self::start`], apart from the terminal: one that is to live on when this process has ended.
    pub fn start_standing(directory: &Path) -> Result<Self> {
        Self::start_with(&Namespace::machine(directory), directory, FOLDER, &QUIET, true)
    }

    /// The socket of the Docker that was started for this folder, whether or not it runs.
    #[must_use]
    pub fn client_of(directory: &Path) -> DockerClient {
        DockerClient::at(&directory.join(FOLDER).join(SOCKET))
    }

    /// Starts one on a host, whose network it treats as Docker does by default: bridge `docker0`, forwarding on,
    /// policy DROP for what is forwarded, chain `DOCKER-USER`.
    pub fn start_in(host: &Namespace, directory: &Path) -> Result<Self> {
        let folder = format!("{FOLDER}-{}", host.role());
        Self::start_with(host, directory, &folder, &["--ip6tables=false"], false)
    }

    fn start_with(
        namespace: &Namespace,
        run_directory: &Path,
        folder: &str,
        network: &[&str],
        standing: bool,
    ) -> Result<Self> {
        let run = run_directory
            .file_name()
            .and_then(|name| name.to_str())
            .context("the folder of a run has a name")?;
        let control_group = format!("{run}/{folder}");
        let directory = run_directory.join(folder);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // The machine's settings are for the machine's Docker.
        let configuration = directory.join("daemon.json");
        fs::write(&configuration, "{}")
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let client = DockerClient::at(&directory.join(SOCKET));

        let mut command = namespace.command("dockerd")?;
        command
            .arg("--config-file")
            .arg(configuration)
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("--pidfile")
            .arg(directory.join("docker.pid"))
            .args(["--host", &client.variable()])
            // All containers in one control group that is named after the run: so are they found when dockerd is gone.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &format!("/{control_group}")])
            .args(["--live-restore", "--userland-proxy=false"])
            .args(network);
        if standing {
            in_session(&mut command);
        }
        let daemon = namespace.daemon(folder, command)?;
        let mut docker = Self {
            client,
            control_group,
            directory,
            daemon,
            released: false,
        };
        docker.wait_until_ready()?;
        Ok(docker)
    }

    /// Speaks to it.
    #[must_use]
    pub fn client(&self) -> &DockerClient {
        &self.client
    }

    /// Its process, dockerd.
    #[must_use]
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Ends dockerd as a system does and starts it again; containers run on meanwhile.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.terminate(GRACE)?;
        self.daemon.restart()?;
        self.wait_until_ready()
    }

    /// Leaves it running when this is dropped.
    pub fn release(&mut self) {
        self.released = true;
        self.daemon.release();
    }

    /// Ends it and tells what went wrong; dropping it does the same, but can only print that.
    pub fn remove(mut self) -> Result<()> {
        self.end()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let client = self.client.clone();
        let daemon = &mut self.daemon;
        let mut ended = None;
        wait_for("dockerd to answer", READY, || {
            ended = daemon.ended()?;
            Ok(ended.is_some() || client.answers())
        })
        .with_context(|| format!("see {}", daemon.log_path().display()))?;
        match ended {
            Some(status) => bail!("dockerd has ended ({status}):\n{}", daemon.log()?),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        if self.released {
            return Ok(());
        }
        self.released = true;
        self.daemon.terminate(GRACE)?;
        // With dockerd ended, containerd has gone and containers live on under parents of their own, which notice when
        // they die.
        kill_docker(&self.directory)?;
        remove_control_groups(&self.control_group)?;
        remove_shim_sockets(&self.directory)?;
        unmount_below(&self.directory)?;
        // Its lab may have gone before it, and taken the folder along.
        ignore_absent(fs::remove_dir_all(&self.directory))
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("Docker in {}: {error:#}", self.directory.display());
        }
    }
}

/// The command line of a Docker at a socket, a lab's or the machine's.
#[derive(Clone, Debug)]
pub struct DockerClient {
    socket: PathBuf,
}

impl DockerClient {
    /// Where the machine's Docker listens.
    pub const MACHINE: &str = "/var/run/docker.sock";

    /// Speaks to the Docker at a socket, which need not be there yet.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket as `DOCKER_HOST` and `--docker` take it, `unix:///…`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Whether it answers.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.socket.exists() && self.run(&["version", "--format", "{{.Server.Version}}"]).is_ok()
    }

    /// A `docker` command that speaks to it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.variable()).args(arguments);
        command
    }

    /// Runs a `docker` command to its end. Where it fails the error holds what it wrote to stderr.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        output(&mut self.command(arguments))
    }

    /// What a `docker` command prints, without blanks at its ends.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The ids of the containers that have all the labels (`name` or `name=value`), running or not.
    pub fn containers(&self, labels: &[&str]) -> Result<Vec<String>> {
        let filters: Vec<String> = labels.iter().map(|label| format!("label={label}")).collect();
        let mut arguments = vec!["ps", "--all", "--quiet", "--no-trunc"];
        for filter in &filters {
            arguments.extend(["--filter", filter]);
        }
        Ok(self.text(&arguments)?.lines().map(str::to_owned).collect())
    }

    /// What a container wrote to stdout and stderr.
    pub fn logs(&self, container: &str) -> Result<String> {
        let output = self.run(&["logs", container])?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
