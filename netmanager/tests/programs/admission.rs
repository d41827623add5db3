//! P-41: what a tunnel datagram has to be to enter.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ETHERNET, IPV4, OVERHEAD, Outer, Packet, Transport, patched};
use crate::host::Host;
use crate::topology::{
    A, A_SHOWN, B_TO_A, BALANCED, C, C_SHOWN, C_TO_A, GATEWAY_MAC, HOST, HOST_B_SHOWN, MAC_OF_V, OUTER_A,
    OUTER_B, S, S_SHOWN, SINGLE, Site, T, T_SHOWN, UNKNOWN, V, replace, set_node,
};

/// What s on site B sends to a: nothing that a asked for.
fn inner() -> Packet {
    Packet {
        source: S_SHOWN,
        source_port: 7000,
        destination: A,
        ..Packet::default()
    }
}

#[test]
fn p41_a_valid_datagram_is_unwrapped_and_delivered_by_the_receiver_s_kind() {
    let node = Host::at(Site::A);
    let cases = [
        ("container", A, Action::Deliver, B_TO_A.to_mac),
        ("virtual machine", V, Action::Deliver, MAC_OF_V),
        ("the node itself", HOST, Action::DeliverHost, B_TO_A.to_mac),
    ];
    for (name, destination, action, to_mac) in cases {
        for transport in [
            Transport::Tcp,
            Transport::Udp,
            Transport::UncheckedUdp,
            Transport::Ping,
            Transport::Pong,
        ] {
            for type_of_service in [0, 0xbb] {
                let inner = Packet {
                    transport,
                    destination,
                    type_of_service,
                    ..inner()
                };
                let delivered = Packet {
                    to_mac,
                    ..inner.out_of(&B_TO_A)
                };
                node.expect(
                    &format!("{name}, {transport:?}"),
                    Program::FromUplink,
                    &B_TO_A.carrying(&inner),
                    action,
                    &delivered.frame(),
                );
            }
        }
    }
    assert_eq!(node.flows().len(), 0, "who only receives has no flow");
}

#[test]
fn p41_the_port_and_the_checksum_of_the_sender_do_not_matter() {
    let node = Host::at(Site::A);
    for source_port in [0, 1, 50_103, 65_535] {
        let outer = Outer {
            source_port,
            ..B_TO_A
        };
        let datagram = outer.around(&inner().ip());
        let expected = inner().out_of(&B_TO_A).frame();
        node.expect(
            "no checksum",
            Program::FromUplink,
            &datagram,
            Action::Deliver,
            &expected,
        );
        // The inner packet has its own; a sender in user space leaves the outer one to its kernel.
        let summed = Packet {
            to_mac: outer.to_mac,
            from_mac: outer.from_mac,
            source: outer.source,
            source_port,
            destination: outer.destination,
            destination_port: outer.destination_port,
            transport: Transport::Udp,
            payload: inner().ip(),
            ..Packet::default()
        };
        node.expect(
            "with checksum",
            Program::FromUplink,
            &summed.frame(),
            Action::Deliver,
            &expected,
        );
    }
}

#[test]
fn p41_every_other_version_is_dropped() {
    let node = Host::at(Site::A);
    for version in (0..16).filter(|version| *version != 4) {
        for length in [1, 20, 56] {
            let mut bytes = inner().ip()[..length].to_vec();
            bytes[0] = version << 4 | 5;
            node.drops(
                &format!("version {version}, {length} bytes"),
                Program::FromUplink,
                &B_TO_A.around(&bytes),
                DropReason::InnerVersion,
            );
        }
    }
}

