//! What the root stores.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol::cluster::Lease;
use protocol::descriptor::Finding;
use protocol::instance::InstanceStatus;
use protocol::job::{INCARNATION_STEP, InstanceKey, Job, Placement};
use protocol::network::{InstanceRow, IpType, ServiceAddress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::table::Row;

/// The role that may do everything.
pub const ADMIN: &str = "Admin";

/// Somebody who may log in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct User {
    pub id: String,
    pub name: String,
    pub email: String,
    /// In the form of argon2, with parameters and salt.
    pub password_hash: String,
    /// `dd/mm/YYYY HH:MM`, UTC.
    pub created_at: String,
    pub roles: Vec<String>,
}

impl User {
    pub fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == ADMIN)
    }
}

impl Row for User {
    type Key = String;
    const PREFIX: &'static str = "user/";

    fn key(&self) -> String {
        self.name.clone()
    }

    fn suffix(key: &String) -> String {
        key.clone()
    }
}

/// An application: services that belong together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Application {
    pub id: String,
    /// Its number in the data plane.
    pub app_id: u32,
    /// Name of the user.
    pub owner: String,
    pub name: String,
    pub namespace: String,
    pub description: String,
    /// Ids, in the order of the descriptor.
    pub services: Vec<String>,
    /// Every other key of the descriptor.
    pub rest: Map<String, Value>,
    /// It is gone for people; its instances are still being undeployed.
    pub deleting: bool,
}

impl Row for Application {
    type Key = String;
    const PREFIX: &'static str = "application/";

    fn key(&self) -> String {
        self.id.clone()
    }

    fn suffix(key: &String) -> String {
        key.clone()
    }
}

/// A service and its address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// As it travels to the clusters.
    pub job: Job,
    pub app_id: u32,
    /// Name of the user.
    pub owner: String,
    pub rr_ip: Ipv4Addr,
    pub rr_ip_v6: Ipv6Addr,
    /// The address of its closest instance, where it has one.
    #[serde(default)]
    pub closest_ip: Option<Ipv4Addr>,
    /// Number of the next instance. Numbers are not used again.
    pub next_instance: u32,
    /// What the descriptor says and is not acted on.
    pub warnings: Vec<Finding>,
    /// It is gone for people; its instances are still being undeployed.
    pub deleting: bool,
}

impl Service {
    pub fn id(&self) -> &str {
        &self.job.id
    }

    /// The addresses as they travel.
    pub fn addresses(&self) -> Vec<ServiceAddress> {
        let round_robin = ServiceAddress {
            kind: IpType::RoundRobin,
            address: Some(self.rr_ip),
            address_v6: Some(self.rr_ip_v6),
        };
        let closest = self.closest_ip.map(|address| ServiceAddress {
            kind: IpType::Closest,
            address: Some(address),
            address_v6: None,
        });
        std::iter::once(round_robin).chain(closest).collect()
    }
}

impl Row for Service {
    type Key = String;
    const PREFIX: &'static str = "service/";

    fn key(&self) -> String {
        self.job.id.clone()
    }

    fn suffix(key: &String) -> String {
        key.clone()
    }
}

/// Which instance: id of the service, and number.
pub type InstanceId = (String, u32);

/// One wished instance of a service. What changes every few seconds is not here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Id of the service.
    pub service: String,
    pub number: u32,
    pub incarnation: u64,
    pub instance_ip: Ipv4Addr,
    pub instance_ip_v6: Ipv6Addr,
    pub status: InstanceStatus,
    pub status_detail: String,
    /// Id of the cluster that has it.
    pub cluster: Option<String>,
    /// It is to go, and the cluster has not confirmed that it is gone.
    pub leaving: bool,
    pub worker_id: String,
    pub host: String,
    pub host_ip: Option<IpAddr>,
    pub publicip: String,
    /// Where it is, once it is attached.
    pub row: Option<InstanceRow>,
    /// Seconds since 1970.
    pub changed_at: f64,
}

