//! Both sides of a flow: what one program puts out is what the next one gets.

use std::collections::HashMap;

use dataplane_ebpf::tables::{Flow, FlowKey, state};
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::frame::{ACK, Address, FIN, PSH, Packet, SYN, Transport, hex};
use crate::host::{Host, REDIRECT};
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, HOST, HOST_B, HOST_B_SHOWN, HOST_SHOWN, ROW_OF_SINGLE, S, S_SHOWN, SINGLE,
    Site, incarnation_of, index_of,
};

/// A client on site A and a server on site B.
struct Pair {
    client: Address,
    client_shown: Address,
    client_program: Program,
    arrives: Action,
    server: Address,
    server_shown: Address,
    server_program: Program,
    served: Action,
    /// What the client asks for.
    asked: Address,
}

const CONTAINERS: Pair = Pair {
    client: A,
    client_shown: A_SHOWN,
    client_program: Program::FromEndpoint,
    arrives: Action::Deliver,
    server: S,
    server_shown: S_SHOWN,
    server_program: Program::FromEndpoint,
    served: Action::Deliver,
    asked: SINGLE,
};

const NODES: Pair = Pair {
    client: HOST,
    client_shown: HOST_SHOWN,
    client_program: Program::FromHost,
    arrives: Action::DeliverHost,
    server: HOST_B,
    server_shown: HOST_B_SHOWN,
    server_program: Program::FromHost,
    served: Action::DeliverHost,
    asked: HOST_B_SHOWN,
};

/// Carries one packet from the client to the server and one back, and requires every byte on the way.
fn exchange(case: &str, node_a: &Host, node_b: &Host, pair: &Pair, request: &Packet, answer: &Packet) {
    let request = Packet {
        source: pair.client,
        destination: pair.asked,
        ..request.clone()
    };
    let on_the_wire = Packet {
        source: pair.client_shown,
        destination: pair.server,
        ..request.clone()
    };
    let wire = A_TO_B.carrying(&on_the_wire);
    node_a.expect(
        &format!("{case}: out of A"),
        pair.client_program,
        &request.frame(),
        Action::Tunnel,
        &wire,
    );
    node_b.expect(
        &format!("{case}: into B"),
        Program::FromUplink,
        &wire,
        pair.served,
        &on_the_wire.out_of(&A_TO_B).frame(),
    );

    let answer = Packet {
        transport: request.transport.answer(),
        source: pair.server,
        source_port: request.destination_port,
        destination: pair.client_shown,
        destination_port: request.source_port,
        ..answer.clone()
    };
    let on_the_wire = Packet {
        source: pair.server_shown,
        destination: pair.client,
        ..answer.clone()
    };
    let wire = B_TO_A.carrying(&on_the_wire);
    node_b.expect(
        &format!("{case}: out of B"),
        pair.server_program,
        &answer.frame(),
        Action::Tunnel,
        &wire,
    );
    let shown = Packet {
        source: pair.asked,
        ..on_the_wire
    };
    node_a.expect(
        &format!("{case}: into A"),
        Program::FromUplink,
        &wire,
        pair.arrives,
        &shown.out_of(&B_TO_A).frame(),
    );
}

#[test]
fn p12_a_client_talks_to_a_service_on_another_node_and_sees_only_the_service() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    for (name, pair) in [("containers", CONTAINERS), ("nodes", NODES)] {
        let segments = [
            ("handshake", SYN, SYN | ACK),
            ("data", ACK | PSH, ACK | PSH),
            ("closing", FIN | ACK, FIN | ACK),
            ("last words", ACK, ACK),
        ];
        for (step, flags, answer_flags) in segments {
            exchange(
                &format!("{name}, {step}"),
                &node_a,
                &node_b,
                &pair,
                &Packet {
                    flags,
                    ..Packet::default()
                },
                &Packet {
                    flags: answer_flags,
                    sequence: 77,
                    acknowledgement: 0x0102_0305,
                    payload: b"odd".to_vec(),
                    ..Packet::default()
                },
            );
        }
        for transport in [Transport::Udp, Transport::UncheckedUdp, Transport::Ping] {
            let request = Packet {
                transport,
                ..Packet::default()
            };
            for turn in ["first", "second"] {
                exchange(
                    &format!("{name}, {transport:?}, {turn}"),
                    &node_a,
                    &node_b,
                    &pair,
                    &request,
                    &request,
                );
            }
        }
    }
}

