//! Network namespaces of containers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

use super::{Error, Result};
use crate::host::Netlink;
use crate::host::netlink::on_own_thread;

/// An open network namespace, which lives as long as this value.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    name: String,
}

impl Namespace {
    /// The namespace of a process.
    ///
    /// # Errors
    /// There is no such process (`ENOENT`).
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open(PathBuf::from("/proc/thread-self/ns/net"))
    }

    /// The namespace that most threads of a process are in: its own, of which single threads may leave for a moment, as
    /// those of Docker's daemon do.
    ///
    /// # Errors
    /// There is no such process (`ENOENT`).
    pub fn of_most_threads(pid: u32) -> Result<Self> {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        let failed = |source| Error::Namespace {
            operation: "look for threads in",
            name: tasks.display().to_string(),
            source,
        };
        let mut found: Vec<(Self, (u64, u64), usize)> = Vec::new();
        for task in std::fs::read_dir(&tasks).map_err(failed)? {
            // A thread that ends while it is looked at is none.
            let Ok(namespace) = Self::open(task.map_err(failed)?.path().join("ns/net")) else {
                continue;
            };
            let identity = namespace.identity()?;
            match found.iter_mut().find(|(_, known, _)| *known == identity) {
                Some((_, _, threads)) => *threads += 1,
                None => found.push((namespace, identity, 1)),
            }
        }
        let most = found.into_iter().max_by_key(|(_, _, threads)| *threads);
        most.map(|(namespace, _, _)| namespace)
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
    }

    fn open(path: PathBuf) -> Result<Self> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Ok(Self {
                file: Arc::new(file),
                name,
            }),
            Err(source) => Err(Error::Namespace {
                operation: "open",
                name,
                source,
            }),
        }
    }

    /// Whether both are the same namespace.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn is(&self, other: &Self) -> Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self
            .file
            .metadata()
            .map_err(|source| self.failed("look at", source))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// A routing socket in this namespace. The socket stays there; the thread that opened it is gone.
    ///
    /// # Errors
    /// The kernel refuses to enter the namespace or to open the socket.
    pub async fn netlink(&self) -> Result<Netlink> {
        let namespace = self.clone();
        let opened = on_own_thread("enter", &self.name, move || {
            // The thread ends in the namespace, so there is no way back that could fail.
            setns(&*namespace.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                crate::host::Error::kernel("enter", namespace.name.clone(), io::Error::from(errno))
            })?;
            Netlink::open()
        });
        Ok(opened.await?)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Namespace {
            operation,
            name: self.name.clone(),
            source,
        }
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
