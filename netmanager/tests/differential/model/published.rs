//! Ports that endpoints have published at the node's own addresses.

use super::flows::{Flow, Opening, answers};
use super::packet::{self, ETHERNET, Header, TCP, Transport, UDP};
use super::{
    Address, Arrival, Exit, Hook, Instance, Key, Name, Node, Published, Sent, Walked, in_overlay, passed,
};

const LOCALHOST: Address = [127, 0, 0, 1];
/// Index of `lo`.
const LOOPBACK: u32 = 1;

impl Node {
    pub(super) fn loopback(&mut self, arrival: &Arrival<'_>) -> Walked {
        if !packet::carries_ipv4(arrival.frame) {
            return Ok(passed(arrival));
        }
        let Ok(header) = packet::header(&arrival.frame[ETHERNET..]) else {
            return Ok(passed(arrival));
        };
        let sent = self.ask_publisher(arrival, &header)?;
        Ok(sent.unwrap_or_else(|| passed(arrival)))
    }

    /// What goes to a published port; nothing, where the packet is none of its business.
    pub(super) fn ask_publisher(
        &mut self,
        arrival: &Arrival<'_>,
        header: &Header,
    ) -> Result<Option<Sent>, Name> {
        let (ethernet, datagram) = arrival.frame.split_at(ETHERNET);
        if ![TCP, UDP].contains(&header.protocol) {
            return Ok(None);
        }
        let port = match header.offset {
            0 => packet::word(datagram, header.length + 2),
            _ => self.ports_of_first(header).map(|(_, port)| port),
        };
        let Some(port) = port else {
            return Ok(None);
        };
        let Some(published) = self.published.get(&(header.protocol, port)).copied() else {
            return Ok(None);
        };
        let is_from_node = arrival.hook == Hook::Loopback;
        let is_own = self.local_addresses.contains(&header.destination)
            || is_from_node && header.destination == LOCALHOST;
        let first = header.source[0];
        let may_ask = arrival.hook != Hook::Uplink
            || !in_overlay(header.source) && first != 0 && first != 127 && first < 224;
        if !is_own || !may_ask {
            return Ok(None);
        }
        let Some(transport) = self.readable(datagram, header) else {
            return Ok(None);
        };
        let key = packet::key(header, &transport);
        let (flow, instance) = match self.published_flow(is_from_node, &key, &transport) {
            Some(known) => known,
            None if transport.begins => match self.publish(arrival, &key, &published)? {
                Some(begun) => begun,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let sent = Key {
            source: flow.address,
            destination: instance.namespace_address,
            source_port: flow.port,
            destination_port: flow.other_port,
            protocol: key.protocol,
        };
        let receiver = *self.endpoints.get(&sent.destination).ok_or("ENDPOINT_GONE")?;
        self.first_came(arrival.hook, header, &transport);
        let frame = [ethernet, &packet::rewritten(datagram, &key, &sent)].concat();
        Ok(Some(self.deliver("PUBLISH", arrival.hook, &receiver, frame)?))
    }

    /// The flow of a client's packet, where there is one that goes on.
    fn published_flow(
        &mut self,
        is_from_node: bool,
        key: &Key,
        transport: &Transport,
    ) -> Option<(Flow, Instance)> {
        let flow = *self.flows.get(key)?;
        if !flow.is_published || flow.is_from_node != is_from_node {
            return None;
        }
        let Some(instance) = self.current(&flow) else {
            self.flows.remove(key);
            return None;
        };
        if key.protocol == TCP && transport.begins && flow.is_closing() {
            self.flows.remove(key);
            self.flows.remove(&answers(key, &flow, &instance));
            return None;
        }
        self.note_sent(key, transport, &flow);
        Some((flow, instance))
    }

    fn publish(
        &mut self,
        arrival: &Arrival<'_>,
        key: &Key,
        published: &Published,
    ) -> Result<Option<(Flow, Instance)>, Name> {
        let Some(instance) = self.instance(published.instance) else {
            return Ok(None);
        };
        if instance.incarnation != published.incarnation || instance.node != 0 {
            return Ok(None);
        }
        if arrival.hook == Hook::Uplink && self.local_addresses.contains(&key.source) {
            return Ok(None);
        }
        let server = instance.namespace_address;
        let is_from_node = arrival.hook == Hook::Loopback;
        // The node stands in for itself, and for who asks itself.
        let client = if is_from_node || server == key.source {
            self.host_address
        } else {
            key.source
        };
        let forward = Flow {
            instance: published.instance,
            incarnation: instance.incarnation,
            shown: key.destination,
            address: client,
            port: key.source_port,
            other_port: published.port,
            interface: arrival.interface,
            service: 0,
            is_reverse: false,
            is_answered: false,
            client_has_ended: false,
            server_has_ended: false,
            is_reset: false,
            is_published: true,
            is_from_node,
            is_settled: false,
        };
        let opening = Opening {
            forward,
            reverse: Flow {
                address: key.source,
                other_port: key.destination_port,
                is_reverse: true,
                ..forward
            },
            answers: answers(key, &forward, &instance),
        };
        let flow = self.begin(key, &opening, true)?;
        if flow.is_published && flow.instance == published.instance {
            return Ok(Some((flow, instance)));
        }
        Err("INSTANCE_GONE")
    }

    /// What a publisher sends to a client of its ports; nothing, where it is something else.
    pub(super) fn publisher_answers(
        &mut self,
        arrival: &Arrival<'_>,
        header: &Header,
    ) -> Result<Option<Sent>, Name> {
        let (ethernet, datagram) = arrival.frame.split_at(ETHERNET);
        let Some(transport) = self.readable(datagram, header) else {
            return Ok(None);
        };
        let key = packet::key(header, &transport);
        let Some(flow) = self.flows.get(&key).copied() else {
            return Ok(None);
        };
        if !flow.is_published || !flow.is_reverse {
            return Ok(None);
        }
        if self.current(&flow).is_none() {
            self.flows.remove(&key);
            return Ok(None);
        }
        self.note_received(&key, &transport, &flow);
        let sent = Key {
            source: flow.shown,
            destination: flow.address,
            source_port: flow.other_port,
            destination_port: flow.port,
            protocol: key.protocol,
        };
        if key.protocol == UDP && self.is_any_tunnel(sent.destination, sent.destination_port) {
            return Err("TUNNEL_FROM_ENDPOINT");
        }
        self.first_came(arrival.hook, header, &transport);
        let mut frame = [ethernet, &packet::rewritten(datagram, &key, &sent)].concat();
        if flow.is_from_node {
            frame[..12].fill(0);
        } else if in_overlay(sent.destination) {
            let client = *self.endpoints.get(&sent.destination).ok_or("ENDPOINT_GONE")?;
            return Ok(Some(self.deliver(
                "PUBLISH_ANSWER",
                arrival.hook,
                &client,
                frame,
            )?));
        }
        let exit = if flow.is_from_node {
            Exit::Ingress(LOOPBACK)
        } else {
            Exit::Neighbour(flow.interface)
        };
        Ok(Some(Sent {
            name: "PUBLISH_ANSWER",
            exit,
            node: 0,
            frame,
        }))
    }

    /// The transport header of what can be translated: TCP or UDP, and of a later fragment that of the first.
    fn readable(&self, datagram: &[u8], header: &Header) -> Option<Transport> {
        if ![TCP, UDP].contains(&header.protocol) {
            return None;
        }
        self.transport(datagram, header).ok().flatten()
    }
}
