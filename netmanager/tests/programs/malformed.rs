//! Frames that end too early, lie about their lengths, or are more than the overlay carries.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, ETHERNET, IPV4, OVERHEAD, Packet, SYN, Transport, patched};
use crate::host::{Host, Outcome, SHOT, assert_outcome};
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, C, HOST, NEIGHBOUR, OUTER_A, OUTER_B, S, S_SHOWN, SINGLE, Site, UNKNOWN,
};

/// IPv4 options of every length: "no operation", so that they are valid.
const NO_OPERATION: &[u8] = &[1; 40];

/// The ways out of an endpoint and of the node, and who speaks there.
const WAYS_OUT: [(Program, [u8; 4]); 3] = [
    (Program::FromEndpoint, A),
    (Program::FromOak0, A),
    (Program::FromHost, HOST),
];

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
        assert_ne!(node.run(Program::FromUplink, &frame).verdict, crate::host::PASS);
    }
}

#[test]
fn p03_ip_options_are_counted_in_the_overlay_and_left_alone_elsewhere() {
    let node = Host::at(Site::A);
    for words in 1..=10 {
        let options = &NO_OPERATION[..words * 4];
        for (program, source) in WAYS_OUT {
            let case = format!("{program:?}, {words} words");
            let packet = Packet {
                source,
                ip_options: options,
                ..Packet::default()
            };
            node.drops(&case, program, &packet.frame(), DropReason::IpOptions);
            let foreign = Packet {
                destination: OUTER_B,
                ..packet
            };
            node.passes(&case, program, &foreign.frame());
        }
        let inner = Packet {
            source: S_SHOWN,
            destination: A,
            ip_options: options,
            ..Packet::default()
        };
        let case = format!("inner, {words} words");
        node.drops(
            &case,
            Program::FromUplink,
            &B_TO_A.around(&inner.ip()),
            DropReason::IpOptions,
        );
        let foreign = Packet {
            source: OUTER_B,
            destination: OUTER_A,
            ip_options: options,
            ..Packet::default()
        };
        node.passes("plain, from the wire", Program::FromUplink, &foreign.frame());
    }
    assert_eq!(node.flows().len(), 0);
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

/// Name, "more fragments", offset in units of eight bytes, and the bytes behind the IPv4 header.
const FRAGMENTS: [(&str, bool, u16, usize); 6] = [
    ("first", true, 0, 64),
    ("tiny first", true, 0, 8),
    ("first of four bytes", true, 0, 4),
    ("middle", true, 8, 64),
    ("last", false, 16, 24),
    ("last possible", false, 0x1fff, 8),
];

#[test]
fn p04_fragments_are_counted_in_the_overlay_and_left_alone_elsewhere() {
    let node = Host::at(Site::A);
    for (name, more_fragments, fragment_offset, length) in FRAGMENTS {
        for protocol in [6, 17] {
            let case = format!("{name}, protocol {protocol}");
            let fragment = Packet {
                transport: Transport::Raw(protocol),
                more_fragments,
                fragment_offset,
                dont_fragment: false,
                payload: vec![0x11; length],
                ..Packet::default()
            };
            for (program, source) in WAYS_OUT {
                let overlay = Packet {
                    source,
                    ..fragment.clone()
                };
                node.drops(&case, program, &overlay.frame(), DropReason::Fragment);
                let foreign = Packet {
                    destination: OUTER_B,
                    ..overlay
                };
                node.passes(&case, program, &foreign.frame());
            }
            let inner = Packet {
                source: S_SHOWN,
                destination: A,
                ..fragment.clone()
            };
            node.drops(
                &case,
                Program::FromUplink,
                &B_TO_A.around(&inner.ip()),
                DropReason::Fragment,
            );
            let foreign = Packet {
                source: OUTER_B,
                destination: OUTER_A,
                ..fragment
            };
            node.passes(&case, Program::FromUplink, &foreign.frame());
        }
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

#[test]
fn p05_what_the_link_appended_belongs_to_no_packet() {
    let trailers: [(&str, Vec<u8>); 3] = [
        ("one byte", vec![0xee]),
        ("up to the minimum", vec![0xee; 6]),
        ("long", vec![0xee; 300]),
    ];
    let node = Host::at(Site::A);
    for (name, trailer) in trailers {
        let request = Packet {
            payload: Vec::new(),
            trailer,
            ..Packet::default()
        };
        let sent = Packet {
            source: A_SHOWN,
            destination: S,
            ..request.clone()
        };
        node.expect(
            &format!("{name}, to another node"),
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent),
        );

        let request = Packet {
            destination: NEIGHBOUR,
            ..request
        };
        let received = Packet {
            source: A_SHOWN,
            destination: C,
            ..request.clone()
        };
        node.expect(
            &format!("{name}, on the node"),
            Program::FromEndpoint,
            &request.frame(),
            Action::Deliver,
            &received.frame(),
        );

        let inner = Packet {
            source: S_SHOWN,
            destination: A,
            ..request
        };
        node.expect(
            &format!("{name}, from another node"),
            Program::FromUplink,
            &B_TO_A.carrying(&inner),
            Action::Deliver,
            &inner.out_of(&B_TO_A).frame(),
        );
    }
}

/// Name, protocol, offset in the transport header, the wrong bytes, and whether they are wrong for a packet whose
/// payload has sixteen bytes.
const TRANSPORTS: [(&str, Transport, usize, &[u8], bool); 10] = [
    ("UDP length 0", Transport::Udp, 4, &[0, 0], true),
    ("UDP length 7", Transport::Udp, 4, &[0, 7], true),
    ("UDP length of the header", Transport::Udp, 4, &[0, 8], false),
    (
        "UDP length below the packet's",
        Transport::Udp,
        4,
        &[0, 23],
        false,
    ),
    ("UDP length of the packet", Transport::Udp, 4, &[0, 24], false),
    ("UDP length beyond the packet", Transport::Udp, 4, &[0, 25], true),
    ("TCP header of four words", Transport::Tcp, 12, &[0x40], true),
    ("TCP header up to the end", Transport::Tcp, 12, &[0x90], false),
    ("TCP header beyond the end", Transport::Tcp, 12, &[0xa0], true),
    ("TCP header of no words", Transport::Tcp, 12, &[0x00], true),
];

#[test]
fn p06_transport_lengths_beyond_the_packet_are_counted_and_shorter_ones_accepted() {
    let mut node = Host::at(Site::A);
    for (name, transport, offset, bytes, wrong) in TRANSPORTS {
        for (program, source) in WAYS_OUT {
            node.forget_flows();
            let packet = Packet {
                transport,
                source,
                trailer: vec![0xee; 100],
                ..Packet::default()
            };
            let frame = patched(packet.frame(), ETHERNET + IPV4 + offset, bytes);
            let ran = node.run(program, &frame);
            let outcome = if wrong {
                Outcome::Dropped(DropReason::Malformed)
            } else {
                Outcome::Did(Action::Tunnel)
            };
            assert_outcome(&format!("{program:?}, {name}"), program, &ran, outcome);
            assert_eq!(node.flows().is_empty(), wrong, "{program:?}, {name}");
        }
        let inner = Packet {
            transport,
            source: S_SHOWN,
            destination: A,
            ..Packet::default()
        };
        let frame = patched(
            B_TO_A.around(&inner.ip()),
            ETHERNET + OVERHEAD + IPV4 + offset,
            bytes,
        );
        let ran = node.run(Program::FromUplink, &frame);
        let outcome = if wrong {
            Outcome::Dropped(DropReason::InnerMalformed)
        } else {
            Outcome::Did(Action::Deliver)
        };
        assert_outcome(&format!("inner, {name}"), Program::FromUplink, &ran, outcome);
    }
}

#[test]
fn p06_packets_too_short_for_their_transport_header_are_counted_whatever_follows_them() {
    let node = Host::at(Site::A);
    for (transport, header) in [(6, 20), (17, 8), (1, 8)] {
        for length in 0..header {
            // What the link appended would make the header whole.
            let packet = Packet {
                transport: Transport::Raw(transport),
                payload: vec![0x55; length],
                trailer: vec![0x55; 60],
                ..Packet::default()
            };
            let case = format!("protocol {transport}, {length} bytes");
            node.drops(&case, Program::FromEndpoint, &packet.frame(), DropReason::Short);
            let inner = Packet {
                source: S_SHOWN,
                destination: A,
                ..packet
            };
            node.drops(
                &case,
                Program::FromUplink,
                &B_TO_A.carrying(&inner),
                DropReason::InnerShort,
            );
        }
    }
}

#[test]
fn p06_tcp_options_are_carried() {
    let node = Host::at(Site::A);
    for flags in [SYN, ACK] {
        // Maximum segment size, permitted selective acknowledgement, window scale, padding.
        let request = Packet {
            flags,
            tcp_options: &[2, 4, 5, 0xb4, 4, 2, 3, 3, 7, 1, 1, 0],
            ..Packet::default()
        };
        let sent = Packet {
            source: A_SHOWN,
            destination: S,
            ..request.clone()
        };
        node.expect(
            "with options",
            Program::FromEndpoint,
            &request.frame(),
            Action::Tunnel,
            &A_TO_B.carrying(&sent),
        );
    }
}