#[test]
fn p41_every_truncation_of_the_inner_packet_is_dropped() {
    let node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        let bytes = Packet { transport, ..inner() }.ip();
        for length in 0..bytes.len() {
            let reason = if length < IPV4 {
                DropReason::InnerShort
            } else {
                DropReason::InnerMalformed
            };
            node.drops(
                &format!("{transport:?}, {length} bytes"),
                Program::FromUplink,
                &B_TO_A.around(&bytes[..length]),
                reason,
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        node.drops(
            "a byte too many",
            Program::FromUplink,
            &B_TO_A.around(&longer),
            DropReason::InnerMalformed,
        );
    }
}

#[test]
fn p41_an_inner_header_that_contradicts_itself_is_dropped() {
    let node = Host::at(Site::A);
    let cases: [(&str, usize, &[u8], DropReason); 5] = [
        ("header of no words", 0, &[0x40], DropReason::InnerMalformed),
        ("header of four words", 0, &[0x44], DropReason::InnerMalformed),
        ("total length of nothing", 2, &[0, 0], DropReason::InnerMalformed),
        (
            "total length below the header's",
            2,
            &[0, 19],
            DropReason::InnerMalformed,
        ),
        (
            "total length beyond the datagram",
            2,
            &[0, 57],
            DropReason::InnerMalformed,
        ),
    ];
    for (name, offset, bytes, reason) in cases {
        let datagram = patched(B_TO_A.around(&inner().ip()), ETHERNET + OVERHEAD + offset, bytes);
        node.drops(name, Program::FromUplink, &datagram, reason);
    }
}

#[test]
fn p41_outer_headers_that_contradict_each_other_are_dropped() {
    let node = Host::at(Site::A);
    // The datagram has 56 bytes inside, 64 with its UDP header, 84 with the outer IPv4 header.
    let cases: [(&str, usize, &[u8]); 7] = [
        ("UDP length of nothing", 24, &[0, 0]),
        ("UDP length below the header's", 24, &[0, 7]),
        ("UDP length too short", 24, &[0, 63]),
        ("UDP length too long", 24, &[0, 65]),
        ("IPv4 length too short for the UDP length", 2, &[0, 83]),
        ("IPv4 length without a UDP header", 2, &[0, 20]),
        ("IPv4 length within the UDP header", 2, &[0, 27]),
    ];
    assert_eq!(inner().ip().len(), 56);
    for (name, offset, bytes) in cases {
        let datagram = patched(B_TO_A.around(&inner().ip()), ETHERNET + offset, bytes);
        node.drops(name, Program::FromUplink, &datagram, DropReason::OuterMalformed);
    }
    let options = Outer {
        options: &[1, 1, 1, 0],
        ..B_TO_A
    };
    node.drops(
        "IPv4 options",
        Program::FromUplink,
        &options.around(&inner().ip()),
        DropReason::OuterMalformed,
    );
    let fragment = Outer {
        more_fragments: true,
        ..B_TO_A
    };
    node.drops(
        "the first fragment",
        Program::FromUplink,
        &fragment.around(&inner().ip()),
        DropReason::OuterFragment,
    );
}

#[test]
fn p41_the_inner_destination_has_to_be_an_endpoint_here() {
    let node = Host::at(Site::A);
    let cases = [
        ("an endpoint elsewhere", S),
        ("nobody's address of this node", [10, 18, 0, 60]),
        ("a service", SINGLE),
        ("an instance here, by its instance address", A_SHOWN),
        ("the node's outer address", OUTER_A),
        ("the world", [8, 8, 8, 8]),
        ("broadcast", [255; 4]),
        ("loopback", [127, 0, 0, 1]),
    ];
    for (name, destination) in cases {
        let packet = Packet {
            destination,
            ..inner()
        };
        node.drops(
            name,
            Program::FromUplink,
            &B_TO_A.around(&packet.ip()),
            DropReason::DestinationNotLocal,
        );
    }
}

#[test]
fn p41_the_inner_source_has_to_live_with_the_sender_or_be_unknown() {
    use DropReason::{SourceNotOnNode, SourceNotOverlay};
    let node = Host::at(Site::A);
    let cases = [
        ("from B: an instance on B", B_TO_A, S_SHOWN, None),
        ("from B: the node itself", B_TO_A, HOST_B_SHOWN, None),
        ("from B: an instance on C", B_TO_A, T_SHOWN, Some(SourceNotOnNode)),
        ("from C: the same", C_TO_A, T_SHOWN, None),
        ("from C: an instance on B", C_TO_A, S_SHOWN, Some(SourceNotOnNode)),
        ("from B: the receiver", B_TO_A, A_SHOWN, Some(SourceNotOnNode)),
        (
            "from B: another instance here",
            B_TO_A,
            C_SHOWN,
            Some(SourceNotOnNode),
        ),
        ("from B: unknown", B_TO_A, UNKNOWN, None),
        // Every answer comes from an instance; only the receiver's own node shows a service as its source.
        (
            "from B: a service with an instance there",
            B_TO_A,
            SINGLE,
            Some(SourceNotOnNode),
        ),
        ("from C: a service", C_TO_A, BALANCED, Some(SourceNotOnNode)),
        (
            "from B: a namespace address there",
            B_TO_A,
            S,
            Some(SourceNotOverlay),
        ),
        ("from B: one here", B_TO_A, C, Some(SourceNotOverlay)),
        (
            "from B: its outer address",
            B_TO_A,
            OUTER_B,
            Some(SourceNotOverlay),
        ),
        (
            "from B: just below the services",
            B_TO_A,
            [10, 29, 255, 255],
            Some(SourceNotOverlay),
        ),
        (
            "from B: just above the services",
            B_TO_A,
            [10, 31, 0, 0],
            Some(SourceNotOverlay),
        ),
        ("from B: loopback", B_TO_A, [127, 0, 0, 1], Some(SourceNotOverlay)),
        ("from B: no address", B_TO_A, [0; 4], Some(SourceNotOverlay)),
    ];
    for (name, outer, source, refused) in cases {
        for transport in Transport::CARRIED {
            let packet = Packet {
                transport,
                source,
                ..inner()
            };
            let datagram = outer.carrying(&packet);
            match refused {
                Some(reason) => node.drops(name, Program::FromUplink, &datagram, reason),
                None => node.expect(
                    name,
                    Program::FromUplink,
                    &datagram,
                    Action::Deliver,
                    &packet.out_of(&outer).frame(),
                ),
            }
        }
    }
}

#[test]
fn p41_a_known_flow_is_no_way_around_the_check_of_the_source() {
    let mut node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &Packet::default().frame());
    let flows = node.flows();
    let answer = Packet {
        source_port: 80,
        destination_port: 5000,
        ..inner()
    };
    node.drops(
        "an answer from the wrong node",
        Program::FromUplink,
        &C_TO_A.carrying(&answer),
        DropReason::SourceNotOnNode,
    );
    assert_eq!(node.flows(), flows, "and it leaves no trace in the flow");

    // Nodes behind one address cannot be told apart, and are one group.
    let index = Site::B.index(Site::A);
    let path = node.tables.nodes.get(&index, 0).expect("a node of the topology");
    let group = Site::C.index(Site::A);
    set_node(
        &mut node.tables,
        index,
        dataplane_ebpf::tables::Node { group, ..path },
    );
    let shown = Packet {
        source: SINGLE,
        ..answer.out_of(&C_TO_A)
    };
    node.expect(
        "an answer from the same group",
        Program::FromUplink,
        &C_TO_A.carrying(&answer),
        Action::Deliver,
        &shown.frame(),
    );
}

