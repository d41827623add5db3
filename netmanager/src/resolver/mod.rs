//! Who is behind an address: the questions that the node asks its cluster, and what it hears unasked.
//!
//! [`Resolver`] is what the rest of the daemon sees. [`Mqtt`] asks a cluster over its broker; [`StaticFile`]
//! answers from a file, for laboratories and tests. Both hand out, beside the resolver itself, a channel of
//! [`Update`]s: everything that changed since it was answered, in the order in which it became known.

mod mqtt;
mod rows;
mod static_file;
mod updates;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use async_trait::async_trait;
use protocol::network::ServiceName;
use tokio::sync::oneshot;

pub use mqtt::{Credentials, Mqtt, MqttSettings};
pub use static_file::{StaticFile, StaticFileError};

/// The addresses leased to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// First address of the node's /26.
    pub subnet: Ipv4Addr,
    /// First address of the node's /120.
    pub subnet_v6: Option<Ipv6Addr>,
    /// The address by which the node itself is reached, and by which its own packets are known.
    pub instance_address: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub instance_address_v6: Option<Ipv6Addr>,
    /// The application that the node itself counts as; 0 when nobody said.
    pub application: u32,
}

/// Where tunnel datagrams for a node are sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// The node's id; `None` when whoever answered does not know it.
    pub id: Option<String>,
    pub address: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}

/// One running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Name of its service.
    pub service: String,
    pub number: u32,
    /// Its own address in 10.30.0.0/16.
    pub address: Ipv4Addr,
    /// Where it is: an address in the subnet of its node.
    pub namespace_address: Ipv4Addr,
    pub node: NodeAddress,
    /// Tells this placement from every other one. Where nobody numbered it, a hash of its addresses and its
    /// node, so that the same place always has the same number. Never 0.
    pub incarnation: u64,
    /// The application that it belongs to; 0 when nobody said.
    pub application: u32,
    /// It keeps its flows and takes no new ones.
    pub draining: bool,
}

/// A service and all of its running instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    pub name: String,
    /// The addresses whose new flows go to the instances in turn. They live as long as the service does, so
    /// a service without instances has them too.
    pub round_robin: Vec<Ipv4Addr>,
    /// The addresses whose new flows go to the closest of the instances.
    pub closest: Vec<Ipv4Addr>,
    /// Sorted by number.
    pub instances: Vec<InstanceRecord>,
}

impl ServiceRecord {
    /// The addresses of the service itself, whatever they mean.
    pub fn addresses(&self) -> impl Iterator<Item = &Ipv4Addr> {
        self.round_robin.iter().chain(&self.closest)
    }
}

/// What became known unasked.
#[derive(Debug)]
pub enum Update {
    /// Instances that are about to talk to instances of this node. They are acknowledged when they are
    /// installed; dropping `acknowledge` says that they are not, and the sender may try again.
    Peers {
        instances: Vec<InstanceRecord>,
        acknowledge: oneshot::Sender<()>,
    },
    /// A service that was asked for changed; it may have lost its last instance.
    Service(ServiceRecord),
    /// A service that was asked for does not exist any more. Nothing more is said of it until it is asked
    /// for again.
    Gone { name: String },
    /// Whether whoever answers is reachable, and why not.
    Connection { up: bool, detail: String },
}

/// An instance of this node, as told to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    pub service: ServiceName,
    pub number: u32,
    pub namespace_address: Ipv4Addr,
    /// Nodes of other makes refuse instances without one.
    pub namespace_address_v6: Option<Ipv6Addr>,
    /// The tunnel address that this node announces.
    pub node_address: Ipv4Addr,
    /// The UDP port that this node announces.
    pub node_port: u16,
    pub incarnation: Option<u64>,
}

/// Why there is no answer. None of these says that something does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no connection to whoever answers.
    #[error("the cluster is away: {0}")]
    Away(String),
    /// The question was sent and no answer came in time.
    #[error("no answer about {about} within {deadline:?}")]
    Late { about: String, deadline: Duration },
    /// The question cannot be put, or is not allowed.
    #[error("refused: {0}")]
    Refused(String),
    /// The answer contradicts the question or itself.
    #[error("contradictory answer: {0}")]
    Contradictory(String),
}

/// Answers who is behind an address.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Asks for the node's own addresses. Whoever leases them may lease others at the next call.
    async fn lease(&self) -> Result<Lease, ResolveError>;

    /// Asks for the service that `address`, a service or instance address, belongs to; `None` when there is
    /// none. From a found service on, its changes come as [`Update`]s.
    async fn resolve(&self, address: Ipv4Addr) -> Result<Option<ServiceRecord>, ResolveError>;

    /// Asks for the service called `name`, otherwise like [`resolve`](Self::resolve).
    async fn resolve_name(&self, name: &str) -> Result<Option<ServiceRecord>, ResolveError>;

    /// Announces an instance of this node, and keeps announcing it to a cluster that has forgotten it. When
    /// the cluster is away, the announcement is made when it is back.
    async fn deployed(&self, instance: &Deployed) -> Result<(), ResolveError>;

    /// Announces that an instance left this node; when the cluster is away, as soon as it is back.
    async fn undeployed(&self, instance: &Deployed) -> Result<(), ResolveError>;

    /// Ends the updates of the service called `name`.
    async fn uninterested(&self, name: &str) -> Result<(), ResolveError>;

    /// Whether updates of the service called `name` are to come. One that is on its way when that ends says what may not
    /// be true any more.
    fn follows(&self, name: &str) -> bool;

    /// From now on the cluster is where these settings say. Where answers come from elsewhere, nothing changes.
    fn follow(&self, _settings: MqttSettings) {}
}

/// Reads a name that a caller gave.
fn service_name(name: &str) -> Result<ServiceName, ResolveError> {
    name.parse()
        .map_err(|error: protocol::network::ServiceNameError| ResolveError::Refused(error.to_string()))
}
