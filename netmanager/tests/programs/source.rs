//! What an endpoint may claim to be, and what nobody but the data plane may send.

use dataplane_ebpf::tables::Endpoint;
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{Packet, Transport};
use crate::host::{Context, Host, Outcome, assert_outcome};
use crate::topology::{
    A, A_SHOWN, C, HOST, HOST_B_SHOWN, HOST_SHOWN, NEIGHBOUR, OTHER_INTERFACE, OUTER_A, OUTER_B, OUTER_C, S,
    S_SHOWN, SINGLE, Site, UNKNOWN, set_endpoint, set_tunnel,
};

#[test]
fn p13_an_endpoint_sends_under_its_own_address_or_not_at_all() {
    let mut node = Host::at(Site::A);
    let neighbour = Endpoint {
        interface: OTHER_INTERFACE,
        ..node.tables.endpoints.get(&C, 0).expect("an endpoint")
    };
    set_endpoint(&mut node.tables, C, neighbour);
    let sources = [
        ("the neighbour's", C),
        ("its own instance address", A_SHOWN),
        ("one elsewhere", S),
        ("an instance elsewhere", S_SHOWN),
        ("a service's", SINGLE),
        ("nobody's in the overlay", [10, 18, 0, 60]),
        ("the gateway's", [169, 254, 1, 1]),
        ("the node's outer one", OUTER_A),
        ("the world's", [8, 8, 8, 8]),
        ("none", [0; 4]),
        ("loopback", [127, 0, 0, 1]),
    ];
    let destinations = [
        SINGLE,
        NEIGHBOUR,
        S_SHOWN,
        UNKNOWN,
        S,
        OUTER_B,
        [8, 8, 8, 8],
        [255; 4],
    ];
    for (name, source) in sources {
        for destination in destinations {
            for transport in [
                Transport::Tcp,
                Transport::Udp,
                Transport::Icmp(3, 1),
                Transport::Raw(132),
            ] {
                for (fragment_offset, ip_options) in [(0, &[][..]), (3, &[]), (0, &[1, 1, 1, 1])] {
                    let packet = Packet {
                        transport,
                        source,
                        destination,
                        destination_port: 50_103,
                        fragment_offset,
                        ip_options,
                        ..Packet::default()
                    };
                    node.drops(
                        &format!("{name} to {destination:?}"),
                        Program::FromEndpoint,
                        &packet.frame(),
                        DropReason::Spoofed,
                    );
                }
            }
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p13_what_is_written_back_or_routed_into_the_overlay_needs_a_source_of_this_node() {
    let node = Host::at(Site::A);
    for (name, source) in [
        ("an endpoint that is gone", [10, 18, 0, 60]),
        ("an instance elsewhere", S_SHOWN),
        ("the world", [8, 8, 8, 8]),
        ("the node's outer address", OUTER_A),
    ] {
        for destination in [SINGLE, NEIGHBOUR, S_SHOWN, UNKNOWN] {
            let packet = Packet {
                source,
                destination,
                ..Packet::default()
            };
            node.drops(name, Program::FromOak0, &packet.frame(), DropReason::Spoofed);
            node.drops(name, Program::FromHost, &packet.frame(), DropReason::Spoofed);
        }
        let foreign = Packet {
            source,
            destination: OUTER_B,
            ..Packet::default()
        };
        node.passes(name, Program::FromHost, &foreign.frame());
    }
}

#[test]
fn p13_what_others_route_into_the_overlay_has_no_place_in_it_whatever_its_source() {
    let node = Host::at(Site::A);
    // Forwarded from elsewhere under the node's or an endpoint's address; an endpoint's without coming from it.
    for (name, source, ingress) in [
        ("the node's address", HOST, OTHER_INTERFACE),
        ("an endpoint's address", A, OTHER_INTERFACE),
        ("an endpoint's address, from the node", A, 0),
        ("the world's", [8, 8, 8, 8], OTHER_INTERFACE),
    ] {
        let context = Context {
            ingress,
            ..Context::default()
        };
        for destination in [SINGLE, NEIGHBOUR, S_SHOWN, UNKNOWN, C] {
            let packet = Packet {
                source,
                destination,
                ..Packet::default()
            };
            let ran = node.run_with(Program::FromHost, &packet.frame(), context);
            let case = format!("{name} to {destination:?}");
            assert_outcome(
                &case,
                Program::FromHost,
                &ran,
                Outcome::Dropped(DropReason::Spoofed),
            );
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p41_no_endpoint_speaks_to_a_tunnel() {
    let mut node = Host::at(Site::A);
    // A node that announces another port than the one it listens on.
    set_tunnel(&mut node.tables, OUTER_C, 50_999, Site::C.index(Site::A));
    let datagram = Packet {
        transport: Transport::Udp,
        destination: OUTER_B,
        destination_port: 50_103,
        ..Packet::default()
    };
    let cases = [
        ("a node's tunnel", datagram.clone()),
        (
            "this node's own",
            Packet {
                destination: OUTER_A,
                ..datagram.clone()
            },
        ),
        (
            "whoever listens on that port",
            Packet {
                destination: [8, 8, 8, 8],
                ..datagram.clone()
            },
        ),
        (
            "the port that a node announces",
            Packet {
                destination: OUTER_C,
                destination_port: 50_999,
                ..datagram.clone()
            },
        ),
        (
            "without checksum",
            Packet {
                transport: Transport::UncheckedUdp,
                ..datagram.clone()
            },
        ),
        (
            "without payload",
            Packet {
                payload: Vec::new(),
                ..datagram.clone()
            },
        ),
        (
            "behind IPv4 options",
            Packet {
                ip_options: &[1; 40],
                ..datagram.clone()
            },
        ),
        (
            "in fragments",
            Packet {
                more_fragments: true,
                ..datagram.clone()
            },
        ),
        (
            "in a first fragment of nothing but the ports",
            Packet {
                transport: Transport::Raw(17),
                more_fragments: true,
                payload: vec![0xc0, 0, 0xc3, 0xb7],
                ..datagram.clone()
            },
        ),
        (
            "with a UDP length of nothing",
            Packet {
                transport: Transport::Raw(17),
                payload: vec![0xc0, 0, 0xc3, 0xb7, 0, 0, 0, 0],
                ..datagram.clone()
            },
        ),
    ];
    for (name, packet) in cases {
        for (program, source) in [
            (Program::FromEndpoint, A),
            (Program::FromOak0, A),
            (Program::FromHost, HOST),
        ] {
            let packet = Packet {
                source,
                ..packet.clone()
            };
            let case = format!("{name}, {program:?}");
            node.drops(&case, program, &packet.frame(), DropReason::TunnelFromEndpoint);
        }
    }
    let allowed = [
        (
            "the announced port at another node",
            Packet {
                destination_port: 50_999,
                ..datagram.clone()
            },
        ),
        (
            "from that port",
            Packet {
                source_port: 50_103,
                destination_port: 53,
                ..datagram.clone()
            },
        ),
        (
            "TCP",
            Packet {
                transport: Transport::Tcp,
                ..datagram
            },
        ),
    ];
    for (name, packet) in allowed {
        node.passes(name, Program::FromEndpoint, &packet.frame());
    }
}

#[test]
fn p41_no_endpoint_speaks_to_a_tunnel_through_the_overlay() {
    let node = Host::at(Site::A);
    let datagram = Packet {
        transport: Transport::Udp,
        destination: HOST_SHOWN,
        destination_port: 50_103,
        ..Packet::default()
    };
    node.drops(
        "to its own node",
        Program::FromEndpoint,
        &datagram.frame(),
        DropReason::TunnelFromEndpoint,
    );
    let itself = Packet {
        source: HOST,
        ..datagram.clone()
    };
    node.drops(
        "the node to itself",
        Program::FromHost,
        &itself.frame(),
        DropReason::TunnelFromEndpoint,
    );
    // The other node drops it where it arrives: only there is known what the address stands for.
    let elsewhere = Packet {
        destination: HOST_B_SHOWN,
        ..datagram
    };
    let ran = node.run(Program::FromEndpoint, &elsewhere.frame());
    assert_eq!(ran.counted[0].1, Action::Tunnel.as_str());
    Host::at(Site::B).drops(
        "to another node",
        Program::FromUplink,
        &ran.frame,
        DropReason::TunnelFromEndpoint,
    );
}
