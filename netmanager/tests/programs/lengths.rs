//! Lengths that differ: of the frame, of the packet, of what it carries.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, ETHERNET, IPV4, OVERHEAD, Packet, SYN, Transport, patched};
use crate::host::{Host, Outcome, WAYS_OUT, assert_outcome};
use crate::topology::{A, A_SHOWN, A_TO_B, B_TO_A, C, NEIGHBOUR, S, S_SHOWN, Site};

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
            tcp_options: &[2, 4, 5, 0x82, 4, 2, 3, 3, 7, 1, 1, 0],
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
