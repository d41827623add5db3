//! Endpoints of Docker: announced, joined, left, deleted.
//!
//! ```text
//! CreateEndpoint ─ noted, address promised ─ Join ─ attached ─ Leave ─ noted ─ DeleteEndpoint ─ forgotten
//! ```
//!
//! Each start of a container is a new endpoint of Docker, even where the instance is the same: the latest counts.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use protocol::network::ServiceName;
use protocol::ports::PortMappings;

use super::attach::{AttachError, Deploy, Place, fresh_incarnation, refuse_taken};
use super::detach::Noted;
use super::{Kept, Node};
use crate::endpoint::addresses::{Exhausted, NamespaceAddresses};
use crate::endpoint::{self, Namespace};
use crate::state::{AttachedState, DockerEndpoint, EndpointState, State, endpoint_key};

/// How long Docker may take to move a link into the container, once it was told of it. It takes milliseconds.
const MOVED_WITHIN: u64 = 10;
/// How long an endpoint may be noted without being attached. Docker joins it at once, or deletes it; one that stays
/// beyond that was forgotten by a Docker that was killed.
const JOINED_WITHIN: u64 = 300;

/// An instance, as the options of Docker's endpoint name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerWish {
    /// As in [`Deploy`].
    pub service: ServiceName,
    pub number: u32,
    pub instance_address: Option<Ipv4Addr>,
    pub incarnation: Option<u64>,
    pub application: u32,
    pub ports: PortMappings,
    /// Ethernet address that the container is to have; one is made up where it is not given.
    pub mac: Option<[u8; 6]>,
}

/// Where and as what Docker's endpoint is attached.
#[derive(Clone, Debug)]
pub struct DockerPlace {
    /// Docker's id of the endpoint.
    pub endpoint: String,
    /// The network namespace of Docker's daemon, which moves the link from there.
    pub home: Namespace,
    pub addresses: NamespaceAddresses,
    /// Ethernet address of the container's end.
    pub mac: [u8; 6],
}

impl Node {
    /// Notes an endpoint that Docker announces, and promises it an address: the one that the instance had last, if it
    /// is free. What was noted for the instance before and is not attached is forgotten. Noting it again changes
    /// nothing.
    ///
    /// # Errors
    /// When an address is missing or taken, or it cannot be noted.
    pub async fn note_docker(
        self: Arc<Self>,
        id: String,
        wish: DockerWish,
    ) -> Result<DockerEndpoint, AttachError> {
        let instance_address = self
            .instance_address(&wish.service, wish.number, wish.instance_address)
            .await?;
        let mut kept = self.kept.clone().lock_owned().await;
        if let Some(noted) = kept.state.docker.get(&id) {
            return Ok(noted.clone());
        }
        let key = endpoint_key(wish.service.as_str(), wish.number);
        self.drop_dead_holders(&mut kept, &key, instance_address, &wish.ports)
            .await?;
        refuse_taken(&kept.state, &key, instance_address)?;
        self.check_ports(&kept, &key, &wish.ports)?;
        let dead = match kept.state.endpoints.get(&key).cloned() {
            Some(existing) if !self.is_attached(&existing).await => Some(existing),
            _ => None,
        };
        if dead.is_some() {
            self.take_off(&mut kept, &key, Noted::Struck).await?;
        }
        for superseded in waiting(&kept.state, |other| {
            endpoint_key(&other.service, other.number) == key
        }) {
            strike_out(&mut kept.state, &superseded);
        }
        let addresses = allocate(&mut kept.state, &key)?;
        let mac = wish
            .mac
            .unwrap_or_else(|| endpoint::container_mac(&self.registration.node_id, addresses.v4));
        let noted = DockerEndpoint {
            service: wish.service.to_string(),
            number: wish.number,
            instance_address,
            incarnation: wish.incarnation.unwrap_or_else(fresh_incarnation),
            application: wish.application,
            ports: wish.ports,
            namespace_address: addresses.v4,
            namespace_address_v6: addresses.v6,
            mac,
            noted: seconds(),
        };
        kept.state.docker.insert(id.clone(), noted.clone());
        if let Err(error) = kept.save() {
            strike_out(&mut kept.state, &id);
            return Err(error.into());
        }
        drop(kept);
        if let Some(dead) = dead {
            self.tell_undeployed(&dead).await;
            self.renew(&dead.service);
        }
        Ok(noted)
    }

    /// Attaches an endpoint that was noted, taking over from any other of the instance. Its link waits in `home`, under
    /// the name that is returned, for Docker to move it into the container. Joining it again changes nothing.
    ///
    /// # Errors
    /// It was not noted, or as for [`Node::attach`].
    pub async fn join_docker(self: Arc<Self>, id: String, home: Namespace) -> Result<String, AttachError> {
        let noted = self.kept.lock().await.state.docker.get(&id).cloned();
        let Some(noted) = noted else {
            return Err(AttachError::NotNoted(id));
        };
        let service = match noted.service.parse() {
            Ok(service) => service,
            Err(_not_a_name) => return Err(AttachError::NotNoted(id)),
        };
        let waiting = endpoint::waiting_name(&self.registration.node_id, noted.namespace_address);
        let deploy = Deploy {
            place: Place::Docker(DockerPlace {
                endpoint: id,
                home,
                addresses: NamespaceAddresses {
                    v4: noted.namespace_address,
                    v6: noted.namespace_address_v6,
                },
                mac: noted.mac,
            }),
            service,
            number: noted.number,
            instance_address: Some(noted.instance_address),
            incarnation: Some(noted.incarnation),
            application: noted.application,
            ports: noted.ports,
        };
        self.attach(deploy).await?;
        Ok(waiting)
    }

