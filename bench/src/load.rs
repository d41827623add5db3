//! Load on a path, and what it measures.
//!
//! The generators are part of the bench, so that the same few system calls run over every path and the machine's
//! time is spent on packets. Client and servers are threads of one process; a socket belongs to the namespace in
//! which it was opened, whichever thread uses it.

mod connections;
mod exchange;
mod server;
mod socket;
mod stream;

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::Namespace;

pub use connections::connections_per_second;
pub use exchange::median_exchange;
pub use server::Servers;
pub use socket::CONGESTION_CONTROL;
pub use stream::stream;

/// How long a system call of a load may take that takes microseconds: longer than TCP needs to send something a
/// few times again, so that a loss makes a figure worse but does not end the run.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client, its servers, and the addresses by which it reaches them.
pub struct Path {
    pub client: Namespace,
    pub servers: Servers,
    /// Taken in turn. An overlay has one and does the turns itself.
    pub targets: Vec<Ipv4Addr>,
}

impl Path {
    fn target(&self, turn: usize) -> Ipv4Addr {
        self.targets[turn % self.targets.len()]
    }
}
