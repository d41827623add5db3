//! P-41: what a tunnel datagram has to be to enter.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ETHERNET, IPV4, OVERHEAD, Outer, Packet, Transport, patched};
use crate::host::Host;
use crate::topology::{A, A_SHOWN, B_TO_A, HOST, MAC_OF_V, OUTER_A, S, S_SHOWN, SINGLE, Site, V};

/// What s on site B sends to a: nothing that a asked for.
pub fn inner() -> Packet {
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
