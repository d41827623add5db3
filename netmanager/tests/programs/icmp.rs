//! P-30 to P-32: ICMP errors find back to who is concerned, and speak of what that one has sent.

use dataplane_ebpf::verdict::{Action, DropReason};
use etherparse::{Icmpv4Header, Icmpv4Type};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, PSH, Packet, SYN, Transport, inner, ports};
use crate::host::Host;
use crate::published;
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, C, C_SHOWN, EMPTY, HOST, HOST_SHOWN, NEIGHBOUR, OUTER_A, OUTER_B, S, S_SHOWN,
    SINGLE, Site, T_SHOWN, TWIN, UNKNOWN, replace,
};

/// Types and codes that are translated, with what follows them.
const KINDS: [(u8, u8, [u8; 4]); 8] = [
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (3, 3, [0; 4]),
    (3, 4, [0, 0, 0x05, 0x00]),
    (3, 13, [0; 4]),
    (11, 0, [0; 4]),
    (11, 1, [0; 4]),
    (12, 0, [9, 0, 0, 0]),
];

/// How much of a packet is quoted, beyond its IPv4 header.
const QUOTED: [usize; 5] = [8, 16, 18, 28, 1000];

/// What a receiver quotes of a packet.
pub fn quote(packet: &Packet, length: usize) -> Vec<u8> {
    let mut bytes = packet.ip();
    bytes.truncate(20 + packet.ip_options.len() + length);
    bytes
}

/// An ICMP error. Its ports are those of the answer that it stands for, which the tunnel's source port depends on.
pub fn error(
    (kind, code, rest): (u8, u8, [u8; 4]),
    source: Address,
    destination: Address,
    (source_port, destination_port): (u16, u16),
    quote: &[u8],
) -> Packet {
    let message = Icmpv4Type::Unknown {
        type_u8: kind,
        code_u8: code,
        bytes5to8: rest,
    };
    let header = Icmpv4Header::with_checksum(message, quote).to_bytes();
    Packet {
        source,
        destination,
        source_port,
        destination_port,
        transport: Transport::Raw(1),
        payload: [&header[..], quote].concat(),
        ..Packet::default()
    }
}

/// The ports of the packet that would answer this one.
fn answering(packet: &Packet) -> (u16, u16) {
    let (source, destination) = packet.ports();
    (destination, source)
}

/// A request of a to the service, with every transport, IP options in the quote, and length of the quote.
fn each_quote(test: impl Fn(&str, Packet, usize)) {
    for transport in Transport::CARRIED {
        for ip_options in [&[][..], &[1; 4], &[1; 40]] {
            for length in QUOTED {
                let request = Packet {
                    transport,
                    ip_options,
                    ..Packet::default()
                };
                let case = format!("{transport:?}, {} of options, {length} quoted", ip_options.len());
                test(&case, request, length);
            }
        }
    }
}

/// Without the options, which only the quote has.
fn plain(packet: &Packet) -> Vec<u8> {
    Packet {
        ip_options: &[],
        ..packet.clone()
    }
    .frame()
}

#[test]
fn p31_a_server_s_error_reaches_the_client_on_another_node_as_the_service_s() {
    for kind in KINDS {
        let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
        each_quote(|case, request, length| {
            let case = &format!("{kind:?}, {case}");
            node_a.run(Program::FromEndpoint, &plain(&request));
            let received = Packet {
                source: A_SHOWN,
                destination: S,
                ..request.clone()
            };
            let answering = answering(&request);
            let sent = error(kind, S, A_SHOWN, answering, &quote(&received, length));
            let on_the_wire = Packet {
                source: A,
                destination: S_SHOWN,
                ..request.clone()
            };
            let carried = error(kind, S_SHOWN, A, answering, &quote(&on_the_wire, length));
            let wire = B_TO_A.carrying(&carried);
            node_b.expect(case, Program::FromEndpoint, &sent.frame(), Action::Tunnel, &wire);
            let shown = error(kind, SINGLE, A, answering, &quote(&request, length)).out_of(&B_TO_A);
            node_a.expect(case, Program::FromUplink, &wire, Action::Deliver, &shown.frame());
        });
        assert_eq!(node_b.flows().len(), 0, "an error opens no flow");
    }
}

