//! Three nodes, the endpoints on them, and the services in front of these: the same for all tests.
//!
//! ```text
//! site A 192.0.2.1                 site B 192.0.2.11              site C 192.0.2.12
//!   host 10.18.0.1   10.30.1.1       host 10.18.0.65 10.30.2.1
//!   a    10.18.0.2   10.30.1.2       s    10.18.0.66 10.30.2.2      t    10.18.0.130 10.30.3.2
//!   c    10.18.0.3   10.30.1.3
//!   v    10.18.0.4   10.30.1.4 (tap)
//! ```

use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::tables::{
    BackendKey, BackendSet, Endpoint, Instance, Node, Peer, Place, Published, PublishedKey, Service,
    TunnelKey, delivery, endpoint_flags, policy,
};
use netmanager::dataplane::Tables;

use crate::frame::{Address, Outer, Transport};

pub const A: Address = [10, 18, 0, 2];
pub const A_SHOWN: Address = [10, 30, 1, 2];
pub const C: Address = [10, 18, 0, 3];
pub const C_SHOWN: Address = [10, 30, 1, 3];
/// A virtual machine behind a tap.
pub const V: Address = [10, 18, 0, 4];
pub const V_SHOWN: Address = [10, 30, 1, 4];
/// The node of site A itself.
pub const HOST: Address = [10, 18, 0, 1];
pub const HOST_SHOWN: Address = [10, 30, 1, 1];
/// The node of site B itself.
pub const HOST_B: Address = [10, 18, 0, 65];
pub const HOST_B_SHOWN: Address = [10, 30, 2, 1];
pub const S: Address = [10, 18, 0, 66];
pub const S_SHOWN: Address = [10, 30, 2, 2];
pub const T: Address = [10, 18, 0, 130];
pub const T_SHOWN: Address = [10, 30, 3, 2];

/// s and t.
pub const BALANCED: Address = [10, 30, 55, 55];
/// s alone.
pub const SINGLE: Address = [10, 30, 55, 56];
/// The service of [`SINGLE`] as flows name it: its index plus one.
pub const ROW_OF_SINGLE: u32 = 3;
/// s alone, a second time.
pub const TWIN: Address = [10, 30, 55, 57];
/// c alone.
pub const NEIGHBOUR: Address = [10, 30, 55, 58];
/// a alone.
pub const OWN: Address = [10, 30, 55, 59];
/// Nobody.
pub const EMPTY: Address = [10, 30, 55, 60];
/// v alone.
pub const MACHINE: Address = [10, 30, 55, 61];
/// What no node has heard of.
pub const UNKNOWN: Address = [10, 30, 77, 77];

pub const OUTER_A: Address = [192, 0, 2, 1];
pub const OUTER_B: Address = [192, 0, 2, 11];
pub const OUTER_C: Address = [192, 0, 2, 12];

pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
pub const MAC_OF_A: [u8; 6] = [0x02, 0, 0, 0, 1, 0x02];
pub const MAC_OF_C: [u8; 6] = [0x02, 0, 0, 0, 1, 0x03];
pub const MAC_OF_V: [u8; 6] = [0x02, 0, 0, 0, 1, 0x04];

/// The loopback interface, which every network namespace has: stands for every interface there is.
pub const INTERFACE: u32 = 1;
/// An interface that nothing comes from.
pub const OTHER_INTERFACE: u32 = 2;

/// Largest packet on every wire.
pub const MTU: u32 = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    A,
    B,
    C,
}

impl Site {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    pub fn outer(self) -> Address {
        match self {
            Self::A => OUTER_A,
            Self::B => OUTER_B,
            Self::C => OUTER_C,
        }
    }

    const fn uplink_mac(self) -> [u8; 6] {
        [0x02, 0, 0, 0, 0xff, self as u8]
    }

    /// Index of `self` in `NODES` of `owner`, and the group it is in there: zero is the owner itself, whose
    /// place site A takes.
    pub fn index(self, owner: Self) -> u32 {
        match (self, owner) {
            (site, owner) if site == owner => 0,
            (Self::A, owner) => owner as u32,
            (site, _) => site as u32,
        }
    }
}

