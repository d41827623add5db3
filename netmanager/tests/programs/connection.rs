//! P-20: what a TCP segment may begin, and what becomes of one that belongs to no flow.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, FIN, PSH, Packet, RST, SYN, Transport, inner, ipv4, ports};
use crate::host::Host;
use crate::topology::{
    A, A_SHOWN, A_TO_B, A_TO_C, B_TO_A, BALANCED, EMPTY, GATEWAY_MAC, HOST, MAC_OF_A, S, S_SHOWN, SINGLE,
    Site, T,
};

/// A segment of a client's connection to the balanced service.
fn segment(flags: u8, source_port: u16) -> Packet {
    Packet {
        flags,
        source_port,
        destination: BALANCED,
        ..Packet::default()
    }
}

/// Sends a segment and says which instance it goes to.
#[track_caller]
fn goes_to(node: &Host, packet: &Packet) -> Address {
    let ran = node.run(Program::FromEndpoint, &packet.frame());
    let chosen = ipv4(&inner(&ran.frame)).destination;
    let outer = if chosen == S { A_TO_B } else { A_TO_C };
    let sent = Packet {
        source: A_SHOWN,
        destination: chosen,
        ..packet.clone()
    };
    assert_eq!(ran.frame, outer.carrying(&sent));
    chosen
}

#[test]
fn p20_a_repeated_syn_goes_to_the_same_instance() {
    let node = Host::at(Site::A);
    let first = goes_to(&node, &segment(SYN, 5000));
    for _ in 0..3 {
        assert_eq!(goes_to(&node, &segment(SYN, 5000)), first);
    }
    let second = goes_to(&node, &segment(SYN, 5001));
    assert_eq!(
        [first, second],
        [S, T],
        "another connection goes to the other instance"
    );
    assert_eq!(node.flows().len(), 4);
}

#[test]
fn p20_a_syn_on_a_connection_that_one_side_ended_chooses_anew() {
    // Name, what ends the connection, whether the server sends it, and whether the next SYN chooses anew.
    let cases = [
        ("nothing", ACK, false, false),
        ("data from the server", ACK | PSH, true, false),
        ("the client's FIN", FIN | ACK, false, true),
        ("the client's RST", RST, false, true),
        ("the server's FIN", FIN | ACK, true, true),
        ("the server's RST", RST | ACK, true, true),
    ];
    let mut node = Host::at(Site::A);
    for (name, flags, from_server, anew) in cases {
        node.reset();
        assert_eq!(goes_to(&node, &segment(SYN, 5000)), S, "{name}");
        if from_server {
            let answer = Packet {
                flags,
                source: S_SHOWN,
                source_port: 80,
                destination: A,
                destination_port: 5000,
                ..Packet::default()
            };
            let shown = Packet {
                source: BALANCED,
                ..answer.clone()
            };
            node.expect(
                name,
                Program::FromUplink,
                &B_TO_A.carrying(&answer),
                Action::Deliver,
                &shown.out_of(&B_TO_A).frame(),
            );
        } else {
            assert_eq!(goes_to(&node, &segment(flags, 5000)), S, "{name}");
        }
        assert_eq!(
            goes_to(&node, &segment(ACK, 5000)),
            S,
            "{name}: it may end in peace"
        );
        let next = if anew { T } else { S };
        assert_eq!(goes_to(&node, &segment(SYN, 5000)), next, "{name}");
        assert_eq!(
            goes_to(&node, &segment(SYN, 5000)),
            next,
            "{name}: and stays there"
        );
        assert_eq!(node.flows().len(), 2, "{name}: the ended flow is gone");
    }
}

/// What RFC 9293 (3.10.7.1) has a closed port answer: sequence, acknowledgement, flags.
type Answer = (u32, u32, u8);

const SEQUENCE: u32 = 0xffff_fff8;
const ACKNOWLEDGED: u32 = 0x89ab_cdef;
/// Flags and payload of a segment of no flow, and its answer.
const STRAYS: [(&str, u8, usize, Answer); 9] = [
    ("ACK", ACK, 0, (ACKNOWLEDGED, 0, RST)),
    ("ACK with data", ACK | PSH, 100, (ACKNOWLEDGED, 0, RST)),
    ("SYN and ACK", SYN | ACK, 0, (ACKNOWLEDGED, 0, RST)),
    ("FIN and ACK", FIN | ACK, 3, (ACKNOWLEDGED, 0, RST)),
    ("no flags, no data", 0, 0, (0, SEQUENCE, RST | ACK)),
    ("data without ACK", PSH, 100, (0, 92, RST | ACK)),
    ("FIN alone", FIN, 0, (0, SEQUENCE + 1, RST | ACK)),
    ("FIN with data", FIN, 8, (0, 1, RST | ACK)),
    ("SYN and FIN", SYN | FIN, 7, (0, 1, RST | ACK)),
];

