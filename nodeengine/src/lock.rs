//! One process per state folder.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const FILE: &str = "lock";

/// Why the state folder cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another NodeEngine (pid {pid}) runs with the state folder {path}; `NodeEngine stop` ends it")]
    Held { path: String, pid: String },
    #[error("locking {path}")]
    Io { path: String, source: io::Error },
}

/// The state folder, held by this process until it ends.
#[derive(Debug)]
pub struct Lock(Flock<File>);

impl Lock {
    /// Takes the folder, made if need be, and writes this process's id into the lock.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process has it.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(FILE);
        let failed = |source| LockError::Io {
            path: path.display().to_string(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let file = open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).map_err(failed)?;
                write!(lock, "{}", std::process::id()).map_err(failed)?;
                Ok(Self(lock))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                path: folder.display().to_string(),
                pid: holder(&mut file),
            }),
            Err((_file, errno)) => Err(failed(errno.into())),
        }
    }

    /// The process that has the folder, if one has.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn held_by(folder: &Path) -> io::Result<Option<i32>> {
        let file = match File::open(folder.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_free) => Ok(None),
            Err((mut file, Errno::EWOULDBLOCK)) => Ok(holder(&mut file).parse().ok()),
            Err((_file, errno)) => Err(errno.into()),
        }
    }

    /// Removes the folder together with its lock.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove_folder(self, folder: &Path) -> io::Result<()> {
        fs::remove_dir_all(folder)?;
        drop(self.0);
        Ok(())
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.is_empty() => text,
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}
