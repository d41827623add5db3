//! Endpoints come and go.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane_ebpf::tables::delivery;
use protocol::network::ServiceName;
use protocol::ports::{PortMapping, PortMappings, TransportProtocol};
use tokio::sync::OwnedMutexGuard;

use super::docker::{self, DockerPlace};
use super::{Kept, Node, lock};
use crate::dataplane::{DataplaneError, Program};
use crate::directory::LocalEndpoint;
use crate::endpoint::addresses::{Exhausted, NamespaceAddresses};
use crate::endpoint::{self, AttachOptions, HandOverOptions, Injected, Step, Undo};
use crate::host::Errors;
use crate::resolver::{Deployed, ResolveError};
use crate::state::{AttachedState, EndpointState, HandedOverState, State, StateError, endpoint_key};

/// What is to be attached.
#[derive(Clone, Debug)]
pub struct Deploy {
    pub place: Place,
    pub service: ServiceName,
    pub number: u32,
    /// The instance's own address; the cluster is asked where it is not given.
    pub instance_address: Option<Ipv4Addr>,
    /// Number of the placement; made up where it is not given.
    pub incarnation: Option<u64>,
    /// Zero when unknown.
    pub application: u32,
    /// Ports of the node that lead to it.
    pub ports: PortMappings,
}

/// Where the endpoint is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the network namespace of this process.
    Process(u32),
    /// Where Docker will move it.
    Docker(DockerPlace),
}

