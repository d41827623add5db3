//! P-04: fragments of what the overlay carries, and of the tunnel's own datagrams.

use dataplane_ebpf::tables::{EARLY_FRAGMENTS_PER_WINDOW, FRAGMENT_KEPT, FRAGMENT_WAITS, Peer};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, Outer, Packet, SYN, Transport, inner, ports};
use crate::host::{Context, Host, Outcome, PASS, REDIRECT, SHOT, WAYS_OUT, assert_outcome, run};
use crate::outsiders::{from_stranger, stay_on_this_processor};
use crate::published;
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, C, EMPTY, HOST_SHOWN, INTERFACE, NEIGHBOUR, OTHER_INTERFACE, OUTER_B,
    OUTER_C, S, S_SHOWN, SINGLE, Site, T_SHOWN, TWIN,
};

/// The fragments of a packet: each but the last has `size` bytes behind its IPv4 header.
fn fragments(whole: &Packet, size: usize) -> Vec<Packet> {
    assert_eq!(size % 8, 0, "offsets are in units of eight bytes");
    let header = 20 + whole.ip_options.len();
    let bytes = whole.ip()[header..].to_vec();
    let (source_port, destination_port) = whole.ports();
    let last = (bytes.len() - 1) / size;
    let pieces = bytes.chunks(size).enumerate();
    pieces
        .map(|(index, piece)| Packet {
            transport: Transport::Raw(whole.transport.protocol()),
            source_port,
            destination_port,
            dont_fragment: false,
            more_fragments: index != last,
            fragment_offset: u16::try_from(index * size / 8).expect("within a packet"),
            payload: piece.to_vec(),
            ..whole.clone()
        })
        .collect()
}

/// A packet of 100 bytes behind its transport header, which makes three to four fragments of 40.
fn long(transport: Transport) -> Packet {
    Packet {
        transport,
        payload: (0..100).collect(),
        ..Packet::default()
    }
}

const SIZE: usize = 40;

fn sent_to_s(packet: &Packet, shown: Address) -> Packet {
    Packet {
        source: shown,
        destination: S,
        ..packet.clone()
    }
}

fn shown_of(source: Address) -> Address {
    if source == A { A_SHOWN } else { HOST_SHOWN }
}

/// What s on site B answers to a's packet.
fn answer(transport: Transport) -> Packet {
    Packet {
        flags: SYN | ACK,
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..long(transport.answer())
    }
}

#[test]
fn p04_fragments_in_order_take_the_way_of_the_first() {
    for transport in Transport::CARRIED {
        for options in [&[][..], &[1; 8], &[1; 40]] {
            let node = Host::at(Site::A);
            for (program, source) in WAYS_OUT {
                let whole = Packet {
                    source,
                    ip_options: options,
                    ..long(transport)
                };
                let sent = sent_to_s(&whole, shown_of(source));
                let pieces: Vec<_> = fragments(&whole, SIZE)
                    .into_iter()
                    .zip(fragments(&sent, SIZE))
                    .collect();
                assert!(pieces.len() >= 3);
                // A duplicate is carried as well: putting them together is the receiver's.
                for (index, (out, sent)) in pieces.iter().chain(&pieces[1..2]).enumerate() {
                    let case = format!(
                        "{program:?}, {transport:?}, {} B of options, {index}",
                        options.len()
                    );
                    node.expect(
                        &case,
                        program,
                        &out.frame(),
                        Action::Tunnel,
                        &A_TO_B.carrying(sent),
                    );
                }
            }
            let pieces = fragments(
                &Packet {
                    ip_options: options,
                    ..answer(transport)
                },
                SIZE,
            );
            for (index, piece) in pieces.iter().enumerate() {
                let shown = Packet {
                    source: SINGLE,
                    ..piece.clone()
                };
                // The transport checksum is in the first, and covers all of them.
                let expected = fragments(
                    &Packet {
                        source: SINGLE,
                        ip_options: options,
                        ..answer(transport)
                    },
                    SIZE,
                )
                .swap_remove(index);
                assert_eq!(shown.payload.len(), expected.payload.len());
                node.expect(
                    &format!("back, {transport:?}, {index}"),
                    Program::FromUplink,
                    &B_TO_A.carrying(piece),
                    Action::Deliver,
                    &expected.out_of(&B_TO_A).frame(),
                );
            }
        }
    }
}

