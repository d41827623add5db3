//! What becomes of flows whose instance is gone: they end, and what comes in its place is not mistaken for it.

use dataplane_ebpf::tables::{Instance, Place};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, FIN, Outer, PSH, Packet, RST, SYN, Transport};
use crate::host::Host;
use crate::topology::{
    A, A_SHOWN, A_TO_B, A_TO_C, B_TO_A, BALANCED, C, C_SHOWN, GATEWAY_MAC, MAC_OF_A, NEIGHBOUR, S, S_SHOWN,
    SINGLE, Site, T, index_of, replace, set_instance, set_service, vacate,
};
use crate::unreachable::{HOST_UNREACHABLE, answer};

/// The index that an instance gets which takes over an address.
const SUCCESSOR: u32 = 500;

/// The instance of the single service ends; another one with its addresses takes another index.
fn succeed(node: &mut Host) {
    let previous = node.tables.instances.get(&index_of(S), 0).expect("an instance");
    let successor = Instance {
        incarnation: previous.incarnation + 1000,
        ..previous
    };
    set_instance(&mut node.tables, SUCCESSOR, successor);
    node.tables
        .instance_index
        .insert(S_SHOWN, SUCCESSOR, 0)
        .expect("room in INSTANCE_INDEX");
    set_service(&mut node.tables, 2, SINGLE, 2, &[SUCCESSOR]);
    vacate(&mut node.tables, S);
}

/// How the instance of the single service may be replaced.
const REPLACEMENTS: [Replacement; 3] = [
    ("in its slot", |node| replace(&mut node.tables, S)),
    ("in another slot", succeed),
    ("in another slot, its own given to a third", |node| {
        succeed(node);
        let third = Instance {
            place: Place::new([10, 18, 0, 98], Site::B.index(Site::A)),
            incarnation: 7,
            address: [10, 30, 2, 98],
            ..Instance::default()
        };
        set_instance(&mut node.tables, index_of(S), third);
    }),
];