/// Why an endpoint could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "the instance address of {service}, instance {number}, is not given and the cluster does not say it: {reason}"
    )]
    NoInstanceAddress {
        service: ServiceName,
        number: u32,
        reason: String,
    },
    #[error(
        "endpoint {0} is not known here: another container of the same instance has taken its place, or it was given up"
    )]
    NotNoted(String),
    #[error("{address} is the instance address of {holder} on this node already")]
    AddressTaken { address: Ipv4Addr, holder: String },
    #[error("port {port}/{protocol} of this node belongs to {holder} already")]
    PortTaken {
        port: u16,
        protocol: TransportProtocol,
        holder: String,
    },
    #[error("keeping published ports free: {0:#}")]
    Ports(#[source] anyhow::Error),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Injected(#[from] Injected),
    #[error("removing the link: {0}")]
    Link(#[from] Errors),
}

impl Node {
    /// Attaches an endpoint; afterwards it reaches the overlay and is reached. Attaching it again changes nothing,
    /// with another process it moves there. On failure nothing of it is left, and what it was to replace is gone
    /// only if the failure came after the first look at the process.
    ///
    /// # Errors
    /// When an address is missing or taken, the process is gone, or the kernel refuses.
    pub async fn attach(self: Arc<Self>, deploy: Deploy) -> Result<NamespaceAddresses, AttachError> {
        let instance_address = self
            .instance_address(&deploy.service, deploy.number, deploy.instance_address)
            .await?;
        let mut kept = self.kept.clone().lock_owned().await;
        let key = endpoint_key(deploy.service.as_str(), deploy.number);
        self.drop_dead_holders(&mut kept, &key, instance_address, &deploy.ports)
            .await?;
        refuse_taken(&kept.state, &key, instance_address)?;
        if let Place::Docker(place) = &deploy.place
            && !kept.state.docker.contains_key(&place.endpoint)
        {
            return Err(AttachError::NotNoted(place.endpoint.clone()));
        }
        self.check_ports(&kept, &key, &deploy.ports)?;
        let mut replaced = None;
        if let Some(existing) = kept.state.endpoints.get(&key).cloned() {
            let same = deploy.place.is_of(&existing)
                && existing.instance_address == instance_address
                && existing.application == deploy.application
                && existing.ports == deploy.ports
                && deploy
                    .incarnation
                    .is_none_or(|incarnation| incarnation == existing.incarnation);
            if same && self.is_attached(&existing).await {
                let (v4, v6) = (existing.namespace_address, existing.namespace_address_v6);
                return Ok(NamespaceAddresses { v4, v6 });
            }
            // A process that cannot be attached does not cost the one that is.
            if let Place::Process(pid) = deploy.place {
                endpoint::check_process(pid)?;
            }
            let noted = if deploy.place.is_of(&existing) {
                Noted::Stays
            } else {
                Noted::Struck
            };
            self.take_off(&mut kept, &key, noted).await?;
            replaced = Some(existing);
        }

        let mut undo = Undo::default();
        let outcome = self.put_on(&deploy, instance_address, &mut kept, &mut undo).await;
        let outcome = undo.finish(outcome).await;
        match &outcome {
            Ok(_) => {
                drop(kept);
                self.tell_deployed(&key).await;
                self.renew(deploy.service.as_str());
            }
            Err(_) => {
                if let Some(endpoint) = kept.state.endpoints.remove(&key) {
                    // What Docker was promised stays promised until Docker deletes its endpoint.
                    if endpoint.docker.is_none() {
                        release(&mut kept, endpoint.namespace_address);
                    }
                    if let Err(error) = kept.save() {
                        tracing::error!(%error, "cannot note that an endpoint was not attached");
                    }
                    self.settle_fewer_ports(&mut kept).await;
                }
                drop(kept);
                if let Some(replaced) = replaced {
                    self.tell_undeployed(&replaced).await;
                    self.renew(deploy.service.as_str());
                }
            }
        }
        outcome
    }

    /// Takes an endpoint off; success when it is not there. What fails is tried again by the next call.
    ///
    /// # Errors
    /// When the kernel refuses to let something go.
    pub async fn detach(self: Arc<Self>, service: &str, number: u32) -> Result<(), AttachError> {
        self.detach_if(&endpoint_key(service, number), |_| true).await
    }

    async fn detach_if(
        &self,
        key: &str,
        condition: impl FnOnce(&EndpointState) -> bool + Send,
    ) -> Result<(), AttachError> {
        let mut kept = self.kept.clone().lock_owned().await;
        let Some(endpoint) = kept.state.endpoints.get(key).cloned() else {
            return Ok(());
        };
        if !condition(&endpoint) {
            return Ok(());
        }
        self.take_off(&mut kept, key, Noted::Struck).await?;
        drop(kept);
        self.tell_undeployed(&endpoint).await;
        self.renew(&endpoint.service);
        Ok(())
    }

    /// Takes endpoints off whose links are gone: their containers have ended.
    pub(super) async fn drop_vanished(self: &Arc<Self>, gone: &std::collections::BTreeSet<u32>, all: bool) {
        let suspects: Vec<EndpointState> = {
            let kept = self.kept.lock().await;
            let interface =
                |endpoint: &EndpointState| endpoint.attached.as_ref().map(|attached| attached.interface);
            let suspect = |endpoint: &&EndpointState| {
                all || interface(endpoint).is_some_and(|index| gone.contains(&index))
            };
            kept.state.endpoints.values().filter(suspect).cloned().collect()
        };
        self.drop_dead(suspects).await;
    }

    /// Takes those of the endpoints off whose links are gone, or have come back from their containers.
    pub(super) async fn drop_dead(self: &Arc<Self>, suspects: Vec<EndpointState>) {
        for endpoint in suspects {
            if self.is_attached(&endpoint).await {
                continue;
            }
            tracing::info!(
                service = endpoint.service,
                number = endpoint.number,
                "the link of an endpoint is gone"
            );
            // The container may have been started again by now, with another link.
            let key = endpoint_key(&endpoint.service, endpoint.number);
            if let Err(error) = self.detach_if(&key, |current| *current == endpoint).await {
                tracing::error!(%error, service = endpoint.service, "cannot take an endpoint off");
            }
        }
    }

    /// Takes other endpoints off that have the address or one of the ports, and are dead: their containers ended while
    /// nobody here was told of it, and the next round of upkeep may be a while off.
    pub(super) async fn drop_dead_holders(
        self: &Arc<Self>,
        kept: &mut Kept,
        key: &str,
        address: Ipv4Addr,
        ports: &PortMappings,
    ) -> Result<(), AttachError> {
        let is_in_the_way = |endpoint: &EndpointState| {
            let published = endpoint.ports.iter().any(|held| {
                let same =
                    |wanted: &PortMapping| (wanted.host, wanted.protocol) == (held.host, held.protocol);
                ports.iter().any(same)
            });
            published || endpoint.instance_address == address
        };
        let others = kept.state.endpoints.iter().filter(|(other, _)| *other != key);
        let holders: Vec<(String, EndpointState)> = others
            .filter(|(_, endpoint)| is_in_the_way(endpoint))
            .map(|(other, endpoint)| (other.clone(), endpoint.clone()))
            .collect();
        for (other, endpoint) in holders {
            if self.is_attached(&endpoint).await {
                continue;
            }
            tracing::info!(endpoint = other, "what it holds is wanted, and its link is gone");
            self.take_off(kept, &other, Noted::Struck).await?;
            // Both wait for what is locked here, or for the cluster.
            let node = self.clone();
            tokio::spawn(async move {
                node.tell_undeployed(&endpoint).await;
                node.renew(&endpoint.service);
            });
        }
        Ok(())
    }

    /// Tells the cluster of every endpoint; it may have forgotten them.
    pub(super) async fn announce_all(&self) {
        let keys: Vec<String> = self.kept.lock().await.state.endpoints.keys().cloned().collect();
        for key in keys {
            self.tell_deployed(&key).await;
        }
    }

    /// The instance address that is given, or else the one that the cluster says.
    pub(super) async fn instance_address(
        &self,
        service: &ServiceName,
        number: u32,
        given: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, AttachError> {
        if let Some(address) = given {
            return Ok(address);
        }
        let unknown = |reason: String| AttachError::NoInstanceAddress {
            service: service.clone(),
            number,
            reason,
        };
        match self.resolver.resolve_name(service.as_str()).await {
            Ok(Some(record)) => {
                let found = record.instances.iter().find(|instance| instance.number == number);
                found
                    .map(|instance| instance.address)
                    .ok_or_else(|| unknown("no such instance".to_owned()))
            }
            Ok(None) => Err(unknown("no such service".to_owned())),
            Err(error) => Err(unknown(ResolveError::to_string(&error))),
        }
    }

    /// Every step of attaching, in order.
    async fn put_on(
        self: &Arc<Self>,
        deploy: &Deploy,
        instance_address: Ipv4Addr,
        kept: &mut OwnedMutexGuard<Kept>,
        undo: &mut Undo,
    ) -> Result<NamespaceAddresses, AttachError> {
        let service = deploy.service.to_string();
        let key = endpoint_key(&service, deploy.number);
        self.faults.attach.check(Step::AllocateAddress)?;
        let (addresses, pid, docker) = match &deploy.place {
            Place::Process(pid) => {
                let addresses = kept.state.addresses.get_or_insert_default().allocate()?;
                (addresses, Some(*pid), None)
            }
            Place::Docker(place) => (place.addresses, None, Some(place.endpoint.clone())),
        };
        let incarnation = deploy.incarnation.unwrap_or_else(fresh_incarnation);
        let mut endpoint = EndpointState {
            service: service.clone(),
            number: deploy.number,
            pid,
            docker,
            namespace_address: addresses.v4,
            namespace_address_v6: addresses.v6,
            instance_address,
            incarnation,
            application: deploy.application,
            ports: deploy.ports.clone(),
            attached: None,
        };
        // Noted before anything is made, so that a process that is killed here leaves nothing unknown behind. What Docker
        // announced is noted already, and writing takes time that a container waits for.
        kept.state.endpoints.insert(key.clone(), endpoint.clone());
        if endpoint.docker.is_none() {
            kept.save()?;
        }

        // Noted before the link is: undone, the link goes first and what guards it afterwards.
        let guarded = Arc::new(OnceLock::new());
        let (node, interface) = (self.clone(), guarded.clone());
        undo.push("detach the program", move || async move {
            interface.get().map_or(Ok(()), |index| {
                lock(&node.dataplane).detach(Program::FromEndpoint, *index)
            })
        });
        let guard = |index, name: &str| {
            guarded.get_or_init(|| index);
            Ok(lock(&self.dataplane).attach(Program::FromEndpoint, name, index)?)
        };
        // The firewall is a program of its own to be run, which need not wait for the kernel to make a link. Both are
        // done to their ends, whichever fails: the caller settles ports again after it has undone the link.
        let (attached, settled) = tokio::join!(
            self.link(deploy, addresses.v4, undo, guard),
            self.settle_ports(kept)
        );
        let attached = attached?;
        settled.map_err(AttachError::Ports)?;

        self.faults.attach.check(Step::FillTables)?;
        let node = self.clone();
        undo.push("take the endpoint out of the tables", move || async move {
            node.directory().remove_endpoint(instance_address, addresses.v4)
        });
        endpoint.attached = Some(attached);
        if let Some(local) = local_endpoint(&endpoint) {
            self.directory().add_endpoint(&local)?;
        }
        let (node, ports) = (self.clone(), endpoint.ports.clone());
        undo.push("withdraw the published ports", move || async move {
            node.directory().unpublish(&ports)
        });
        self.publish(&endpoint)?;

        self.faults.attach.check(Step::SaveState)?;
        kept.state.endpoints.insert(key, endpoint);
        kept.save()?;
        Ok(addresses)
    }

    /// Makes the link, which is whole or waits for Docker afterwards.
    async fn link(
        &self,
        deploy: &Deploy,
        address: Ipv4Addr,
        undo: &mut Undo,
        guard: impl FnOnce(u32, &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send,
    ) -> Result<AttachedState, AttachError> {
        let node_id = self.registration.node_id.clone();
        let endpoint = format!("{}.{}", deploy.service, deploy.number);
        let (mtu, fault) = (u32::from(self.config.mtu), self.faults.attach);
        match &deploy.place {
            Place::Process(pid) => {
                let options = AttachOptions {
                    node_id,
                    endpoint,
                    pid: *pid,
                    address,
                    mtu,
                    fault,
                };
                let link = endpoint::attach_guarded(&self.netlink, &options, undo, guard).await?;
                Ok(AttachedState {
                    interface: link.host_interface,
                    interface_name: link.host_interface_name,
                    mac: link.mac,
                    handed_over: None,
                })
            }
            Place::Docker(place) => {
                let options = HandOverOptions {
                    node_id,
                    endpoint,
                    home: place.home.clone(),
                    address,
                    mac: place.mac,
                    mtu,
                    fault,
                };
                let link = endpoint::hand_over(&self.netlink, &options, undo, guard).await?;
                Ok(AttachedState {
                    interface: link.host_interface,
                    interface_name: link.host_interface_name,
                    mac: place.mac,
                    handed_over: Some(HandedOverState {
                        home: link.home,
                        at: docker::seconds(),
                    }),
                })
            }
        }
    }

    /// Every step of detaching: first nobody finds the endpoint, and nothing it sends has a source that is known; then
    /// its link goes, and last its address is free and it is struck out. Each step finds it done on the second try.
    pub(super) async fn take_off(&self, kept: &mut Kept, key: &str, noted: Noted) -> Result<(), AttachError> {
        let Some(endpoint) = kept.state.endpoints.get(key).cloned() else {
            return Ok(());
        };
        self.faults.detach.check(Step::FillTables)?;
        {
            let mut directory = self.directory();
            directory.unpublish(&endpoint.ports)?;
            directory.withdraw(endpoint.instance_address)?;
            directory.remove_endpoint(endpoint.instance_address, endpoint.namespace_address)?;
        }
        self.faults.detach.check(Step::CreateLink)?;
        endpoint::detach(
            &self.netlink,
            &self.registration.node_id,
            endpoint.namespace_address,
        )
        .await?;
        // What guards a link is in place as long as the link is.
        self.faults.detach.check(Step::AttachProgram)?;
        if let Some(attached) = &endpoint.attached {
            lock(&self.dataplane).detach(Program::FromEndpoint, attached.interface)?;
        }
        self.faults.detach.check(Step::SaveState)?;
        kept.state.endpoints.remove(key);
        match (&endpoint.docker, noted) {
            (None, _) => release(kept, endpoint.namespace_address),
            (Some(id), Noted::Stays) => docker::wait_again(&mut kept.state, id),
            (Some(id), Noted::Struck) => docker::strike_out(&mut kept.state, id),
        }
        kept.save()?;
        self.settle_fewer_ports(kept).await;
        Ok(())
    }

    /// Whether the endpoint's link is the one that was made for it, and has not come back from the container.
    pub(super) async fn is_attached(&self, endpoint: &EndpointState) -> bool {
        let Some(attached) = &endpoint.attached else {
            return false;
        };
        match self.netlink.link_by_index(attached.interface).await {
            Ok(link) => link.is_some_and(|link| {
                link.name == attached.interface_name && !docker::has_come_back(attached, link.peer_namespace)
            }),
            Err(error) => {
                // Not knowing is no reason to take a working endpoint off.
                tracing::warn!(%error, interface = attached.interface_name, "cannot look at a link");
                true
            }
        }
    }

    async fn tell_deployed(&self, key: &str) {
        let endpoint = self.kept.lock().await.state.endpoints.get(key).cloned();
        let Some(deployed) = endpoint.and_then(|endpoint| self.deployed(&endpoint)) else {
            return;
        };
        if let Err(error) = self.resolver.deployed(&deployed).await {
            tracing::warn!(%error, endpoint = key, "cannot tell the cluster");
        }
    }

    pub(super) async fn tell_undeployed(&self, endpoint: &EndpointState) {
        let Some(deployed) = self.deployed(endpoint) else {
            return;
        };
        if let Err(error) = self.resolver.undeployed(&deployed).await {
            tracing::warn!(%error, service = endpoint.service, "cannot tell the cluster");
        }
    }

    fn deployed(&self, endpoint: &EndpointState) -> Option<Deployed> {
        Some(Deployed {
            service: endpoint.service.parse().ok()?,
            number: endpoint.number,
            namespace_address: endpoint.namespace_address,
            namespace_address_v6: endpoint.namespace_address_v6,
            node_address: (*lock(&self.announced))?,
            node_port: self.config.announced_port,
            incarnation: Some(endpoint.incarnation),
        })
    }

    /// Lets the addresses of a service lead to its instances of this node as they are now.
    pub(super) fn renew(&self, service: &str) {
        if let Err(error) = self.renew_service(service) {
            tracing::error!(%error, service, "cannot enter a service again");
        }
    }
}

impl Place {
    /// Whether the endpoint is this one's.
    fn is_of(&self, endpoint: &EndpointState) -> bool {
        match self {
            Self::Process(pid) => endpoint.pid == Some(*pid),
            Self::Docker(place) => endpoint.docker.as_ref() == Some(&place.endpoint),
        }
    }
}

/// What becomes of the endpoint of Docker that is behind an endpoint which is taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is forgotten and its address free.
    Struck,
    /// It keeps its address, for Docker to join it again.
    Stays,
}

/// Refuses an instance address that another endpoint of this node has.
pub(super) fn refuse_taken(state: &State, key: &str, address: Ipv4Addr) -> Result<(), AttachError> {
    let mut others = state.endpoints.iter().filter(|(other, _)| *other != key);
    match others.find(|(_, endpoint)| endpoint.instance_address == address) {
        Some((holder, _)) => Err(AttachError::AddressTaken {
            address,
            holder: holder.clone(),
        }),
        None => Ok(()),
    }
}

/// What the directory holds of an endpoint that is attached.
pub(super) fn local_endpoint(endpoint: &EndpointState) -> Option<LocalEndpoint> {
    let attached = endpoint.attached.as_ref()?;
    Some(LocalEndpoint {
        address: endpoint.instance_address,
        namespace_address: endpoint.namespace_address,
        incarnation: endpoint.incarnation,
        application: endpoint.application,
        interface: attached.interface,
        mac: attached.mac,
        delivery: delivery::PEER,
        publishes: !endpoint.ports.is_empty(),
    })
}

fn release(kept: &mut Kept, address: Ipv4Addr) {
    if let Some(addresses) = &mut kept.state.addresses {
        addresses.release(address);
    }
}

/// A number that no earlier placement had: the time in ns since 1970.
pub(super) fn fresh_incarnation() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |time| time.as_nanos() as u64)
}