impl Instance {
    /// The largest incarnation that a cluster may have counted up to for this placement.
    pub fn last_incarnation(&self) -> u64 {
        self.incarnation | (INCARNATION_STEP - 1)
    }

    /// Whether `incarnation` is of the same placement by the root.
    pub fn is_of(&self, incarnation: u64) -> bool {
        self.incarnation / INCARNATION_STEP == incarnation / INCARNATION_STEP
    }

    /// How clusters call it.
    pub fn wire_key(&self, service: &Service) -> InstanceKey {
        InstanceKey {
            job_name: service.job.job_name.clone(),
            instance_number: self.number,
        }
    }

    /// What a cluster is told.
    pub fn placement(&self, service: &Service) -> Placement {
        Placement {
            job: service.job.clone(),
            instance_number: self.number,
            incarnation: self.incarnation,
            instance_ip: Some(self.instance_ip),
            instance_ip_v6: Some(self.instance_ip_v6),
            service_ip: service.addresses(),
            app_id: service.app_id,
        }
    }

    /// Forgets where it was.
    pub fn displace(&mut self) {
        self.cluster = None;
        self.worker_id = String::new();
        self.host = String::new();
        self.host_ip = None;
        self.publicip = String::new();
        self.row = None;
    }
}

impl Row for Instance {
    type Key = InstanceId;
    const PREFIX: &'static str = "instance/";

    fn key(&self) -> InstanceId {
        (self.service.clone(), self.number)
    }

    fn suffix((service, number): &InstanceId) -> String {
        format!("{service}/{number:010}")
    }
}

/// A cluster that has connected once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub id: String,
    pub name: String,
    pub location: String,
    /// The secret that ties the name to the cluster.
    pub key: String,
    /// Where its connection came from last.
    pub ip: String,
    /// Where nodes register.
    pub port: u16,
}

impl Row for Cluster {
    type Key = String;
    const PREFIX: &'static str = "cluster/";

    fn key(&self) -> String {
        self.id.clone()
    }

    fn suffix(key: &String) -> String {
        key.clone()
    }
}

/// The addresses of a node, its own for good.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    /// Digest of the node's own secret; absent for a node that has none.
    #[serde(default)]
    pub key: Option<String>,
    pub lease: Lease,
}

impl Row for Node {
    type Key = String;
    const PREFIX: &'static str = "node/";

    fn key(&self) -> String {
        self.id.clone()
    }

    fn suffix(key: &String) -> String {
        key.clone()
    }
}

/// Who has an address of the overlay. There is one entry per address, written in the transaction that gives it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub address: IpAddr,
    pub holder: Holder,
}

/// Who can have an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Holder {
    Service {
        id: String,
        name: String,
    },
    Instance {
        service: String,
        number: u32,
        name: String,
    },
    Node {
        id: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, .. } => write!(formatter, "service {name}"),
            Self::Instance { number, name, .. } => write!(formatter, "instance {number} of service {name}"),
            Self::Node { id } => write!(formatter, "node {id}"),
        }
    }
}

impl Row for Holding {
    type Key = IpAddr;
    const PREFIX: &'static str = "address/";

    fn key(&self) -> IpAddr {
        self.address
    }

    fn suffix(key: &IpAddr) -> String {
        key.to_string()
    }
}

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// The address after the one given last, as its distance from 10.30.0.0.
    pub next_address: u32,
    /// The subnet after the one leased last, counted from 10.18.0.0/26.
    pub next_subnet: u32,
    /// How many leases are another root's, which has lost its state.
    pub leases_taken_over: u32,
    /// The application number given last.
    pub last_app: u32,
    /// The placement made last, in steps of [`INCARNATION_STEP`].
    pub last_placement: u64,
}

impl Row for Counters {
    type Key = ();
    const PREFIX: &'static str = "counters";

    fn key(&self) {}

    fn suffix((): &()) -> String {
        String::new()
    }
}
