//! Services in front of instances: what is rewritten, and what is not a service.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{Packet, Transport};
use crate::host::Host;
use crate::topology::{
    A, A_SHOWN, A_TO_B, C, C_SHOWN, EMPTY, GATEWAY_MAC, HOST, HOST_SHOWN, INTERFACE, MAC_OF_A, MAC_OF_C,
    MAC_OF_V, MACHINE, NEIGHBOUR, S, S_SHOWN, SINGLE, Site, T, UNKNOWN, V, index_of, set_service, vacate,
};

#[test]
fn p10_a_packet_to_a_service_reaches_the_instance_from_the_instance_address_of_its_sender() {
    let payloads: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("odd", b"x"),
        ("even", b"xy"),
        ("long", &[0xa5; 1400]),
    ];
    let mut node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        for (name, payload) in payloads {
            node.forget_flows();
            let request = Packet {
                transport,
                payload: payload.to_vec(),
                ..Packet::default()
            };
            let sent = Packet {
                source: A_SHOWN,
                destination: S,
                ..request.clone()
            };
            node.expect(
                &format!("{transport:?}, {name} payload"),
                Program::FromEndpoint,
                &request.frame(),
                Action::Tunnel,
                &A_TO_B.carrying(&sent),
            );
        }
    }
}

#[test]
fn p10_an_instance_address_is_translated_like_a_service_whatever_begins_the_flow() {
    let cases = [
        ("SYN", Transport::Tcp, crate::frame::SYN),
        ("data", Transport::Tcp, crate::frame::ACK | crate::frame::PSH),
        ("RST", Transport::Tcp, crate::frame::RST),
        ("datagram", Transport::Udp, 0),
        ("echo request", Transport::Ping, 0),
        ("echo reply", Transport::Pong, 0),
    ];
    let mut node = Host::at(Site::A);
    for (name, transport, flags) in cases {
        node.forget_flows();
        let packet = Packet {
            transport,
            flags,
            destination: S_SHOWN,
            ..Packet::default()
        };
        let sent = Packet {
            source: A_SHOWN,
            destination: S,
            ..packet.clone()
        };
        node.expect(
            name,
            Program::FromEndpoint,
            &packet.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent),
        );
    }
}

#[test]
fn p10_an_instance_on_the_same_node_is_reached_by_its_kind_of_delivery() {
    let cases = [
        ("container", NEIGHBOUR, C, Action::Deliver, GATEWAY_MAC),
        ("its instance address", C_SHOWN, C, Action::Deliver, GATEWAY_MAC),
        ("virtual machine", MACHINE, V, Action::Deliver, MAC_OF_V),
        (
            "the node itself",
            HOST_SHOWN,
            HOST,
            Action::DeliverHost,
            GATEWAY_MAC,
        ),
    ];
    let mut node = Host::at(Site::A);
    for (name, destination, delivered, action, to_mac) in cases {
        for transport in Transport::CARRIED {
            node.forget_flows();
            let request = Packet {
                transport,
                destination,
                ..Packet::default()
            };
            let received = Packet {
                to_mac,
                source: A_SHOWN,
                destination: delivered,
                ..request.clone()
            };
            node.expect(
                &format!("{name}, {transport:?}"),
                Program::FromEndpoint,
                &request.frame(),
                action,
                &received.frame(),
            );
        }
    }
}

#[test]
fn p10_the_node_itself_is_a_client_like_any_other() {
    let node = Host::at(Site::A);
    let request = Packet {
        source: HOST,
        ..Packet::default()
    };
    let sent = Packet {
        source: HOST_SHOWN,
        destination: S,
        ..request.clone()
    };
    node.expect(
        "to another node",
        Program::FromHost,
        &request.frame(),
        Action::Tunnel,
        &A_TO_B.carrying(&sent),
    );

    let request = Packet {
        source: HOST,
        destination: NEIGHBOUR,
        ..Packet::default()
    };
    // What leaves an interface has to carry the address at its other end.
    let received = Packet {
        to_mac: MAC_OF_C,
        source: HOST_SHOWN,
        destination: C,
        ..request.clone()
    };
    node.expect(
        "to its own endpoint",
        Program::FromHost,
        &request.frame(),
        Action::Deliver,
        &received.frame(),
    );
}

#[test]
fn p10_what_is_delivered_to_the_node_goes_up_its_stack() {
    let node = Host::at(Site::A);
    let delivered = Packet {
        source: S_SHOWN,
        destination: HOST,
        ..Packet::default()
    };
    node.expect(
        "behind oak0",
        Program::FromOak0,
        &delivered.frame(),
        Action::DeliverHost,
        &delivered.frame(),
    );
}