#[test]
fn p31_a_client_s_error_reaches_the_server_on_another_node() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    each_quote(|case, request, length| {
        let request = Packet {
            ip_options: &[],
            ..request
        };
        let out = node_a.run(Program::FromEndpoint, &request.frame());
        node_b.run(Program::FromUplink, &out.frame);
        let answer = Packet {
            transport: request.transport.answer(),
            source: S,
            source_port: request.destination_port,
            destination: A_SHOWN,
            destination_port: request.source_port,
            flags: SYN | ACK,
            ..request
        };
        let out = node_b.run(Program::FromEndpoint, &answer.frame());
        node_a.run(Program::FromUplink, &out.frame);

        let received = Packet {
            source: SINGLE,
            destination: A,
            ..answer.clone()
        };
        let answering = answering(&answer);
        let kind = (3, 3, [0; 4]);
        let sent = error(kind, A, SINGLE, answering, &quote(&received, length));
        let carried = error(kind, A_SHOWN, S, answering, &quote(&answer, length));
        let wire = A_TO_B.carrying(&carried);
        node_a.expect(case, Program::FromEndpoint, &sent.frame(), Action::Tunnel, &wire);
        let shown = carried.out_of(&A_TO_B);
        node_b.expect(case, Program::FromUplink, &wire, Action::Deliver, &shown.frame());
    });
}

#[test]
fn p31_on_one_node_both_sides_are_translated_at_once() {
    let node = Host::at(Site::A);
    for (source_port, client, shown, program, action, asked) in [
        (
            5001,
            A,
            A_SHOWN,
            Program::FromEndpoint,
            Action::Deliver,
            NEIGHBOUR,
        ),
        (5000, A, A_SHOWN, Program::FromEndpoint, Action::Deliver, C_SHOWN),
        (
            5000,
            HOST,
            HOST_SHOWN,
            Program::FromHost,
            Action::DeliverHost,
            NEIGHBOUR,
        ),
    ] {
        each_quote(|case, request, length| {
            let case = &format!("{client:?} to {asked:?}: {case}");
            let request = Packet {
                source: client,
                source_port,
                destination: asked,
                ..request
            };
            node.run(program, &plain(&request));
            let received = Packet {
                source: shown,
                destination: C,
                ..request.clone()
            };
            let kind = (3, 3, [0; 4]);
            let answering = answering(&request);
            let sent = error(kind, C, shown, answering, &quote(&received, length));
            let seen = error(kind, asked, client, answering, &quote(&request, length));
            node.expect(case, Program::FromEndpoint, &sent.frame(), action, &seen.frame());
        });
    }
}

#[test]
fn p31_a_client_whose_port_was_changed_reads_its_own() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    for transport in Transport::CARRIED {
        let request = |destination| Packet {
            transport,
            destination,
            ..Packet::default()
        };
        node_a.run(Program::FromEndpoint, &request(SINGLE).frame());
        let wire = node_a.run(Program::FromEndpoint, &request(TWIN).frame()).frame;
        let inner = inner(&wire);
        let at = if transport == Transport::Ping { 4 } else { 0 };
        let changed = ports(&inner[at..]).0;
        assert_ne!(changed, 5000, "{transport:?}: taken towards this instance");
        let received = Packet {
            source: A_SHOWN,
            destination: S,
            source_port: changed,
            ..request(TWIN)
        };
        for length in QUOTED {
            let kind = (3, 3, [0; 4]);
            let sent = error(kind, S, A_SHOWN, answering(&received), &quote(&received, length));
            let wire = node_b.run(Program::FromEndpoint, &sent.frame()).frame;
            let shown = error(kind, TWIN, A, (80, 5000), &quote(&request(TWIN), length)).out_of(&B_TO_A);
            let case = format!("{transport:?}, {length} quoted");
            node_a.expect(&case, Program::FromUplink, &wire, Action::Deliver, &shown.frame());
        }
    }
}