#[test]
fn p12_a_flow_is_one_entry_each_way_on_each_node() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    let request = Packet {
        transport: Transport::Udp,
        ..Packet::default()
    };
    exchange("opening", &node_a, &node_b, &CONTAINERS, &request, &request);

    let key = |source, source_port: u16, destination, destination_port: u16| FlowKey {
        source,
        destination,
        source_port: source_port.to_be_bytes(),
        destination_port: destination_port.to_be_bytes(),
        protocol: 17,
        zero: [0; 3],
    };
    let flow = |far_end, shown, port: u16, state| Flow {
        incarnation: incarnation_of(far_end),
        instance: index_of(far_end),
        last_seen: 0,
        shown,
        port: port.to_be_bytes(),
        state,
        ..Flow::default()
    };
    let to_service = |state| Flow {
        service: ROW_OF_SINGLE,
        ..flow(S, SINGLE, 5000, state)
    };
    assert_eq!(
        node_a.flows(),
        HashMap::from([
            (key(A, 5000, SINGLE, 80), to_service(state::ANSWERED)),
            (
                key(S_SHOWN, 80, A, 5000),
                to_service(state::REVERSE | state::ANSWERED)
            ),
        ])
    );
    assert_eq!(
        node_b.flows(),
        HashMap::from([
            (key(S, 80, A_SHOWN, 5000), flow(A, A_SHOWN, 80, 0)),
            (key(A_SHOWN, 5000, S, 80), flow(A, A_SHOWN, 80, state::REVERSE)),
        ])
    );
}

#[test]
fn f42_what_one_node_wraps_the_other_unwraps() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    let transports = prop_oneof![
        Just(Transport::Tcp),
        Just(Transport::Udp),
        Just(Transport::UncheckedUdp),
        Just(Transport::Ping),
        Just(Transport::Pong),
    ];
    let headers = (any::<[u16; 3]>(), any::<[u8; 3]>(), any::<u32>(), any::<bool>());
    let payloads = (
        proptest::collection::vec(any::<u8>(), 0..1400),
        proptest::collection::vec(any::<u8>(), 0..20),
    );
    TestRunner::new(Config {
        cases: 1000,
        failure_persistence: None,
        ..Config::default()
    })
    .run(&(transports, headers, payloads), |(transport, headers, (payload, trailer))| {
        let ([source_port, destination_port, identification], [flags, ttl, tos], sequence, dont_fragment) = headers;
        let packet = Packet {
            transport,
            source_port,
            destination_port,
            identification,
            flags,
            sequence,
            dont_fragment,
            time_to_live: ttl,
            type_of_service: tos,
            destination: S_SHOWN,
            payload,
            trailer,
            ..Packet::default()
        };
        let expected = Packet {
            source: A_SHOWN,
            destination: S,
            ..packet.clone()
        }
        .out_of(&A_TO_B);
        let wrapped = node_a.run(Program::FromEndpoint, &packet.frame());
        prop_assert_eq!(wrapped.verdict, REDIRECT);
        prop_assert_ne!(&wrapped.frame, &packet.frame());
        let unwrapped = node_b.run(Program::FromUplink, &wrapped.frame);
        prop_assert_eq!(unwrapped.verdict, REDIRECT);
        prop_assert_eq!(hex(&unwrapped.frame), hex(&expected.frame()));
        Ok(())
    })
    .expect("every packet comes out as it went in");
}
