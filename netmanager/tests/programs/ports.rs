//! P-21: flows that differ anywhere never meet, whatever stands behind the addresses they go to.

use std::collections::HashSet;

use dataplane_ebpf::tables::{Flow, FlowKey};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, Packet, SYN, Transport, inner, ports};
use crate::host::{Context, Host, REDIRECT, coarse_time, run};
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, BALANCED, C, C_SHOWN, S, S_SHOWN, SINGLE, Site, TWIN, incarnation_of,
    index_of,
};

/// One client port, one instance, and the addresses in front of it.
const FRONTS: [Address; 3] = [SINGLE, TWIN, S_SHOWN];

/// The source port, or identifier, under which a client's packet leaves.
fn translated_port(node: &Host, packet: &Packet) -> u16 {
    let ran = node.run(Program::FromEndpoint, &packet.frame());
    let inner = inner(&ran.frame);
    match packet.transport {
        Transport::Ping => u16::from_be_bytes([inner[38], inner[39]]),
        Transport::Tcp
        | Transport::Udp
        | Transport::UncheckedUdp
        | Transport::Pong
        | Transport::Icmp(..)
        | Transport::Raw(_) => ports(&inner).0,
    }
}

#[test]
fn p21_one_instance_behind_three_addresses_keeps_the_flows_of_one_client_port_apart() {
    let (mut node_a, mut node_b) = (Host::at(Site::A), Host::at(Site::B));
    for transport in Transport::CARRIED {
        for fronts in [FRONTS, [S_SHOWN, TWIN, SINGLE], [TWIN, S_SHOWN, SINGLE]] {
            node_a.forget_flows();
            node_b.forget_flows();
            let mut taken = Vec::new();
            for (front, flags) in fronts.into_iter().flat_map(|front| [(front, SYN), (front, ACK)]) {
                let case = format!("{transport:?} to {front:?}");
                let request = Packet {
                    transport,
                    flags,
                    destination: front,
                    ..Packet::default()
                };
                let port = translated_port(&node_a, &request);
                taken.push((front, port));
                // Whatever the port: the packet that leaves is right in every byte, and so is the one that
                // arrives, and the client is answered from where it asked, at the port it asked from.
                let sent = Packet {
                    source: A_SHOWN,
                    source_port: port,
                    destination: S,
                    ..request.clone()
                };
                let wire = A_TO_B.carrying(&sent);
                node_a.expect(
                    &case,
                    Program::FromEndpoint,
                    &request.frame(),
                    Action::Tunnel,
                    &wire,
                );
                let received = sent.out_of(&A_TO_B);
                node_b.expect(
                    &case,
                    Program::FromUplink,
                    &wire,
                    Action::Deliver,
                    &received.frame(),
                );
                let answer = Packet {
                    transport: transport.answer(),
                    source: S,
                    source_port: 80,
                    destination: A_SHOWN,
                    destination_port: port,
                    flags: SYN | ACK,
                    ..Packet::default()
                };
                let sent = Packet {
                    source: S_SHOWN,
                    destination: A,
                    ..answer.clone()
                };
                let wire = B_TO_A.carrying(&sent);
                node_b.expect(
                    &case,
                    Program::FromEndpoint,
                    &answer.frame(),
                    Action::Tunnel,
                    &wire,
                );
                let shown = Packet {
                    source: front,
                    destination_port: 5000,
                    ..sent.out_of(&B_TO_A)
                };
                node_a.expect(&case, Program::FromUplink, &wire, Action::Deliver, &shown.frame());
            }
            let ports: Vec<u16> = taken.iter().map(|(_, port)| *port).collect();
            assert_eq!(ports[0], 5000, "{transport:?}: the first keeps its port");
            for pair in ports.chunks(2) {
                assert_eq!(pair[0], pair[1], "{transport:?}: one flow, one port");
            }
            let others = [ports[2], ports[4]];
            assert_ne!(others[0], others[1], "{transport:?}");
            assert!(
                others.iter().all(|port| (32_768..49_152).contains(port)),
                "{transport:?}: {others:?}"
            );
            assert_eq!(node_a.flows().len(), 6, "{transport:?}");
        }
    }
}