    /// Takes an endpoint off that Docker leaves; it may be joined again. Success when it is not attached.
    ///
    /// # Errors
    /// When the kernel refuses to let something go.
    pub async fn leave_docker(self: Arc<Self>, id: String) -> Result<(), AttachError> {
        self.end_docker(&id, Noted::Stays).await
    }

    /// Forgets an endpoint, taken off before if need be. Success when it is not known: another may have taken over.
    ///
    /// # Errors
    /// When the kernel refuses to let something go, or it cannot be struck out.
    pub async fn delete_docker(self: Arc<Self>, id: String) -> Result<(), AttachError> {
        self.end_docker(&id, Noted::Struck).await
    }

    async fn end_docker(&self, id: &str, noted: Noted) -> Result<(), AttachError> {
        let mut kept = self.kept.clone().lock_owned().await;
        let is_its = |endpoint: &&EndpointState| endpoint.docker.as_deref() == Some(id);
        if let Some(endpoint) = kept.state.endpoints.values().find(is_its).cloned() {
            let key = endpoint_key(&endpoint.service, endpoint.number);
            self.take_off(&mut kept, &key, noted).await?;
            drop(kept);
            self.tell_undeployed(&endpoint).await;
            self.renew(&endpoint.service);
        } else if noted == Noted::Struck && kept.state.docker.contains_key(id) {
            strike_out(&mut kept.state, id);
            kept.save()?;
        }
        Ok(())
    }

    /// Ends what Docker has not ended, because it or this process was killed in the middle of it: endpoints that were
    /// never joined, and links that have come back from containers which are gone.
    pub(super) async fn tidy_docker(self: &Arc<Self>) {
        let suspects: Vec<EndpointState> = {
            let mut kept = self.kept.lock().await;
            if let Err(error) = strike_out_forgotten(&mut kept) {
                tracing::error!(%error, "cannot forget endpoints that Docker never joined");
            }
            let endpoints = kept.state.endpoints.values();
            endpoints
                .filter(|endpoint| endpoint.docker.is_some())
                .cloned()
                .collect()
        };
        self.drop_dead(suspects).await;
    }
}

/// Whether a link that was left for Docker is there still, or again: Docker moves it back before it deletes the
/// container's namespace, and leaves it there when nobody answers.
pub(super) fn has_come_back(attached: &AttachedState, peer_namespace: Option<i32>) -> bool {
    attached.handed_over.as_ref().is_some_and(|handed_over| {
        peer_namespace == handed_over.home && is_over(handed_over.at, MOVED_WITHIN, seconds())
    })
}

/// Forgets an endpoint of Docker that is not attached (any more), and frees its address. The instance will have it
/// again if nobody else was given it.
pub(super) fn strike_out(state: &mut State, id: &str) {
    let Some(noted) = state.docker.remove(id) else {
        return;
    };
    let address = noted.namespace_address;
    if let Some(addresses) = &mut state.addresses {
        addresses.release(address);
    }
    state.last_addresses.retain(|_, last| *last != address);
    let key = endpoint_key(&noted.service, noted.number);
    state.last_addresses.insert(key, address);
}

/// Notes that an endpoint was left, and may be joined again.
pub(super) fn wait_again(state: &mut State, id: &str) {
    if let Some(noted) = state.docker.get_mut(id) {
        noted.noted = seconds();
    }
}

/// Seconds since the machine was started, which no change of the date touches.
pub(super) fn seconds() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| Duration::from(time).as_secs())
}

/// Whether more than `limit` seconds have passed, or the machine was started anew since.
fn is_over(since: u64, limit: u64, now: u64) -> bool {
    now < since || now - since > limit
}

/// The address that the instance had last, or another one.
fn allocate(state: &mut State, key: &str) -> Result<NamespaceAddresses, Exhausted> {
    let last = state.last_addresses.remove(key);
    let addresses = state.addresses.get_or_insert_default();
    let again = last.filter(|last| addresses.reserve(*last));
    let given = match again.and_then(|last| addresses.both(last)) {
        Some(again) => again,
        None => addresses.allocate()?,
    };
    state.last_addresses.retain(|_, last| *last != given.v4);
    Ok(given)
}

/// The ids of the endpoints that are noted and not attached, of those that match.
fn waiting(state: &State, matches: impl Fn(&DockerEndpoint) -> bool) -> Vec<String> {
    let attached: BTreeSet<&String> = state
        .endpoints
        .values()
        .filter_map(|endpoint| endpoint.docker.as_ref())
        .collect();
    let waiting = state
        .docker
        .iter()
        .filter(|(id, noted)| !attached.contains(id) && matches(noted));
    waiting.map(|(id, _)| id.clone()).collect()
}

fn strike_out_forgotten(kept: &mut Kept) -> Result<(), AttachError> {
    let now = seconds();
    let forgotten = waiting(&kept.state, |noted| is_over(noted.noted, JOINED_WITHIN, now));
    for id in &forgotten {
        tracing::info!(endpoint = id, "Docker never joined an endpoint: forgotten");
        strike_out(&mut kept.state, id);
    }
    if !forgotten.is_empty() {
        kept.save()?;
    }
    Ok(())
}
