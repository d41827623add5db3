//! Published ports: who is let in, what both sides see, and what is nobody's but the node's own.

use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::tables::{Instance, state};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::flow_table::with_room_for;
use crate::frame::{ACK, Address, FIN, Packet, RST, SYN, Transport, ports};
use crate::host::Host;
use crate::topology::{
    A, C, HOST, MAC_OF_A, MAC_OF_C, OUTER_A, OUTER_B, Site, incarnation_of, publish, replace, set_endpoint,
    set_instance, set_tunnel, vacate,
};

/// A host that is no node.
const CLIENT: Address = [198, 51, 100, 7];
const LOCALHOST: Address = [127, 0, 0, 1];
/// Another address of node A.
const SECOND: Address = [203, 0, 113, 1];

const BOTH: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UncheckedUdp];

/// Node A, where a has published port 80 as 8080, for TCP and UDP.
pub fn publisher() -> Host {
    let mut node = Host::at(Site::A);
    for transport in [Transport::Tcp, Transport::Udp] {
        publish(&mut node.tables, transport, 8080, A, 80);
    }
    node.tables.local_addresses.insert(SECOND, 1, 0).expect("room");
    node
}

/// The same, asked already.
pub fn asked() -> Host {
    let node = publisher();
    node.run(Program::FromUplink, &request().frame());
    node
}

/// The client's first packet.
pub fn request() -> Packet {
    Packet {
        source: CLIENT,
        destination: OUTER_A,
        destination_port: 8080,
        ..Packet::default()
    }
}

/// What a answers to the client.
pub fn answer() -> Packet {
    Packet {
        source: A,
        source_port: 80,
        destination: CLIENT,
        destination_port: 5000,
        flags: SYN | ACK,
        ..Packet::default()
    }
}

/// What the receiver of `sent` would answer to the source that it sees.
fn answer_to(received: &Packet, flags: u8) -> Packet {
    Packet {
        source: received.destination,
        source_port: received.destination_port,
        destination: received.source,
        destination_port: received.source_port,
        flags,
        ..received.clone()
    }
}

#[test]
fn a_host_outside_is_served_and_seen_with_its_own_address() {
    for transport in BOTH {
        let node = publisher();
        for (turn, flags) in [("opening", SYN), ("data", ACK), ("closing", FIN | ACK)] {
            let case = format!("{transport:?}, {turn}");
            let request = Packet {
                transport,
                flags,
                ..request()
            };
            let received = Packet {
                destination: A,
                destination_port: 80,
                ..request.clone()
            };
            node.expect(
                &case,
                Program::FromUplink,
                &request.frame(),
                Action::Publish,
                &received.frame(),
            );
            let answer = Packet {
                transport,
                flags: flags | ACK,
                ..answer()
            };
            let shown = Packet {
                source: OUTER_A,
                source_port: 8080,
                ..answer.clone()
            };
            node.expect(
                &case,
                Program::FromEndpoint,
                &answer.frame(),
                Action::PublishAnswer,
                &shown.frame(),
            );
        }
        assert_eq!(node.flows().len(), 2, "{transport:?}: one each way");
    }
}

