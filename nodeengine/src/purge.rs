//! Gives the node up: removes everything that it has in Docker and on the disk, but the configuration.

use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::files;
use crate::identity::Identity;
use crate::lock::Lock;
use crate::paths::Paths;
use crate::runtime::{Docker, DockerSettings, NetworkMode, Runtime as _};

/// Removes the containers and the network of the node, and then its state; whether there was anything. It may be
/// repeated when it fails half-way.
///
/// # Errors
/// While the daemon runs, and when Docker does not answer.
pub async fn purge(paths: &Paths, docker: &str) -> anyhow::Result<bool> {
    if !paths.state.exists() {
        return Ok(false);
    }
    let lock = Lock::take(&paths.state)?;
    if let Some(identity) = Identity::read(&paths.state)? {
        let runtime = Docker::new(DockerSettings {
            host: docker.to_owned(),
            node: identity.id.clone(),
            network: NetworkMode::Plain,
            grace: Duration::ZERO,
            dns_servers: Vec::new(),
        });
        let removed = match runtime.connect().await {
            Ok(()) => runtime.give_up().await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            bail!(
                "containers of node {} may be left, and its state is kept: {error}",
                identity.id
            );
        }
    }
    files::remove(&paths.socket).with_context(|| format!("removing {}", paths.socket.display()))?;
    lock.remove_folder(&paths.state)
        .with_context(|| format!("removing {}", paths.state.display()))?;
    Ok(true)
}
