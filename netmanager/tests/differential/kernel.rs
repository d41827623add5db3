//! The other side: the loaded programs, their tables filled with what a model's node knows.

use std::collections::BTreeMap;

use aya::maps::{MapData, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use dataplane_ebpf::tables::{self, BackendKey, BackendSet, Place, PublishedKey, TunnelKey};
use dataplane_ebpf::tables::{delivery, endpoint_flags, exit, node_flags, policy, state};
use dataplane_ebpf::verdict::{Action, DropReason, Hook as Row, ROWS};
use netmanager::dataplane::{Globals, Program, Tables, load, load_object};

use crate::model::{Arrival, Datagram, Delivery, Exit, Flow, Hook, Key, Node};

/// Names another object than the one that NetManager carries: one with a defect that is to be found.
const OBJECT_VARIABLE: &str = "OAKESTRA_OBJECT";

/// What a run of a program did.
#[derive(Clone, Debug)]
pub struct Ran {
    pub verdict: Verdict,
    pub hook: &'static str,
    pub name: &'static str,
    pub exit: Exit,
    pub node: u32,
    pub frame: Vec<u8>,
}

/// What a program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    Redirect,
}

/// Everything that cases may differ in.
const OAK0: u32 = 77;
pub const TUNNEL_PORT: u16 = 50_103;
pub const HOST_ADDRESS: [u8; 4] = [10, 18, 0, 1];

/// The programs in the kernel, with maps of their own, neither attached nor pinned.
pub struct Kernel {
    programs: aya::Ebpf,
    tables: Tables,
    cpus: usize,
    /// What the tables hold now.
    filled: Node,
}

impl Kernel {
    pub fn load() -> Self {
        let globals = Globals {
            oak0_interface: OAK0,
            tunnel_port: TUNNEL_PORT,
            host_address: HOST_ADDRESS.into(),
            probes_answered: u32::MAX,
            trace_walks: true,
        };
        let loaded = match std::env::var_os(OBJECT_VARIABLE) {
            Some(path) => load_object(&std::fs::read(path).expect("an object"), globals, &[]),
            None => load(globals, &[]),
        };
        let (programs, tables) = loaded.expect("the kernel takes the programs");
        let cpus = tables.trace.get(&0, 0).expect("a row").iter().count();
        Self {
            programs,
            tables,
            cpus,
            filled: Node::default(),
        }
    }

    /// Lets the tables say what `node` knows, and nothing else.
    pub fn fill(&mut self, node: &Node) {
        let before = std::mem::take(&mut self.filled);
        self.clear(&before);
        let tables = &mut self.tables;
        for (address, endpoint) in &node.endpoints {
            let row = tables::Endpoint {
                interface: endpoint.interface,
                instance: endpoint.instance,
                instance_address: endpoint.instance_address,
                application: 0,
                mac: endpoint.mac,
                delivery: match endpoint.delivery {
                    Delivery::Peer => delivery::PEER,
                    Delivery::Redirect => delivery::REDIRECT,
                    Delivery::Host => delivery::HOST,
                },
                flags: if endpoint.publishes {
                    endpoint_flags::PUBLISHES
                } else {
                    0
                },
            };
            tables.endpoints.insert(address, row, 0).expect("room");
        }
        for (index, instance) in &node.instances {
            let row = tables::Instance {
                place: Place::new(instance.namespace_address, instance.node),
                incarnation: instance.incarnation,
                address: instance.address,
                ..tables::Instance::default()
            };
            tables.instances.set(*index, row, 0).expect("room");
        }
        for (address, index) in &node.instance_index {
            tables.instance_index.insert(address, index, 0).expect("room");
        }
        for (index, way) in &node.ways {
            let fixed = if way.has_fixed_port {
                node_flags::FIXED_SOURCE_PORT
            } else {
                0
            };
            let unreachable = if way.is_unreachable {
                node_flags::UNREACHABLE
            } else {
                0
            };
            let row = tables::Node {
                valid_until: way.ethernet.map_or(0, |_| u64::MAX),
                ethernet: way.ethernet.unwrap_or_default(),
                flags: fixed | unreachable,
                local: way.local,
                remote: way.remote,
                interface: way.interface,
                group: way.group,
                port: way.port.to_be_bytes(),
                mtu: way.mtu,
                ..tables::Node::default()
            };
            tables.nodes.set(*index, row, 0).expect("room");
        }
        for (address, (group, interface)) in &node.peers {
            let row = tables::Peer {
                group: *group,
                interface: *interface,
            };
            tables.peers.insert(address, row, 0).expect("room");
        }
        for (address, port) in &node.tunnels {
            tables
                .tunnels
                .insert(tunnel(*address, *port), 1, 0)
                .expect("room");
        }
        for (address, service) in &node.services {
            for (slot, index) in (0..).zip(&service.backends) {
                tables
                    .backends
                    .insert(backend(service.id, slot), index, 0)
                    .expect("room");
            }
            let number = u16::try_from(service.backends.len()).expect("a few");
            let row = tables::Service {
                set: BackendSet::new(1, number, policy::ROUND_ROBIN),
                id: service.id,
                last_used: 0,
            };
            tables.services.insert(address, row, 0).expect("room");
            tables.cursors.set(service.id, service.turn, 0).expect("room");
        }
        for address in &node.local_addresses {
            tables.local_addresses.insert(address, 1, 0).expect("room");
        }
        for ((protocol, port), published) in &node.published {
            let row = tables::Published {
                incarnation: published.incarnation,
                instance: published.instance,
                port: published.port.to_be_bytes(),
                zero: [0; 2],
            };
            tables
                .published
                .insert(publication(*protocol, *port), row, 0)
                .expect("room");
        }
        self.filled = node.clone();
    }