/// The datagrams that one site sends to another, from a source port of no meaning.
const fn tunnel(from: Site, source: Address, to: Site, destination: Address) -> Outer {
    Outer {
        to_mac: to.uplink_mac(),
        from_mac: from.uplink_mac(),
        source,
        source_port: 51_000,
        destination,
        destination_port: TUNNEL_PORT,
        type_of_service: 0,
        options: &[],
        more_fragments: false,
        fragment_offset: 0,
    }
}

pub const A_TO_B: Outer = tunnel(Site::A, OUTER_A, Site::B, OUTER_B);
pub const A_TO_C: Outer = tunnel(Site::A, OUTER_A, Site::C, OUTER_C);
pub const B_TO_A: Outer = tunnel(Site::B, OUTER_B, Site::A, OUTER_A);
pub const C_TO_A: Outer = tunnel(Site::C, OUTER_C, Site::A, OUTER_A);

struct Placed {
    site: Site,
    address: Address,
    shown: Address,
    mac: [u8; 6],
    delivery: u8,
}

const fn placed(site: Site, address: Address, shown: Address, delivery: u8) -> Placed {
    Placed {
        site,
        address,
        shown,
        mac: [0x02, 0, 0, 0, shown[2], shown[3]],
        delivery,
    }
}

const PLACED: [Placed; 7] = [
    placed(Site::A, A, A_SHOWN, delivery::PEER),
    placed(Site::A, C, C_SHOWN, delivery::PEER),
    placed(Site::A, V, V_SHOWN, delivery::REDIRECT),
    placed(Site::A, HOST, HOST_SHOWN, delivery::HOST),
    placed(Site::B, S, S_SHOWN, delivery::PEER),
    placed(Site::B, HOST_B, HOST_B_SHOWN, delivery::HOST),
    placed(Site::C, T, T_SHOWN, delivery::PEER),
];

const SERVICES: [(Address, &[Address]); 7] = [
    (BALANCED, &[S, T]),
    (SINGLE, &[S]),
    (TWIN, &[S]),
    (NEIGHBOUR, &[C]),
    (OWN, &[A]),
    (EMPTY, &[]),
    (MACHINE, &[V]),
];

/// Index in `INSTANCES` of the instance with this namespace address.
pub fn index_of(address: Address) -> u32 {
    let position = PLACED.iter().position(|placed| placed.address == address);
    let position = position.expect("an instance of the topology");
    1 + u32::try_from(position).expect("a few")
}

/// The incarnation of the instance with this namespace address.
pub fn incarnation_of(address: Address) -> u64 {
    100 + u64::from(index_of(address))
}

/// Tells the node of `site` all there is to know, and lets every service begin with its first backend.
pub fn fill(tables: &mut Tables, site: Site) {
    fill_nodes(tables, site);
    for placed in &PLACED {
        let instance = Instance {
            place: Place::new(placed.address, placed.site.index(site)),
            incarnation: incarnation_of(placed.address),
            address: placed.shown,
            application: 7,
            ..Instance::default()
        };
        let index = index_of(placed.address);
        set_instance(tables, index, instance);
        tables
            .instance_index
            .insert(placed.shown, index, 0)
            .expect("room in INSTANCE_INDEX");
        if placed.site == site {
            let endpoint = Endpoint {
                interface: INTERFACE,
                instance: index,
                instance_address: placed.shown,
                application: 7,
                mac: placed.mac,
                delivery: placed.delivery,
                flags: 0,
            };
            set_endpoint(tables, placed.address, endpoint);
        }
    }
    for (id, (address, backends)) in (1..).zip(SERVICES) {
        let backends: Vec<u32> = backends.iter().map(|address| index_of(*address)).collect();
        set_service(tables, id, address, 1, &backends);
        tables.cursors.set(id, 0, 0).expect("an index within CURSORS");
    }
}

