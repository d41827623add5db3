//! The wires of a node's network: the HTTP API of NetManager and the MQTT topics between a NetManager and
//! its cluster.
//!
//! Fields that only this project's daemons know are optional everywhere and left out when they are empty,
//! so that the messages without them are byte for byte what other daemons of the same language expect.

mod http;
mod lenient;
mod messages;
mod name;
mod rows;
pub mod topic;

pub use http::{BrokerAccess, DeployRequest, DeployResponse, ErrorBody, RegisterRequest, UndeployRequest};
pub use lenient::Lenient;
pub use messages::{
    AnnouncementStatus, InterestRemoval, Peers, PeersAcknowledgement, ServiceAnnouncement, SubnetMethod,
    SubnetRequest, SubnetResult, TableQuery, TableResult, UpdateKind, UpdatesAvailable,
};
pub use name::{ServiceName, ServiceNameError};
pub use rows::{InstanceRow, IpType, PeerRow, ServiceAddress};
