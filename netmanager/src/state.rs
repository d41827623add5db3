//! What NetManager must not forget when it is killed.
//!
//! One JSON file, written as a whole beside the old one and put in its place by a rename, so that a crash leaves
//! the old or the new. An endpoint is noted before its link is made and struck out after its link is gone: what
//! the kernel has, the file knows, and a new process can finish or undo whatever a dead one had begun.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::fcntl::{Flock, FlockArg};
use protocol::network::BrokerAccess;
use protocol::ports::PortMappings;
use serde::{Deserialize, Serialize};

use crate::endpoint::addresses::Addresses;
use crate::host::sysctl::Sysctls;

/// Version of the file's format.
const VERSION: u32 = 1;
const FILE: &str = "state.json";
const LOCK: &str = "lock";
/// How long a lock that is held is waited for: a child that a killed process was about to start has it until it becomes
/// another program. The kernel tells nobody when it is free.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How names of files begin that are being written.
const UNFINISHED: &str = ".state-";

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} is not a state file: {source}")]
    Content { path: String, source: serde_json::Error },
    #[error("{path} has format {found}, this NetManager knows {VERSION}")]
    Version { path: String, found: u32 },
    #[error("another NetManager is running with the state folder {path}")]
    Locked { path: String },
}

/// Everything that outlives the process, besides the pinned maps and links.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Set by registration.
    pub registration: Option<Registration>,
    /// By "service name/instance number".
    pub endpoints: BTreeMap<String, EndpointState>,
    /// Which namespace addresses are taken.
    pub addresses: Option<Addresses>,
    /// Endpoints of Docker by their ids, from their creation to their deletion, whether they are attached or not.
    #[serde(default)]
    pub docker: BTreeMap<String, DockerEndpoint>,
    /// The namespace address that an instance had last, to have it again; by the key of its endpoint.
    #[serde(default)]
    pub last_addresses: BTreeMap<String, Ipv4Addr>,
    /// Where Docker finds this node's network driver.
    #[serde(default)]
    pub docker_socket: Option<PathBuf>,
    /// What settings were before they were changed.
    pub sysctls: Sysctls,
    /// Interfaces whose UDP segmentation was switched off.
    pub offloads: Vec<String>,
    /// Ports that were reserved from the kernel's own choice and were not reserved before.
    #[serde(default)]
    pub reserved_ports: BTreeSet<u16>,
}

/// Who this node is, and what was leased to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub node_id: String,
    /// Host of the cluster; empty for the one in the configuration.
    pub cluster_address: String,
    /// How the node logs in at the cluster's broker, where it wants a login.
    #[serde(default)]
    pub broker: Option<BrokerAccess>,
    /// First address of the node's /26.
    pub subnet: Ipv4Addr,
    pub subnet_v6: Option<Ipv6Addr>,
    /// The address by which the node itself is reached.
    pub instance_address: Option<Ipv4Addr>,
    pub application: u32,
}

/// An endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    pub service: String,
    pub number: u32,
    /// The process that was attached; none where Docker asked for it.
    pub pid: Option<u32>,
    /// The endpoint of Docker, where Docker asked for it: a key of [`State::docker`].
    #[serde(default)]
    pub docker: Option<String>,
    pub namespace_address: Ipv4Addr,
    pub namespace_address_v6: Option<Ipv6Addr>,
    /// The address that it shows to others.
    pub instance_address: Ipv4Addr,
    pub incarnation: u64,
    pub application: u32,
    /// Ports that are published for it.
    #[serde(default)]
    pub ports: PortMappings,
    /// `None` until everything is in place: a new process undoes what is not.
    pub attached: Option<AttachedState>,
}

/// The link of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedState {
    pub interface: u32,
    pub interface_name: String,
    pub mac: [u8; 6],
    /// For a link that was left for Docker to move.
    #[serde(default)]
    pub handed_over: Option<HandedOverState>,
}

/// When and where a container's end was left to be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOverState {
    /// What the kernel calls the namespace; none for NetManager's own.
    pub home: Option<i32>,
    /// In seconds since the machine was started.
    pub at: u64,
}