#[test]
fn p41_a_source_without_incarnation_is_not_known_yet() {
    let mut node = Host::at(Site::A);
    crate::topology::vacate(&mut node.tables, T);
    let packet = Packet {
        source: T_SHOWN,
        ..inner()
    };
    node.expect(
        "from anywhere",
        Program::FromUplink,
        &B_TO_A.carrying(&packet),
        Action::Deliver,
        &packet.out_of(&B_TO_A).frame(),
    );
}

#[test]
fn p41_the_inner_packet_carries_tcp_udp_and_echo_and_nothing_else() {
    let node = Host::at(Site::A);
    let cases = [
        ("SCTP", Transport::Raw(132), DropReason::Protocol),
        ("IP in IP", Transport::Raw(4), DropReason::Protocol),
        (
            "destination unreachable",
            Transport::Icmp(3, 4),
            DropReason::IcmpError,
        ),
        ("time exceeded", Transport::Icmp(11, 0), DropReason::IcmpError),
        (
            "router solicitation",
            Transport::Icmp(10, 0),
            DropReason::IcmpType,
        ),
    ];
    for (name, transport, reason) in cases {
        let packet = Packet { transport, ..inner() };
        node.drops(name, Program::FromUplink, &B_TO_A.around(&packet.ip()), reason);
    }
}

#[test]
fn p41_a_datagram_inside_a_datagram_is_payload_and_never_reaches_the_tunnel_s_socket() {
    let node = Host::at(Site::A);
    let nested = Packet {
        transport: Transport::Udp,
        destination_port: 50_103,
        payload: inner().ip(),
        ..inner()
    };
    node.expect(
        "to a container: a datagram like any other",
        Program::FromUplink,
        &B_TO_A.carrying(&nested),
        Action::Deliver,
        &nested.out_of(&B_TO_A).frame(),
    );
    let nested = Packet {
        destination: HOST,
        ..nested
    };
    node.drops(
        "to the node, where the tunnel's socket is",
        Program::FromUplink,
        &B_TO_A.carrying(&nested),
        DropReason::TunnelFromEndpoint,
    );
    let tcp = Packet {
        transport: Transport::Tcp,
        ..nested
    };
    node.expect(
        "TCP to the same port",
        Program::FromUplink,
        &B_TO_A.carrying(&tcp),
        Action::DeliverHost,
        &tcp.out_of(&B_TO_A).frame(),
    );
}

#[test]
fn p41_what_replaced_an_instance_is_admitted_where_the_instance_was() {
    let mut node = Host::at(Site::A);
    replace(&mut node.tables, S);
    let packet = Packet {
        to_mac: GATEWAY_MAC,
        ..inner()
    };
    node.expect(
        "from B",
        Program::FromUplink,
        &B_TO_A.carrying(&packet),
        Action::Deliver,
        &packet.out_of(&B_TO_A).frame(),
    );
    node.drops(
        "from C",
        Program::FromUplink,
        &C_TO_A.carrying(&packet),
        DropReason::SourceNotOnNode,
    );
}
