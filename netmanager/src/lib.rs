//! The network of a worker node.
//!
//! The data plane in the kernel carries every packet; this crate loads it, tells it what it should know, and
//! answers for what it does not know yet. Its parts, from the kernel outwards:
//!
//! - [`dataplane`]: the programs, loaded, pinned and attached; typed tables.
//! - [`directory`]: who is where, written into the tables in an order that packets can follow.
//! - [`flows`]: which flows have ended, and what becomes of them.
//! - [`host`], [`endpoint`]: links, addresses, routes, settings and firewall of the node and of its containers.
//! - [`resolver`]: who is behind an address, asked of a cluster or of a file; [`parking`]: packets that wait for it;
//!   [`fragments`]: fragments that wait for the first of their datagram.
//! - [`node`]: all of this at work; [`state`]: what survives the process.
//! - [`probes`]: how far away other nodes are, and whether they are there.
//! - [`trace`]: what would become of a packet; [`doctor`]: what this machine lacks.
//! - [`driver`]: how Docker asks for the network of a container; [`manager`], [`api`], [`config`]: the daemon around
//!   it all.

pub mod api;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod directory;
pub mod doctor;
pub mod driver;
pub mod endpoint;
pub mod flows;
pub mod fragments;
pub mod host;
pub mod manager;
pub mod node;
pub mod parking;
pub mod probes;
pub mod resolver;
pub mod state;
pub mod trace;
