//! Nodes that know all kinds of things, and frames that have to do with what they know.

use rand::prelude::*;

use crate::kernel::{HOST_ADDRESS, TUNNEL_PORT};
use crate::model::{Address, Arrival, Delivery, Endpoint, Hook, Instance, Node, Published, Service, Way};

/// The only interface that every network namespace has: where frames are seen.
pub const HERE: u32 = 1;

const OUTERS: [Address; 5] = [
    [192, 0, 2, 1],
    [192, 0, 2, 11],
    [192, 0, 2, 12],
    [192, 0, 2, 13],
    [203, 0, 113, 9],
];
const LOCAL_ENDPOINTS: [Address; 4] = [HOST_ADDRESS, [10, 18, 0, 2], [10, 18, 0, 3], [10, 18, 0, 4]];
const REMOTE_ENDPOINTS: [Address; 3] = [[10, 18, 0, 66], [10, 18, 0, 67], [10, 18, 0, 130]];
const SERVICES: [Address; 4] = [
    [10, 30, 55, 55],
    [10, 30, 55, 56],
    [10, 30, 55, 57],
    [10, 30, 55, 58],
];
const ELSEWHERE: [Address; 6] = [
    [10, 30, 77, 77],
    [10, 20, 1, 1],
    [8, 8, 8, 8],
    [127, 0, 0, 1],
    [255, 255, 255, 255],
    [10, 32, 0, 1],
];
const PORTS: [u16; 6] = [80, 8080, 5000, 5001, TUNNEL_PORT, 33_333];

fn shown(address: Address) -> Address {
    [10, 30, 1, address[3]]
}

fn mac(last: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, last]
}

/// A node that knows some of the world, not all of it right.
pub fn node(random: &mut StdRng) -> Node {
    let mut node = Node {
        oak0: 77,
        tunnel_port: TUNNEL_PORT,
        host_address: HOST_ADDRESS,
        ..Node::default()
    };
    node.local_addresses.insert(OUTERS[0]);
    let mut index = 1;
    for address in LOCAL_ENDPOINTS {
        if !random.random_bool(0.9) {
            continue;
        }
        let delivery = if address == HOST_ADDRESS {
            Delivery::Host
        } else if random.random_bool(0.8) {
            Delivery::Peer
        } else {
            Delivery::Redirect
        };
        let endpoint = Endpoint {
            interface: if random.random_bool(0.9) { HERE } else { 5 },
            instance: index,
            instance_address: shown(address),
            mac: mac(address[3]),
            delivery,
            publishes: false,
        };
        node.endpoints.insert(address, endpoint);
        place(&mut node, random, index, address, 0);
        index += 1;
    }
    for way in 1..4 {
        if random.random_bool(0.9) {
            let remote = OUTERS[way as usize];
            node.ways.insert(way, self::way(random, way, remote));
            if random.random_bool(0.95) {
                let interface = if random.random_bool(0.95) { HERE } else { 5 };
                node.peers.insert(remote, (way, interface));
            }
            if random.random_bool(0.3) {
                node.tunnels
                    .insert((remote, *PORTS.choose(random).expect("some")));
            }
        }
    }
    for address in REMOTE_ENDPOINTS {
        if random.random_bool(0.9) {
            let way = random.random_range(1..4);
            place(&mut node, random, index, address, way);
            index += 1;
        }
    }
    for (id, address) in (1..).zip(SERVICES) {
        if random.random_bool(0.9) {
            let number = *[0, 1, 1, 2, 3].choose(random).expect("some");
            let backends = (0..number).map(|_| random.random_range(1..9)).collect();
            let turn = random.random_range(0..100);
            node.services.insert(address, Service { id, backends, turn });
        }
    }
    for port in [80, 8080] {
        for protocol in [6, 17] {
            if random.random_bool(0.5) {
                publish(&mut node, random, protocol, port);
            }
        }
    }
    node
}

fn place(node: &mut Node, random: &mut StdRng, index: u32, address: Address, way: u32) {
    let instance = Instance {
        namespace_address: address,
        node: way,
        incarnation: random.random_range(1..4),
        address: shown(address),
    };
    if random.random_bool(0.95) {
        node.instances.insert(index, instance);
    }
    if random.random_bool(0.95) {
        node.instance_index.insert(shown(address), index);
    }
}

