//! What an endpoint or the node itself sends.

use super::flows::{Flow, Opening, answers};
use super::packet::{self, ETHERNET, Header, TCP, Transport, UDP};
use super::{
    Arrival, Delivery, Endpoint, Exit, Hook, Instance, Key, Name, Node, Sent, Walked, in_overlay,
    is_service_or_instance, passed,
};

/// The gateway that endpoints ask for by ARP, and the address it says it has.
const GATEWAY: [u8; 4] = [169, 254, 1, 1];
const GATEWAY_MAC: [u8; 6] = [0x02, 0x6f, 0x61, 0x6b, 0x00, 0x01];

/// Where a packet to a service or instance goes.
enum Destination {
    Instance(Flow, Instance),
    Unknown,
    Refused,
}

impl Node {
    pub(super) fn outbound(&mut self, arrival: &Arrival<'_>) -> Walked {
        let Arrival { hook, frame, .. } = *arrival;
        if !packet::carries_ipv4(frame) {
            return Ok(match arp_answer(frame) {
                Some(answer) if hook == Hook::Endpoint => Sent {
                    name: "ANSWER_GATEWAY",
                    exit: Exit::Out(arrival.interface),
                    node: 0,
                    frame: answer,
                },
                _ => passed(arrival),
            });
        }
        let datagram = &frame[ETHERNET..];
        let header = packet::header(datagram).map_err(|error| error.name("SHORT", "MALFORMED"))?;
        if hook == Hook::Oak0
            && !in_overlay(header.destination)
            && let Some(walked) = self.written_back(arrival, &header)
        {
            return walked;
        }
        let Some(endpoint) = self.sender(arrival, &header)? else {
            // Nobody speaks to a tunnel through `oak0`; what others have handed up passes.
            return if arrival.ingress == 0 {
                self.world(arrival, &header)
            } else {
                Ok(passed(arrival))
            };
        };
        if !is_service_or_instance(header.destination) {
            return self.elsewhere(arrival, &header, &endpoint);
        }
        let transport = self
            .transport(datagram, &header)
            .map_err(|error| error.name("SHORT", "MALFORMED"))?;
        let Some(transport) = transport else {
            return self.wait_for_first(arrival, &header);
        };
        if self.first_came(hook, &header, &transport) {
            return Ok(self.handed_up(arrival));
        }
        let key = packet::key(&header, &transport);
        let destination = match self.destination(&key, &transport) {
            Err("NO_BACKEND") => return unreachable(arrival, &header, &endpoint, 0, "NO_BACKEND"),
            destination => destination?,
        };
        match destination {
            Destination::Instance(flow, instance) => {
                self.forward(arrival, &header, &transport, &key, &endpoint, &flow, &instance)
            }
            Destination::Unknown => match hook {
                Hook::Oak0 => unreachable(arrival, &header, &endpoint, 0, "UNRESOLVED"),
                Hook::Host | Hook::Endpoint | Hook::Uplink | Hook::Loopback => Ok(self.handed_up(arrival)),
            },
            Destination::Refused if header.protocol == TCP && header.offset == 0 => {
                reset(arrival, &header, &endpoint)
            }
            Destination::Refused => Err("NO_FLOW"),
        }
    }

    /// Who sends; nobody, where the packet only passes through.
    fn sender(&self, arrival: &Arrival<'_>, header: &Header) -> Result<Option<Endpoint>, Name> {
        let found = self.endpoints.get(&header.source).copied();
        let is_from = |endpoint: &Endpoint, interface: u32| endpoint.interface == interface;
        match (arrival.hook, found) {
            (Hook::Endpoint, Some(endpoint)) if is_from(&endpoint, arrival.interface) => Ok(Some(endpoint)),
            (Hook::Endpoint, _) => Err("SPOOFED"),
            (Hook::Host, Some(endpoint)) if endpoint.delivery == Delivery::Host && arrival.ingress == 0 => {
                Ok(Some(endpoint))
            }
            (Hook::Host, Some(endpoint)) if is_from(&endpoint, arrival.ingress) => Ok(None),
            (Hook::Host, _) if in_overlay(header.destination) => Err("SPOOFED"),
            (Hook::Host, _) => Ok(None),
            (_, None) if is_service_or_instance(header.destination) => Err("SPOOFED"),
            (_, found) => Ok(Some(found.unwrap_or(Endpoint {
                interface: 0,
                instance: 0,
                instance_address: [0; 4],
                mac: [0; 6],
                delivery: Delivery::Peer,
                publishes: false,
            }))),
        }
    }

