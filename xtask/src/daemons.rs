//! Building the daemons as they are delivered, or as they are tested.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lab::system::{CLUSTER_PROGRAM, ENGINE_PROGRAM, NETMANAGER_PROGRAM, ROOT_PROGRAM};

use crate::command::{cargo, execute};
use crate::programs::{self, OBJECT_VARIABLE};
use crate::workspace::target_directory;

/// The packages that have the daemons.
const PACKAGES: [&str; 3] = ["control", "netmanager", "nodeengine"];
/// All daemons, by the names of their files.
pub const DAEMONS: [&str; 4] = [ROOT_PROGRAM, CLUSTER_PROGRAM, NETMANAGER_PROGRAM, ENGINE_PROGRAM];

/// How daemons are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

/// Builds the kernel programs and all daemons, and says in which folder the daemons are.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let object = programs::build()?;
    let mut command = cargo()?;
    command.args(["build", "--locked", "--bins"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    execute(command.env(OBJECT_VARIABLE, object))?;
    let folder = target_directory()?.join(folder);
    for daemon in DAEMONS {
        ensure!(folder.join(daemon).is_file(), "the build left no {daemon}");
    }
    Ok(folder)
}
