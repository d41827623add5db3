//! Frames that end too early, lie about their lengths, or are more than the overlay carries.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ETHERNET, IPV4, Packet, Transport, patched};
use crate::host::{Host, PASS, SHOT, WAYS_OUT};
use crate::topology::{A, A_SHOWN, A_TO_B, B_TO_A, NEIGHBOUR, OUTER_B, S, S_SHOWN, SINGLE, Site, UNKNOWN};

/// On an IPv4 frame that is shorter the kernel does not run a program for us.
const SHORTEST: usize = ETHERNET + IPV4;

#[test]
fn p01_every_prefix_of_a_valid_packet_passes_or_counts_short() {
    let node = Host::at(Site::A);
    for (program, source) in WAYS_OUT {
        for transport in Transport::CARRIED {
            for destination in [SINGLE, NEIGHBOUR, S_SHOWN, UNKNOWN, OUTER_B] {
                let packet = Packet {
                    transport,
                    source,
                    destination,
                    ..Packet::default()
                };
                let frame = packet.frame();
                for length in SHORTEST..frame.len() {
                    let case = format!("{program:?}, {transport:?} to {destination:?}, {length} bytes");
                    node.drops(&case, program, &frame[..length], DropReason::Short);
                }
                let ran = node.run(program, &frame);
                let whole = (program, destination) == (Program::FromOak0, UNKNOWN);
                assert_eq!(ran.verdict == SHOT, whole, "{packet:?}: not for its length");
            }
        }
    }
}

#[test]
fn p01_every_prefix_of_a_frame_from_the_wire_is_left_to_the_stack() {
    let node = Host::at(Site::A);
    let inner = Packet {
        source: S_SHOWN,
        destination: A,
        ..Packet::default()
    };
    let plain = Packet {
        source: OUTER_B,
        destination: S_SHOWN,
        ..Packet::default()
    };
    for frame in [B_TO_A.around(&inner.ip()), plain.frame()] {
        for length in SHORTEST..frame.len() {
            node.passes(&format!("{length} bytes"), Program::FromUplink, &frame[..length]);
        }
        assert_ne!(node.run(Program::FromUplink, &frame).verdict, PASS);
    }
}

/// Name, offset in the IPv4 header, the wrong bytes, and what they are counted as.
const CONTRADICTIONS: [(&str, usize, &[u8], DropReason); 9] = [
    ("header of no words", 0, &[0x40], DropReason::Malformed),
    ("header of four words", 0, &[0x44], DropReason::Malformed),
    ("version 0", 0, &[0x05], DropReason::Malformed),
    ("version 5", 0, &[0x55], DropReason::Malformed),
    ("version 6", 0, &[0x65], DropReason::Malformed),
    ("total length 0", 2, &[0, 0], DropReason::Malformed),
    (
        "total length below the header's",
        2,
        &[0, 19],
        DropReason::Malformed,
    ),
    ("total length beyond the frame", 2, &[0, 57], DropReason::Short),
    (
        "total length as large as can be",
        2,
        &[0xff, 0xff],
        DropReason::Short,
    ),
];

#[test]
fn p03_lengths_and_versions_that_contradict_each_other_are_counted() {
    let node = Host::at(Site::A);
    for (name, offset, bytes, reason) in CONTRADICTIONS {
        for (program, source) in WAYS_OUT {
            for destination in [SINGLE, OUTER_B] {
                let packet = Packet {
                    source,
                    destination,
                    ..Packet::default()
                };
                assert_eq!(packet.ip().len(), 56, "one byte beyond is 57");
                let frame = patched(packet.frame(), ETHERNET + offset, bytes);
                node.drops(&format!("{program:?}, {name}"), program, &frame, reason);
            }
        }
        let from_wire = Packet {
            source: S_SHOWN,
            destination: A,
            ..Packet::default()
        };
        let frame = patched(from_wire.frame(), ETHERNET + offset, bytes);
        node.passes(&format!("from the wire, {name}"), Program::FromUplink, &frame);
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p04_dont_fragment_is_no_fragment() {
    let node = Host::at(Site::A);
    for dont_fragment in [false, true] {
        let packet = Packet {
            dont_fragment,
            ..Packet::default()
        };
        let sent = Packet {
            source: A_SHOWN,
            destination: S,
            ..packet.clone()
        };
        node.expect(
            &format!("don't fragment: {dont_fragment}"),
            Program::FromEndpoint,
            &packet.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent),
        );
    }
}