fn way(random: &mut StdRng, group: u32, remote: Address) -> Way {
    let mut ethernet = [0; 14];
    ethernet[..6].copy_from_slice(&mac(0xf0 + group as u8));
    ethernet[6..12].copy_from_slice(&mac(0xf0));
    ethernet[12..].copy_from_slice(&[8, 0]);
    Way {
        local: OUTERS[0],
        remote,
        port: TUNNEL_PORT + group as u16,
        interface: 10 + group,
        group: if random.random_bool(0.9) { group } else { 1 },
        mtu: *[1500, 1500, 1500, 90, 60].choose(random).expect("some"),
        has_fixed_port: random.random_bool(0.2),
        is_unreachable: random.random_bool(0.05),
        ethernet: random.random_bool(0.7).then_some(ethernet),
    }
}

fn publish(node: &mut Node, random: &mut StdRng, protocol: u8, port: u16) {
    let publishers: Vec<Address> = node.endpoints.keys().copied().collect();
    let Some(address) = publishers.choose(random) else {
        return;
    };
    let Some(endpoint) = node.endpoints.get_mut(address) else {
        return;
    };
    endpoint.publishes = random.random_bool(0.95);
    let instance = endpoint.instance;
    let incarnation = node.instances.get(&instance).map_or(9, |found| found.incarnation);
    let published = Published {
        incarnation: if random.random_bool(0.95) { incarnation } else { 9 },
        instance,
        port: *[80, 8080].choose(random).expect("some"),
    };
    node.published.insert((protocol, port), published);
}

/// Something that changes while flows run.
pub fn change(random: &mut StdRng, node: &mut Node) {
    let indexes: Vec<u32> = node.instances.keys().copied().collect();
    match random.random_range(0..4) {
        // Another instance takes the place of one.
        0 => {
            if let Some(instance) = indexes
                .choose(random)
                .and_then(|index| node.instances.get_mut(index))
            {
                instance.incarnation += 10;
            }
        }
        // One ends.
        1 => {
            if let Some(index) = indexes.choose(random) {
                node.instances.remove(index);
            }
        }
        // One moves.
        2 => {
            if let Some(instance) = indexes
                .choose(random)
                .and_then(|index| node.instances.get_mut(index))
            {
                instance.node = random.random_range(0..4);
            }
        }
        // The way to a node is another.
        _ => {
            let way = random.random_range(1..4);
            let remote = OUTERS[way as usize];
            node.ways.insert(way, self::way(random, way, remote));
        }
    }
}

/// Where a frame is seen, and how it got there.
#[derive(Clone, Debug)]
pub struct Case {
    pub hook: Hook,
    pub ingress: u32,
    pub frame: Vec<u8>,
}

impl Case {
    pub fn arrival(&self) -> Arrival<'_> {
        Arrival {
            hook: self.hook,
            interface: HERE,
            ingress: self.ingress,
            frame: &self.frame,
        }
    }
}