#[test]
fn what_does_not_begin_a_flow_passes_untouched() {
    // The trap: answers to what the node has sent, or masqueraded, from the number of a published port.
    let node = publisher();
    for flags in [SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | FIN] {
        let packet = Packet { flags, ..request() };
        for program in [Program::FromUplink, Program::FromLoopback] {
            node.passes(
                &format!("{program:?}, flags {flags:#x}"),
                program,
                &packet.frame(),
            );
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn what_is_not_for_a_published_port_of_this_node_passes_untouched() {
    let node = publisher();
    let cases = [
        (
            "another port",
            Packet {
                destination_port: 8081,
                ..request()
            },
        ),
        (
            "another host",
            Packet {
                destination: OUTER_B,
                ..request()
            },
        ),
        (
            "a later fragment whose first was not seen",
            Packet {
                fragment_offset: 2,
                dont_fragment: false,
                ..request()
            },
        ),
        (
            "a source route",
            Packet {
                ip_options: &[131, 3, 4, 0],
                ..request()
            },
        ),
        (
            "an echo request",
            Packet {
                transport: Transport::Ping,
                ..request()
            },
        ),
        (
            "port unreachable",
            Packet {
                transport: Transport::Icmp(3, 3),
                ..request()
            },
        ),
        (
            "another protocol",
            Packet {
                transport: Transport::Raw(132),
                ..request()
            },
        ),
        (
            "localhost",
            Packet {
                destination: LOCALHOST,
                ..request()
            },
        ),
    ];
    for (case, packet) in &cases {
        node.passes(case, Program::FromUplink, &packet.frame());
    }
    for source in [OUTER_A, LOCALHOST, C, [0, 0, 0, 0], [224, 0, 0, 1], [255; 4]] {
        let packet = Packet { source, ..request() };
        node.passes(&format!("from {source:?}"), Program::FromUplink, &packet.frame());
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn the_node_itself_is_served_by_its_addresses_and_by_localhost() {
    for transport in BOTH {
        let node = publisher();
        for (source, destination, source_port) in [
            (OUTER_A, OUTER_A, 5000),
            (LOCALHOST, LOCALHOST, 5001),
            (LOCALHOST, SECOND, 5002),
            ([127, 0, 0, 9], LOCALHOST, 5003),
        ] {
            let case = format!("{transport:?}, {source:?} to {destination:?}");
            let request = Packet {
                transport,
                source,
                source_port,
                destination,
                to_mac: [0; 6],
                from_mac: [0; 6],
                ..request()
            };
            let received = Packet {
                source: HOST,
                destination: A,
                destination_port: 80,
                to_mac: MAC_OF_A,
                ..request.clone()
            };
            node.expect(
                &case,
                Program::FromLoopback,
                &request.frame(),
                Action::Publish,
                &received.frame(),
            );
            let answer = Packet {
                from_mac: MAC_OF_A,
                to_mac: crate::topology::GATEWAY_MAC,
                ..answer_to(&received, SYN | ACK)
            };
            let shown = Packet {
                to_mac: [0; 6],
                from_mac: [0; 6],
                ..answer_to(&request, SYN | ACK)
            };
            node.expect(
                &case,
                Program::FromEndpoint,
                &answer.frame(),
                Action::PublishAnswer,
                &shown.frame(),
            );
        }
    }
}

#[test]
fn two_sockets_of_the_node_with_one_port_are_told_apart() {
    let node = publisher();
    let request = |source, destination| Packet {
        source,
        destination,
        ..request()
    };
    let first = node.run(Program::FromLoopback, &request(OUTER_A, OUTER_A).frame());
    let second = node.run(Program::FromLoopback, &request(LOCALHOST, LOCALHOST).frame());
    let (first_port, second_port) = (ports(&first.frame).0, ports(&second.frame).0);
    assert_eq!(first_port, 5000);
    assert_ne!(second_port, 5000, "taken towards this endpoint");
    for (port, client) in [(first_port, OUTER_A), (second_port, LOCALHOST)] {
        let answer = Packet {
            destination: HOST,
            destination_port: port,
            ..answer()
        };
        let shown = Packet {
            source: client,
            source_port: 8080,
            destination: client,
            destination_port: 5000,
            to_mac: [0; 6],
            from_mac: [0; 6],
            ..answer.clone()
        };
        node.expect(
            &format!("{client:?}"),
            Program::FromEndpoint,
            &answer.frame(),
            Action::PublishAnswer,
            &shown.frame(),
        );
    }
}

#[test]
fn two_ways_to_one_endpoint_from_one_port_of_a_client_are_told_apart() {
    let node = publisher();
    let to = |destination| Packet {
        destination,
        ..request()
    };
    node.run(Program::FromUplink, &to(OUTER_A).frame());
    let second = node.run(Program::FromUplink, &to(SECOND).frame());
    let (port, _) = ports(&second.frame);
    assert_ne!(port, 5000);
    let answer = Packet {
        destination_port: port,
        ..answer()
    };
    let shown = Packet {
        source: SECOND,
        source_port: 8080,
        destination_port: 5000,
        ..answer.clone()
    };
    node.expect(
        "second",
        Program::FromEndpoint,
        &answer.frame(),
        Action::PublishAnswer,
        &shown.frame(),
    );
}

#[test]
fn endpoints_of_the_node_are_served_and_the_publisher_itself_too() {
    for transport in BOTH {
        for (client, mac, seen) in [(C, MAC_OF_C, C), (A, MAC_OF_A, HOST)] {
            let node = publisher();
            let case = format!("{transport:?}, from {client:?}");
            let request = Packet {
                transport,
                source: client,
                from_mac: mac,
                ..request()
            };
            let received = Packet {
                source: seen,
                destination: A,
                destination_port: 80,
                ..request.clone()
            };
            node.expect(
                &case,
                Program::FromEndpoint,
                &request.frame(),
                Action::Publish,
                &received.frame(),
            );
            let answer = Packet {
                from_mac: MAC_OF_A,
                ..answer_to(&received, SYN | ACK)
            };
            let shown = Packet {
                from_mac: MAC_OF_A,
                ..answer_to(&request, SYN | ACK)
            };
            node.expect(
                &case,
                Program::FromEndpoint,
                &answer.frame(),
                Action::PublishAnswer,
                &shown.frame(),
            );
        }
    }
}

#[test]
fn what_the_publisher_sends_to_others_is_left_alone() {
    let node = asked();
    for (case, packet) in [
        (
            "another client",
            Packet {
                destination: [198, 51, 100, 8],
                ..answer()
            },
        ),
        (
            "another port of the client",
            Packet {
                destination_port: 5001,
                ..answer()
            },
        ),
        (
            "from another port",
            Packet {
                source_port: 81,
                ..answer()
            },
        ),
        (
            "an echo request",
            Packet {
                transport: Transport::Ping,
                ..answer()
            },
        ),
        (
            "a datagram",
            Packet {
                transport: Transport::Udp,
                ..answer()
            },
        ),
    ] {
        node.passes(case, Program::FromEndpoint, &packet.frame());
    }
    let to_node = Packet {
        destination: HOST,
        ..answer()
    };
    node.drops(
        "no client",
        Program::FromEndpoint,
        &to_node.frame(),
        DropReason::NotAService,
    );
}

#[test]
fn a_wire_does_not_speak_for_the_node_itself() {
    let node = publisher();
    let own = Packet {
        source: OUTER_A,
        ..request()
    };
    node.run(Program::FromLoopback, &own.frame());
    let forged = Packet { flags: ACK, ..own };
    node.passes("forged", Program::FromUplink, &forged.frame());
}

#[test]
fn an_endpoint_does_not_speak_to_a_tunnel_by_answering() {
    let mut node = publisher();
    set_tunnel(&mut node.tables, CLIENT, 7000, 1);
    for source_port in [TUNNEL_PORT, 7000] {
        let request = Packet {
            transport: Transport::Udp,
            source_port,
            ..request()
        };
        node.run(Program::FromUplink, &request.frame());
        let answer = Packet {
            transport: Transport::Udp,
            destination_port: source_port,
            ..answer()
        };
        node.drops(
            &format!("{source_port}"),
            Program::FromEndpoint,
            &answer.frame(),
            DropReason::TunnelFromEndpoint,
        );
    }
}

#[test]
fn flows_end_with_their_instance() {
    type End = fn(&mut netmanager::dataplane::Tables);
    let ends: [(&str, End); 2] = [
        ("replaced", |tables| replace(tables, A)),
        ("gone", |tables| vacate(tables, A)),
    ];
    for (case, end) in ends {
        let mut node = asked();
        end(&mut node.tables);
        let more = Packet {
            flags: ACK,
            ..request()
        };
        node.passes(case, Program::FromUplink, &more.frame());
        // The next holder of the address does not answer in its name.
        node.passes(case, Program::FromEndpoint, &answer().frame());
        node.passes(
            &format!("{case}, nor is anything begun"),
            Program::FromUplink,
            &request().frame(),
        );
        assert_eq!(node.flows().len(), 0, "{case}");
    }
}

#[test]
fn the_next_holder_of_the_port_gets_flows_of_its_own() {
    let mut node = asked();
    let c = node
        .tables
        .instances
        .get(&crate::topology::index_of(C), 0)
        .expect("an instance");
    assert_eq!(c.incarnation, incarnation_of(C));
    vacate(&mut node.tables, A);
    publish(&mut node.tables, Transport::Tcp, 8080, C, 8000);
    let received = Packet {
        destination: C,
        destination_port: 8000,
        ..request()
    };
    node.expect(
        "the same client begins anew",
        Program::FromUplink,
        &request().frame(),
        Action::Publish,
        &received.frame(),
    );
}

#[test]
fn an_instance_that_is_elsewhere_by_now_is_served_by_nobody() {
    let mut node = publisher();
    let index = crate::topology::index_of(A);
    let here = node.tables.instances.get(&index, 0).expect("an instance");
    let elsewhere = Instance {
        place: dataplane_ebpf::tables::Place::new(A, 1),
        ..here
    };
    set_instance(&mut node.tables, index, elsewhere);
    node.passes("elsewhere", Program::FromUplink, &request().frame());
    set_instance(&mut node.tables, index, here);
    let mut endpoint = node.tables.endpoints.get(&A, 0).expect("an endpoint");
    endpoint.delivery = 9;
    set_endpoint(&mut node.tables, A, endpoint);
    node.drops(
        "cannot be delivered to",
        Program::FromUplink,
        &request().frame(),
        DropReason::EndpointGone,
    );
}

#[test]
fn an_answer_is_noted() {
    let node = asked();
    node.run(Program::FromEndpoint, &answer().frame());
    let flows = node.flows();
    let reverse = flows.values().find(|flow| flow.state & state::REVERSE != 0);
    let reverse = reverse.expect("a reverse entry");
    assert_eq!(reverse.state, state::PUBLISHED | state::REVERSE | state::ANSWERED);
    assert_eq!((reverse.shown, reverse.address), (OUTER_A, CLIENT));
}

#[test]
fn a_full_table_costs_the_new_flow_only() {
    let mut node = with_room_for(2);
    publish(&mut node.tables, Transport::Tcp, 8080, A, 80);
    for source_port in 5000..5020 {
        let request = Packet {
            source_port,
            ..request()
        };
        let ran = node.run(Program::FromUplink, &request.frame());
        assert_eq!(ran.counted.len(), 1, "{source_port}: {ran:?}");
    }
}
