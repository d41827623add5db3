//! A namespace that stands for a container.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::Result;

use crate::laboratory::Shared;
use crate::namespace::Namespace;

/// A namespace that stands for a container, with a process in it that stands for the container's. Nothing but
/// `lo` is in it until a node manager wires it; [`Host::routed_endpoint`](crate::Host::routed_endpoint) makes one
/// that is wired already. A handle: it lives until the lab ends or [`Endpoint::remove`].
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(crate) namespace: Namespace,
    pub(crate) pid: u32,
    pub(crate) shared: Arc<Shared>,
}

impl Endpoint {
    /// The process that lives in it: `/proc/<pid>/ns/net` is its namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it as a container ends: its processes are killed, and with them the namespace and its links go.
    pub fn remove(self) -> Result<()> {
        self.shared.remove_endpoint(&self.namespace, self.pid)
    }
}

impl Deref for Endpoint {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}