#[test]
fn p21_protocols_with_the_same_ports_and_clients_with_the_same_ports_share_nothing() {
    let node = Host::at(Site::A);
    for source in [A, C] {
        for (transport, destination_port) in [
            (Transport::Tcp, 80),
            (Transport::Udp, 80),
            (Transport::Tcp, 81),
            (Transport::Udp, 81),
            (Transport::Ping, 0),
        ] {
            let request = Packet {
                source,
                transport,
                destination_port,
                ..Packet::default()
            };
            let sent = Packet {
                source: if source == A { A_SHOWN } else { C_SHOWN },
                destination: S,
                ..request.clone()
            };
            node.expect(
                &format!("{source:?}, {transport:?} to port {destination_port}"),
                Program::FromEndpoint,
                &request.frame(),
                Action::Tunnel,
                &A_TO_B.carrying(&sent),
            );
        }
    }
    assert_eq!(node.flows().len(), 20);
}

#[test]
fn p21_one_client_port_to_two_instances_needs_no_other_port() {
    let node = Host::at(Site::A);
    let packet = |destination| Packet {
        transport: Transport::Udp,
        destination,
        ..Packet::default()
    };
    assert_eq!(translated_port(&node, &packet(SINGLE)), 5000);
    // The balanced service begins with the same instance, and then comes to the other.
    assert_ne!(translated_port(&node, &packet(BALANCED)), 5000);
    let second = Packet {
        source_port: 5001,
        ..packet(BALANCED)
    };
    assert_eq!(translated_port(&node, &second), 5001);
}

#[test]
fn p21_a_port_that_took_the_place_of_another_is_not_given_to_its_own_socket_as_well() {
    let node = Host::at(Site::A);
    let packet = |source_port, destination| Packet {
        transport: Transport::Udp,
        source_port,
        destination,
        ..Packet::default()
    };
    assert_eq!(translated_port(&node, &packet(5000, SINGLE)), 5000);
    let borrowed = translated_port(&node, &packet(5000, TWIN));
    let owner = translated_port(&node, &packet(borrowed, SINGLE));
    assert_ne!(owner, borrowed);
    assert_ne!(owner, 5000);
    assert_eq!(node.flows().len(), 6);
}

#[test]
fn p21_thousands_of_flows_that_have_to_give_way_each_find_a_port() {
    const FLOWS: u16 = 4000;
    let node = Host::at(Site::A);
    let program = node.program(Program::FromEndpoint);
    let mut seen = HashSet::new();
    for destination in [SINGLE, TWIN] {
        for source_port in 10_000..10_000 + FLOWS {
            let packet = Packet {
                transport: Transport::Udp,
                source_port,
                destination,
                ..Packet::default()
            };
            let (verdict, out) = run(program, &packet.frame(), Context::default());
            assert_eq!(verdict, REDIRECT, "{destination:?}, port {source_port}");
            seen.insert(ports(&inner(&out)).0);
        }
    }
    assert_eq!(
        seen.len(),
        usize::from(FLOWS) * 2,
        "the instance sees as many ports"
    );
}

#[test]
fn p21_without_a_free_port_the_packet_is_dropped_and_no_flow_is_disturbed() {
    let mut node = Host::at(Site::A);
    let taken = |port: u16| FlowKey {
        source: S_SHOWN,
        destination: A,
        source_port: 80u16.to_be_bytes(),
        destination_port: port.to_be_bytes(),
        protocol: 17,
        zero: [0; 3],
    };
    let other = Flow {
        incarnation: incarnation_of(S),
        instance: index_of(S),
        last_seen: coarse_time(),
        shown: TWIN,
        port: 1u16.to_be_bytes(),
        ..Flow::default()
    };
    for port in [5000].into_iter().chain(32_768..49_152) {
        node.tables
            .flows
            .insert(taken(port), other, 0)
            .expect("room in FLOWS");
    }
    let before = node.flows();
    let packet = Packet {
        transport: Transport::Udp,
        ..Packet::default()
    };
    node.drops(
        "to a service",
        Program::FromEndpoint,
        &packet.frame(),
        DropReason::PortCollision,
    );
    assert_eq!(node.flows(), before);

    // As soon as there are free ones among the candidates, one of them is found.
    for port in 40_000..49_152 {
        node.tables.flows.remove(&taken(port)).expect("it is there");
    }
    let port = translated_port(&node, &packet);
    assert!((40_000..49_152).contains(&port), "{port}");
}

#[test]
fn p21_a_segment_that_begins_nothing_keeps_its_port_or_is_dropped() {
    let node = Host::at(Site::A);
    assert_eq!(translated_port(&node, &Packet::default()), 5000);
    // To the instance behind the service, from the same port: its peer knows the connection by this port alone.
    let packet = Packet {
        flags: ACK,
        destination: S_SHOWN,
        ..Packet::default()
    };
    node.drops(
        "data to the instance",
        Program::FromEndpoint,
        &packet.frame(),
        DropReason::PortCollision,
    );
    assert_eq!(node.flows().len(), 2);
}
