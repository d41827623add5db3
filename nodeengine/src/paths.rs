//! Where everything lies.

use std::path::{Path, PathBuf};

/// The files of one node engine, all under its root folder.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Settings that a person may edit.
    pub config: PathBuf,
    /// What must outlive the process.
    pub state: PathBuf,
    /// One file per instance, in the state folder.
    pub instances: PathBuf,
    /// The socket that answers with the status.
    pub socket: PathBuf,
    /// Where a detached daemon logs, unless told otherwise.
    pub logs: PathBuf,
    /// NetManager's socket, unless told otherwise.
    pub netmanager: PathBuf,
}

impl Paths {
    /// The files under `root`.
    pub fn new(root: &Path) -> Self {
        let state = root.join("var/lib/oakestra/nodeengine");
        Self {
            config: root.join("etc/oakestra/conf.json"),
            instances: state.join("instances"),
            state,
            socket: root.join("run/oakestra/nodeengine.sock"),
            logs: root.join("var/log/oakestra"),
            netmanager: root.join("etc/netmanager/netmanager.sock"),
        }
    }
}
