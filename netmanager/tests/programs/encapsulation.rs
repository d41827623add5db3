//! P-40: what the tunnel puts around a packet, and what does not fit into it.

use std::collections::HashSet;

use dataplane_ebpf::tables::{Instance, Node, Place, node_flags};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, ETHERNET, IPV4, OVERHEAD, Outer, Packet, Transport, ipv4, udp};
use crate::host::{Context, Host, Outcome, assert_outcome, run};
use crate::topology::{
    A_SHOWN, A_TO_B, A_TO_C, GATEWAY_MAC, MAC_OF_A, MTU, NEIGHBOUR, S, S_SHOWN, SINGLE, Site, T, index_of,
    set_instance, set_node,
};
use crate::unreachable::{FRAGMENTATION_NEEDED, HOST_UNREACHABLE, answer};

fn path_to_b(node: &Host) -> Node {
    let index = Site::B.index(Site::A);
    node.tables.nodes.get(&index, 0).expect("a node of the topology")
}

fn set_path_to_b(node: &mut Host, path: Node) {
    set_node(&mut node.tables, Site::B.index(Site::A), path);
}

/// The packet as it is inside the tunnel.
fn sent(request: &Packet, destination: Address) -> Packet {
    Packet {
        source: A_SHOWN,
        destination,
        ..request.clone()
    }
}

#[test]
fn p40_the_outer_headers_copy_the_service_class_and_nothing_else() {
    let node = Host::at(Site::A);
    let cases = [
        ("nothing special", Packet::default()),
        (
            "expedited, congestion experienced",
            Packet {
                type_of_service: 0xbb,
                ..Packet::default()
            },
        ),
        (
            "all bits of the type of service",
            Packet {
                type_of_service: 0xff,
                ..Packet::default()
            },
        ),
        (
            "may be fragmented",
            Packet {
                dont_fragment: false,
                ..Packet::default()
            },
        ),
        (
            "the last hop",
            Packet {
                time_to_live: 1,
                ..Packet::default()
            },
        ),
        (
            "an identification of its own",
            Packet {
                identification: 0xffff,
                ..Packet::default()
            },
        ),
        (
            "no payload",
            Packet {
                payload: Vec::new(),
                ..Packet::default()
            },
        ),
        (
            "as long as fits",
            Packet {
                payload: vec![0x5a; 1432],
                ..Packet::default()
            },
        ),
    ];
    for (name, request) in cases {
        let inner = sent(&request, S);
        let wire = A_TO_B.carrying(&inner);
        node.expect(
            name,
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &wire,
        );

        // What the expectation says, spelled out.
        let (outer, datagram, length) = (ipv4(&wire), udp(&wire), inner.ip().len());
        assert_eq!(
            outer.dscp.value() << 2 | outer.ecn.value(),
            request.type_of_service & 0xfc,
            "{name}: congestion marks on the way would be lost with the outer header"
        );
        assert_eq!((outer.time_to_live, outer.identification), (64, 0), "{name}");
        assert_eq!(
            (outer.dont_fragment, outer.more_fragments),
            (true, false),
            "{name}"
        );
        assert_eq!(usize::from(outer.total_len), length + OVERHEAD, "{name}");
        assert_eq!(usize::from(datagram.length), length + 8, "{name}");
        assert_eq!(datagram.checksum, 0, "{name}");
        assert_eq!(wire[ETHERNET + OVERHEAD..], inner.ip(), "{name}");
    }
}

#[test]
fn p40_path_and_headers_are_those_of_the_node_s_entry() {
    let mut node = Host::at(Site::A);
    let path = path_to_b(&node);
    let request = Packet::default();
    let inner = sent(&request, S);
    let fixed = Outer {
        source_port: 50_103,
        ..A_TO_B
    };
    let cases = [
        (
            "behind NAT: from the tunnel's own port",
            Node {
                flags: node_flags::FIXED_SOURCE_PORT,
                ..path
            },
            fixed.around(&inner.ip()),
        ),
        (
            "a node of the original system",
            Node {
                flags: node_flags::LEGACY,
                ..path
            },
            A_TO_B.carrying(&inner),
        ),
        (
            "another port and another address",
            Node {
                remote: [198, 51, 100, 7],
                local: [198, 51, 100, 8],
                port: 60_000u16.to_be_bytes(),
                ..path
            },
            Outer {
                source: [198, 51, 100, 8],
                destination: [198, 51, 100, 7],
                destination_port: 60_000,
                ..A_TO_B
            }
            .carrying(&inner),
        ),
        (
            // The kernel writes the Ethernet header when it sends; until then it is the endpoint's.
            "a neighbour that the kernel has to resolve",
            Node {
                valid_until: 0,
                ..path
            },
            Outer {
                to_mac: GATEWAY_MAC,
                from_mac: MAC_OF_A,
                ..A_TO_B
            }
            .carrying(&inner),
        ),
    ];
    for (name, path, wire) in cases {
        set_path_to_b(&mut node, path);
        node.expect(
            name,
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &wire,
        );
    }
    assert_eq!(node.flows().len(), 2, "one flow all the while");
}

#[test]
fn p40_source_ports_differ_between_flows_and_not_within_one() {
    const FLOWS: u16 = 1000;
    let node = Host::at(Site::A);
    let program = node.program(Program::FromEndpoint);
    for transport in Transport::CARRIED {
        let mut ports = HashSet::new();
        for source_port in 1..=FLOWS {
            let packet = Packet {
                transport,
                source_port,
                ..Packet::default()
            };
            let source_ports = [0, 500].map(|length| {
                let packet = Packet {
                    payload: vec![0; length],
                    ..packet.clone()
                };
                let (_, wire) = run(program, &packet.frame(), Context::default());
                udp(&wire).source_port
            });
            assert_eq!(
                source_ports[0], source_ports[1],
                "{transport:?}, port {source_port}"
            );
            assert!(source_ports[0] >= 49_152, "{transport:?}, port {source_port}");
            ports.insert(source_ports[0]);
        }
        // Drawn at random from 16,384, of a thousand ports 970 differ.
        assert!(ports.len() > 900, "{transport:?}: {} ports", ports.len());
    }
}

