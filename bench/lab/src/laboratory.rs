//! The lab itself: a run, its wire and its folder.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::debris;
use crate::endpoint::Endpoint;
use crate::host::{Host, HostOptions};
use crate::namespace::Namespace;
use crate::run::Run;

/// Hosts on one wire, all of which is gone when this is dropped, also by a panic. Hosts and endpoints are handles
/// and may outlive it, but then stand for nothing.
#[derive(Debug)]
pub struct Lab {
    label: String,
    shared: Arc<Shared>,
}

impl Lab {
    /// Removes what dead runs left behind, then makes a wire that no host is plugged into yet. The label says in
    /// messages which lab is meant.
    pub fn new(label: &str) -> Result<Self> {
        ensure!(geteuid().is_root(), "lab {label}: network namespaces need root");
        // What can't be removed is told, but it is in nobody's way: this run has other names.
        if let Err(error) = debris::sweep() {
            eprintln!("{error:#}");
        }
        let shared = Shared::create().with_context(|| format!("cannot make lab {label}"))?;
        Ok(Self {
            label: label.to_owned(),
            shared: Arc::new(shared),
        })
    }

    /// A host with the default options. Its role tells it from the others: small letters, digits, hyphens.
    pub fn host(&self, role: &str) -> Result<Host> {
        self.host_with(role, HostOptions::default())
    }

    /// A host.
    pub fn host_with(&self, role: &str, options: HostOptions) -> Result<Host> {
        Host::create(&self.shared, role, options)
            .with_context(|| format!("cannot make host {role} in lab {}", self.label))
    }

    /// The namespace that is the wire, with the bridge `wire` and a port for each host.
    #[must_use]
    pub fn wire(&self) -> &Namespace {
        &self.shared.wire
    }

    /// A folder for logs, configuration and state, `/tmp/oakt-<run>`, removed at the end.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// What all names of this lab begin with, `oakt-<run>-`. A node id that begins so has its pins under
    /// [`PIN_DIRECTORY`](crate::PIN_DIRECTORY) removed with the lab.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.shared.run.prefix()
    }

    /// Removes it and tells what went wrong; dropping it does the same, but can only print that.
    pub fn remove(self) -> Result<()> {
        self.shared.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.shared.remove() {
            eprintln!("lab {}: {error:#}", self.label);
        }
    }
}

/// What the handles of one lab share.
#[derive(Debug)]
pub(crate) struct Shared {
    run: Run,
    directory: Arc<Path>,
    pub(crate) wire: Namespace,
    removed: AtomicBool,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    wire_mtu: u32,
    /// The processes that stand for containers.
    inhabitants: Vec<Child>,
}

impl Shared {
    fn create() -> Result<Self> {
        let run = Run::new()?;
        let directory: Arc<Path> = debris::run_directory(&run).into();
        match create_wire(&run, &directory) {
            Ok(wire) => Ok(Self {
                run,
                directory,
                wire,
                removed: AtomicBool::new(false),
                taken: Mutex::default(),
            }),
            Err(error) => match debris::remove(&run) {
                Ok(()) => Err(error),
                Err(another) => Err(error.context(format!("and then: {another:#}"))),
            },
        }
    }

    pub(crate) fn create_namespace(&self, role: &str) -> Result<Namespace> {
        ensure!(!self.removed.load(Ordering::Acquire), "the lab has been removed");
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            !role.is_empty() && role.bytes().all(legal),
            "a role is made of a-z, 0-9 and -, not {role:?}"
        );
        Namespace::create(&format!("{}{role}", self.run.prefix()), &self.directory)
    }

    pub(crate) fn create_endpoint(self: &Arc<Self>, role: &str) -> Result<Endpoint> {
        let namespace = self.create_namespace(role)?;
        // `spawn` returns when the program has been executed, and by then it has entered the namespace.
        let child = namespace
            .command("sleep")?
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start a process in {}", namespace.name()))?;
        let pid = child.id();
        self.taken().inhabitants.push(child);
        Ok(Endpoint {
            namespace,
            pid,
            shared: Arc::clone(self),
        })
    }

    pub(crate) fn remove_endpoint(&self, namespace: &Namespace, pid: u32) -> Result<()> {
        let inhabitant = {
            let mut taken = self.taken();
            let place = taken.inhabitants.iter().position(|child| child.id() == pid);
            place.map(|place| taken.inhabitants.swap_remove(place))
        };
        if let Some(child) = inhabitant {
            end(child)?;
        }
        debris::remove_namespace(namespace.name())
    }

    /// The wanted address, or the lowest that is free.
    pub(crate) fn take_address(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
        let addresses = &mut self.taken().addresses;
        let mut all = (1..255).map(|number| Ipv4Addr::new(192, 0, 2, number));
        let address = match wanted {
            Some(wanted) => all
                .find(|address| *address == wanted)
                .context("a host lives in 192.0.2.0/24")?,
            None => all
                .find(|address| !addresses.contains(address))
                .context("the wire is full")?,
        };
        if !addresses.insert(address) {
            bail!("another host has {address}");
        }
        Ok(address)
    }

    /// The bridge passes what the widest host sends; a port that is narrower drops what is too long for it.
    pub(crate) fn widen_wire(&self, mtu: u32) -> Result<()> {
        let mut taken = self.taken();
        if mtu > taken.wire_mtu {
            self.wire.ip(&format!("link set wire mtu {mtu}"))?;
            taken.wire_mtu = mtu;
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        if self.removed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let inhabitants = std::mem::take(&mut self.taken().inhabitants);
        let ended = inhabitants.into_iter().try_for_each(end);
        debris::remove(&self.run)?;
        ended
    }

    /// A panic elsewhere leaves nothing half done behind this lock.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create_wire(run: &Run, directory: &Arc<Path>) -> Result<Namespace> {
    DirBuilder::new()
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let wire = Namespace::create(&format!("{}wire", run.prefix()), directory)?;
    // Where Docker has loaded br_netfilter, bridges would hand their frames to netfilter, which joins fragments.
    for family in ["iptables", "ip6tables", "arptables"] {
        let key = format!("net.bridge.bridge-nf-call-{family}");
        if Path::new("/proc/sys").join(key.replace('.', "/")).exists() {
            wire.sysctl(&key, "0")?;
        }
    }
    wire.ip("link add wire type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    wire.ip("link set wire up")?;
    Ok(wire)
}

fn end(mut child: Child) -> Result<()> {
    let pid = child.id();
    child
        .kill()
        .with_context(|| format!("cannot kill process {pid}"))?;
    child
        .wait()
        .with_context(|| format!("cannot wait for process {pid}"))?;
    Ok(())
}