#[test]
fn p31_errors_about_published_ports_are_translated_both_ways() {
    const ROUTER: Address = [203, 0, 113, 77];
    for transport in [Transport::Tcp, Transport::Udp, Transport::UncheckedUdp] {
        let node = published::publisher();
        for length in QUOTED {
            let case = format!("{transport:?}, {length} quoted");
            let request = Packet {
                transport,
                ..published::request()
            };
            node.run(Program::FromUplink, &request.frame());
            let received = Packet {
                destination: A,
                destination_port: 80,
                ..request.clone()
            };
            let kind = (3, 4, [0, 0, 5, 0]);
            let sent = error(kind, A, request.source, (80, 5000), &quote(&received, length));
            let seen = error(
                kind,
                OUTER_A,
                request.source,
                (8080, 5000),
                &quote(&request, length),
            );
            node.expect(
                &format!("{case}: from the server"),
                Program::FromEndpoint,
                &sent.frame(),
                Action::PublishAnswer,
                &seen.frame(),
            );

            let answer = Packet {
                transport,
                ..published::answer()
            };
            node.run(Program::FromEndpoint, &answer.frame());
            let shown = Packet {
                source: OUTER_A,
                source_port: 8080,
                ..answer.clone()
            };
            for from in [ROUTER, request.source] {
                let sent = error(kind, from, OUTER_A, (5000, 8080), &quote(&shown, length));
                let seen = error(kind, from, A, (5000, 80), &quote(&answer, length));
                node.expect(
                    &format!("{case}: from {from:?}"),
                    Program::FromUplink,
                    &sent.frame(),
                    Action::Publish,
                    &seen.frame(),
                );
            }
            for (name, program, packet) in [
                (
                    "about a port that is not published",
                    Program::FromUplink,
                    error(
                        kind,
                        ROUTER,
                        OUTER_A,
                        (0, 0),
                        &quote(
                            &Packet {
                                source_port: 8081,
                                ..shown.clone()
                            },
                            length,
                        ),
                    ),
                ),
                (
                    "of this node's own address, from the wire",
                    Program::FromUplink,
                    error(kind, OUTER_A, OUTER_A, (0, 0), &quote(&shown, length)),
                ),
                (
                    "from another endpoint of the node",
                    Program::FromEndpoint,
                    Packet {
                        source: C,
                        ..error(kind, C, OUTER_A, (0, 0), &quote(&shown, length))
                    },
                ),
                (
                    "about somebody else's packet",
                    Program::FromUplink,
                    error(
                        kind,
                        ROUTER,
                        OUTER_A,
                        (0, 0),
                        &quote(
                            &Packet {
                                source: OUTER_B,
                                ..shown.clone()
                            },
                            length,
                        ),
                    ),
                ),
            ] {
                node.passes(&format!("{case}: {name}"), program, &packet.frame());
            }
        }
    }
}

#[test]
fn p31_the_node_as_client_of_a_published_port_hears_of_errors() {
    let node = published::publisher();
    let request = Packet {
        transport: Transport::Udp,
        source: [127, 0, 0, 1],
        destination: [127, 0, 0, 1],
        to_mac: [0; 6],
        from_mac: [0; 6],
        ..published::request()
    };
    node.run(Program::FromLoopback, &request.frame());
    let received = Packet {
        source: HOST,
        destination: A,
        destination_port: 80,
        ..request.clone()
    };
    let kind = (3, 3, [0; 4]);
    let sent = error(kind, A, HOST, (80, 5000), &quote(&received, 8));
    let seen = Packet {
        to_mac: [0; 6],
        from_mac: [0; 6],
        ..error(kind, [127, 0, 0, 1], [127, 0, 0, 1], (0, 0), &quote(&request, 8))
    };
    node.expect(
        "port closed",
        Program::FromEndpoint,
        &sent.frame(),
        Action::PublishAnswer,
        &seen.frame(),
    );
}

