//! A node whose tables are as full as wanted, and the packets that it is given.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{MapData, MapInfo};
use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::probe::ANSWERED_PER_SECOND;
use netmanager::dataplane::{Globals, Program, Tables, classifier, load};

use crate::frame::{ACK, Address, PSH, Packet, SYN, Transport};
use crate::kernel::Runner;
use crate::topology::{
    self, A, A_SHOWN, B_TO_A, C, HOST, INTERFACE, MAC_OF_C, NEIGHBOUR, OUTER_A, S, S_SHOWN, SINGLE, Site, T,
    index_of, publish, set_service,
};

/// Ports of clients begin here.
const FIRST_PORT: u32 = 10_000;
/// That many ports a client uses, before it asks the next port of the service.
const PORTS: u32 = 50_000;
/// The services in front of two instances have ids from here on.
const FIRST_SERVICE: u32 = 100;
/// Bytes of what a packet carries.
const PAYLOAD: usize = 64;
/// A host that is no node.
const OUTSIDER: Address = [198, 51, 100, 7];
/// What a program returns when the kernel is to send the packet somewhere.
pub const REDIRECT: i32 = 7;

/// The node of site A.
pub struct Node {
    programs: Ebpf,
    pub tables: Tables,
    pub flows: u32,
    pub services: u32,
}

impl Node {
    /// A node with so many established connections of a to a service on another node, and that many services in front of
    /// two instances beside those of the topology.
    pub fn with(flows: u32, services: u32) -> Result<Self> {
        let globals = Globals {
            oak0_interface: INTERFACE,
            tunnel_port: TUNNEL_PORT,
            host_address: HOST.into(),
            trace_walks: false,
            probes_answered: ANSWERED_PER_SECOND,
        };
        let (programs, mut tables) = load(globals, &[]).context("cannot load the programs")?;
        topology::fill(&mut tables, Site::A);
        for number in 0..services {
            let backends = [S, T].map(index_of);
            set_service(
                &mut tables,
                FIRST_SERVICE + number,
                service(number)?,
                1,
                &backends,
            );
        }
        publish(&mut tables, Transport::Tcp, 8080, A, 80);
        let mut node = Self {
            programs,
            tables,
            flows,
            services,
        };
        node.establish()?;
        Ok(node)
    }

    pub fn runner(&mut self, program: Program) -> Result<Runner> {
        Runner::of(classifier(&mut self.programs, program)?)
    }

    /// Opens everything the way it is opened on a node: by a handshake.
    fn establish(&mut self) -> Result<()> {
        let endpoint = self.runner(Program::FromEndpoint)?;
        let uplink = self.runner(Program::FromUplink)?;
        let handshake = |case: &str, steps: [(&Runner, Vec<u8>); 3]| -> Result<()> {
            for (step, (program, frame)) in steps.into_iter().enumerate() {
                let verdict = program.run(&frame)?.verdict;
                ensure!(
                    verdict == REDIRECT,
                    "{case}, packet {step} of the handshake: verdict {verdict}"
                );
            }
            Ok(())
        };
        for flow in 0..self.flows {
            handshake(
                "another node",
                [
                    (&endpoint, sent(flow, SYN)?),
                    (&uplink, answered(flow, SYN | ACK)?),
                    (&endpoint, sent(flow, ACK)?),
                ],
            )?;
        }
        let few = self.flows.min(10);
        for flow in 0..few {
            handshake(
                "the same node",
                [
                    (&endpoint, sent_to_neighbour(flow, SYN)?),
                    (&endpoint, answered_by_neighbour(flow)?),
                    (&endpoint, sent_to_neighbour(flow, ACK)?),
                ],
            )?;
            handshake(
                "a published port",
                [
                    (&uplink, asked_from_outside(flow, SYN)?),
                    (&endpoint, answered_to_outside(flow, SYN | ACK)?),
                    (&uplink, asked_from_outside(flow, ACK)?),
                ],
            )?;
        }
        let established = self.tables.flows.keys().count();
        // Both ends of a flow on this node have two entries each.
        let expected = usize::try_from(2 * self.flows + 4 * few + 2 * few)?;
        ensure!(
            established == expected,
            "{established} entries in FLOWS instead of {expected}"
        );
        Ok(())
    }

