//! Writing files so that a crash leaves the old content or the new.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// How names of files begin that are being written.
const UNFINISHED: &str = ".unfinished-";

/// Puts `content` in the place of what `path` holds; it is on the disk when this returns. The folder is made if need
/// be, and the file gets the permissions `mode`.
///
/// # Errors
/// When the folder cannot be written; the old content stays.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Removes a file that may be gone already; its absence is on the disk when this returns.
///
/// # Errors
/// When the folder cannot be written.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what a process left in `folder` that was killed while it wrote.
///
/// # Errors
/// When the folder cannot be read or written.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A rename or removal is on the disk once the folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    nix::unistd::fsync(File::open(folder)?.as_fd())?;
    Ok(())
}