#[test]
fn p31_an_error_neither_keeps_a_flow_alive_nor_ends_it() {
    let mut node = Host::at(Site::A);
    let request = Packet {
        transport: Transport::Udp,
        ..Packet::default()
    };
    node.run(Program::FromEndpoint, &request.frame());
    let entries = |node: &Host| -> Vec<_> {
        node.tables
            .unanswered
            .iter()
            .map(|entry| entry.expect("a readable map"))
            .collect()
    };
    for (key, flow) in entries(&node) {
        let older = dataplane_ebpf::tables::Flow {
            last_seen: flow.last_seen - 7,
            ..flow
        };
        node.tables.unanswered.insert(key, older, 0).expect("written");
    }
    let before = entries(&node);
    assert_eq!(before.len(), 2);
    let quoted = Packet {
        source: A,
        destination: S_SHOWN,
        ..request
    };
    let wire = B_TO_A.carrying(&error((3, 3, [0; 4]), S_SHOWN, A, (80, 5000), &quote(&quoted, 8)));
    let ran = node.run(Program::FromUplink, &wire);
    assert_eq!(ran.counted[0].1, Action::Deliver.as_str());
    assert_eq!(entries(&node), before);
}

#[test]
fn p32_what_concerns_no_packet_of_the_receiver_is_dropped() {
    let node = Host::at(Site::A);
    let request = Packet::default();
    node.run(Program::FromEndpoint, &request.frame());
    let kind = (3, 3, [0; 4]);
    let quoted = Packet {
        source: A,
        destination: S_SHOWN,
        ..request.clone()
    };
    let sent = |packet: &Packet, length| error(kind, S_SHOWN, A, (80, 5000), &quote(packet, length));
    let error_inside = error(kind, A, S_SHOWN, (0, 0), &quote(&request, 8));
    let cases = [
        (
            "another port",
            sent(
                &Packet {
                    source_port: 5001,
                    ..quoted.clone()
                },
                8,
            ),
        ),
        (
            "another protocol",
            sent(
                &Packet {
                    transport: Transport::Udp,
                    ..quoted.clone()
                },
                8,
            ),
        ),
        (
            "a protocol without ports",
            sent(
                &Packet {
                    transport: Transport::Raw(132),
                    ..quoted.clone()
                },
                8,
            ),
        ),
        (
            "a packet of somebody else",
            sent(
                &Packet {
                    source: C,
                    ..quoted.clone()
                },
                8,
            ),
        ),
        (
            "a packet to somebody else",
            sent(
                &Packet {
                    destination: T_SHOWN,
                    ..quoted.clone()
                },
                8,
            ),
        ),
        ("an error about an error", sent(&error_inside, 36)),
        (
            "a later fragment",
            sent(
                &Packet {
                    fragment_offset: 3,
                    ..quoted.clone()
                },
                8,
            ),
        ),
        ("seven bytes", sent(&quoted, 7)),
        ("no transport header", sent(&quoted, 0)),
        (
            "half an IPv4 header",
            error(kind, S_SHOWN, A, (80, 5000), &quoted.ip()[..10]),
        ),
        ("nothing quoted", error(kind, S_SHOWN, A, (80, 5000), &[])),
        (
            "no IPv4",
            error(
                kind,
                S_SHOWN,
                A,
                (80, 5000),
                &[&[0x65], &quoted.ip()[1..28]].concat(),
            ),
        ),
        (
            "a header shorter than itself",
            error(
                kind,
                S_SHOWN,
                A,
                (80, 5000),
                &[&[0x44], &quoted.ip()[1..28]].concat(),
            ),
        ),
    ];
    for (name, packet) in &cases {
        node.drops(
            name,
            Program::FromUplink,
            &B_TO_A.carrying(packet),
            DropReason::IcmpError,
        );
    }
    for (name, kind, reason) in [
        ("source quench", 4, DropReason::IcmpType),
        ("redirect", 5, DropReason::IcmpType),
    ] {
        let packet = error((kind, 0, [0; 4]), S_SHOWN, A, (80, 5000), &quote(&quoted, 8));
        node.drops(name, Program::FromUplink, &B_TO_A.carrying(&packet), reason);
    }
}

