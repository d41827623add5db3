//! Fragments: the ports of the first are those of the others, and who comes before the first waits for it.

use super::packet::{self, Header, ICMP, TCP, Transport, UDP, Unreadable};
use super::{Address, Arrival, Exit, Hook, Node, Sent, Walked, unchanged};

/// What all fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    pub source: Address,
    pub destination: Address,
    pub identification: u16,
    pub protocol: u8,
}

impl Datagram {
    fn of(header: &Header) -> Self {
        Self {
            source: header.source,
            destination: header.destination,
            identification: header.identification,
            protocol: header.protocol,
        }
    }
}

impl Node {
    /// Source and destination port of the datagram of a later fragment, where its first was seen.
    pub(super) fn ports_of_first(&self, header: &Header) -> Option<(u16, u16)> {
        self.fragments.get(&Datagram::of(header)).copied().flatten()
    }

    /// What the transport header says, be it in this packet or in the first fragment; nothing, where that was not seen.
    pub(super) fn transport(&self, packet: &[u8], header: &Header) -> Result<Option<Transport>, Unreadable> {
        packet::check_options(packet, header)?;
        if header.offset == 0 {
            return packet::transport(packet, header).map(Some);
        }
        if ![ICMP, TCP, UDP].contains(&header.protocol) {
            return Err(Unreadable::Unsupported("PROTOCOL"));
        }
        Ok(self
            .ports_of_first(header)
            .map(|(source_port, destination_port)| Transport {
                source_port,
                destination_port,
                flags: 0,
                begins: false,
            }))
    }

    /// Remembers the ports of a first fragment. Whether it has to go after a later one that waits.
    pub(super) fn first_came(&mut self, hook: Hook, header: &Header, transport: &Transport) -> bool {
        if !header.more_fragments || header.offset != 0 {
            return false;
        }
        let datagram = Datagram::of(header);
        let is_waited_for = hook != Hook::Oak0 && self.fragments.get(&datagram) == Some(&None);
        if !is_waited_for {
            let ports = (transport.source_port, transport.destination_port);
            self.fragments.insert(datagram, Some(ports));
        }
        is_waited_for
    }

    /// A later fragment comes before the first.
    pub(super) fn wait_for_first(&mut self, arrival: &Arrival<'_>, header: &Header) -> Walked {
        if arrival.hook == Hook::Oak0 {
            return Err("FRAGMENT");
        }
        self.fragments.insert(Datagram::of(header), None);
        Ok(self.handed_up(arrival))
    }

    pub(super) fn handed_up(&self, arrival: &Arrival<'_>) -> Sent {
        let exit = match arrival.hook {
            Hook::Host => Exit::None,
            Hook::Endpoint | Hook::Oak0 | Hook::Uplink | Hook::Loopback => Exit::Out(self.oak0),
        };
        Sent {
            exit,
            ..unchanged("PARK", arrival)
        }
    }
}