    fn clear(&mut self, before: &Node) {
        let tables = &mut self.tables;
        for address in before.endpoints.keys() {
            tables.endpoints.remove(address).expect("filled");
        }
        for index in before.instances.keys() {
            tables
                .instances
                .set(*index, tables::Instance::default(), 0)
                .expect("a row");
        }
        for address in before.instance_index.keys() {
            tables.instance_index.remove(address).expect("filled");
        }
        for index in before.ways.keys() {
            tables
                .nodes
                .set(*index, tables::Node::default(), 0)
                .expect("a row");
        }
        for address in before.peers.keys() {
            tables.peers.remove(address).expect("filled");
        }
        for (address, port) in &before.tunnels {
            tables.tunnels.remove(&tunnel(*address, *port)).expect("filled");
        }
        for (address, service) in &before.services {
            for slot in (0..).take(service.backends.len()) {
                tables
                    .backends
                    .remove(&backend(service.id, slot))
                    .expect("filled");
            }
            tables.services.remove(address).expect("filled");
        }
        for address in &before.local_addresses {
            tables.local_addresses.remove(address).expect("filled");
        }
        for (protocol, port) in before.published.keys() {
            tables
                .published
                .remove(&publication(*protocol, *port))
                .expect("filled");
        }
    }

    /// Forgets all flows.
    pub fn forget_flows(&mut self) {
        for table in [&mut self.tables.flows, &mut self.tables.unanswered] {
            let keys: Result<Vec<_>, _> = table.keys().collect();
            for key in keys.expect("a readable map") {
                table.remove(&key).expect("the flow is there");
            }
        }
        let keys: Result<Vec<_>, _> = self.tables.fragments.keys().collect();
        for key in keys.expect("a readable map") {
            self.tables.fragments.remove(&key).expect("the datagram is there");
        }
    }

    /// What is known of datagrams in fragments.
    pub fn fragments(&self) -> BTreeMap<Datagram, Option<(u16, u16)>> {
        let entries = self.tables.fragments.iter().map(|entry| {
            let (key, found) = entry.expect("a readable map");
            let datagram = Datagram {
                source: key.source,
                destination: key.destination,
                identification: u16::from_be_bytes(key.identification),
                protocol: key.protocol,
            };
            let ports = [found.source_port, found.destination_port].map(u16::from_be_bytes);
            (datagram, (found.waiting == 0).then_some((ports[0], ports[1])))
        });
        entries.collect()
    }

    /// All flows there are.
    pub fn flows(&self) -> Vec<(Key, Flow)> {
        let read = |table: &aya::maps::HashMap<MapData, tables::FlowKey, tables::Flow>, is_settled| {
            table
                .iter()
                .map(|entry| {
                    let (key, flow) = entry.expect("a readable map");
                    (read_key(&key), read_flow(&flow, is_settled))
                })
                .collect::<Vec<_>>()
        };
        let mut flows = read(&self.tables.flows, true);
        flows.extend(read(&self.tables.unanswered, false));
        flows.sort_by_key(|(key, _)| *key);
        flows
    }

    /// How many flows have chosen each service.
    pub fn turn(&self, service: u32) -> u64 {
        self.tables.cursors.get(&service, 0).expect("a row")
    }

