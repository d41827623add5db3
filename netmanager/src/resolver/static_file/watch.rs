//! Noticing that a file changed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// Watches one file by its folder, so that a file that is replaced by renaming is still the one watched.
pub(super) struct Watch {
    events: AsyncFd<Descriptor>,
    file_name: OsString,
}

/// [`AsyncFd`] wants the raw descriptor, which [`Inotify`] hands out only as a borrowed one.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Begins to watch the file at `path`.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let Some(file_name) = path.file_name() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not the path of a file",
            ));
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // Not IN_MODIFY: between the first and the last write the file is half of what it will be.
        let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(folder, written | AddWatchFlags::IN_ONLYDIR)?;
        // SAFETY: the descriptor belongs to the `Inotify` inside, which is neither replaced nor taken out for
        // as long as `events` lives, and closes it only when it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) }?;
        Ok(Self {
            events,
            file_name: file_name.to_owned(),
        })
    }

    /// Waits until the file has been written or replaced. An error is final.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut readable = self.events.ready(Interest::READABLE).await?;
            let events = match self.events.get_ref().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    readable.clear_ready_matching(Ready::READABLE);
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if events
                .iter()
                .any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED))
            {
                return Err(io::Error::new(io::ErrorKind::NotFound, "its folder is gone"));
            }
            // An overflow names no file; any may have changed.
            let concerns_file = |name: Option<&OsString>| name.is_none_or(|name| *name == self.file_name);
            if events.iter().any(|event| concerns_file(event.name.as_ref())) {
                return Ok(());
            }
        }
    }
}
