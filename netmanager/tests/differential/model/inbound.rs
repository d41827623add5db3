//! What comes from a wire.

use super::packet::{self, ETHERNET, Header, UDP};
use super::probe;
use super::{
    Address, Arrival, Key, Name, Node, Walked, in_overlay, is_service_or_instance, passed, unchanged,
};

/// Outer IPv4 and UDP.
const OVERHEAD: usize = 28;

impl Node {
    pub(super) fn inbound(&mut self, arrival: &Arrival<'_>) -> Walked {
        if !packet::carries_ipv4(arrival.frame) {
            return Ok(passed(arrival));
        }
        let Ok(outer) = packet::header(&arrival.frame[ETHERNET..]) else {
            return Ok(passed(arrival));
        };
        if in_overlay(outer.destination) {
            return Err("UNENCAPSULATED");
        }
        if outer.is_fragment() && outer.protocol == UDP {
            self.outer_fragment(arrival, &outer)?;
        } else if self.is_tunnel_datagram(arrival, &outer) {
            return self.datagram(arrival, &outer);
        }
        let sent = self.ask_publisher(arrival, &outer)?;
        Ok(sent.unwrap_or_else(|| passed(arrival)))
    }

    /// The kernel puts fragments of peers together, of nobody else, and from nowhere else.
    fn outer_fragment(&self, arrival: &Arrival<'_>, outer: &Header) -> Result<(), Name> {
        let may_be_tunnel = if outer.offset == 0 {
            self.is_tunnel_datagram(arrival, outer)
        } else {
            self.local_addresses.contains(&outer.destination)
        };
        match self.peers.get(&outer.source) {
            _ if !may_be_tunnel => Ok(()),
            Some((_, interface)) if *interface != arrival.interface => Err("WRONG_INTERFACE"),
            None if outer.offset == 0 => Err("OUTER_FRAGMENT"),
            _ => Ok(()),
        }
    }

    /// A tunnel datagram that NetManager writes; nothing, where it is something else.
    pub(super) fn written_back(&mut self, arrival: &Arrival<'_>, outer: &Header) -> Option<Walked> {
        let (group, _) = *self.peers.get(&outer.source)?;
        self.is_tunnel_datagram(arrival, outer).then(|| {
            check_outer(arrival, outer)?;
            self.carried(arrival, outer, group)
        })
    }

    fn is_tunnel_datagram(&self, arrival: &Arrival<'_>, outer: &Header) -> bool {
        let port = packet::word(arrival.frame, ETHERNET + outer.length + 2);
        outer.protocol == UDP
            && outer.offset == 0
            && port == Some(self.tunnel_port)
            && self.local_addresses.contains(&outer.destination)
    }

    fn datagram(&mut self, arrival: &Arrival<'_>, outer: &Header) -> Walked {
        check_outer(arrival, outer)?;
        let payload = &arrival.frame[ETHERNET + OVERHEAD..ETHERNET + outer.total];
        let is_probe = payload.first() == Some(&probe::MARK);
        if is_probe && !self.peers.contains_key(&outer.source) {
            return Err("UNKNOWN_PEER");
        }
        let Some((group, interface)) = self.peers.get(&outer.source).copied() else {
            // Or not, where there were many: see `is_stranger`.
            return Ok(unchanged("STRANGER", arrival));
        };
        if interface != arrival.interface {
            return Err("WRONG_INTERFACE");
        }
        if is_probe {
            return probe::walk(arrival, payload);
        }
        self.carried(arrival, outer, group)
    }

    /// What a peer's datagram carries.
    fn carried(&mut self, arrival: &Arrival<'_>, outer: &Header, group: u32) -> Walked {
        let (ethernet, rest) = arrival.frame.split_at(ETHERNET);
        let inner = &rest[OVERHEAD..outer.total];
        let header = inner_header(inner)?;
        let transport = self
            .transport(inner, &header)
            .map_err(|error| error.name("INNER_SHORT", "INNER_MALFORMED"))?;
        let receiver = *self
            .endpoints
            .get(&header.destination)
            .ok_or("DESTINATION_NOT_LOCAL")?;
        if !is_service_or_instance(header.source) {
            return Err("SOURCE_NOT_OVERLAY");
        }
        let Some(transport) = transport else {
            self.comes_from(header.source, group)?;
            return self.wait_for_first(arrival, &header);
        };
        let key = packet::key(&header, &transport);
        self.guard_tunnel(&receiver, &key)?;
        let mut shown = key;
        if let Some((flow, instance)) = self.answered(&key, &transport)? {
            self.lives_with(instance.node, group)?;
            self.note_received(&key, &transport, &flow);
            shown = Key {
                source: flow.shown,
                destination_port: flow.port,
                ..key
            };
        } else {
            self.comes_from(key.source, group)?;
        }
        if self.first_came(arrival.hook, &header, &transport) {
            return Ok(self.handed_up(arrival));
        }
        // With what the link has appended.
        let frame = [ethernet, &packet::rewritten(&rest[OVERHEAD..], &key, &shown)].concat();
        self.deliver("DELIVER", arrival.hook, &receiver, frame)
    }

    fn comes_from(&self, source: Address, group: u32) -> Result<(), Name> {
        let index = self.instance_index.get(&source);
        match index.and_then(|index| self.instance(*index)) {
            Some(instance) => self.lives_with(instance.node, group),
            None if self.services.contains_key(&source) => Err("SOURCE_NOT_ON_NODE"),
            None => Ok(()),
        }
    }

    fn lives_with(&self, node: u32, group: u32) -> Result<(), Name> {
        // A vacant row of the table is in the group of this node, with which nobody on a wire lives.
        let lives = node != 0 && self.ways.get(&node).map_or(0, |way| way.group) == group;
        if lives { Ok(()) } else { Err("SOURCE_NOT_ON_NODE") }
    }
}

/// The outer headers of a datagram that is to be unwrapped.
fn check_outer(arrival: &Arrival<'_>, outer: &Header) -> Result<(), Name> {
    if outer.is_fragment() {
        return Err("OUTER_FRAGMENT");
    }
    if outer.length != 20 || outer.total < OVERHEAD {
        return Err("OUTER_MALFORMED");
    }
    let udp_length = packet::word(arrival.frame, ETHERNET + 24).map(usize::from);
    if udp_length != Some(outer.total - 20) {
        return Err("OUTER_MALFORMED");
    }
    Ok(())
}

fn inner_header(inner: &[u8]) -> Result<Header, Name> {
    let first = inner.first().ok_or("INNER_SHORT")?;
    if first >> 4 != 4 {
        return Err("INNER_VERSION");
    }
    if inner.len() < 20 {
        return Err("INNER_SHORT");
    }
    let header = packet::fields(inner);
    if header.length < 20 || header.total != inner.len() {
        return Err("INNER_MALFORMED");
    }
    Ok(header)
}