#[test]
fn p04_fragments_between_two_endpoints_of_a_node_are_delivered() {
    for transport in Transport::CARRIED {
        let node = Host::at(Site::A);
        let whole = Packet {
            destination: NEIGHBOUR,
            ..long(transport)
        };
        let received = Packet {
            source: A_SHOWN,
            destination: C,
            ..whole.clone()
        };
        let pieces = fragments(&whole, SIZE)
            .into_iter()
            .zip(fragments(&received, SIZE));
        for (index, (out, received)) in pieces.enumerate() {
            node.expect(
                &format!("{transport:?}, {index}"),
                Program::FromEndpoint,
                &out.frame(),
                Action::Deliver,
                &received.frame(),
            );
        }
    }
}

#[test]
fn p04_a_fragment_before_the_first_waits_at_netmanager_and_so_does_the_first() {
    for transport in Transport::CARRIED {
        for (program, source) in WAYS_OUT
            .into_iter()
            .filter(|(program, _)| *program != Program::FromOak0)
        {
            let node = Host::at(Site::A);
            let whole = Packet {
                source,
                ..long(transport)
            };
            let out: Vec<_> = fragments(&whole, SIZE).iter().map(Packet::frame).collect();
            let sent = fragments(&sent_to_s(&whole, shown_of(source)), SIZE);
            let sent: Vec<_> = sent.iter().map(|sent| A_TO_B.carrying(sent)).collect();
            let case = format!("{program:?}, {transport:?}");
            for index in [1, 2, 0, 1] {
                node.expect(&case, program, &out[index], Action::Park, &out[index]);
            }
            assert_eq!(node.flows().len(), 0, "nothing was decided yet");
            // NetManager writes the first back first.
            for index in [0, 1, 2, 1] {
                node.expect(
                    &case,
                    Program::FromOak0,
                    &out[index],
                    Action::Tunnel,
                    &sent[index],
                );
            }
            // What comes late finds its way by itself.
            node.expect(&case, program, &out[2], Action::Tunnel, &sent[2]);
        }
    }
}

#[test]
fn p04_a_fragment_of_a_tunnelled_datagram_before_the_first_waits_too() {
    for transport in Transport::CARRIED {
        let node = Host::at(Site::A);
        let pieces = fragments(&answer(transport), SIZE);
        let wire: Vec<_> = pieces.iter().map(|piece| B_TO_A.carrying(piece)).collect();
        for index in [2, 0, 1] {
            node.expect(
                "before",
                Program::FromUplink,
                &wire[index],
                Action::Park,
                &wire[index],
            );
        }
        for index in [0, 2, 1] {
            let received = pieces[index].out_of(&B_TO_A).frame();
            node.expect(
                "back",
                Program::FromOak0,
                &wire[index],
                Action::Deliver,
                &received,
            );
        }
        let received = pieces[2].out_of(&B_TO_A).frame();
        node.expect("after", Program::FromUplink, &wire[2], Action::Deliver, &received);
    }
}

#[test]
fn p04_who_may_not_enter_does_not_wait_either() {
    let node = Host::at(Site::A);
    let later = fragments(&answer(Transport::Udp), SIZE).swap_remove(1);
    let cases = [
        (
            "to nobody here",
            Packet {
                destination: S,
                ..later.clone()
            },
            DropReason::DestinationNotLocal,
        ),
        (
            "from outside the overlay",
            Packet {
                source: OUTER_B,
                ..later.clone()
            },
            DropReason::SourceNotOverlay,
        ),
        (
            "from an instance of another node",
            Packet {
                source: T_SHOWN,
                ..later.clone()
            },
            DropReason::SourceNotOnNode,
        ),
        (
            "from a service",
            Packet {
                source: SINGLE,
                ..later.clone()
            },
            DropReason::SourceNotOnNode,
        ),
        (
            "of another protocol",
            Packet {
                transport: Transport::Raw(132),
                ..later
            },
            DropReason::Protocol,
        ),
    ];
    for (name, packet, reason) in cases {
        for program in [Program::FromUplink, Program::FromOak0] {
            node.drops(name, program, &B_TO_A.carrying(&packet), reason);
        }
    }
    assert_eq!(node.tables.fragments.keys().count(), 0);
}

