//! Each backend in turn, exactly.

use std::collections::{BTreeMap, HashMap};
use std::sync::Barrier;
use std::thread;

use aya::programs::SchedClassifier;
use dataplane_ebpf::tables::{Instance, Place, instance_flags};
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, FIN, Packet, SYN, Transport, inner, ipv4, ports};
use crate::host::{Context, Host, REDIRECT, run};
use crate::topology::{
    A, A_SHOWN, A_TO_B, A_TO_C, BALANCED, S, Site, T, index_of, set_instance, set_service,
};

const WIDE: Address = [10, 30, 60, 60];
const WIDE_SERVICE: u32 = 20;
/// Instances are counted from here.
const FIRST_INSTANCE: u32 = 1000;

/// The namespace address of backend `number` of the wide service.
fn backend(number: u32) -> Address {
    let number = u8::try_from(number).expect("a few");
    [10, 18, 4, number]
}

/// A service with `number` instances on site B.
fn set_wide_service(node: &mut Host, generation: u32, numbers: std::ops::Range<u32>) {
    let indices: Vec<u32> = numbers.clone().map(|number| FIRST_INSTANCE + number).collect();
    for number in numbers {
        let instance = Instance {
            place: Place::new(backend(number), Site::B.index(Site::A)),
            incarnation: 1,
            address: [10, 30, 4, u8::try_from(number).expect("a few")],
            ..Instance::default()
        };
        set_instance(&mut node.tables, FIRST_INSTANCE + number, instance);
    }
    set_service(&mut node.tables, WIDE_SERVICE, WIDE, generation, &indices);
}

/// Runs a client's packet, which has to leave through the tunnel, and says which instance it goes to.
fn chosen(program: &SchedClassifier, packet: &Packet) -> Address {
    let (verdict, out) = run(program, &packet.frame(), Context::default());
    assert_eq!(verdict, REDIRECT);
    let inner = inner(&out);
    if packet.transport != Transport::Ping {
        assert_eq!(ports(&inner), (packet.source_port, packet.destination_port));
    }
    let header = ipv4(&inner);
    assert_eq!(header.source, A_SHOWN);
    header.destination
}

fn client(transport: Transport, source_port: u16, destination: Address) -> Packet {
    Packet {
        transport,
        source_port,
        destination,
        ..Packet::default()
    }
}

#[test]
fn p14_of_k_times_n_flows_every_instance_gets_exactly_k() {
    let mut node = Host::at(Site::A);
    for (generation, backends) in (1..).zip([1, 2, 3, 7, 64, 255]) {
        set_wide_service(&mut node, generation, 0..backends);
        for transport in [Transport::Tcp, Transport::Udp, Transport::Ping] {
            node.forget_flows();
            let program = node.program(Program::FromEndpoint);
            let rounds = 5;
            let mut flows = BTreeMap::new();
            for source_port in (20_000..).take(backends as usize * rounds) {
                *flows
                    .entry(chosen(program, &client(transport, source_port, WIDE)))
                    .or_insert(0) += 1;
            }
            let expected = (0..backends).map(|number| (backend(number), rounds)).collect();
            assert_eq!(flows, expected, "{backends} instances, {transport:?}");
        }
    }
}

#[test]
fn p14_all_packets_of_a_flow_go_to_one_instance_whatever_else_begins() {
    let mut node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        node.forget_flows();
        let program = node.program(Program::FromEndpoint);
        let flow = client(transport, 5000, BALANCED);
        let first = chosen(program, &flow);
        for turn in 0..100 {
            let other = client(transport, 6000 + turn, BALANCED);
            let expected = if (turn % 2 == 0) == (first == S) { T } else { S };
            assert_eq!(chosen(program, &other), expected, "{transport:?}");
            let packet = Packet {
                flags: ACK,
                payload: vec![0; usize::from(turn)],
                ..flow.clone()
            };
            assert_eq!(chosen(program, &packet), first, "{transport:?}");
        }
    }
}

#[test]
fn p14_services_take_turns_of_their_own() {
    let mut node = Host::at(Site::A);
    let twin = [10, 30, 60, 61];
    set_service(&mut node.tables, 21, twin, 1, &[index_of(S), index_of(T)]);
    let program = node.program(Program::FromEndpoint);
    for (source_port, expected) in (5000..).zip([S, T, S, T]) {
        for destination in [BALANCED, twin] {
            // From ports of their own, so that none has to give way to the other.
            let source_port = source_port + u16::from(destination[3]) * 10;
            let packet = client(Transport::Udp, source_port, destination);
            assert_eq!(chosen(program, &packet), expected);
        }
    }
}