/// An endpoint that Docker has announced: which instance it will be, and the address that it is promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerEndpoint {
    pub service: String,
    pub number: u32,
    pub instance_address: Ipv4Addr,
    pub incarnation: u64,
    pub application: u32,
    /// Published ports.
    pub ports: PortMappings,
    pub namespace_address: Ipv4Addr,
    pub namespace_address_v6: Option<Ipv6Addr>,
    /// Ethernet address of the container's end.
    pub mac: [u8; 6],
    /// When it was noted, in seconds since the machine was started.
    pub noted: u64,
}

/// Key of an endpoint in [`State::endpoints`].
pub fn endpoint_key(service: &str, number: u32) -> String {
    format!("{service}/{number}")
}

/// The state folder, held by this process alone.
pub struct Store {
    folder: PathBuf,
    _lock: Flock<fs::File>,
}

impl Store {
    /// Takes the folder, made if need be, for this process.
    ///
    /// # Errors
    /// [`StateError::Locked`] while another process has it.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(folder).map_err(failed("creating", folder))?;
        let path = folder.join(LOCK);
        let mut file = fs::File::create(&path).map_err(failed("creating", &path))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
                Err((_file, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(StateError::Locked {
                        path: folder.display().to_string(),
                    });
                }
                Err((_file, errno)) => return Err(failed("locking", &path)(errno.into())),
            }
            std::thread::sleep(LOCK_PAUSE);
        };
        remove_unfinished(folder).map_err(failed("cleaning", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// The state that was saved last, or an empty one.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what [`Self::save`] writes. It is left as it is.
    pub fn load(&self) -> Result<State, StateError> {
        let path = self.folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(State {
                    version: VERSION,
                    ..State::default()
                });
            }
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        let path = path.display().to_string();
        let state: State = match serde_json::from_slice(&text) {
            Ok(state) => state,
            Err(source) => return Err(StateError::Content { path, source }),
        };
        if state.version != VERSION {
            return Err(StateError::Version {
                path,
                found: state.version,
            });
        }
        Ok(state)
    }

    /// Puts `state` in the place of what was saved; it is on the disk when this returns.
    ///
    /// # Errors
    /// When the folder cannot be written; the old state stays.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let path = self.folder.join(FILE);
        let write = || {
            // As a whole: written piece by piece, it would be a system call for every value.
            let text = serde_json::to_vec_pretty(state)?;
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempfile_in(&self.folder)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            // The rename itself is on the disk once the folder is.
            nix::unistd::fsync(fs::File::open(&self.folder)?.as_fd())?;
            Ok(())
        };
        write().map_err(failed("writing", &path))
    }

    /// Removes what was saved. The folder and its lock stay until the process ends.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn clear(&self) -> Result<(), StateError> {
        let path = self.folder.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// Removes what a process left that was killed while it saved.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.display().to_string();
    move |source| StateError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("the folder is free");
        let mut state = store.load().expect("nothing is a state too");
        state.registration = Some(Registration {
            node_id: "node".to_owned(),
            broker: None,
            cluster_address: "192.0.2.1".to_owned(),
            subnet: Ipv4Addr::new(10, 18, 0, 0),
            subnet_v6: None,
            instance_address: Some(Ipv4Addr::new(10, 30, 0, 1)),
            application: 0,
        });
        store.save(&state).expect("saved");
        assert_eq!(store.load().expect("loaded").registration, state.registration);
        store.clear().expect("cleared");
        store.clear().expect("nothing to clear is no error");
        assert_eq!(store.load().expect("loaded").registration, None);
    }

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Store::open(folder.path()).expect("the folder is free");
        assert!(matches!(
            Store::open(folder.path()),
            Err(StateError::Locked { .. })
        ));
        drop(first);
        Store::open(folder.path()).expect("free again");
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("the folder is free");
        fs::write(folder.path().join(FILE), "{\"version\":").expect("written");
        assert!(matches!(store.load(), Err(StateError::Content { .. })));
        fs::write(
            folder.path().join(FILE),
            "{\"version\":99,\"endpoints\":{},\"sysctls\":{\"previous\":{}},\"offloads\":[]}",
        )
        .expect("written");
        assert!(matches!(store.load(), Err(StateError::Version { found: 99, .. })));
        assert!(folder.path().join(FILE).exists());
    }
}