#[test]
fn p04_a_first_fragment_that_may_not_enter_leaves_no_ports() {
    let node = Host::at(Site::A);
    let forged = Packet {
        source: T_SHOWN,
        ..answer(Transport::Udp)
    };
    let first = fragments(&forged, SIZE).swap_remove(0);
    node.drops(
        "forged",
        Program::FromUplink,
        &B_TO_A.carrying(&first),
        DropReason::SourceNotOnNode,
    );
    assert_eq!(node.tables.fragments.keys().count(), 0);
}

#[test]
fn p04_who_has_waited_in_vain_is_counted() {
    let node = Host::at(Site::A);
    let later = fragments(&long(Transport::Udp), SIZE).swap_remove(1);
    node.drops("out", Program::FromOak0, &later.frame(), DropReason::Fragment);
    let later = fragments(&answer(Transport::Udp), SIZE).swap_remove(1);
    node.drops(
        "in",
        Program::FromOak0,
        &B_TO_A.carrying(&later),
        DropReason::Fragment,
    );
}

/// Lets everything in `FRAGMENTS` be that much older.
fn age(node: &mut Host, units: u32) {
    let entries: Result<Vec<_>, _> = node.tables.fragments.iter().collect();
    let entries = entries.expect("a readable map");
    assert!(!entries.is_empty());
    for (key, mut entry) in entries {
        entry.seen -= units;
        node.tables.fragments.insert(key, entry, 0).expect("it is there");
    }
}

#[test]
fn p04_ports_and_marks_are_forgotten_in_time() {
    let mut node = Host::at(Site::A);
    let out = fragments(&long(Transport::Udp), SIZE);
    let [first, later] = [out[0].frame(), out[1].frame()];
    let outcome = |node: &Host, frame: &[u8]| node.run(Program::FromEndpoint, frame).counted[0].1.clone();
    assert_eq!(outcome(&node, &first), Action::Tunnel.as_str());
    // One unit of tolerance: the clock may go on while this runs.
    age(&mut node, FRAGMENT_KEPT - 1);
    assert_eq!(outcome(&node, &later), Action::Tunnel.as_str());
    age(&mut node, 2);
    assert_eq!(
        outcome(&node, &later),
        Action::Park.as_str(),
        "of another datagram by now"
    );
    assert_eq!(outcome(&node, &first), Action::Park.as_str());
    age(&mut node, FRAGMENT_WAITS + 1);
    assert_eq!(
        outcome(&node, &first),
        Action::Tunnel.as_str(),
        "NetManager has given the later one up"
    );
    assert_eq!(outcome(&node, &later), Action::Tunnel.as_str());
}

#[test]
fn p04_a_header_that_is_cut_off_is_counted() {
    let node = Host::at(Site::A);
    let tcp = Packet {
        tcp_options: &[2, 4, 5, 0xb4, 1, 1, 1, 1, 1, 1, 1, 0],
        ..long(Transport::Tcp)
    };
    let cases = [
        ("TCP, ports alone", tcp.clone(), 8, DropReason::Short),
        ("TCP, no flags", tcp.clone(), 16, DropReason::Short),
        ("TCP, options cut", tcp, 24, DropReason::Malformed),
    ];
    for (name, whole, size, reason) in cases {
        let first = fragments(&whole, size).swap_remove(0);
        for (program, source) in WAYS_OUT {
            let first = Packet {
                source,
                ..first.clone()
            };
            node.drops(name, program, &first.frame(), reason);
        }
        let reason = if reason == DropReason::Short {
            DropReason::InnerShort
        } else {
            DropReason::InnerMalformed
        };
        let first = Packet {
            source: S_SHOWN,
            destination: A,
            ..first
        };
        node.drops(name, Program::FromUplink, &B_TO_A.carrying(&first), reason);
    }
    for protocol in [1, 6, 17] {
        let first = Packet {
            transport: Transport::Raw(protocol),
            more_fragments: true,
            payload: vec![0; 4],
            ..Packet::default()
        };
        node.drops(
            "four bytes",
            Program::FromEndpoint,
            &first.frame(),
            DropReason::Short,
        );
    }
    assert_eq!((node.flows().len(), node.tables.fragments.keys().count()), (0, 0));
}

