//! A Docker of the test's own, in the machine's own network namespace, with an image that is nothing but busybox.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const IMAGE: &str = "oakt-busybox";
const APPLETS: [&str; 10] = [
    "echo", "httpd", "ip", "mkdir", "nc", "ping", "sh", "sleep", "timeout", "wget",
];
const READY: Duration = Duration::from_secs(60);

pub struct Docker {
    folder: PathBuf,
    daemon: Child,
}

impl Docker {
    /// Starts it with everything of its own below `folder`, and makes the image.
    pub fn start(folder: &Path) -> Self {
        let folder = folder.join("docker");
        let root = folder.join("image");
        fs::create_dir_all(root.join("bin")).expect("a folder");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        let daemon = spawn(&folder).expect("dockerd is installed");
        let mut docker = Self { folder, daemon };
        docker.wait_until_ready();
        let archive = docker.folder.join("image.tar");
        let made = Command::new("tar")
            .args(["-C", &root.display().to_string(), "-cf"])
            .arg(&archive)
            .arg(".")
            .status();
        assert!(made.expect("tar is installed").success());
        docker.run(&["import", &archive.display().to_string(), IMAGE]);
        docker
    }

    /// Runs Docker's command line; what it prints.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("docker is installed")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        ensure!(
            output.status.success(),
            "docker {arguments:?}: {}: {stdout} {stderr}",
            output.status
        );
        Ok(stdout)
    }

    /// As [`Self::try_run`], and it has to succeed.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        match self.try_run(arguments) {
            Ok(printed) => printed,
            Err(error) => panic!("{error:#}\n{}", self.log()),
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.folder.join("docker.sock").display()))
            .args(arguments);
        command
    }

    /// Ends it without warning; its containers go on.
    pub fn kill(&mut self) {
        self.daemon.kill().expect("killed");
        self.daemon.wait().expect("ended");
    }

    /// Starts it again after [`Self::kill`].
    pub fn start_again(&mut self) {
        // Its containerd has ended with it. Where nobody collects its remains, a new Docker would wait for it.
        self.end_containerd();
        self.daemon = spawn(&self.folder).expect("dockerd is installed");
        self.wait_until_ready();
    }

    /// The end of what it has written.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("dockerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn wait_until_ready(&mut self) {
        let ready = wait_for("Docker to be ready", READY, || {
            let ended = self.daemon.try_wait()?;
            ensure!(ended.is_none(), "it has ended");
            Ok(self.try_run(&["version"]).is_ok())
        });
        assert!(ready.is_ok(), "{ready:?}: {}", self.log());
    }

    fn end_containerd(&self) {
        let file = self.folder.join("exec/containerd/containerd.pid");
        let Some(pid) = fs::read_to_string(&file)
            .ok()
            .and_then(|pid| pid.trim().parse().ok())
        else {
            return;
        };
        if let Err(error) = fs::remove_file(&file) {
            eprintln!("{}: {error}", file.display());
        }
        let is_its = |pid: i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&self.folder.display().to_string())
        };
        if is_its(pid) && kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok() {
            let ended = wait_for("containerd to end", READY, || Ok(!is_its(pid)));
            if let Err(error) = ended {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Ok(containers) = self.try_run(&["ps", "--all", "--quiet"])
            && !containers.is_empty()
        {
            let all: Vec<&str> = containers.lines().collect();
            if let Err(error) = self.try_run(&[&["rm", "--force", "--volumes"], &all[..]].concat()) {
                eprintln!("{error:#}");
            }
        }
        let pid = Pid::from_raw(self.daemon.id().cast_signed());
        if kill(pid, Signal::SIGTERM).is_ok() {
            let ended = wait_for("Docker to end", READY, || Ok(self.daemon.try_wait()?.is_some()));
            if let Err(error) = ended {
                eprintln!("{error:#}: {}", self.log());
                drop(self.daemon.kill());
                drop(self.daemon.wait());
            }
        }
        self.end_containerd();
        let removed = control_group(&self.folder).and_then(|group| lab::remove_control_groups(&group));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = format!("{}/", self.folder.display());
        for mount in mounts.lines().rev() {
            let Some(path) = mount.split(' ').nth(1).filter(|path| path.starts_with(&below)) else {
                continue;
            };
            if let Err(error) = nix::mount::umount(path) {
                eprintln!("{path}: {error}");
            }
        }
    }
}

/// The control group of its containers, below that of its lab: else Docker makes one that it never removes.
fn control_group(folder: &Path) -> Result<String> {
    let run = folder.parent().and_then(Path::file_name);
    let run = run.context("a lab's folder has a name")?.to_string_lossy();
    Ok(format!("{run}/docker"))
}

fn spawn(folder: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("dockerd.log"))?;
    let path = |name: &str| folder.join(name).display().to_string();
    let child = Command::new("dockerd")
        .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
        .args(["--pidfile", &path("docker.pid")])
        .args(["--host", &format!("unix://{}", path("docker.sock"))])
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
        .arg("--ip-forward=false")
        .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
        .args(["--cgroup-parent", &format!("/{}", control_group(folder)?)])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(child)
}
