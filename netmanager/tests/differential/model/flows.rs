//! Flows: what was decided, and for how long it holds.

use super::packet::{FIN, ICMP, RST, SYN, TCP, Transport};
use super::{Address, Instance, Name, Node};

/// What packets of one direction of a flow have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub instance: u32,
    pub incarnation: u64,
    pub shown: Address,
    pub address: Address,
    pub port: u16,
    pub other_port: u16,
    pub interface: u32,
    /// Number of the service, plus one.
    pub service: u32,
    pub is_reverse: bool,
    pub is_answered: bool,
    pub client_has_ended: bool,
    pub server_has_ended: bool,
    pub is_reset: bool,
    pub is_published: bool,
    pub is_from_node: bool,
    /// Kept for good.
    pub is_settled: bool,
}

impl Flow {
    pub fn is_closing(&self) -> bool {
        self.client_has_ended || self.server_has_ended || self.is_reset
    }
}

/// A flow that is to be begun, but for the source port towards the instance.
pub struct Opening {
    pub forward: Flow,
    pub reverse: Flow,
    /// Key of the answers, with the client's own port.
    pub answers: Key,
}

/// Other source ports that are tried.
const CANDIDATES: u32 = 8;

impl Node {
    /// The instance of a flow, while it is the one that was meant.
    pub(super) fn current(&self, flow: &Flow) -> Option<Instance> {
        self.instance(flow.instance)
            .filter(|instance| instance.incarnation == flow.incarnation)
    }

    /// The flow that a packet answers, and who answers.
    pub(super) fn answered(
        &mut self,
        received: &Key,
        transport: &Transport,
    ) -> Result<Option<(Flow, Instance)>, Name> {
        let Some(flow) = self.flows.get(received).copied() else {
            return Ok(None);
        };
        match self.current(&flow) {
            Some(instance) => Ok(Some((flow, instance))),
            None if transport.begins => {
                self.flows.remove(&forward_key(received, &flow));
                self.flows.remove(received);
                Ok(None)
            }
            None => Err("INSTANCE_GONE"),
        }
    }

    /// Notes what the client's packet says.
    pub(super) fn note_sent(&mut self, forward: &Key, transport: &Transport, flow: &Flow) {
        self.note_end(forward, transport.flags, false);
        let completes = transport.flags & (SYN | RST) == 0;
        if forward.protocol == TCP
            && completes
            && flow.is_answered
            && let Some(instance) = self.instance(flow.instance)
        {
            self.settle(forward, &answers(forward, flow, &instance));
        }
    }

    /// Notes what an answer says.
    pub(super) fn note_received(&mut self, reverse: &Key, transport: &Transport, flow: &Flow) {
        let forward = forward_key(reverse, flow);
        self.note_end(&forward, transport.flags, true);
        let settles = match reverse.protocol {
            TCP => transport.flags & (SYN | RST) == 0,
            ICMP => false,
            _ => true,
        };
        if settles {
            self.settle(&forward, reverse);
        } else if !flow.is_settled && !flow.is_answered && transport.flags & RST == 0 {
            for key in [&forward, reverse] {
                if let Some(flow) = self.flows.get_mut(key) {
                    flow.is_answered = true;
                }
            }
        }
    }

    fn note_end(&mut self, forward: &Key, flags: u8, by_server: bool) {
        let Some(flow) = self.flows.get_mut(forward) else {
            return;
        };
        if flags & RST != 0 {
            flow.is_reset = true;
        } else if flags & FIN != 0 {
            if by_server {
                flow.server_has_ended = true;
            } else {
                flow.client_has_ended = true;
            }
        }
    }

    /// Keeps both directions for good, where both are there and neither is kept so yet.
    fn settle(&mut self, forward: &Key, reverse: &Key) {
        let is_open = |key: &Key| self.flows.get(key).is_some_and(|flow| !flow.is_settled);
        if !is_open(forward) || !is_open(reverse) {
            return;
        }
        for key in [forward, reverse] {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.is_settled = true;
                flow.is_answered = true;
            }
        }
    }

    /// Begins a flow, under a port that no other flow of the client towards the instance has.
    pub(super) fn begin(
        &mut self,
        forward: &Key,
        opening: &Opening,
        may_change_port: bool,
    ) -> Result<Flow, Name> {
        let mut port = forward.source_port;
        let mut attempt = 0;
        let reverse = loop {
            let reverse = Key {
                destination_port: port,
                ..opening.answers
            };
            let Some(found) = self.flows.get(&reverse).copied() else {
                self.flows.insert(reverse, opening.reverse);
                break reverse;
            };
            let wanted = &opening.reverse;
            let is_own = (
                found.shown,
                found.port,
                found.incarnation,
                found.address,
                found.other_port,
            ) == (
                wanted.shown,
                wanted.port,
                wanted.incarnation,
                wanted.address,
                wanted.other_port,
            );
            if is_own {
                break reverse;
            }
            if attempt >= CANDIDATES {
                return Err("PORT_COLLISION");
            }
            if self.current(&found).is_none() {
                self.flows.remove(&reverse);
            } else if may_change_port {
                port = candidate(forward, attempt);
            } else {
                return Err("PORT_COLLISION");
            }
            attempt += 1;
        };
        let flow = Flow {
            port,
            ..opening.forward
        };
        match self.flows.get(forward).copied() {
            None => {
                self.flows.insert(*forward, flow);
                Ok(flow)
            }
            Some(winner) => {
                if winner.instance != flow.instance || winner.port != port {
                    self.flows.remove(&reverse);
                }
                Ok(winner)
            }
        }
    }
}

/// Key of the answers to a flow.
pub fn answers(forward: &Key, flow: &Flow, instance: &Instance) -> Key {
    let (source, destination, source_port) = if flow.is_published {
        (instance.namespace_address, flow.address, flow.other_port)
    } else {
        (instance.address, forward.source, forward.destination_port)
    };
    Key {
        source,
        destination,
        source_port,
        destination_port: flow.port,
        protocol: forward.protocol,
    }
}

/// Key of the client's packets, from that of the answers.
fn forward_key(reverse: &Key, flow: &Flow) -> Key {
    let (source, destination_port) = if flow.is_published {
        (flow.address, flow.other_port)
    } else {
        (reverse.destination, reverse.source_port)
    };
    Key {
        source,
        destination: flow.shown,
        source_port: flow.port,
        destination_port,
        protocol: reverse.protocol,
    }
}

/// The n-th other source port: from 32768 to 49151, by a multiplicative hash of the flow and n.
fn candidate(forward: &Key, attempt: u32) -> u16 {
    let little = |address: Address| u32::from_le_bytes(address);
    let mixed = little(forward.source)
        ^ little(forward.destination).rotate_left(7)
        ^ u32::from(forward.source_port.swap_bytes()) << 16
        ^ u32::from(forward.destination_port.swap_bytes())
        ^ attempt.wrapping_mul(0x85eb_ca6b);
    let hash = mixed.wrapping_mul(0x9e37_79b1) >> 16;
    0x8000 | (hash as u16 & 0x3fff)
}