#[test]
fn p32_nobody_speaks_in_somebody_else_s_name() {
    let mut node = Host::at(Site::A);
    let request = Packet::default();
    node.run(Program::FromEndpoint, &request.frame());
    let kind = (3, 3, [0; 4]);
    let quoted = |source, destination| {
        let packet = Packet {
            source,
            destination,
            ..request.clone()
        };
        quote(&packet, 8)
    };
    for (name, source, destination, quote, reason) in [
        (
            "an instance of another node",
            T_SHOWN,
            A,
            quoted(A, T_SHOWN),
            DropReason::SourceNotOnNode,
        ),
        (
            "a service",
            SINGLE,
            A,
            quoted(A, SINGLE),
            DropReason::SourceNotOnNode,
        ),
        (
            "somebody of this node",
            C_SHOWN,
            A,
            quoted(A, C_SHOWN),
            DropReason::SourceNotOnNode,
        ),
        (
            "nobody of the overlay",
            OUTER_B,
            A,
            quoted(A, OUTER_B),
            DropReason::SourceNotOverlay,
        ),
        (
            "to nobody here",
            S_SHOWN,
            S,
            quoted(S, S_SHOWN),
            DropReason::DestinationNotLocal,
        ),
        (
            "nobody that is known",
            UNKNOWN,
            A,
            quoted(A, UNKNOWN),
            DropReason::IcmpError,
        ),
    ] {
        let packet = error(kind, source, destination, (80, 5000), &quote);
        node.drops(name, Program::FromUplink, &B_TO_A.carrying(&packet), reason);
    }
    // An endpoint: about what it was not sent, to who has not sent it, about an answer that it was not given.
    for (name, destination, quote) in [
        ("a packet to a neighbour", S_SHOWN, quoted(S_SHOWN, C)),
        ("a packet of somebody else", S_SHOWN, quoted(T_SHOWN, A)),
        ("no answer of a service", TWIN, quoted(TWIN, A)),
        ("a service without instances", EMPTY, quoted(EMPTY, A)),
        ("nobody", UNKNOWN, quoted(UNKNOWN, A)),
        ("a neighbour that has sent nothing", C_SHOWN, quoted(C_SHOWN, A)),
    ] {
        let packet = error(kind, A, destination, (80, 5000), &quote);
        node.drops(
            name,
            Program::FromEndpoint,
            &packet.frame(),
            DropReason::IcmpError,
        );
    }
    let spoofed = error(kind, S_SHOWN, A_SHOWN, (80, 5000), &quoted(A_SHOWN, S_SHOWN));
    node.drops(
        "spoofed",
        Program::FromEndpoint,
        &spoofed.frame(),
        DropReason::Spoofed,
    );

    replace(&mut node.tables, S);
    let packet = error(kind, S_SHOWN, A, (80, 5000), &quoted(A, S_SHOWN));
    node.drops(
        "who took the instance's place",
        Program::FromUplink,
        &B_TO_A.carrying(&packet),
        DropReason::IcmpError,
    );
}

#[test]
fn p30_an_error_about_an_echo_keeps_the_identifier() {
    let (node_a, node_b) = (Host::at(Site::A), Host::at(Site::B));
    let request = Packet {
        transport: Transport::Ping,
        flags: PSH,
        source_port: 0x4711,
        ..Packet::default()
    };
    node_a.run(Program::FromEndpoint, &request.frame());
    let received = Packet {
        source: A_SHOWN,
        destination: S,
        ..request.clone()
    };
    let kind = (11, 1, [0; 4]);
    let sent = error(kind, S, A_SHOWN, answering(&request), &quote(&received, 8));
    let wire = node_b.run(Program::FromEndpoint, &sent.frame()).frame;
    let shown = error(kind, SINGLE, A, (0, 0), &quote(&request, 8)).out_of(&B_TO_A);
    node_a.expect(
        "time exceeded",
        Program::FromUplink,
        &wire,
        Action::Deliver,
        &shown.frame(),
    );
}
