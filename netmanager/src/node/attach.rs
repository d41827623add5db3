//! Endpoints come.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane_ebpf::tables::delivery;
use protocol::network::ServiceName;
use protocol::ports::{PortMappings, TransportProtocol};
use tokio::sync::OwnedMutexGuard;

use super::detach::{Noted, release};
use super::docker::{self, DockerPlace};
use super::{Kept, Node, lock};
use crate::dataplane::{DataplaneError, Program};
use crate::directory::LocalEndpoint;
use crate::endpoint::addresses::{Exhausted, NamespaceAddresses};
use crate::endpoint::{self, AttachOptions, HandOverOptions, Injected, Step, Undo};
use crate::host::Errors;
use crate::resolver::ResolveError;
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

/// A number that no earlier placement had: the time in ns since 1970.
pub(super) fn fresh_incarnation() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |time| time.as_nanos() as u64)
}