#[test]
fn p14_a_new_generation_goes_on_where_the_old_one_was_and_leaves_old_flows_where_they_are() {
    let mut node = Host::at(Site::A);
    set_wide_service(&mut node, 1, 0..2);
    let udp = |source_port| client(Transport::Udp, source_port, WIDE);
    let old: Vec<Address> = (5000..5004)
        .map(|source_port| chosen(node.program(Program::FromEndpoint), &udp(source_port)))
        .collect();
    assert_eq!(old, [0, 1, 0, 1].map(backend));

    set_wide_service(&mut node, 2, 1..4);
    // Draining is told to those who write generations; the flows of an instance that drains go on.
    let draining = Instance {
        flags: instance_flags::DRAINING,
        ..node
            .tables
            .instances
            .get(&FIRST_INSTANCE, 0)
            .expect("an instance")
    };
    set_instance(&mut node.tables, FIRST_INSTANCE, draining);
    let program = node.program(Program::FromEndpoint);
    for (source_port, expected) in (5000..).zip(old) {
        assert_eq!(chosen(program, &udp(source_port)), expected);
    }
    let mut flows = HashMap::new();
    for source_port in 6000..6009 {
        *flows.entry(chosen(program, &udp(source_port))).or_insert(0) += 1;
    }
    assert_eq!(flows, HashMap::from([1, 2, 3].map(|number| (backend(number), 3))));
}

#[test]
fn p15_of_k_times_n_flows_from_all_processors_at_once_every_instance_gets_exactly_k() {
    const THREADS: u16 = 8;
    const FLOWS: u16 = 3 * 500;
    let mut node = Host::at(Site::A);
    set_wide_service(&mut node, 1, 0..3);
    let program = node.program(Program::FromEndpoint);
    let start = Barrier::new(usize::from(THREADS));
    let start = &start;
    let counted: Vec<HashMap<Address, u32>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let packets: Vec<Packet> = (0..FLOWS)
                        .map(|flow| client(Transport::Tcp, 20_000 + thread * FLOWS + flow, WIDE))
                        .collect();
                    start.wait();
                    let mut counted = HashMap::new();
                    for packet in &packets {
                        *counted.entry(chosen(program, packet)).or_insert(0) += 1;
                    }
                    counted
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the thread ends well"))
            .collect()
    });
    let mut sum = HashMap::new();
    for (address, flows) in counted.into_iter().flatten() {
        *sum.entry(address).or_insert(0) += flows;
    }
    let each = u32::from(THREADS * FLOWS) / 3;
    assert_eq!(
        sum,
        HashMap::from([0, 1, 2].map(|number| (backend(number), each)))
    );
    assert_eq!(node.flows().len(), usize::from(THREADS * FLOWS) * 2);
}

#[test]
fn p15_packets_of_one_flow_on_several_processors_agree_on_the_instance() {
    const THREADS: usize = 4;
    const FLOWS: u16 = 2000;
    let mut node = Host::at(Site::A);
    set_wide_service(&mut node, 1, 0..7);
    let program = node.program(Program::FromEndpoint);
    let start = Barrier::new(THREADS);
    let start = &start;
    let answers: Vec<Vec<Address>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(move || {
                    let packets: Vec<Packet> = (0..FLOWS)
                        .map(|flow| client(Transport::Udp, 20_000 + flow, WIDE))
                        .collect();
                    packets
                        .iter()
                        .map(|packet| {
                            start.wait();
                            chosen(program, packet)
                        })
                        .collect()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the thread ends well"))
            .collect()
    });
    for (thread, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &answers[0], "thread {thread}");
    }
    // Who lost the race has left nothing behind.
    assert_eq!(node.flows().len(), usize::from(FLOWS) * 2);
}

#[test]
fn p14_a_finished_connection_of_each_client_frees_its_ports_for_the_next() {
    let node = Host::at(Site::A);
    for (round, expected) in (0..10).zip([S, T].into_iter().cycle()) {
        for flags in [SYN, ACK, FIN | ACK] {
            let packet = Packet {
                flags,
                destination: BALANCED,
                ..Packet::default()
            };
            let sent = Packet {
                source: A_SHOWN,
                destination: expected,
                ..packet.clone()
            };
            let outer = if expected == S { A_TO_B } else { A_TO_C };
            node.expect(
                &format!("round {round}, flags {flags:#04x}"),
                Program::FromEndpoint,
                &packet.frame(),
                Action::Tunnel,
                &outer.carrying(&sent),
            );
        }
    }
    assert_eq!(node.flows().len(), 2);
    assert!(
        node.flows()
            .keys()
            .all(|key| key.source == A || key.destination == A)
    );
}