/// A frame that somebody might send, or almost.
pub fn case(random: &mut StdRng) -> Case {
    let hook = *[
        Hook::Endpoint,
        Hook::Endpoint,
        Hook::Endpoint,
        Hook::Uplink,
        Hook::Uplink,
        Hook::Uplink,
        Hook::Oak0,
        Hook::Host,
        Hook::Loopback,
    ]
    .choose(random)
    .expect("some");
    let mut frame = match hook {
        // What NetManager has put together, or has held.
        Hook::Oak0 if random.random_bool(0.3) => {
            let source = any_shown(random);
            let destination = *LOCAL_ENDPOINTS.choose(random).expect("some");
            let inner = packet(random, source, destination);
            datagram(random, &inner)
        }
        // NetManager's word to a client.
        Hook::Oak0 if random.random_bool(0.3) => {
            let source = any_shown(random);
            let destination = *LOCAL_ENDPOINTS.choose(random).expect("some");
            ethernet(&packet(random, source, destination))
        }
        Hook::Endpoint | Hook::Oak0 | Hook::Host => {
            let source = *LOCAL_ENDPOINTS.choose(random).expect("some");
            let destination = destination(random);
            ethernet(&packet(random, source, destination))
        }
        Hook::Uplink if random.random_bool(0.05) => {
            let inner = probe(random);
            datagram(random, &inner)
        }
        Hook::Uplink if random.random_bool(0.8) => {
            let source = any_shown(random);
            let destination = *LOCAL_ENDPOINTS.choose(random).expect("some");
            let inner = packet(random, source, destination);
            datagram(random, &inner)
        }
        Hook::Uplink => {
            let source = *OUTERS.choose(random).expect("some");
            let destination = if random.random_bool(0.8) {
                OUTERS[0]
            } else {
                destination(random)
            };
            ethernet(&packet(random, source, destination))
        }
        Hook::Loopback => {
            let own = [[127, 0, 0, 1], OUTERS[0]];
            let (source, destination) = (
                own.choose(random).expect("some"),
                own.choose(random).expect("some"),
            );
            ethernet(&packet(random, *source, *destination))
        }
    };
    spoil(random, &mut frame);
    let ingress = if hook == Hook::Host && random.random_bool(0.3) {
        HERE
    } else {
        0
    };
    Case { hook, ingress, frame }
}

/// An answer to a frame that was sent, where it is one that can be answered: so that flows go both ways.
pub fn answer(random: &mut StdRng, node: &Node) -> Option<Case> {
    let (key, flow) = node
        .flows
        .iter()
        .filter(|(_, flow)| flow.is_reverse)
        .choose(random)?;
    let flags = *[0x12, 0x10, 0x11, 0x04, 0x14, 0x18].choose(random).expect("some");
    let (kind, identifier) = (0, key.destination_port);
    let payload = transport(
        random,
        key.protocol,
        key.source_port,
        key.destination_port,
        flags,
        (kind, identifier),
    );
    let packet = ipv4(random, key.source, key.destination, key.protocol, &payload);
    let packet = sealed(packet);
    if flow.is_published {
        return Some(Case {
            hook: Hook::Endpoint,
            ingress: 0,
            frame: ethernet(&packet),
        });
    }
    let instance = node.instances.get(&flow.instance)?;
    if instance.node == 0 {
        // On this node, the server answers to the client's instance address.
        let client = node.endpoints.get(&key.destination)?;
        let payload = transport(
            random,
            key.protocol,
            key.source_port,
            key.destination_port,
            flags,
            (kind, identifier),
        );
        let packet = ipv4(
            random,
            instance.namespace_address,
            client.instance_address,
            key.protocol,
            &payload,
        );
        return Some(Case {
            hook: Hook::Endpoint,
            ingress: 0,
            frame: ethernet(&sealed(packet)),
        });
    }
    let remote = node.ways.get(&instance.node)?.remote;
    Some(Case {
        hook: Hook::Uplink,
        ingress: 0,
        frame: ethernet(&tunnelled(random, remote, &packet)),
    })
}

/// A further packet of a flow that there is.
pub fn more(random: &mut StdRng, node: &Node) -> Option<Case> {
    let (key, flow) = node
        .flows
        .iter()
        .filter(|(_, flow)| !flow.is_reverse)
        .choose(random)?;
    let flags = *[0x02, 0x10, 0x10, 0x18, 0x11, 0x04].choose(random).expect("some");
    let payload = transport(
        random,
        key.protocol,
        key.source_port,
        key.destination_port,
        flags,
        (8, key.source_port),
    );
    let packet = sealed(ipv4(random, key.source, key.destination, key.protocol, &payload));
    let hook = match flow {
        flow if flow.is_from_node => Hook::Loopback,
        flow if flow.is_published && key.source[0] != 10 => Hook::Uplink,
        _ if key.source == HOST_ADDRESS => Hook::Host,
        _ => Hook::Endpoint,
    };
    Some(Case {
        hook,
        ingress: 0,
        frame: ethernet(&packet),
    })
}

