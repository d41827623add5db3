//! What a daemon asks of the kernel for itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Allows as many open files as an administrator lets this process have: a connection is one, and the usual 1024 are
/// for programs that call `select`.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "the number of open files stays as it is");
    }
}