#[test]
fn p20_a_segment_of_no_flow_is_answered_with_a_reset() {
    let node = Host::at(Site::A);
    for destination in [SINGLE, BALANCED, EMPTY] {
        for (name, flags, length, (sequence, acknowledgement, answer_flags)) in STRAYS {
            for (options, trailer) in [(&[][..], 0), (&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2][..], 9)] {
                let stray = Packet {
                    flags,
                    sequence: SEQUENCE,
                    acknowledgement: ACKNOWLEDGED,
                    type_of_service: 0xb9,
                    destination,
                    tcp_options: options,
                    payload: vec![0x77; length],
                    trailer: vec![0xee; trailer],
                    ..Packet::default()
                };
                let answer = Packet {
                    to_mac: MAC_OF_A,
                    from_mac: GATEWAY_MAC,
                    source: destination,
                    source_port: 80,
                    destination: A,
                    destination_port: 5000,
                    flags: answer_flags,
                    sequence,
                    acknowledgement,
                    window: 0,
                    identification: 0,
                    payload: Vec::new(),
                    ..Packet::default()
                };
                for program in [Program::FromEndpoint, Program::FromOak0] {
                    let case = format!("{name} to {destination:?}, {program:?}");
                    node.expect(&case, program, &stray.frame(), Action::Reset, &answer.frame());
                }
                let stray = Packet {
                    source: HOST,
                    ..stray
                };
                let answer = Packet {
                    destination: HOST,
                    ..answer
                };
                node.expect(
                    name,
                    Program::FromHost,
                    &stray.frame(),
                    Action::Reset,
                    &answer.frame(),
                );
            }
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p20_a_reset_of_no_flow_is_not_answered() {
    let node = Host::at(Site::A);
    for flags in [RST, RST | ACK, RST | SYN, RST | FIN] {
        let packet = segment(flags, 5000);
        let case = format!("flags {flags:#04x}");
        node.drops(&case, Program::FromEndpoint, &packet.frame(), DropReason::NoFlow);
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p20_an_echo_reply_of_no_flow_is_dropped() {
    let node = Host::at(Site::A);
    let packet = Packet {
        transport: Transport::Pong,
        ..Packet::default()
    };
    node.drops(
        "a reply to nobody's request",
        Program::FromEndpoint,
        &packet.frame(),
        DropReason::NoFlow,
    );
}

#[test]
fn p20_segments_of_no_flow_take_no_turn_of_the_service() {
    let node = Host::at(Site::A);
    for (stray, port) in [(ACK, 5000), (RST, 5010)] {
        let chosen = (port..port + 4).map(|source_port| {
            node.run(Program::FromEndpoint, &segment(stray, 6000).frame());
            goes_to(&node, &segment(SYN, source_port))
        });
        assert_eq!(chosen.collect::<Vec<_>>(), [S, T, S, T], "flags {stray:#04x}");
    }
}

#[test]
fn p20_both_sides_may_open_at_once() {
    let node = Host::at(Site::A);
    assert_eq!(goes_to(&node, &segment(SYN, 5000)), S);
    // The server's SYN crosses the client's (RFC 9293, 3.5): to the client it comes from the service.
    let crossing = Packet {
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..Packet::default()
    };
    for flags in [SYN, SYN | ACK, ACK] {
        let answer = Packet {
            flags,
            ..crossing.clone()
        };
        let shown = Packet {
            source: BALANCED,
            ..answer.clone()
        };
        node.expect(
            "the server's half",
            Program::FromUplink,
            &B_TO_A.carrying(&answer),
            Action::Deliver,
            &shown.out_of(&B_TO_A).frame(),
        );
        assert_eq!(goes_to(&node, &segment(SYN | ACK, 5000)), S);
    }
    assert_eq!(node.flows().len(), 2);
}

#[test]
fn p20_the_source_port_survives_a_new_choice() {
    let node = Host::at(Site::A);
    for flags in [SYN, FIN | ACK, SYN] {
        let ran = node.run(Program::FromEndpoint, &segment(flags, 5000).frame());
        assert_eq!(ports(&inner(&ran.frame)), (5000, 80));
    }
}
