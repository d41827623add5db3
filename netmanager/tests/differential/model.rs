//! What the data plane does, written down once more: plainly, for reading, with nothing of the programs' own code.
//!
//! A [`Node`] holds what the tables say and [`Node::walk`] says what becomes of a frame. Where the programs look things
//! up in a clever order, this asks the questions in the order of the design; where they patch headers in place, this
//! takes a packet apart and writes it anew.

mod flows;
mod fragments;
mod inbound;
mod outbound;
mod packet;
mod probe;
mod published;

use std::collections::{BTreeMap, BTreeSet};

pub use flows::{Flow, Key};
pub use fragments::Datagram;

pub type Address = [u8; 4];

/// What happened, under the name by which it is counted.
pub type Name = &'static str;

/// Where a packet meets the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Endpoint,
    Oak0,
    Host,
    Uplink,
    Loopback,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// On to the next program, or nowhere.
    None,
    /// Into the namespace behind an interface.
    Peer(u32),
    /// Out of an interface.
    Out(u32),
    /// Out of an interface, by the kernel's neighbour table.
    Neighbour(u32),
    /// Into an interface, as if it had received the packet.
    Ingress(u32),
}

/// What becomes of a frame that is not dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub name: Name,
    pub exit: Exit,
    /// Index of the node that it is tunnelled to; zero where it is not.
    pub node: u32,
    pub frame: Vec<u8>,
}

/// What becomes of a frame: the name of a reason, where it is dropped.
pub type Walked = Result<Sent, Name>;

/// A frame as it meets the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub hook: Hook,
    /// Interface at which it is seen.
    pub interface: u32,
    /// Interface by which it came into the namespace; zero for the node's own.
    pub ingress: u32,
    pub frame: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Peer,
    Redirect,
    Host,
}

#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub interface: u32,
    pub instance: u32,
    pub instance_address: Address,
    pub mac: [u8; 6],
    pub delivery: Delivery,
    pub publishes: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Instance {
    pub namespace_address: Address,
    /// Zero: this node.
    pub node: u32,
    pub incarnation: u64,
    pub address: Address,
}

/// The way to another node.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub local: Address,
    pub remote: Address,
    pub port: u16,
    pub interface: u32,
    pub group: u32,
    pub mtu: u32,
    pub has_fixed_port: bool,
    pub is_unreachable: bool,
    /// Where it may be used.
    pub ethernet: Option<[u8; 14]>,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub id: u32,
    pub backends: Vec<u32>,
    /// How many flows have chosen.
    pub turn: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Published {
    pub incarnation: u64,
    pub instance: u32,
    pub port: u16,
}

/// What a node knows.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub oak0: u32,
    pub tunnel_port: u16,
    pub host_address: Address,
    pub endpoints: BTreeMap<Address, Endpoint>,
    pub instances: BTreeMap<u32, Instance>,
    pub instance_index: BTreeMap<Address, u32>,
    pub ways: BTreeMap<u32, Way>,
    /// Group and interface of who sends from an outer address.
    pub peers: BTreeMap<Address, (u32, u32)>,
    pub tunnels: BTreeSet<(Address, u16)>,
    pub services: BTreeMap<Address, Service>,
    pub local_addresses: BTreeSet<Address>,
    /// By protocol and port.
    pub published: BTreeMap<(u8, u16), Published>,
    pub flows: BTreeMap<Key, Flow>,
    /// Ports of the first fragment; none, where others wait for it.
    pub fragments: BTreeMap<Datagram, Option<(u16, u16)>>,
}

impl Node {
    /// What becomes of a frame; flows and turns are as they are afterwards.
    pub fn walk(&mut self, arrival: &Arrival<'_>) -> Walked {
        match arrival.hook {
            Hook::Endpoint | Hook::Oak0 | Hook::Host => self.outbound(arrival),
            Hook::Uplink => self.inbound(arrival),
            Hook::Loopback => self.loopback(arrival),
        }
    }

    fn instance(&self, index: u32) -> Option<Instance> {
        self.instances.get(&index).copied()
    }

    fn is_any_tunnel(&self, address: Address, port: u16) -> bool {
        port == self.tunnel_port || self.tunnels.contains(&(address, port))
    }

    /// The frame arrives at an endpoint of this node.
    fn deliver(&self, name: Name, hook: Hook, endpoint: &Endpoint, mut frame: Vec<u8>) -> Result<Sent, Name> {
        let (name, exit) = match (endpoint.delivery, hook) {
            (Delivery::Host, Hook::Oak0) => ("DELIVER_HOST", Exit::None),
            (Delivery::Host, _) => {
                let name = if name == "DELIVER" { "DELIVER_HOST" } else { name };
                (name, Exit::Ingress(endpoint.interface))
            }
            (Delivery::Peer, Hook::Endpoint | Hook::Oak0 | Hook::Uplink) => {
                (name, Exit::Peer(endpoint.interface))
            }
            (Delivery::Peer | Delivery::Redirect, _) => {
                frame[..6].copy_from_slice(&endpoint.mac);
                (name, Exit::Out(endpoint.interface))
            }
        };
        Ok(Sent {
            name,
            exit,
            node: 0,
            frame,
        })
    }

    /// Nobody but the data plane speaks to the node's own tunnel.
    fn guard_tunnel(&self, receiver: &Endpoint, key: &Key) -> Result<(), Name> {
        let is_tunnel = key.protocol == packet::UDP && key.destination_port == self.tunnel_port;
        if receiver.delivery == Delivery::Host && is_tunnel {
            return Err("TUNNEL_FROM_ENDPOINT");
        }
        Ok(())
    }
}

/// A frame that goes on unchanged.
fn passed(arrival: &Arrival<'_>) -> Sent {
    unchanged("PASS", arrival)
}

fn unchanged(name: Name, arrival: &Arrival<'_>) -> Sent {
    Sent {
        name,
        exit: Exit::None,
        node: 0,
        frame: arrival.frame.to_vec(),
    }
}

/// 10.16.0.0/12.
fn in_overlay(address: Address) -> bool {
    u32::from_be_bytes(address) >> 20 == 0x0a1
}

/// 10.30.0.0/16.
fn is_service_or_instance(address: Address) -> bool {
    address[..2] == [10, 30]
}
