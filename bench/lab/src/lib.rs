//! Hosts made of network namespaces, for tests, demonstrations and measurements.
//!
//! ```text
//!              oakt-<run>-wire: bridge `wire`, 192.0.2.0/24
//!          port1 ┌──────────────┴──────────────┐ port2
//!         uplink │                             │ uplink
//!   oakt-<run>-a │ 192.0.2.1      oakt-<run>-b │ 192.0.2.2     Lab::host
//!                │                             │
//!   oakt-<run>-a-client                oakt-<run>-b-server     Host::endpoint
//! ```
//!
//! Everything a [`Lab`] makes is named after its run, and the run names its owner: the process that made it. So
//! the end of the lab removes exactly what it made, and where the owner had no time for that (`kill -9`), the
//! next lab on the machine recognises the debris of the dead and removes it first.
//!
//! Links are made inside their namespaces from the start: nothing here ever appears in the root namespace but
//! the names under `/run/netns`.
//!
//! [`Docker`] brings containers, and [`system::System`] all daemons on hosts of a lab.
//!
//! All of it needs root, and the commands `ip` and `ethtool`; HTTP goes by `curl`, containers by `docker`.

pub mod capture;
mod daemon;
mod debris;
mod docker;
mod endpoint;
mod host;
pub mod http;
pub mod images;
mod laboratory;
mod namespace;
mod ping;
mod process;
mod remains;
mod run;
mod snapshot;
pub mod system;
mod wait;
pub mod worker;

pub use daemon::Daemon;
pub use debris::{PIN_DIRECTORY, forget_names, living, remove_standing, sweep};
pub use docker::{Docker, DockerClient};
pub use endpoint::Endpoint;
pub use host::{Host, HostOptions, Offloads, UPLINK};
pub use laboratory::Lab;
pub use namespace::Namespace;
pub use remains::{PLUGIN_DIRECTORY, kill_programs, node_ids, remove_control_groups};
pub use run::started;
pub use snapshot::Snapshot;
pub use wait::{Condition, wait_for};