#[test]
fn p04_a_whole_udp_header_in_a_tiny_first_fragment_is_enough() {
    let node = Host::at(Site::A);
    for transport in [Transport::Udp, Transport::UncheckedUdp, Transport::Ping] {
        let whole = long(transport);
        let sent = sent_to_s(&whole, A_SHOWN);
        for (out, sent) in fragments(&whole, 8).iter().zip(fragments(&sent, 8)) {
            let wire = A_TO_B.carrying(&sent);
            node.expect("tiny", Program::FromEndpoint, &out.frame(), Action::Tunnel, &wire);
        }
    }
}

#[test]
fn p04_a_translated_port_is_in_the_first_fragment_alone() {
    let node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &long(Transport::Udp).frame());
    let whole = Packet {
        destination: TWIN,
        ..long(Transport::Udp)
    };
    let out = fragments(&whole, SIZE);
    let ran = node.run(Program::FromEndpoint, &out[0].frame());
    let (port, _) = ports(&inner(&ran.frame));
    assert_ne!(port, 5000, "the first call has that port towards s");
    let sent = Packet {
        source_port: port,
        ..sent_to_s(&whole, A_SHOWN)
    };
    let sent = fragments(&sent, SIZE);
    assert_eq!(ran.frame, A_TO_B.carrying(&sent[0]));
    for index in 1..out.len() {
        let wire = A_TO_B.carrying(&sent[index]);
        node.expect(
            "later",
            Program::FromEndpoint,
            &out[index].frame(),
            Action::Tunnel,
            &wire,
        );
    }
}

#[test]
fn p04_fragments_that_may_not_go_on_are_refused_like_their_first() {
    let node = Host::at(Site::A);
    let none = Packet {
        destination: EMPTY,
        ..long(Transport::Udp)
    };
    let out = fragments(&none, SIZE);
    let told = node.run(Program::FromEndpoint, &out[0].frame());
    assert_outcome(
        "first",
        Program::FromEndpoint,
        &told,
        Outcome::Did(Action::IcmpUnreachable),
    );
    node.drops(
        "later",
        Program::FromEndpoint,
        &out[1].frame(),
        DropReason::NoFlow,
    );
    let stray = Packet {
        flags: ACK,
        ..long(Transport::Tcp)
    };
    let out = fragments(&stray, SIZE);
    let ran = node.run(Program::FromEndpoint, &out[0].frame());
    assert_eq!(ran.counted[0].1, Action::Reset.as_str());
    node.drops(
        "a later one is no segment to be answered",
        Program::FromEndpoint,
        &out[1].frame(),
        DropReason::NoFlow,
    );
}

#[test]
fn p04_early_fragments_are_handed_up_at_a_limited_rate() {
    stay_on_this_processor();
    let node = Host::at(Site::A);
    let later = fragments(&long(Transport::Udp), SIZE).swap_remove(1).frame();
    let program = node.program(Program::FromEndpoint);
    let mut handed_up = 0;
    loop {
        match run(program, &later, Context::default()).0 {
            REDIRECT => handed_up += 1,
            verdict => {
                assert_eq!(verdict, SHOT);
                break;
            }
        }
        assert!(handed_up < 100 * EARLY_FRAGMENTS_PER_WINDOW, "never refused");
    }
    assert!(handed_up >= EARLY_FRAGMENTS_PER_WINDOW);
}

#[test]
fn p04_fragments_of_a_peer_s_datagrams_are_left_to_the_stack() {
    let node = Host::at(Site::A);
    let bytes = answer(Transport::Udp).ip();
    for (name, more_fragments, fragment_offset) in
        [("first", true, 0), ("middle", true, 5), ("last", false, 9)]
    {
        let outer = Outer {
            more_fragments,
            fragment_offset,
            ..B_TO_A
        };
        node.passes(name, Program::FromUplink, &outer.around(&bytes));
        // Whether those of others belong to a tunnel shows in the first.
        let stranger = Outer {
            source: [198, 51, 100, 7],
            ..outer
        };
        let frame = stranger.around(&bytes);
        if fragment_offset == 0 {
            node.drops(name, Program::FromUplink, &frame, DropReason::OuterFragment);
        } else {
            node.passes(name, Program::FromUplink, &frame);
        }
        let elsewhere = Outer {
            destination: OUTER_C,
            ..outer
        };
        node.passes(name, Program::FromUplink, &elsewhere.around(&bytes));
        let other_port = Outer {
            destination_port: 53,
            ..outer
        };
        node.passes(name, Program::FromUplink, &other_port.around(&bytes));
        node.drops(
            "written back as it is",
            Program::FromOak0,
            &outer.around(&bytes),
            if fragment_offset == 0 {
                DropReason::OuterFragment
            } else {
                continue;
            },
        );
    }
}

