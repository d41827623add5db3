//! Who calls: the process behind a connection, and the network namespace it is in.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixListener;

use crate::endpoint::{self, Namespace};

/// Why the namespace of a caller cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("looking for the process that calls: {0}")]
    Credentials(Errno),
    #[error("user {0} calls; only root may")]
    NotRoot(u32),
    #[error(
        "the process that calls is not to be seen from here; NetManager and Docker have to share a process namespace"
    )]
    Hidden,
    #[error("the process that called has ended")]
    Ended,
    #[error(transparent)]
    Namespace(#[from] endpoint::Error),
}

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Debug)]
pub struct Peer(Result<Process, Errno>);

#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    user: u32,
    /// Stands for this very process, whoever has its number later; none where it had ended already.
    handle: Option<Arc<OwnedFd>>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(Process::of(&stream.io().as_fd()))
    }
}

impl Peer {
    /// Refuses whoever is not root. Only root can open the socket; this holds where somebody has handed it on.
    ///
    /// # Errors
    /// It is another, or nobody knows.
    pub fn check(&self) -> Result<(), PeerError> {
        match self.process()?.user {
            0 => Ok(()),
            other => Err(PeerError::NotRoot(other)),
        }
    }

    /// The network namespace that the process is in.
    ///
    /// # Errors
    /// It has ended, or cannot be seen.
    pub fn namespace(&self) -> Result<Namespace, PeerError> {
        let process = self.process()?;
        let handle = process.handle.as_ref().ok_or(PeerError::Ended)?;
        let pid = u32::try_from(process.pid).ok().filter(|pid| *pid != 0);
        let found = Namespace::of_most_threads(pid.ok_or(PeerError::Hidden)?);
        // Only now: as long as it lives, nobody else has its number.
        if has_ended(handle.as_fd())? {
            return Err(PeerError::Ended);
        }
        Ok(found?)
    }

    fn process(&self) -> Result<&Process, PeerError> {
        self.0.as_ref().map_err(|errno| PeerError::Credentials(*errno))
    }
}

impl Process {
    fn of(stream: &BorrowedFd<'_>) -> Result<Self, Errno> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let handle = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(handle) => Some(handle),
            // Before Linux 6.5 the number has to do, in the moment since it connected.
            Err(Errno::ENOPROTOOPT) => open(credentials.pid())?,
            Err(Errno::ESRCH | Errno::EINVAL) => None,
            Err(errno) => return Err(errno),
        };
        Ok(Self {
            pid: credentials.pid(),
            user: credentials.uid(),
            handle: handle.map(Arc::new),
        })
    }
}

/// A handle of a process; none where it has ended, or is not to be seen.
fn open(pid: i32) -> Result<Option<OwnedFd>, Errno> {
    // SAFETY: the call takes two integers and returns a new descriptor or an error.
    let code = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(code) {
        // SAFETY: the descriptor is new, so that nobody else owns it.
        Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })),
        Err(Errno::ESRCH | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn has_ended(handle: BorrowedFd<'_>) -> Result<bool, PeerError> {
    let mut polled = [PollFd::new(handle, PollFlags::POLLIN)];
    let ready = poll(&mut polled, PollTimeout::ZERO).map_err(PeerError::Credentials)?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_seen_while_it_lives_and_no_longer() {
        let (here, there) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let process = Process::of(&here.as_fd()).expect("credentials");
        assert_eq!(process.pid.cast_unsigned(), std::process::id());
        assert_eq!(process.user, nix::unistd::geteuid().as_raw());
        let own = Namespace::current().expect("a namespace");
        let found = Peer(Ok(process)).namespace().expect("it lives");
        assert!(found.is(&own).expect("compared"));
        drop(there);

        let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = child.id().cast_signed();
        let handle = open(pid).expect("a handle").expect("it lives");
        let peer = Peer(Ok(Process {
            pid,
            user: 0,
            handle: Some(Arc::new(handle)),
        }));
        peer.namespace().expect("it lives");
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(matches!(peer.namespace(), Err(PeerError::Ended)));
        assert!(open(pid).expect("asked").is_none());
    }

    #[test]
    fn only_root_may_call() {
        let peer = |user| {
            Peer(Ok(Process {
                pid: 1,
                user,
                handle: None,
            }))
        };
        assert!(peer(0).check().is_ok());
        assert!(matches!(peer(1000).check(), Err(PeerError::NotRoot(1000))));
    }
}
