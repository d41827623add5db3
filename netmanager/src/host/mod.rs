//! What NetManager keeps on its host: the tap `oak0`, routes, sysctls, the firewall table, its rules in Docker's
//! chain, and what it knows
//! about the interfaces that lead to peers.
//!
//! Everything here acts in the network namespace of the calling thread, is reconciled from what should be
//! (a second run changes nothing), and touches only what carries this project's mark: routes of
//! [`ROUTE_PROTOCOL`], the tap [`oak0::NAME`], the table of the own node id.

pub mod changes;
pub mod docker_user;
mod error;
pub mod firewall;
pub mod netlink;
pub mod oak0;
pub mod offload;
pub mod overlap;
pub mod path_mtu;
pub mod ports;
pub mod reserved_ports;
mod route;
pub mod ruleset;
pub mod sysctl;
mod tap;
pub mod uplink;

pub use error::{Error, Errors, Result};
pub use netlink::Netlink;
pub use route::{Route, RouteTarget};

/// `rtm_protocol` of every route that NetManager makes; `ip route show proto 111` lists them. No routing
/// daemon has registered this number.
pub const ROUTE_PROTOCOL: u8 = 111;

/// `SO_MARK` of NetManager's own tunnel socket, the only socket that may send to a tunnel port.
pub const TUNNEL_MARK: u32 = 0x6f61_6b65;
