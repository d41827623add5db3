//! P-13: what is no service, what nobody knows, and what is not there.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, Packet, SYN, Transport};
use crate::host::{Context, Host, Outcome, assert_outcome};
use crate::topology::{
    A, A_SHOWN, A_TO_B, C, EMPTY, HOST, INTERFACE, MAC_OF_A, NEIGHBOUR, OUTER_A, S, S_SHOWN, SINGLE, Site, T,
    T_SHOWN, UNKNOWN, index_of, set_endpoint, set_service, vacate,
};
use crate::unreachable::{HOST_UNREACHABLE, answer};

#[test]
fn p13_addresses_outside_the_overlay_are_left_alone() {
    let node = Host::at(Site::A);
    let cases = [
        ("the world", [8, 8, 8, 8]),
        ("just below the overlay", [10, 15, 255, 255]),
        ("just above the overlay", [10, 32, 0, 0]),
        ("the node's own outer address", OUTER_A),
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
        ("source quench", Transport::Icmp(4, 0), DropReason::IcmpType),
        ("redirect", Transport::Icmp(5, 1), DropReason::IcmpType),
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
fn p13_a_packet_to_an_unknown_address_is_parked_as_it_is_and_answered_the_second_time() {
    let node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        for flags in [SYN, ACK] {
            let packet = Packet {
                transport,
                flags,
                destination: UNKNOWN,
                ..Packet::default()
            };
            let case = format!("{transport:?}, flags {flags:#04x}");
            let frame = packet.frame();
            node.expect(&case, Program::FromEndpoint, &frame, Action::Park, &frame);
            let told = answer(&packet, HOST_UNREACHABLE, 0);
            node.expect(&case, Program::FromOak0, &frame, Action::IcmpUnreachable, &told);
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
    let parked = Context {
        ingress: INTERFACE,
        ..Context::default()
    };
    let ran = node.run_with(Program::FromHost, &packet.frame(), parked);
    assert_outcome("out of oak0", Program::FromHost, &ran, Outcome::Did(Action::Pass));
    assert_eq!(ran.frame, packet.frame());
    // The same packet, routed there by the node's own stack, has somebody else's word for its source.
    node.drops("routed", Program::FromHost, &packet.frame(), DropReason::Spoofed);

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
        ("the instance of an instance address is gone", T_SHOWN),
    ] {
        for transport in Transport::CARRIED {
            let packet = Packet {
                transport,
                destination,
                ..Packet::default()
            };
            let case = format!("{name}, {transport:?}");
            node.expect(
                &case,
                Program::FromEndpoint,
                &packet.frame(),
                Action::IcmpUnreachable,
                &answer(&packet, HOST_UNREACHABLE, 0),
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
    set_endpoint(&mut node.tables, C, unknown_kind);
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