#[test]
fn p40_what_does_not_fit_the_way_to_the_node_is_refused_to_the_byte() {
    let mut node = Host::at(Site::A);
    let path = path_to_b(&node);
    for mtu in [MTU, 1280, 576] {
        set_path_to_b(&mut node, Node { mtu, ..path });
        for (transport, header) in [(Transport::Tcp, 20), (Transport::Udp, 8), (Transport::Ping, 8)] {
            for dont_fragment in [false, true] {
                let longest = mtu as usize - OVERHEAD - IPV4 - header;
                let packet = |length| Packet {
                    transport,
                    dont_fragment,
                    payload: vec![0x5a; length],
                    ..Packet::default()
                };
                let case = format!("{transport:?}, MTU {mtu}, don't fragment: {dont_fragment}");
                let fits = packet(longest);
                node.expect(
                    &case,
                    Program::FromEndpoint,
                    &fits.frame(),
                    Action::Tunnel,
                    &A_TO_B.carrying(&sent(&fits, S)),
                );
                let exceeds = packet(longest + 1);
                if dont_fragment {
                    node.expect(
                        &case,
                        Program::FromEndpoint,
                        &exceeds.frame(),
                        Action::IcmpTooBig,
                        &answer(&exceeds, FRAGMENTATION_NEEDED, mtu as u16 - 28),
                    );
                } else {
                    node.drops(&case, Program::FromEndpoint, &exceeds.frame(), DropReason::TooBig);
                }
            }
        }
    }
    // The wire is not asked on the node itself.
    let large = Packet {
        destination: NEIGHBOUR,
        payload: vec![0x5a; 3000],
        ..Packet::default()
    };
    let ran = node.run(Program::FromEndpoint, &large.frame());
    assert_outcome(
        "large, on the node",
        Program::FromEndpoint,
        &ran,
        Outcome::Did(Action::Deliver),
    );
}

#[test]
fn p40_of_a_superframe_every_segment_has_to_fit() {
    let node = Host::at(Site::A);
    let timestamps = &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    for (name, transport, tcp_options, header) in [
        ("TCP", Transport::Tcp, &[][..], 20),
        ("TCP with options", Transport::Tcp, &timestamps[..], 32),
        ("UDP", Transport::Udp, &[][..], 8),
    ] {
        let superframe = Packet {
            transport,
            tcp_options,
            dont_fragment: false,
            payload: vec![0x5a; 2900],
            ..Packet::default()
        };
        let longest = MTU - 28 - 20 - header;
        // A made-up superframe is of no kind, so that the kernel refuses to wrap it: after it was found to fit.
        for (segment_size, reason) in [
            (longest, DropReason::KernelRefused),
            (longest + 1, DropReason::TooBig),
        ] {
            let context = Context {
                segment_size,
                ..Context::default()
            };
            let ran = node.run_with(Program::FromEndpoint, &superframe.frame(), context);
            let case = format!("{name}, segments of {segment_size}");
            assert_outcome(&case, Program::FromEndpoint, &ran, Outcome::Dropped(reason));
        }
    }
}

#[test]
fn p40_a_node_without_a_path_is_named_as_such_and_its_flows_go_on_when_there_is_one() {
    let mut node = Host::at(Site::A);
    let path = path_to_b(&node);
    let request = Packet::default();
    let vacant = Node::default();
    let silent = Node {
        flags: node_flags::UNREACHABLE,
        ..path
    };
    for (name, entry) in [("vacant", vacant), ("does not answer", silent)] {
        set_path_to_b(&mut node, entry);
        node.expect(
            name,
            Program::FromEndpoint,
            &request.frame(),
            Action::IcmpUnreachable,
            &answer(&request, HOST_UNREACHABLE, 0),
        );
        set_path_to_b(&mut node, path);
        node.expect(
            name,
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent(&request, S)),
        );
    }
    let beyond = Instance {
        place: Place::new(S, u32::MAX),
        ..node.tables.instances.get(&index_of(S), 0).expect("an instance")
    };
    set_instance(&mut node.tables, index_of(S), beyond);
    node.expect(
        "no such node",
        Program::FromEndpoint,
        &request.frame(),
        Action::IcmpUnreachable,
        &answer(&request, HOST_UNREACHABLE, 0),
    );
}

#[test]
fn p40_a_moved_instance_takes_its_flows_along() {
    let mut node = Host::at(Site::A);
    for destination in [SINGLE, S_SHOWN] {
        let request = Packet {
            source_port: u16::from(destination[2]) + 5000,
            destination,
            ..Packet::default()
        };
        let before = node.tables.instances.get(&index_of(S), 0).expect("an instance");
        node.expect(
            "before",
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent(&request, S)),
        );
        let after = Instance {
            place: Place::new(T, Site::C.index(Site::A)),
            ..before
        };
        set_instance(&mut node.tables, index_of(S), after);
        let more = Packet {
            flags: ACK,
            ..request
        };
        node.expect(
            "after",
            Program::FromEndpoint,
            &more.frame(),
            Action::Tunnel,
            &A_TO_C.carrying(&sent(&more, T)),
        );
        set_instance(&mut node.tables, index_of(S), before);
    }
}