    /// Not to a service or an instance: to the world, to a published port, or where nobody may send.
    fn elsewhere(&mut self, arrival: &Arrival<'_>, header: &Header, endpoint: &Endpoint) -> Walked {
        let is_from_endpoint = arrival.hook == Hook::Endpoint;
        if is_from_endpoint
            && endpoint.publishes
            && let Some(sent) = self.publisher_answers(arrival, header)?
        {
            return Ok(sent);
        }
        if in_overlay(header.destination) {
            // To the node from whoever it is, to others in the name of what they have chosen.
            let may_receive = |endpoint: &&Endpoint| {
                endpoint.delivery == Delivery::Host || is_service_or_instance(header.source)
            };
            let receiver = self.endpoints.get(&header.destination).filter(may_receive);
            return match receiver {
                Some(receiver) if arrival.hook == Hook::Oak0 => {
                    self.deliver("DELIVER", arrival.hook, receiver, arrival.frame.to_vec())
                }
                _ => Err("NOT_A_SERVICE"),
            };
        }
        if is_from_endpoint && let Some(sent) = self.ask_publisher(arrival, header)? {
            return Ok(sent);
        }
        self.world(arrival, header)
    }

    /// To the world, unless that would be a tunnel.
    fn world(&self, arrival: &Arrival<'_>, header: &Header) -> Walked {
        let port = packet::word(arrival.frame, ETHERNET + header.length + 2);
        let port = port.filter(|_| header.protocol == UDP && header.offset == 0);
        if port.is_some_and(|port| self.is_any_tunnel(header.destination, port)) {
            return Err("TUNNEL_FROM_ENDPOINT");
        }
        Ok(passed(arrival))
    }

