//! What a process finds when it starts, and what is left when a node is given up.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;

use super::attach::local_endpoint;
use super::detach::Noted;
use super::{Node, docker, host_address, lock};
use crate::dataplane::{PINS, Pins, Program};
use crate::endpoint;
use crate::host::{self, Errors, Netlink, docker_user, firewall, oak0, offload, reserved_ports};
use crate::state::{EndpointState, State, Store};

impl Node {
    /// Takes over the endpoints of a previous process: those that were whole go on without losing a packet, those
    /// that were half-made or whose container is gone are undone, and what nobody noted is removed. An endpoint for
    /// which that fails stays noted as it is and costs the others nothing; the next process tries again.
    ///
    /// # Errors
    /// When the kernel does not say what there is.
    pub(super) async fn restore_endpoints(self: &Arc<Self>) -> anyhow::Result<()> {
        let links = endpoint::list(&self.netlink, &self.registration.node_id).await?;
        let mut kept = self.kept.lock().await;
        let keys: Vec<String> = kept.state.endpoints.keys().cloned().collect();
        for key in keys {
            let Some(endpoint) = kept.state.endpoints.get(&key).cloned() else {
                continue;
            };
            let whole = endpoint.attached.as_ref().is_some_and(|attached| {
                let found = links.iter().find(|link| link.interface == attached.interface);
                found.is_some_and(|link| {
                    link.name == attached.interface_name
                        && !docker::has_come_back(attached, link.peer_namespace)
                })
            });
            let outcome = if whole {
                self.restore(&endpoint)
                    .with_context(|| format!("taking over {key}"))
            } else {
                tracing::info!(endpoint = key, "not whole: removed");
                // Docker asks once more for what it has had no answer for; a container that is gone it has forgotten.
                let noted = match endpoint.attached {
                    None => Noted::Stays,
                    Some(_) => Noted::Struck,
                };
                self.take_off(&mut kept, &key, noted)
                    .await
                    .with_context(|| format!("removing {key}"))
            };
            if let Err(error) = outcome {
                tracing::error!("{error:#}");
            }
        }

        let known: Vec<_> = kept
            .state
            .endpoints
            .values()
            .map(|endpoint| endpoint.namespace_address)
            .collect();
        for link in links.iter().filter(|link| !known.contains(&link.address)) {
            tracing::info!(interface = link.name, "a link that nobody noted: removed");
            let removed = endpoint::detach(&self.netlink, &self.registration.node_id, link.address).await;
            if let Err(error) = removed {
                tracing::error!(%error, interface = link.name, "cannot remove a link");
            }
        }
        self.forget_ports_of_nobody(&kept)?;
        self.settle_fewer_ports(&mut kept).await;
        let host = host_address(&self.registration);
        let local = self.directory().local_instances();
        for (address, namespace_address) in local {
            if namespace_address != host && !known.contains(&namespace_address) {
                let removed = self.directory().remove_endpoint(address, namespace_address);
                if let Err(error) = removed {
                    tracing::error!(%error, %address, "cannot take out an endpoint that nobody noted");
                }
            }
        }
        let interfaces: Vec<u32> = kept
            .state
            .endpoints
            .values()
            .filter_map(|endpoint| endpoint.attached.as_ref().map(|attached| attached.interface))
            .collect();
        let attachments = lock(&self.dataplane).attachments()?;
        for (program, index) in attachments {
            if program == Program::FromEndpoint && !interfaces.contains(&index) {
                let detached = lock(&self.dataplane).detach(program, index);
                if let Err(error) = detached {
                    tracing::error!(%error, interface = index, "cannot detach the program of an endpoint");
                }
            }
        }
        Ok(())
    }

    fn restore(&self, endpoint: &EndpointState) -> anyhow::Result<()> {
        let (Some(local), Some(attached)) = (local_endpoint(endpoint), &endpoint.attached) else {
            return Ok(());
        };
        self.directory().add_endpoint(&local)?;
        self.publish(endpoint)?;
        lock(&self.dataplane).attach(
            Program::FromEndpoint,
            &attached.interface_name,
            attached.interface,
        )?;
        Ok(())
    }
}

/// Removes everything that a node has in the kernel and on the disk. No NetManager may be running, which the lock
/// of `store` proves. Goes on past failures.
///
/// # Errors
/// Everything that could not be removed; the state is kept then, so that it can be tried again.
pub async fn reset(store: &Store) -> anyhow::Result<()> {
    let mut state = store.load()?;
    if let Err(error) = remove_from_kernel(&mut state).await {
        store.save(&state)?;
        return Err(error);
    }
    store.clear()?;
    Ok(())
}

/// Removes everything that the registered node has in the kernel, and puts settings back. No node may be running.
/// Goes on past failures.
///
/// # Errors
/// Everything that could not be removed.
pub(crate) async fn remove_from_kernel(state: &mut State) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let mut failures: Vec<String> = Vec::new();
    let mut collect = |what: &str, error: String| failures.push(format!("{what}: {error}"));
    if let Some(registration) = state.registration.clone() {
        let node_id = &registration.node_id;
        match endpoint::list(&netlink, node_id).await {
            Ok(links) => {
                for link in links {
                    if let Err(error) = endpoint::detach(&netlink, node_id, link.address).await {
                        collect(&link.name, error.to_string());
                    }
                }
            }
            Err(error) => collect("links", error.to_string()),
        }
        if let Err(error) = Pins::of(node_id).remove() {
            collect(PINS, error.to_string());
        }
        if let Err(error) = firewall::remove(node_id).await {
            collect("firewall", error.to_string());
        }
        if let Err(error) = docker_user::remove(node_id).await {
            collect("Docker's firewall", error.to_string());
        }
        if let Err(error) = oak0::remove_leftover(&netlink).await {
            collect(oak0::NAME, error.to_string());
        }
    }
    if let Some(socket) = &state.docker_socket {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                collect(&socket.display().to_string(), error.to_string());
            }
            _ => state.docker_socket = None,
        }
    }
    restore_settings(state, &mut collect);
    if !failures.is_empty() {
        anyhow::bail!("not everything could be removed:\n  {}", failures.join("\n  "));
    }
    Ok(())
}

fn restore_settings(state: &mut State, collect: &mut impl FnMut(&str, String)) {
    if let Err::<(), Errors>(errors) = state.sysctls.restore() {
        collect("settings", errors.to_string());
    }
    match release_ports(&state.reserved_ports) {
        Ok(()) => state.reserved_ports.clear(),
        Err(error) => collect("reserved ports", error.to_string()),
    }
    state.offloads.retain(|interface| {
        match offload::set_feature(interface, offload::UDP_SEGMENTATION, true) {
            Ok(_) => false,
            Err(error) => {
                // An interface that is gone has nothing to restore.
                let gone = host::Error::errno(&error) == Some(libc::ENODEV);
                if !gone {
                    collect(interface, error.to_string());
                }
                !gone
            }
        }
    });
}

/// Lets go of ports that were reserved here, and of no others.
fn release_ports(own: &BTreeSet<u16>) -> host::Result<()> {
    if own.is_empty() {
        return Ok(());
    }
    let present = reserved_ports::read()?;
    let rest: BTreeSet<u16> = present.difference(own).copied().collect();
    if rest == present {
        return Ok(());
    }
    reserved_ports::write(&rest)
}