    /// Forgets the flows that only began.
    pub fn forget_unanswered(&mut self) -> Result<()> {
        let keys: Vec<_> = self.tables.unanswered.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.tables.unanswered.remove(&key)?;
        }
        Ok(())
    }

    /// A program that looks up in this node's `FLOWS` and does nothing else.
    pub fn look_up(&mut self) -> Result<Runner> {
        let info = classifier(&mut self.programs, Program::FromEndpoint)?.info()?;
        let maps = info
            .map_ids()?
            .context("the kernel does not tell which maps a program has")?;
        for id in maps {
            if MapInfo::from_id(id)?.name_as_str() == Some("FLOWS") {
                return Runner::look_up(MapData::from_id(id)?.fd().as_fd());
            }
        }
        bail!("from_endpoint has no FLOWS")
    }
}

/// The address of a service in front of two instances.
fn service(number: u32) -> Result<Address> {
    let [_, _, third, fourth] = number.to_be_bytes();
    ensure!(number < 100 << 8, "no addresses for so many services");
    Ok([10, 30, 100 + third, fourth])
}

/// The ports of a flow: of the client, and of the service.
fn ports(flow: u32) -> Result<(u16, u16)> {
    let source = u16::try_from(FIRST_PORT + flow % PORTS).context("a port")?;
    let destination = u16::try_from(80 + flow / PORTS).context("a port")?;
    Ok((source, destination))
}

/// From a to a service on another node.
pub fn sent(flow: u32, flags: u8) -> Result<Vec<u8>> {
    packet(flow, flags, (A, SINGLE)).map(|packet| packet.frame())
}

/// From a to a service on the same node.
pub fn sent_to_neighbour(flow: u32, flags: u8) -> Result<Vec<u8>> {
    packet(flow, flags, (A, NEIGHBOUR)).map(|packet| packet.frame())
}

/// From a to one of the services in front of two instances.
pub fn opening(flow: u32, number: u32) -> Result<Vec<u8>> {
    packet(flow, SYN, (A, service(number)?)).map(|packet| packet.frame())
}

/// From a to somebody who is nobody's concern.
pub fn elsewhere(flow: u32) -> Result<Vec<u8>> {
    packet(flow, ACK | PSH, (A, OUTSIDER)).map(|packet| packet.frame())
}

/// From the wire to the node itself, outside the overlay.
pub fn from_elsewhere(flow: u32) -> Result<Vec<u8>> {
    packet(flow, ACK | PSH, (OUTSIDER, OUTER_A)).map(|packet| packet.frame())
}

/// What the other node sends back.
pub fn answered(flow: u32, flags: u8) -> Result<Vec<u8>> {
    let request = packet(flow, flags, (S_SHOWN, A))?;
    Ok(B_TO_A.carrying(&back(request)))
}

/// What c answers to a.
fn answered_by_neighbour(flow: u32) -> Result<Vec<u8>> {
    let answer = Packet {
        from_mac: MAC_OF_C,
        ..back(packet(flow, SYN | ACK, (C, A_SHOWN))?)
    };
    Ok(answer.frame())
}

/// From outside to the port that a has published.
pub fn asked_from_outside(flow: u32, flags: u8) -> Result<Vec<u8>> {
    let packet = Packet {
        destination_port: 8080,
        ..packet(flow, flags, (OUTSIDER, OUTER_A))?
    };
    Ok(packet.frame())
}

/// What a answers to the outside.
pub fn answered_to_outside(flow: u32, flags: u8) -> Result<Vec<u8>> {
    Ok(back(packet(flow, flags, (A, OUTSIDER))?).frame())
}

/// A packet of a flow between two addresses.
fn packet(flow: u32, flags: u8, (source, destination): (Address, Address)) -> Result<Packet> {
    let (source_port, destination_port) = ports(flow)?;
    Ok(Packet {
        source,
        source_port,
        destination,
        destination_port,
        flags,
        payload: vec![0x5a; PAYLOAD],
        ..Packet::default()
    })
}

/// The same between the ports exchanged.
fn back(packet: Packet) -> Packet {
    Packet {
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        ..packet
    }
}