    fn destination(&mut self, key: &Key, transport: &Transport) -> Result<Destination, Name> {
        let mut has_ended = false;
        if let Some(flow) = self.flows.get(key).copied() {
            let restarts = transport.begins && key.protocol == TCP && flow.is_closing();
            match self.current(&flow) {
                Some(instance) if !restarts => {
                    self.note_sent(key, transport, &flow);
                    return Ok(Destination::Instance(flow, instance));
                }
                _ => {
                    // By whatever is in the slot of the instance by now.
                    let address = self.instance(flow.instance).map_or([0; 4], |found| found.address);
                    self.flows.remove(key);
                    self.flows.remove(&Key {
                        source: address,
                        destination: key.source,
                        source_port: key.destination_port,
                        destination_port: flow.port,
                        protocol: key.protocol,
                    });
                    has_ended = true;
                }
            }
        }
        if has_ended && !transport.begins {
            return Ok(Destination::Refused);
        }
        let (index, service) = match self.services.get_mut(&key.destination) {
            Some(_) if !transport.begins => return Ok(Destination::Refused),
            Some(service) if service.backends.is_empty() => return Err("NO_BACKEND"),
            Some(service) => {
                let number = service.backends.len() as u64;
                let index = service.backends[(service.turn % number) as usize];
                service.turn += 1;
                (index, Some(service.id))
            }
            None => match self.instance_index.get(&key.destination) {
                Some(index) => (*index, None),
                None => return Ok(Destination::Unknown),
            },
        };
        let instance = self.instance(index).ok_or("NO_BACKEND")?;
        let flow = Flow {
            instance: index,
            incarnation: instance.incarnation,
            shown: key.destination,
            address: [0; 4],
            port: key.source_port,
            other_port: 0,
            interface: 0,
            service: service.map_or(0, |service| service + 1),
            is_reverse: false,
            is_answered: false,
            client_has_ended: false,
            server_has_ended: false,
            is_reset: false,
            is_published: false,
            is_from_node: false,
            is_settled: false,
        };
        let opening = Opening {
            forward: flow,
            reverse: Flow {
                is_reverse: true,
                ..flow
            },
            answers: answers(key, &flow, &instance),
        };
        let flow = self.begin(key, &opening, service.is_some() || transport.begins)?;
        let instance = self.instance(flow.instance).ok_or("INSTANCE_GONE")?;
        Ok(Destination::Instance(flow, instance))
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of the packet by now")]
    fn forward(
        &mut self,
        arrival: &Arrival<'_>,
        header: &Header,
        transport: &Transport,
        key: &Key,
        endpoint: &Endpoint,
        flow: &Flow,
        instance: &Instance,
    ) -> Walked {
        let mut sent = Key {
            source: endpoint.instance_address,
            destination: instance.namespace_address,
            source_port: flow.port,
            ..*key
        };
        let (ethernet, datagram) = arrival.frame.split_at(ETHERNET);
        if instance.node == 0 {
            let receiver = *self.endpoints.get(&sent.destination).ok_or("ENDPOINT_GONE")?;
            self.guard_tunnel(&receiver, &sent)?;
            if let Some((flow, _)) = self.answered(&sent, transport)? {
                self.note_received(&sent, transport, &flow);
                sent.source = flow.shown;
                sent.destination_port = flow.port;
            }
            let frame = [ethernet, &packet::rewritten(datagram, key, &sent)].concat();
            return self.deliver("DELIVER", arrival.hook, &receiver, frame);
        }
        let way = self.ways.get(&instance.node).filter(|way| !way.is_unreachable);
        let Some(way) = way else {
            return unreachable(arrival, header, endpoint, 0, "NODE_UNKNOWN");
        };
        if header.total + 28 > way.mtu as usize {
            let must_not_be_fragmented = datagram[6] & 0x40 != 0;
            return if must_not_be_fragmented {
                unreachable(arrival, header, endpoint, way.mtu as u16 - 28, "TOO_BIG")
            } else {
                Err("TOO_BIG")
            };
        }
        let inner = packet::rewritten(datagram, key, &sent);
        let source_port = if way.has_fixed_port {
            self.tunnel_port
        } else {
            entropy(&sent)
        };
        let outer = outer(way, source_port, header);
        let ethernet = way.ethernet.as_ref().map_or(ethernet, |ethernet| &ethernet[..]);
        Ok(Sent {
            name: "TUNNEL",
            exit: match way.ethernet {
                Some(_) => Exit::Out(way.interface),
                None => Exit::Neighbour(way.interface),
            },
            node: instance.node,
            frame: [ethernet, &outer, &inner].concat(),
        })
    }
}

/// Outer IPv4 and UDP header around a packet.
fn outer(way: &super::Way, source_port: u16, inner: &Header) -> Vec<u8> {
    let length = |extra: usize| ((inner.total + extra) as u16).to_be_bytes();
    let mut ip = vec![0x45, inner.type_of_service & 0xfc];
    ip.extend(length(28));
    // No identification, "don't fragment", 64 hops, UDP, the checksum below.
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(way.local);
    ip.extend(way.remote);
    let checksum = packet::checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip.extend(source_port.to_be_bytes());
    ip.extend(way.port.to_be_bytes());
    ip.extend(length(8));
    ip.extend([0, 0]);
    ip
}

/// The outer source port of a flow: from 49152 on, by a multiplicative hash.
fn entropy(flow: &Key) -> u16 {
    let ports =
        u32::from(flow.source_port.swap_bytes()) << 16 | u32::from(flow.destination_port.swap_bytes());
    let mixed =
        u32::from_le_bytes(flow.source) ^ u32::from_le_bytes(flow.destination).rotate_left(13) ^ ports;
    0xc000 | (mixed.wrapping_mul(0x9e37_79b1) >> 18) as u16
}

/// The reset that answers a segment of no flow (RFC 9293, 3.10.7.1).
fn reset(arrival: &Arrival<'_>, header: &Header, endpoint: &Endpoint) -> Walked {
    let frame = arrival.frame;
    let segment = &frame[ETHERNET + header.length..ETHERNET + header.total];
    let flags = segment[13];
    if flags & packet::RST != 0 {
        return Err("NO_FLOW");
    }
    let number =
        |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let data = segment.len() - usize::from(segment[12] >> 4) * 4;
    let has = |flag: u8| u32::from(flags & flag != 0);
    let consumed = data as u32 + has(packet::SYN) + has(packet::FIN);
    let (sequence, acknowledgement, answer) = if flags & packet::ACK != 0 {
        (number(8), 0, packet::RST)
    } else {
        (0, number(4).wrapping_add(consumed), packet::RST | packet::ACK)
    };

    let mut tcp = Vec::new();
    tcp.extend([segment[2], segment[3], segment[0], segment[1]]);
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgement.to_be_bytes());
    tcp.extend([0x50, answer, 0, 0, 0, 0, 0, 0]);
    let pseudo = [
        &header.destination[..],
        &header.source[..],
        &[0, TCP],
        &20u16.to_be_bytes(),
    ]
    .concat();
    let checksum = packet::checksum(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());

    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    ip.extend(header.destination);
    ip.extend(header.source);
    let checksum = packet::checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(Sent {
        name: "RESET",
        exit: match endpoint.delivery {
            Delivery::Host => Exit::Ingress(endpoint.interface),
            Delivery::Peer | Delivery::Redirect => Exit::Out(endpoint.interface),
        },
        node: 0,
        frame: [&frame[6..12], &frame[..6], &frame[12..14], &ip, &tcp].concat(),
    })
}

