//! Services in front of instances: what is rewritten, and what is not a service.

use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;

use crate::frame::{ACK, PSH, Packet, RST, SYN, Transport, inner, udp};
use crate::host::{Context, Host, run};
use crate::oracle;
use crate::topology::{
    A, A_SHOWN, A_TO_B, C, C_SHOWN, GATEWAY_MAC, HOST, HOST_SHOWN, MAC_OF_C, MAC_OF_V, MACHINE, NEIGHBOUR, S,
    S_SHOWN, SINGLE, Site, TWIN, V,
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
        ("SYN", Transport::Tcp, SYN),
        ("data", Transport::Tcp, ACK | PSH),
        ("RST", Transport::Tcp, RST),
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
            ..flow_to(TWIN)
        };
        let (_, out) = run(
            node.program(Program::FromEndpoint),
            &request.frame(),
            Context::default(),
        );
        let inner = inner(&out);
        let udp = udp(&inner);
        assert_ne!(udp.source_port, 5000);
        assert_ne!(udp.checksum, 0, "payload {word:#06x}");
        assert_eq!(oracle::check(&out), Ok(()), "payload {word:#06x}");
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
