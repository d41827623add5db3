//! What is not ours goes on, byte for byte.

use netmanager::dataplane::Program;

use crate::frame::{Outer, Packet, Transport};
use crate::host::Host;
use crate::topology::{A, B_TO_A, HOST, OUTER_A, OUTER_B, S_SHOWN, Site};

/// Frames that are no plain IPv4, some of them around a packet to a service.
fn other_protocols() -> Vec<(&'static str, Vec<u8>)> {
    let packet = Packet::default().frame();
    let (addresses, ethertype_and_rest) = packet.split_at(12);
    let ethertype = |ethertype: u16, rest: &[u8]| [addresses, &ethertype.to_be_bytes(), rest].concat();
    vec![
        (
            "ARP",
            ethertype(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, 2, 10, 18, 0, 2]),
        ),
        ("IPv6", ethertype(0x86dd, &[0x60; 60])),
        ("VLAN", ethertype(0x8100, &[&[0, 5], ethertype_and_rest].concat())),
        (
            "QinQ",
            ethertype(0x88a8, &[&[0, 5, 0x81, 0, 0, 6], ethertype_and_rest].concat()),
        ),
        ("LLDP", ethertype(0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 1])),
        (
            "PPPoE session",
            ethertype(
                0x8864,
                &[&[0x11, 0, 0, 1, 0, 58, 0, 0x21], &packet[14..]].concat(),
            ),
        ),
        ("PPPoE discovery", ethertype(0x8863, &[0x11, 9, 0, 0, 0, 0])),
        (
            "MPLS",
            ethertype(0x8847, &[&[0, 0, 0x11, 64], &packet[14..]].concat()),
        ),
        ("a length instead of a type", ethertype(56, &packet[14..])),
        (
            "IPv4's type with its bytes swapped",
            ethertype(0x0008, &packet[14..]),
        ),
        ("nothing behind the header", ethertype(0x88b5, &[])),
    ]
}

#[test]
fn p02_frames_that_are_not_plain_ipv4_pass_untouched_everywhere() {
    let node = Host::at(Site::A);
    for (name, frame) in other_protocols() {
        for program in Program::ALL {
            node.passes(&format!("{name}, {program:?}"), program, &frame);
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p02_frames_from_the_wire_that_are_neither_tunnel_nor_overlay_pass_untouched() {
    let node = Host::at(Site::A);
    let default = Packet {
        source: OUTER_B,
        destination: OUTER_A,
        transport: Transport::Udp,
        ..Packet::default()
    };
    let cases = [
        ("another port", default.clone()),
        (
            "the port next to the tunnel's",
            Packet {
                destination_port: 50_104,
                ..default.clone()
            },
        ),
        (
            "from the tunnel's port",
            Packet {
                source_port: 50_103,
                ..default.clone()
            },
        ),
        (
            "TCP to the tunnel's port",
            Packet {
                transport: Transport::Tcp,
                destination_port: 50_103,
                ..default.clone()
            },
        ),
        (
            "to the tunnel of another node, which this one routes",
            Packet {
                destination: OUTER_B,
                destination_port: 50_103,
                ..default.clone()
            },
        ),
        (
            "ping",
            Packet {
                transport: Transport::Ping,
                ..default.clone()
            },
        ),
        (
            "from an overlay address, but not to one",
            Packet {
                source: S_SHOWN,
                ..default
            },
        ),
    ];
    for (name, packet) in cases {
        node.passes(name, Program::FromUplink, &packet.frame());
    }
}

#[test]
fn p02_later_fragments_of_any_datagram_are_left_to_the_stack() {
    // Their first fragment is dropped where it matters, so that the stack never puts them together.
    let node = Host::at(Site::A);
    let inner = Packet {
        source: S_SHOWN,
        destination: A,
        ..Packet::default()
    };
    for more_fragments in [false, true] {
        let later = Outer {
            fragment_offset: 3,
            more_fragments,
            ..B_TO_A
        };
        node.passes("from the wire", Program::FromUplink, &later.around(&inner.ip()));
        let later = Packet {
            destination: OUTER_B,
            destination_port: 50_103,
            transport: Transport::UncheckedUdp,
            fragment_offset: 3,
            more_fragments,
            ..Packet::default()
        };
        node.passes("from an endpoint", Program::FromEndpoint, &later.frame());
        let later = Packet {
            source: HOST,
            ..later
        };
        node.passes("from the node", Program::FromHost, &later.frame());
    }
}
