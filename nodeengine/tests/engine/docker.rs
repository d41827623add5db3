//! A Docker engine of one's own, without a bridge and without a trace.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

use crate::stage::eventually;

const DAEMON: &str = "dockerd";
/// What the tests deploy: busybox, imported.
pub const IMAGE: &str = "docker.io/library/oakestra-test:latest";
const PATIENCE: Duration = Duration::from_secs(40);

/// A daemon with everything below one folder.
pub struct Docker {
    folder: TempDir,
    child: Option<Child>,
}

impl Docker {
    /// Starts a daemon that has [`IMAGE`].
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("oakt-docker-")
            .tempdir()
            .expect("temporary folder");
        let mut docker = Self { folder, child: None };
        docker.start().await;
        docker.import(IMAGE);
        docker
    }

    /// What `--docker` is given.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) {
        // One that was killed leaves this behind.
        drop(std::fs::remove_file(self.path("pid")));
        let log = std::fs::File::create(self.path("log")).expect("log");
        let mut child = tokio::process::Command::new(DAEMON)
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .arg("--config-file")
            .arg(self.configuration())
            .args(["--host", &self.address()])
            .args(["--bridge=none", "--iptables=false", "--ip-forward=false"])
            .args(["--shutdown-timeout=1"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &format!("/{}", self.control_group())])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{DAEMON}: {error}; `cargo xtask setup` installs it"));
        let deadline = Instant::now() + PATIENCE;
        while !self.try_run(&["version"]).status.success() {
            let ended = child.try_wait().expect("the daemon");
            assert!(ended.is_none() && Instant::now() < deadline, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.child = Some(child);
    }

    /// The control group of its containers: else Docker makes one that it never removes.
    fn control_group(&self) -> String {
        let name = self.folder.path().file_name().expect("a name");
        name.to_string_lossy().into_owned()
    }

    fn configuration(&self) -> PathBuf {
        let path = self.path("daemon.json");
        std::fs::write(&path, "{}").expect("configuration");
        path
    }

    /// Ends the daemon, and with it what runs on it.
    pub async fn stop(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        let pid = child.id().expect("a running daemon");
        kill(Pid::from_raw(pid.try_into().expect("pid")), Signal::SIGTERM).expect("signal");
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        ended.expect("the daemon ends in time").expect("its status");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Makes an image with busybox in it.
    pub fn import(&self, name: &str) {
        let content = self.path("image");
        std::fs::create_dir_all(content.join("bin")).expect("folder");
        std::fs::create_dir_all(content.join("tmp")).expect("folder");
        std::fs::copy("/bin/busybox", content.join("bin/busybox"))
            .expect("/bin/busybox; `cargo xtask setup` installs busybox-static");
        for applet in [
            "sh", "sleep", "cat", "echo", "hostname", "env", "tail", "dd", "head",
        ] {
            drop(std::os::unix::fs::symlink(
                "busybox",
                content.join("bin").join(applet),
            ));
        }
        let tar = self.path("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&content)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .expect("tar");
        assert!(packed.success());
        let tar = tar.display().to_string();
        let change =
            r#"CMD ["sh", "-c", "trap 'exit 0' TERM; echo from the image; while true; do sleep 0.1; done"]"#;
        self.run(&[
            "import",
            "--change",
            change,
            "--change",
            "VOLUME /scratch",
            &tar,
            name,
        ]);
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        Command::new("docker")
            .args(["--host", &self.address()])
            .args(arguments)
            .env_remove("DOCKER_HOST")
            .output()
            .expect("the docker command; `cargo xtask setup` installs it")
    }

    /// What the command says.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        said.trim().to_owned()
    }

    /// Names of all containers.
    pub fn containers(&self) -> Vec<String> {
        let said = self.run(&["ps", "-a", "--format", "{{.Names}}"]);
        said.lines().map(str::to_owned).collect()
    }

    /// Ids of all volumes.
    pub fn volumes(&self) -> Vec<String> {
        let said = self.run(&["volume", "ls", "-q"]);
        said.lines().map(str::to_owned).collect()
    }

    /// Everything about a container.
    pub fn inspect(&self, container: &str) -> Value {
        let said = self.run(&["inspect", "--type", "container", container]);
        let mut found: Value = serde_json::from_str(&said).expect("json");
        found[0].take()
    }

    /// Waits until there are no containers and no volumes of them.
    pub async fn is_empty(&self) {
        eventually("Docker is empty", || {
            self.containers().is_empty() && self.volumes().is_empty()
        })
        .await;
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let all = self.try_run(&["ps", "-aq"]);
            let all = String::from_utf8_lossy(&all.stdout).into_owned();
            let mut remove = vec!["rm", "-f", "-v"];
            remove.extend(all.split_whitespace());
            if remove.len() > 3 {
                self.try_run(&remove);
            }
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid.map(Pid::from_raw) {
                // It takes its containerd along. A test that fails must not fail here again.
                if kill(pid, Signal::SIGTERM).is_ok() {
                    nix::sys::wait::waitpid(pid, None).ok();
                }
            }
        }
        if let Err(error) = lab::remove_control_groups(&self.control_group()) {
            eprintln!("{error:#}");
        }
        unmount_below(self.folder.path());
    }
}

/// The daemon leaves some of what it has mounted.
fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(folder))
        .collect();
    below.reverse();
    for path in below {
        umount2(path, MntFlags::MNT_DETACH).ok();
    }
}
