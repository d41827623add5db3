//! P-34: the segment size that TCP announces is lowered to what the tunnel carries.

use dataplane_ebpf::tables::Node;
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;

use crate::frame::{ACK, Packet, SYN};
use crate::host::Host;
use crate::topology::{A_SHOWN, A_TO_B, NEIGHBOUR, S, Site, set_node};

/// The outer packets' limit, and what that leaves for a segment.
const LIMIT: u32 = 1400;
const SEGMENT: [u8; 2] = (LIMIT as u16 - 28 - 40).to_be_bytes();
const HIGH: u8 = SEGMENT[0];
const LOW: u8 = SEGMENT[1];

/// Options of a SYN, and what becomes of them.
type Case = (&'static str, &'static [u8], &'static [u8]);

const CASES: [Case; 17] = [
    ("none", &[], &[]),
    ("larger", &[2, 4, 0x05, 0xb4], &[2, 4, HIGH, LOW]),
    ("the largest", &[2, 4, 0xff, 0xff], &[2, 4, HIGH, LOW]),
    ("one larger", &[2, 4, HIGH, LOW + 1], &[2, 4, HIGH, LOW]),
    ("as large", &[2, 4, HIGH, LOW], &[2, 4, HIGH, LOW]),
    ("smaller", &[2, 4, 0x02, 0x18], &[2, 4, 0x02, 0x18]),
    (
        "at an odd place",
        &[1, 2, 4, 0x05, 0xb4, 1, 1, 0],
        &[1, 2, 4, HIGH, LOW, 1, 1, 0],
    ),
    (
        "padded before and behind",
        &[1, 1, 1, 1, 1, 1, 1, 2, 4, 0x05, 0xb4, 1],
        &[1, 1, 1, 1, 1, 1, 1, 2, 4, HIGH, LOW, 1],
    ),
    (
        "as Linux sends it",
        &[2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7],
        &[2, 4, HIGH, LOW, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7],
    ),
    (
        "behind others",
        &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3, 7, 2, 4, 0x05, 0xb4, 0],
        &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3, 7, 2, 4, HIGH, LOW, 0],
    ),
    ("none but others", &[4, 2, 1, 1], &[4, 2, 1, 1]),
    (
        "behind the end",
        &[0, 1, 1, 1, 2, 4, 0x05, 0xb4],
        &[0, 1, 1, 1, 2, 4, 0x05, 0xb4],
    ),
    ("cut off", &[1, 1, 2, 4], &[1, 1, 2, 4]),
    ("half cut off", &[1, 2, 4, 0x05], &[1, 2, 4, 0x05]),
    ("of a wrong length", &[2, 3, 0x05, 0xb4], &[2, 3, 0x05, 0xb4]),
    (
        "behind a length of zero",
        &[8, 0, 2, 4, 5, 0xb4, 0, 0],
        &[8, 0, 2, 4, 5, 0xb4, 0, 0],
    ),
    ("behind a length beyond the end", &[8, 40, 1, 1], &[8, 40, 1, 1]),
];

fn node() -> Host {
    let mut node = Host::at(Site::A);
    let index = Site::B.index(Site::A);
    let path = node.tables.nodes.get(&index, 0).expect("a node of the topology");
    set_node(&mut node.tables, index, Node { mtu: LIMIT, ..path });
    node
}

#[test]
fn p34_the_segment_size_of_a_syn_is_lowered_and_nothing_else() {
    let node = node();
    for (first_port, flags) in [(5000, SYN), (6000, SYN | ACK)] {
        for (source_port, (name, before, after)) in (first_port..).zip(CASES) {
            // What answers a SYN needs a flow; what begins one does not mind it.
            let opening = Packet {
                source_port,
                ..Packet::default()
            };
            node.run(Program::FromEndpoint, &opening.frame());
            let request = Packet {
                flags,
                tcp_options: before,
                ..opening
            };
            let sent = Packet {
                source: A_SHOWN,
                destination: S,
                tcp_options: after,
                ..request.clone()
            };
            node.expect(
                &format!("{name}, flags {flags:#x}"),
                Program::FromEndpoint,
                &request.frame(),
                Action::Tunnel,
                &A_TO_B.carrying(&sent),
            );
        }
    }
}

#[test]
fn p34_other_segments_and_other_ways_are_left_alone() {
    let node = node();
    let opening = Packet {
        tcp_options: &[2, 4, 0x05, 0xb4],
        ..Packet::default()
    };
    node.run(Program::FromEndpoint, &opening.frame());
    let segment = Packet {
        flags: ACK,
        ..opening.clone()
    };
    let sent = Packet {
        source: A_SHOWN,
        destination: S,
        ..segment.clone()
    };
    node.expect(
        "not a SYN",
        Program::FromEndpoint,
        &segment.frame(),
        Action::Tunnel,
        &A_TO_B.carrying(&sent),
    );
    let near = Packet {
        destination: NEIGHBOUR,
        ..opening
    };
    let delivered = Packet {
        source: A_SHOWN,
        destination: crate::topology::C,
        ..near.clone()
    };
    node.expect(
        "on the node itself",
        Program::FromEndpoint,
        &near.frame(),
        Action::Deliver,
        &delivered.frame(),
    );
}