    pub fn run(&mut self, arrival: &Arrival<'_>) -> Ran {
        let cleared = PerCpuValues::try_from(vec![tables::Trace::default(); self.cpus]).expect("each CPU");
        self.tables.trace.set(0, cleared, 0).expect("a row");
        let program = match arrival.hook {
            Hook::Endpoint => Program::FromEndpoint,
            Hook::Oak0 => Program::FromOak0,
            Hook::Host => Program::FromHost,
            Hook::Uplink => Program::FromUplink,
            Hook::Loopback => Program::FromLoopback,
        };
        let loaded = self.programs.program(program.name()).expect("in the object");
        let classifier: &SchedClassifier = loaded.try_into().expect("a tc program");
        let mut out = vec![0; arrival.frame.len() + 256];
        let result = classifier
            .test_run(TestRunOptions {
                data_in: Some(arrival.frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context(arrival)),
                ..TestRunOptions::default()
            })
            .expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);

        let traces = self.tables.trace.get(&0, 0).expect("a row");
        let walks: Vec<&tables::Trace> = traces.iter().filter(|walk| walk.row != 0).collect();
        let [walk] = walks[..] else {
            panic!("one walk on one CPU: {walks:?}");
        };
        let (hook, name) = name(walk.row - 1);
        Ran {
            verdict: match result.return_value.cast_signed() {
                -1 => Verdict::Pass,
                2 => Verdict::Drop,
                7 => Verdict::Redirect,
                other => panic!("an unknown verdict: {other}"),
            },
            hook,
            name,
            exit: match walk.exit {
                exit::NONE => Exit::None,
                exit::PEER => Exit::Peer(walk.interface),
                exit::OUT => Exit::Out(walk.interface),
                exit::NEIGHBOUR => Exit::Neighbour(walk.interface),
                exit::INGRESS => Exit::Ingress(walk.interface),
                other => panic!("an unknown exit: {other}"),
            },
            node: walk.node,
            frame: out,
        }
    }
}

/// Name of a row of the counters, and of its hook.
fn name(row: u32) -> (&'static str, &'static str) {
    let actions = Action::ALL.iter().map(|action| (action.row(), action.as_str()));
    let reasons = DropReason::ALL
        .iter()
        .map(|reason| (reason.row(), reason.as_str()));
    let (_, name) = actions
        .chain(reasons)
        .find(|(candidate, _)| *candidate == row % ROWS)
        .expect("a row with a name");
    (Row::ALL[(row / ROWS) as usize].as_str(), name)
}

/// As `struct __sk_buff` lies in memory.
fn context(arrival: &Arrival<'_>) -> [u8; 192] {
    let mut bytes = [0; 192];
    bytes[36..40].copy_from_slice(&arrival.ingress.to_ne_bytes());
    bytes[40..44].copy_from_slice(&arrival.interface.to_ne_bytes());
    bytes
}

fn tunnel(address: [u8; 4], port: u16) -> TunnelKey {
    TunnelKey {
        address,
        port: port.to_be_bytes(),
        zero: [0; 2],
    }
}

fn backend(service: u32, slot: u32) -> BackendKey {
    BackendKey {
        service,
        generation: 1,
        slot,
    }
}

fn publication(protocol: u8, port: u16) -> PublishedKey {
    PublishedKey {
        port: port.to_be_bytes(),
        protocol,
        zero: 0,
    }
}

fn read_key(key: &tables::FlowKey) -> Key {
    assert_eq!(key.zero, [0; 3]);
    Key {
        source: key.source,
        destination: key.destination,
        source_port: u16::from_be_bytes(key.source_port),
        destination_port: u16::from_be_bytes(key.destination_port),
        protocol: key.protocol,
    }
}

fn read_flow(flow: &tables::Flow, is_settled: bool) -> Flow {
    let has = |bit: u8| flow.state & bit != 0;
    Flow {
        instance: flow.instance,
        incarnation: flow.incarnation,
        shown: flow.shown,
        address: flow.address,
        port: u16::from_be_bytes(flow.port),
        other_port: u16::from_be_bytes(flow.other_port),
        interface: flow.interface,
        service: flow.service,
        is_reverse: has(state::REVERSE),
        is_answered: has(state::ANSWERED),
        client_has_ended: has(state::FIN_FORWARD),
        server_has_ended: has(state::FIN_REVERSE),
        is_reset: has(state::RESET),
        is_published: has(state::PUBLISHED),
        is_from_node: has(state::FROM_NODE),
        is_settled,
    }
}
