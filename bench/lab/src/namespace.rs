//! One network namespace with a name.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::daemon::Daemon;
use crate::ping::ping;
use crate::process::output;
use crate::wait::wait_for;

/// Where `ip netns` keeps the names.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// How long a link may take to pass packets: the kernel's work queue for that also removes namespaces.
const LINK_DEADLINE: Duration = Duration::from_secs(20);

/// A network namespace of a lab: a host, an endpoint, or the wire. A handle that may be cloned; the namespace
/// lives as long as its lab. Or the machine's own ([`Namespace::machine`]).
///
/// Only the network differs from the root namespace. Files, and with them `/sys/fs/bpf`, are everybody's, as
/// `ip netns exec` would not leave them; so `/sys/class/net` shows the links of the root namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    path: Arc<Path>,
    directory: Arc<Path>,
}

/// In the environment of everything that is started in a namespace, with the name of the run's folder as its value:
/// so are processes found that left their namespace, or never were in one of the run's own.
pub(crate) const MARKER: &str = "OAKT_RUN";

impl Namespace {
    /// The namespace that this process lives in, `machine` by name. What is started in it logs to the folder, and
    /// belongs to the run that the folder is named after.
    #[must_use]
    pub fn machine(directory: &Path) -> Self {
        Self {
            name: "machine".into(),
            path: Path::new("/proc/self/ns/net").into(),
            directory: directory.into(),
        }
    }

    /// The namespace of this name, which somebody made earlier; it may be gone.
    #[must_use]
    pub fn named(name: &str, directory: &Path) -> Self {
        Self {
            name: name.into(),
            path: Path::new(DIRECTORY).join(name).into(),
            directory: directory.into(),
        }
    }

    /// Makes a namespace in which nothing but `lo` exists and nothing speaks unasked: no IPv6, no forwarding, no
    /// source filter, whatever the root namespace would hand down. Outside of a lab, whoever makes it has to remove
    /// it ([`remove_standing`](crate::remove_standing)).
    pub fn create(name: &str, directory: &Path) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self::named(name, directory);
        // First, because it sets others back to what a host has.
        namespace.sysctl("net.ipv4.ip_forward", "0")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
            // A kernel without IPv6 has nothing to switch off.
            if Path::new("/proc/sys/net/ipv6").exists() {
                namespace.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1")?;
            }
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, `oakt-<run>-<role>`, as `ip netns` lists it. A host's name is a good node id too: the pins of
    /// such a node are removed with the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// A command that will run inside.
    ///
    /// It is not tied to the life of this process by a signal (that one would be sent when the *thread* that
    /// started it ends): what still runs inside when the lab ends is found by its namespace and killed.
    pub fn command(&self, program: &str) -> Result<Command> {
        let file = self.open()?;
        let mut command = Command::new(program);
        if let Some(run) = self.directory.file_name() {
            command.env(MARKER, run);
        }
        // SAFETY: between fork and exec only async-signal-safe functions are allowed: this is one system call on
        // a file that was opened before, and an error is made from its errno without allocation.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        Ok(command)
    }

    /// Runs a program inside to its end. Where it fails the error holds what it wrote to stderr.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        output(self.command(program)?.args(arguments)).with_context(|| format!("in {}", self.name))
    }

    /// Runs `ip` inside, with arguments separated by spaces.
    pub fn ip(&self, arguments: &str) -> Result<Output> {
        self.run("ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>())
    }

    /// Waits until an interface passes packets. Its other end may be up for a moment before that: the kernel looks
    /// at the carrier in the background, and what is sent before is lost.
    pub fn wait_until_up(&self, interface: &str) -> Result<()> {
        let show = format!("-o -d link show {interface}");
        wait_for(
            &format!("{interface} in {} to be up", self.name),
            LINK_DEADLINE,
            || {
                let output = self.ip(&show)?;
                let text = String::from_utf8_lossy(&output.stdout);
                // The bridge hears of the carrier later than the port itself.
                let is_port = text.contains(" bridge_slave ");
                Ok(text.contains(" state UP ") && (!is_port || text.contains(" state forwarding ")))
            },
        )
    }

    /// Runs a closure inside, on a thread of its own. A socket that it opens stays inside wherever it is used.
    /// A panic of the closure goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        thread::scope(|scope| {
            let inside = move || {
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", self.name))?;
                Ok(work())
            };
            let thread = thread::Builder::new()
                .name(self.name.to_string())
                .spawn_scoped(scope, inside)
                .context("cannot start a thread")?;
            match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// Sets a network sysctl inside, by its name with dots.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} to {value} in {}", self.name))
    }

    /// Sends one echo request from inside, and tells how long the answer took; at most until the deadline.
    pub fn ping(&self, destination: Ipv4Addr, deadline: Duration) -> Result<Duration> {
        self.enter(|| ping(destination, deadline))?
            .with_context(|| format!("cannot ping {destination} from {}", self.name))
    }

    /// Starts a program that keeps running, from a command made by [`Namespace::command`] of this namespace.
    /// What it writes goes to `<lab's folder>/<role>-<name>.log`.
    pub fn daemon(&self, name: &str, command: Command) -> Result<Daemon> {
        Daemon::start(&format!("{}-{name}", self.role()), command, &self.directory)
    }

    /// What tells it from the others of its lab: its name without `oakt-<run>-`.
    #[must_use]
    pub fn role(&self) -> &str {
        self.name.splitn(3, '-').last().unwrap_or(&self.name)
    }

    fn open(&self) -> Result<File> {
        match File::open(&self.path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("namespace {} is gone", self.name),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", self.path().display())),
        }
    }
}