fn fill_nodes(tables: &mut Tables, site: Site) {
    tables
        .local_addresses
        .insert(site.outer(), 1, 0)
        .expect("room in LOCAL_ADDRESSES");
    for other in Site::ALL.into_iter().filter(|other| *other != site) {
        let index = other.index(site);
        let mut ethernet = [0; 14];
        ethernet[..6].copy_from_slice(&other.uplink_mac());
        ethernet[6..12].copy_from_slice(&site.uplink_mac());
        ethernet[12..].copy_from_slice(&[0x08, 0x00]);
        let node = Node {
            valid_until: u64::MAX,
            ethernet,
            local: site.outer(),
            remote: other.outer(),
            interface: INTERFACE,
            group: index,
            port: TUNNEL_PORT.to_be_bytes(),
            mtu: MTU,
            ..Node::default()
        };
        set_node(tables, index, node);
        tables
            .peers
            .insert(
                other.outer(),
                Peer {
                    group: index,
                    interface: INTERFACE,
                },
                0,
            )
            .expect("room in PEERS");
        set_tunnel(tables, other.outer(), TUNNEL_PORT, index);
    }
}

pub fn set_node(tables: &mut Tables, index: u32, node: Node) {
    tables.nodes.set(index, node, 0).expect("an index within NODES");
}

pub fn set_instance(tables: &mut Tables, index: u32, instance: Instance) {
    tables
        .instances
        .set(index, instance, 0)
        .expect("an index within INSTANCES");
}

pub fn set_endpoint(tables: &mut Tables, address: Address, endpoint: Endpoint) {
    tables
        .endpoints
        .insert(address, endpoint, 0)
        .expect("room in ENDPOINTS");
}

pub fn set_tunnel(tables: &mut Tables, address: Address, port: u16, node: u32) {
    let key = TunnelKey {
        address,
        port: port.to_be_bytes(),
        zero: [0; 2],
    };
    tables.tunnels.insert(key, node, 0).expect("room in TUNNELS");
}

/// Lets a port of the node lead to the endpoint at this namespace address.
pub fn publish(tables: &mut Tables, transport: Transport, host: u16, address: Address, port: u16) {
    let key = PublishedKey {
        port: host.to_be_bytes(),
        protocol: transport.protocol(),
        zero: 0,
    };
    let published = Published {
        incarnation: incarnation_of(address),
        instance: index_of(address),
        port: port.to_be_bytes(),
        zero: [0; 2],
    };
    tables
        .published
        .insert(key, published, 0)
        .expect("room in PUBLISHED");
    let mut endpoint = tables.endpoints.get(&address, 0).expect("an endpoint");
    endpoint.flags = endpoint_flags::PUBLISHES;
    set_endpoint(tables, address, endpoint);
}

/// Puts a generation of backends in place, the way user space does: beside the previous one, then switched.
pub fn set_service(tables: &mut Tables, id: u32, address: Address, generation: u32, backends: &[u32]) {
    for (slot, index) in (0..).zip(backends) {
        let key = BackendKey {
            service: id,
            generation,
            slot,
        };
        tables.backends.insert(key, index, 0).expect("room in BACKENDS");
    }
    let number = u16::try_from(backends.len()).expect("a few");
    let service = Service {
        set: BackendSet::new(generation, number, policy::ROUND_ROBIN),
        id,
        last_used: 0,
    };
    tables
        .services
        .insert(address, service, 0)
        .expect("room in SERVICES");
}

/// The instance at this namespace address is replaced by another one in the same place.
pub fn replace(tables: &mut Tables, address: Address) {
    let index = index_of(address);
    let previous = tables.instances.get(&index, 0).expect("an instance");
    let incarnation = previous.incarnation + 1000;
    set_instance(
        tables,
        index,
        Instance {
            incarnation,
            ..previous
        },
    );
}

/// The instance at this namespace address ends, and nothing takes its slot.
pub fn vacate(tables: &mut Tables, address: Address) {
    set_instance(tables, index_of(address), Instance::default());
}
