//! Endpoints: the links between containers and the data plane.
//!
//! A container has a /32, a default route by way of a gateway that no host has, and a permanent entry that
//! says where that gateway is: the host's end of its link. There is no bridge and nothing to ask. Every step
//! can be undone, and a failure at any of them leaves everything as it was.

pub mod addresses;
mod handover;
mod host_end;
pub mod name;
mod namespace;
mod step;
mod undo;
mod veth;

use std::io;
use std::net::Ipv4Addr;

pub use handover::{HandOverOptions, HandedOver, container_mac, hand_over, waiting_name};
pub use namespace::Namespace;
pub use step::{Fault, Injected, Step, UnknownStep};
pub use undo::Undo;
pub use veth::{AttachOptions, Attached, Found, attach, attach_guarded, check_process, detach, list};

use crate::host;

/// Why an endpoint could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Host(#[from] host::Error),
    #[error(transparent)]
    Injected(#[from] Injected),
    /// The namespace cannot be opened, as when its process has ended.
    #[error("{operation} {name}: {source}")]
    Namespace {
        operation: &'static str,
        name: String,
        source: io::Error,
    },
    /// The process has no network of its own.
    #[error("process {0} is in the network namespace of the host")]
    HostNamespace(u32),
    /// The node id and the endpoint's name do not fit into a link's alias.
    #[error("node {node_id:?} and endpoint {endpoint:?} cannot be noted on a link")]
    Alias { node_id: String, endpoint: String },
    /// The address is in use.
    #[error("{address} is wired already: {link} belongs to {alias:?}")]
    InUse {
        address: Ipv4Addr,
        link: String,
        alias: String,
    },
    /// What has to be in place before the link goes up is not.
    #[error("guarding the link")]
    Guard(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The link that was just made is not to be seen, because somebody else has moved or renamed it.
    #[error("{0} is gone")]
    Vanished(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The kernel's error number, when the kernel was the one to refuse.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Host(error) => error.errno(),
            Self::Namespace { source, .. } => source.raw_os_error(),
            Self::Injected(_)
            | Self::HostNamespace(_)
            | Self::Guard(_)
            | Self::Alias { .. }
            | Self::InUse { .. }
            | Self::Vanished(_) => None,
        }
    }
}