/// What tells the sender that nobody is there, or, with a size, what fits (RFC 792, RFC 1191). Of a datagram in fragments
/// only the first is answered; others are dropped for `reason`.
fn unreachable(
    arrival: &Arrival<'_>,
    header: &Header,
    endpoint: &Endpoint,
    size: u16,
    reason: Name,
) -> Walked {
    if header.offset != 0 {
        return Err(reason);
    }
    let frame = arrival.frame;
    let (name, code) = if size == 0 {
        ("ICMP_UNREACHABLE", 1)
    } else {
        ("ICMP_TOO_BIG", 4)
    };
    let quoted = &frame[ETHERNET..ETHERNET + header.length + 8];
    let [high, low] = size.to_be_bytes();
    let mut icmp = vec![3, code, 0, 0, 0, 0, high, low];
    icmp.extend(quoted);
    let checksum = packet::checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut ip = vec![0x45, 0xc0];
    ip.extend((20 + icmp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, packet::ICMP, 0, 0]);
    ip.extend(header.destination);
    ip.extend(header.source);
    let checksum = packet::checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(Sent {
        name,
        exit: match endpoint.delivery {
            Delivery::Host => Exit::Ingress(endpoint.interface),
            Delivery::Peer | Delivery::Redirect => Exit::Out(endpoint.interface),
        },
        node: 0,
        frame: [&frame[6..12], &frame[..6], &frame[12..14], &ip, &icmp].concat(),
    })
}

/// The answer to an ARP request for the gateway.
fn arp_answer(frame: &[u8]) -> Option<Vec<u8>> {
    let arp = frame.get(ETHERNET..ETHERNET + 28)?;
    let is_request =
        frame[12..14] == [8, 6] && arp[..8] == [0, 1, 8, 0, 6, 4, 0, 1] && arp[24..28] == GATEWAY;
    is_request.then(|| {
        let asker = &arp[8..14];
        [
            asker,
            &GATEWAY_MAC,
            &[8, 6],
            &arp[..6],
            &[0, 2],
            &GATEWAY_MAC,
            &GATEWAY,
            asker,
            &arp[14..18],
            &frame[ETHERNET + 28..],
        ]
        .concat()
    })
}