#[test]
fn p11_a_udp_checksum_of_zero_means_none_before_and_after() {
    let node = Host::at(Site::A);
    for (name, checksum) in [("left out", [0, 0]), ("all ones", [0xff, 0xff])] {
        // A payload that makes the computed checksum zero, which is sent as all ones (RFC 768), once in the packet
        // that comes in and once in the one that goes out.
        let transport = match checksum {
            [0, 0] => Transport::UncheckedUdp,
            _ => Transport::Udp,
        };
        for (side, source, destination) in [("in", A, SINGLE), ("out", A_SHOWN, S)] {
            let request = Packet {
                transport,
                payload: payload_that_sums_to_zero(source, destination),
                ..Packet::default()
            };
            let sent = Packet {
                source: A_SHOWN,
                destination: S,
                ..request.clone()
            };
            let looked_at = Packet {
                source,
                destination,
                ..request.clone()
            };
            assert_eq!(
                looked_at.ip()[26..28],
                checksum,
                "{name}, {side}: the case is what it says"
            );
            node.expect(
                &format!("{name}, {side}"),
                Program::FromEndpoint,
                &request.frame(),
                Action::Tunnel,
                &A_TO_B.carrying(&sent),
            );
        }
    }
}

#[test]
fn p11_a_changed_port_too_leaves_a_checksum_that_is_there_and_right() {
    // The second flow of the same ports to the same instance gets another source port; of 65,536 payloads that
    // differ in one word, one makes the new checksum zero.
    let node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &flow_to(SINGLE).frame());
    let mut all_ones = 0;
    for word in 0..=u16::MAX {
        let request = Packet {
            payload: word.to_be_bytes().to_vec(),
            ..flow_to(crate::topology::TWIN)
        };
        let (_, out) = crate::host::run(
            node.program(Program::FromEndpoint),
            &request.frame(),
            crate::host::Context::default(),
        );
        let inner = crate::frame::inner(&out);
        let udp = crate::frame::udp(&inner);
        assert_ne!(udp.source_port, 5000);
        assert_ne!(udp.checksum, 0, "payload {word:#06x}");
        assert_eq!(crate::oracle::check(&out), Ok(()), "payload {word:#06x}");
        all_ones += u32::from(udp.checksum == 0xffff);
    }
    assert_eq!(all_ones, 1);
}

fn flow_to(destination: [u8; 4]) -> Packet {
    Packet {
        transport: Transport::Udp,
        destination,
        ..Packet::default()
    }
}

/// Two bytes that make the UDP checksum of the default packet between these addresses zero.
fn payload_that_sums_to_zero(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    (0..=u16::MAX)
        .map(|word| word.to_be_bytes().to_vec())
        .find(|payload| {
            let packet = Packet {
                transport: Transport::Udp,
                source,
                destination,
                payload: payload.clone(),
                ..Packet::default()
            };
            packet.ip()[26..28] == [0xff, 0xff]
        })
        .expect("one of all words")
}

#[test]
fn p13_addresses_outside_the_overlay_are_left_alone() {
    let node = Host::at(Site::A);
    let cases = [
        ("the world", [8, 8, 8, 8]),
        ("just below the overlay", [10, 15, 255, 255]),
        ("just above the overlay", [10, 32, 0, 0]),
        ("the node's own outer address", crate::topology::OUTER_A),
        ("multicast", [224, 0, 0, 251]),
        ("broadcast", [255; 4]),
    ];
    for (name, destination) in cases {
        for transport in [
            Transport::Tcp,
            Transport::Udp,
            Transport::Ping,
            Transport::Raw(132),
        ] {
            let packet = Packet {
                transport,
                destination,
                ..Packet::default()
            };
            let case = format!("{name}, {transport:?}");
            node.passes(&case, Program::FromEndpoint, &packet.frame());
            node.passes(&case, Program::FromOak0, &packet.frame());
            let packet = Packet {
                source: HOST,
                ..packet
            };
            node.passes(&case, Program::FromHost, &packet.frame());
        }
    }
}

#[test]
fn p13_what_is_in_the_overlay_but_no_service_is_dropped() {
    let node = Host::at(Site::A);
    let cases = [
        ("a namespace address here", C),
        ("one's own", A),
        ("the gateway of the subnet", HOST),
        ("a namespace address elsewhere", S),
        ("just below the services", [10, 29, 255, 255]),
        ("just above the services", [10, 31, 0, 0]),
    ];
    for (name, destination) in cases {
        let packet = Packet {
            destination,
            ..Packet::default()
        };
        node.drops(
            name,
            Program::FromEndpoint,
            &packet.frame(),
            DropReason::NotAService,
        );
        let packet = Packet {
            source: HOST,
            ..packet
        };
        node.drops(name, Program::FromHost, &packet.frame(), DropReason::NotAService);
        if destination != HOST {
            node.drops(name, Program::FromOak0, &packet.frame(), DropReason::NotAService);
        }
    }
}