#[test]
fn p04_no_fragment_of_a_datagram_comes_from_where_the_peer_is_not() {
    let mut node = Host::at(Site::A);
    let peer = Peer {
        group: Site::B.index(Site::A),
        interface: OTHER_INTERFACE,
    };
    node.tables.peers.insert(OUTER_B, peer, 0).expect("room in PEERS");
    let bytes = answer(Transport::Udp).ip();
    for (more_fragments, fragment_offset) in [(true, 0), (true, 5), (false, 9)] {
        let outer = Outer {
            more_fragments,
            fragment_offset,
            ..B_TO_A
        };
        let context = Context {
            interface: INTERFACE,
            ..Context::default()
        };
        let ran = node.run_with(Program::FromUplink, &outer.around(&bytes), context);
        assert_eq!(ran.counted[0].1, DropReason::WrongInterface.as_str());
    }
}

#[test]
fn p41_what_netmanager_writes_back_is_admitted_like_what_comes_from_the_wire() {
    let node = Host::at(Site::A);
    let whole = Packet {
        payload: vec![7; 3000],
        ..answer(Transport::Udp)
    };
    let received = whole.out_of(&B_TO_A).frame();
    let wire = B_TO_A.carrying(&whole);
    node.expect(
        "put together",
        Program::FromOak0,
        &wire,
        Action::Deliver,
        &received,
    );
    let forged = Packet {
        source: T_SHOWN,
        ..whole.clone()
    };
    let wire = B_TO_A.carrying(&forged);
    node.drops("forged", Program::FromOak0, &wire, DropReason::SourceNotOnNode);
    let ran = node.run(Program::FromOak0, &from_stranger());
    assert_eq!(ran.counted[0].1, DropReason::TunnelFromEndpoint.as_str());
    let not_ours = Outer {
        destination: OUTER_C,
        ..B_TO_A
    };
    let wire = not_ours.around(&whole.ip());
    node.drops(
        "not to this node",
        Program::FromOak0,
        &wire,
        DropReason::TunnelFromEndpoint,
    );
}

#[test]
fn p04_a_published_port_takes_fragments_behind_their_first() {
    let node = published::publisher();
    let request = Packet {
        payload: (0..100).collect(),
        ..published::request()
    };
    let whole = node.run(Program::FromUplink, &request.frame());
    assert_eq!(whole.counted[0].1, Action::Publish.as_str());
    let out = fragments(&request, SIZE);
    assert_eq!(
        node.run(Program::FromUplink, &out[1].frame()).verdict,
        PASS,
        "nobody knows whose it is"
    );
    let mut payload = Vec::new();
    for piece in &out {
        let ran = node.run(Program::FromUplink, &piece.frame());
        assert_eq!(ran.counted[0].1, Action::Publish.as_str());
        assert_eq!(ran.frame[26..34], whole.frame[26..34], "the same addresses");
        payload.extend_from_slice(&ran.frame[34..]);
    }
    assert_eq!(payload, whole.frame[34..], "put together, it is the whole one");

    let answer = Packet {
        payload: (0..100).collect(),
        ..published::answer()
    };
    let whole = node.run(Program::FromEndpoint, &answer.frame());
    assert_eq!(whole.counted[0].1, Action::PublishAnswer.as_str());
    let mut payload = Vec::new();
    for piece in fragments(&answer, SIZE) {
        let ran = node.run(Program::FromEndpoint, &piece.frame());
        assert_eq!(ran.counted[0].1, Action::PublishAnswer.as_str());
        assert_eq!(ran.frame[26..34], whole.frame[26..34]);
        payload.extend_from_slice(&ran.frame[34..]);
    }
    assert_eq!(payload, whole.frame[34..]);
}