type Replacement = (&'static str, fn(&mut Host));

/// What a client on site A sends to an instance on site B, as it leaves.
fn sent(request: &Packet) -> Vec<u8> {
    A_TO_B.carrying(&Packet {
        source: A_SHOWN,
        destination: S,
        ..request.clone()
    })
}

#[test]
fn p20_a_connection_whose_instance_is_replaced_is_reset_and_may_begin_anew() {
    let mut node = Host::at(Site::A);
    for (name, replace) in REPLACEMENTS {
        node.reset();
        let syn = Packet::default();
        node.expect(
            name,
            Program::FromEndpoint,
            &syn.frame(),
            Action::Tunnel,
            &sent(&syn),
        );
        replace(&mut node);

        let data = Packet {
            flags: ACK | PSH,
            acknowledgement: 99,
            ..syn.clone()
        };
        let reset = Packet {
            to_mac: MAC_OF_A,
            from_mac: GATEWAY_MAC,
            source: SINGLE,
            source_port: 80,
            destination: A,
            destination_port: 5000,
            flags: RST,
            sequence: 99,
            window: 0,
            identification: 0,
            payload: Vec::new(),
            ..Packet::default()
        };
        node.expect(
            name,
            Program::FromEndpoint,
            &data.frame(),
            Action::Reset,
            &reset.frame(),
        );

        // From the same port, which nobody has any more.
        for packet in [&syn, &data] {
            node.expect(
                name,
                Program::FromEndpoint,
                &packet.frame(),
                Action::Tunnel,
                &sent(packet),
            );
        }
        assert_eq!(node.flows().len(), 2, "{name}");
    }
}

#[test]
fn p20_a_connection_whose_instance_is_gone_is_reset() {
    let mut node = Host::at(Site::A);
    let syn = Packet::default();
    node.expect(
        "open",
        Program::FromEndpoint,
        &syn.frame(),
        Action::Tunnel,
        &sent(&syn),
    );
    vacate(&mut node.tables, S);
    node.expect(
        "a new one",
        Program::FromEndpoint,
        &syn.frame(),
        Action::IcmpUnreachable,
        &answer(&syn, HOST_UNREACHABLE, 0),
    );
    let data = Packet { flags: ACK, ..syn };
    let ran = node.run(Program::FromEndpoint, &data.frame());
    assert_eq!(
        (ran.verdict, ran.counted[0].1.as_str()),
        (7, Action::Reset.as_str())
    );
}

#[test]
fn p20_datagrams_and_pings_of_a_replaced_instance_choose_anew() {
    let mut node = Host::at(Site::A);
    for transport in [Transport::Udp, Transport::UncheckedUdp, Transport::Ping] {
        node.reset();
        let packet = Packet {
            transport,
            destination: BALANCED,
            ..Packet::default()
        };
        let to = |outer: &Outer, destination: Address| {
            outer.carrying(&Packet {
                source: A_SHOWN,
                destination,
                ..packet.clone()
            })
        };
        for (step, expected) in [
            ("the first", to(&A_TO_B, S)),
            ("of the same flow", to(&A_TO_B, S)),
        ] {
            node.expect(
                step,
                Program::FromEndpoint,
                &packet.frame(),
                Action::Tunnel,
                &expected,
            );
        }
        replace(&mut node.tables, S);
        for step in ["the first after", "and it stays there"] {
            node.expect(
                &format!("{transport:?}, {step}"),
                Program::FromEndpoint,
                &packet.frame(),
                Action::Tunnel,
                &to(&A_TO_C, T),
            );
        }
        assert_eq!(node.flows().len(), 2, "{transport:?}");
    }
}

#[test]
fn p20_a_server_whose_client_was_replaced_is_reset() {
    // A server, which opens nothing: the connection ended with its peer.
    let mut node = Host::at(Site::A);
    for (_, successor) in REPLACEMENTS {
        node.reset();
        let data = Packet {
            flags: ACK,
            acknowledgement: 4711,
            source_port: 80,
            destination: S_SHOWN,
            destination_port: 5000,
            ..Packet::default()
        };
        node.expect(
            "before",
            Program::FromEndpoint,
            &data.frame(),
            Action::Tunnel,
            &sent(&data),
        );
        successor(&mut node);
        let reset = Packet {
            to_mac: MAC_OF_A,
            from_mac: GATEWAY_MAC,
            source: S_SHOWN,
            source_port: 5000,
            destination: A,
            destination_port: 80,
            flags: RST,
            sequence: data.acknowledgement,
            window: 0,
            identification: 0,
            payload: Vec::new(),
            ..Packet::default()
        };
        node.expect(
            "after",
            Program::FromEndpoint,
            &data.frame(),
            Action::Reset,
            &reset.frame(),
        );
        // What is no longer part of it is for whoever has the address, from the port it has.
        node.expect(
            "later",
            Program::FromEndpoint,
            &data.frame(),
            Action::Tunnel,
            &sent(&data),
        );
        assert_eq!(node.flows().len(), 2, "nothing of the ended flow is left");
    }
}

#[test]
fn p20_what_comes_from_a_replaced_instance_answers_no_flow_of_the_old_one() {
    // From site B, and from the same node.
    let places: [(&str, Address, Address, Address); 2] = [
        ("from another node", SINGLE, S, S_SHOWN),
        ("on the node", NEIGHBOUR, C, C_SHOWN),
    ];
    let mut node = Host::at(Site::A);
    for (name, service, server, server_shown) in places {
        let remote = server == S;
        for (transport, flags, admitted) in [
            (Transport::Tcp, SYN, true),
            (Transport::Tcp, SYN | ACK, false),
            (Transport::Tcp, ACK | PSH, false),
            (Transport::Tcp, FIN | ACK, false),
            (Transport::Tcp, RST, false),
            (Transport::Udp, 0, true),
            (Transport::Ping, 0, false),
        ] {
            let case = format!("{name}, {transport:?}, flags {flags:#04x}");
            node.reset();
            let request = Packet {
                transport,
                destination: service,
                ..Packet::default()
            };
            node.run(Program::FromEndpoint, &request.frame());
            replace(&mut node.tables, server);

            let answer = Packet {
                transport: transport.answer(),
                flags,
                source: server_shown,
                source_port: 80,
                destination: A,
                destination_port: 5000,
                ..Packet::default()
            };
            let (program, frame) = if remote {
                (Program::FromUplink, B_TO_A.carrying(&answer))
            } else {
                let frame = Packet {
                    source: server,
                    destination: A_SHOWN,
                    ..answer.clone()
                };
                (Program::FromEndpoint, frame.frame())
            };
            if admitted {
                // As itself, not as the service in front of its predecessor; the old flow is forgotten.
                let shown = if remote { answer.out_of(&B_TO_A) } else { answer };
                node.expect(&case, program, &frame, Action::Deliver, &shown.frame());
                let of_service = |key: &dataplane_ebpf::tables::FlowKey| key.destination == service;
                assert!(!node.flows().keys().any(of_service), "{case}");
            } else {
                node.drops(&case, program, &frame, DropReason::InstanceGone);
            }
        }
    }
}

#[test]
fn p20_an_instance_that_moves_within_its_node_keeps_its_flows_and_its_answers() {
    let mut node = Host::at(Site::A);
    let request = Packet {
        transport: Transport::Udp,
        ..Packet::default()
    };
    node.expect(
        "before",
        Program::FromEndpoint,
        &request.frame(),
        Action::Tunnel,
        &sent(&request),
    );
    let elsewhere = [10, 18, 0, 99];
    let moved = Instance {
        place: Place::new(elsewhere, Site::B.index(Site::A)),
        ..node.tables.instances.get(&index_of(S), 0).expect("an instance")
    };
    set_instance(&mut node.tables, index_of(S), moved);
    let arrives = Packet {
        source: A_SHOWN,
        destination: elsewhere,
        ..request.clone()
    };
    node.expect(
        "after",
        Program::FromEndpoint,
        &request.frame(),
        Action::Tunnel,
        &A_TO_B.carrying(&arrives),
    );
    let answer = Packet {
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..request
    };
    let shown = Packet {
        source: SINGLE,
        ..answer.out_of(&B_TO_A)
    };
    node.expect(
        "its answer",
        Program::FromUplink,
        &B_TO_A.carrying(&answer),
        Action::Deliver,
        &shown.frame(),
    );
}