#[test]
fn p13_a_service_carries_tcp_udp_and_echo_and_nothing_else() {
    let node = Host::at(Site::A);
    let cases = [
        ("SCTP", Transport::Raw(132), DropReason::Protocol),
        ("GRE", Transport::Raw(47), DropReason::Protocol),
        ("IP in IP", Transport::Raw(4), DropReason::Protocol),
        (
            "destination unreachable",
            Transport::Icmp(3, 4),
            DropReason::IcmpError,
        ),
        ("source quench", Transport::Icmp(4, 0), DropReason::IcmpError),
        ("redirect", Transport::Icmp(5, 1), DropReason::IcmpError),
        ("time exceeded", Transport::Icmp(11, 0), DropReason::IcmpError),
        ("parameter problem", Transport::Icmp(12, 0), DropReason::IcmpError),
        ("timestamp", Transport::Icmp(13, 0), DropReason::IcmpType),
        (
            "echo request with a code",
            Transport::Icmp(8, 1),
            DropReason::IcmpType,
        ),
        (
            "echo reply with a code",
            Transport::Icmp(0, 1),
            DropReason::IcmpType,
        ),
    ];
    for destination in [SINGLE, S_SHOWN, UNKNOWN] {
        for (name, transport, reason) in cases {
            let packet = Packet {
                transport,
                destination,
                ..Packet::default()
            };
            let case = format!("{name} to {destination:?}");
            node.drops(&case, Program::FromEndpoint, &packet.frame(), reason);
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p13_a_packet_to_an_unknown_address_is_parked_as_it_is_and_dropped_the_second_time() {
    let node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        for flags in [crate::frame::SYN, crate::frame::ACK] {
            let packet = Packet {
                transport,
                flags,
                destination: UNKNOWN,
                ..Packet::default()
            };
            let case = format!("{transport:?}, flags {flags:#04x}");
            let frame = packet.frame();
            node.expect(&case, Program::FromEndpoint, &frame, Action::Park, &frame);
            node.drops(&case, Program::FromOak0, &frame, DropReason::Unresolved);
            let frame = Packet {
                source: HOST,
                ..packet
            }
            .frame();
            node.expect(&case, Program::FromHost, &frame, Action::Park, &frame);
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p13_a_parked_packet_on_its_way_to_netmanager_is_left_alone_and_goes_on_once_the_address_is_known() {
    let mut node = Host::at(Site::A);
    let packet = Packet {
        destination: UNKNOWN,
        ..Packet::default()
    };
    node.passes("out of oak0", Program::FromHost, &packet.frame());

    set_service(&mut node.tables, 9, UNKNOWN, 1, &[index_of(S)]);
    let sent = Packet {
        source: A_SHOWN,
        destination: S,
        ..packet.clone()
    };
    node.expect(
        "written back",
        Program::FromOak0,
        &packet.frame(),
        Action::Tunnel,
        &A_TO_B.carrying(&sent),
    );
}

#[test]
fn p13_a_service_without_instance_is_named_as_such() {
    let mut node = Host::at(Site::A);
    let missing_slot = [10, 30, 55, 70];
    let vacant_slot = [10, 30, 55, 71];
    set_service(&mut node.tables, 9, missing_slot, 1, &[index_of(S)]);
    let key = dataplane_ebpf::tables::BackendKey {
        service: 9,
        generation: 1,
        slot: 0,
    };
    node.tables.backends.remove(&key).expect("the slot is there");
    set_service(&mut node.tables, 10, vacant_slot, 1, &[index_of(T)]);
    vacate(&mut node.tables, T);
    for (name, destination) in [
        ("no slots", EMPTY),
        ("a slot is missing", missing_slot),
        ("the instance is gone", vacant_slot),
        (
            "the instance of an instance address is gone",
            crate::topology::T_SHOWN,
        ),
    ] {
        for transport in Transport::CARRIED {
            let packet = Packet {
                transport,
                destination,
                ..Packet::default()
            };
            let case = format!("{name}, {transport:?}");
            node.drops(
                &case,
                Program::FromEndpoint,
                &packet.frame(),
                DropReason::NoBackend,
            );
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p13_an_instance_that_should_be_here_but_is_not_is_named_as_such() {
    let mut node = Host::at(Site::A);
    let unknown_kind = dataplane_ebpf::tables::Endpoint {
        interface: INTERFACE,
        delivery: 9,
        ..Default::default()
    };
    let packet = Packet {
        destination: NEIGHBOUR,
        from_mac: MAC_OF_A,
        ..Packet::default()
    };
    crate::topology::set_endpoint(&mut node.tables, C, unknown_kind);
    node.drops(
        "a delivery that nobody knows",
        Program::FromEndpoint,
        &packet.frame(),
        DropReason::EndpointGone,
    );
    node.tables.endpoints.remove(&C).expect("c is there");
    node.drops(
        "no endpoint",
        Program::FromEndpoint,
        &packet.frame(),
        DropReason::EndpointGone,
    );
}