/// Another fragment of a datagram of which there was one.
pub fn piece(random: &mut StdRng, node: &Node) -> Option<Case> {
    let (datagram, _) = node.fragments.iter().choose(random)?;
    let mut packet = packet(random, datagram.source, datagram.destination);
    packet[4..6].copy_from_slice(&datagram.identification.to_be_bytes());
    let fragment: u16 = *[0x2000, 0x2001, 0x0003].choose(random).expect("some");
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = datagram.protocol;
    packet[10..12].fill(0);
    let length = usize::from(packet[0] & 0x0f) * 4;
    let sum = sum(&packet[..length]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let is_back = random.random_bool(0.3);
    let (hook, mut frame) = if LOCAL_ENDPOINTS.contains(&datagram.source) {
        let hook = if datagram.source == HOST_ADDRESS {
            Hook::Host
        } else {
            Hook::Endpoint
        };
        (hook, ethernet(&packet))
    } else if LOCAL_ENDPOINTS.contains(&datagram.destination) {
        (Hook::Uplink, self::datagram(random, &packet))
    } else {
        (Hook::Uplink, ethernet(&packet))
    };
    let length = frame.len().max(54);
    frame.resize(length, 0);
    Some(Case {
        hook: if is_back { Hook::Oak0 } else { hook },
        ingress: 0,
        frame,
    })
}

fn destination(random: &mut StdRng) -> Address {
    match random.random_range(0..10) {
        0..5 => *SERVICES.choose(random).expect("some"),
        5..7 => any_shown(random),
        7 => OUTERS[0],
        8 => *LOCAL_ENDPOINTS.choose(random).expect("some"),
        _ => *ELSEWHERE.choose(random).expect("some"),
    }
}

fn any_shown(random: &mut StdRng) -> Address {
    let everybody = LOCAL_ENDPOINTS.iter().chain(&REMOTE_ENDPOINTS);
    match random.random_range(0..12) {
        0 => *SERVICES.choose(random).expect("some"),
        1 => *ELSEWHERE.choose(random).expect("some"),
        _ => shown(*everybody.choose(random).expect("some")),
    }
}

fn packet(random: &mut StdRng, source: Address, destination: Address) -> Vec<u8> {
    let protocol = *[6, 6, 6, 17, 17, 17, 1, 1, 132].choose(random).expect("some");
    let mut ports = || *PORTS.choose(random).expect("some");
    let (from, to) = (ports(), ports());
    let flags = *[0x02, 0x02, 0x10, 0x18, 0x11, 0x04, 0x14, 0x12, 0x00, 0x03]
        .choose(random)
        .expect("some");
    let kind = *[8, 8, 0, 3, 11, 13].choose(random).expect("some");
    let identifier = *[1, 2, 0].choose(random).expect("some");
    let payload = transport(random, protocol, from, to, flags, (kind, identifier));
    sealed(ipv4(random, source, destination, protocol, &payload))
}

/// A transport header and a few bytes, its checksum still to be computed.
fn transport(
    random: &mut StdRng,
    protocol: u8,
    from: u16,
    to: u16,
    flags: u8,
    (kind, identifier): (u8, u16),
) -> Vec<u8> {
    let data: Vec<u8> = (0..random.random_range(0..60)).map(|_| random.random()).collect();
    let mut bytes = Vec::new();
    match protocol {
        6 => {
            bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
            bytes.extend(random.random::<[u8; 8]>());
            let options = if random.random_bool(0.2) { 4 } else { 0 };
            bytes.extend([((5 + options / 4) as u8) << 4, flags, 0x20, 0, 0, 0, 0, 0]);
            bytes.extend(vec![1; options]);
        }
        17 => {
            bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
            bytes.extend(((8 + data.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        1 => {
            bytes.extend([kind, 0, 0, 0]);
            bytes.extend(identifier.to_be_bytes());
            bytes.extend([0, 7]);
        }
        _ => bytes.extend([0; 8]),
    }
    bytes.extend(data);
    bytes
}

fn ipv4(random: &mut StdRng, source: Address, destination: Address, protocol: u8, payload: &[u8]) -> Vec<u8> {
    const OPTIONS: [&[u8]; 7] = [
        &[1; 4],
        &[1; 40],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[148, 4, 0, 0],
        &[131, 3, 4, 0],
        &[1, 137, 3, 4],
        &[7, 9, 4, 0],
    ];
    let options = if random.random_bool(0.05) {
        *OPTIONS.choose(random).expect("some")
    } else {
        &[][..]
    };
    let fragment: u16 = *[0, 0x4000, 0x4000, 0x4000, 0x4000, 0x4000]
        .choose(random)
        .expect("some");
    let fragment = if random.random_bool(0.05) {
        *[0x2000, 0x2000, 0x2001, 0x2002, 0x0002]
            .choose(random)
            .expect("some")
    } else {
        fragment
    };
    let total = (20 + options.len() + payload.len()) as u16;
    let mut packet = vec![0x45 + (options.len() / 4) as u8, random.random()];
    packet.extend(total.to_be_bytes());
    packet.extend([0x42, *[0x42, 0x43].choose(random).expect("some")]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([*[64, 1, 255].choose(random).expect("some"), protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// A packet with its checksums as a sender writes them; some senders of UDP leave theirs out.
fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    let length = usize::from(packet[0] & 0x0f) * 4;
    let protocol = packet[9];
    let sum = sum(&packet[..length]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let at = match protocol {
        6 => 16,
        17 if packet[length + 3].is_multiple_of(2) || packet.len().is_multiple_of(2) => 6,
        1 => 2,
        _ => return packet,
    };
    let payload = packet[length..].to_vec();
    let pseudo = match protocol {
        1 => Vec::new(),
        _ => [
            &packet[12..20],
            &[0, protocol],
            &(payload.len() as u16).to_be_bytes(),
        ]
        .concat(),
    };
    let sum = self::sum(&[pseudo, payload].concat());
    let checksum = if protocol == 17 && !sum == 0 { 0xffff } else { !sum };
    packet[length + at..length + at + 2].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ethernet(packet: &[u8]) -> Vec<u8> {
    [&mac(0xfe)[..], &mac(2), &[8, 0], packet].concat()
}

fn datagram(random: &mut StdRng, inner: &[u8]) -> Vec<u8> {
    let source = if random.random_bool(0.95) {
        OUTERS[random.random_range(1..4)]
    } else {
        *OUTERS.choose(random).expect("some")
    };
    ethernet(&tunnelled(random, source, inner))
}

/// What one node asks another, or answers, or something like it.
fn probe(random: &mut StdRng) -> Vec<u8> {
    let kinds = [[0, 1, 0, 2], [0, 1, 0, 2], [0, 2, 0, 1], [0, 1, 0, 1]];
    let version = if random.random_bool(0.9) { 1 } else { 2 };
    let mut probe = vec![0x10, version];
    probe.extend(kinds.choose(random).expect("some"));
    probe.extend([0; 2]);
    probe.extend(random.random::<[u8; 12]>());
    if random.random_bool(0.1) {
        probe.truncate(random.random_range(1..20));
    }
    probe
}

/// The packet in a tunnel datagram from this outer source.
fn tunnelled(random: &mut StdRng, source: Address, inner: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(random.random_range(49_152..65_535u16).to_be_bytes());
    udp.extend(TUNNEL_PORT.to_be_bytes());
    udp.extend(((8 + inner.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(inner);
    let total = (20 + udp.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    let fragment = if random.random_bool(0.03) {
        *[[0x20, 0], [0x20, 5], [0, 5]].choose(random).expect("some")
    } else {
        [0x40, 0]
    };
    packet.extend([0, 0, fragment[0], fragment[1], 64, 17, 0, 0]);
    packet.extend(source);
    packet.extend(OUTERS[0]);
    let sum = sum(&packet);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    packet.extend(udp);
    packet
}

/// Now and then a byte is another, the end is missing, or a link has appended something.
fn spoil(random: &mut StdRng, frame: &mut Vec<u8>) {
    if random.random_bool(0.1) {
        let at = random.random_range(12..frame.len().min(90));
        frame[at] = random.random();
    }
    if random.random_bool(0.01) {
        frame[12..14].copy_from_slice(&[8, 6]);
    }
    if random.random_bool(0.02) {
        frame.truncate(random.random_range(34..=frame.len()));
    }
    if random.random_bool(0.1) {
        frame.extend(vec![0x55; random.random_range(1..20)]);
    }
    // The kernel runs programs on whole headers only, of whatever it takes the frame for.
    let length = frame.len().max(54);
    frame.resize(length, 0);
}
