//! P-03: IPv4 options in front of the transport header.

use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{ACK, ETHERNET, IPV4, Packet, SYN, Transport, ipv4};
use crate::host::{Host, WAYS_OUT};
use crate::published;
use crate::topology::{A, A_SHOWN, A_TO_B, B_TO_A, C, C_SHOWN, OUTER_A, OUTER_B, S, S_SHOWN, SINGLE, Site};

/// "No operation", for headers of every length.
const NO_OPERATION: &[u8] = &[1; 40];

/// Valid options that are between the two ends.
const CARRIED: [(&str, &[u8]); 6] = [
    ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
    ("timestamps", &[1, 68, 8, 5, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("router alert", &[148, 4, 0, 0]),
    ("security, then nothing", &[130, 3, 0, 1, 1, 1, 1, 0]),
    ("the end, and anything behind it", &[0, 131, 137, 255]),
    (
        "as long as can be",
        &[
            7, 39, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0,
        ],
    ),
];

const REFUSED: [(&str, &[u8], DropReason); 8] = [
    (
        "loose source route",
        &[131, 7, 4, 192, 0, 2, 1, 0],
        DropReason::IpOptions,
    ),
    (
        "strict source route",
        &[137, 7, 4, 192, 0, 2, 1, 0],
        DropReason::IpOptions,
    ),
    (
        "a source route behind others",
        &[1, 1, 7, 3, 4, 131, 3, 4],
        DropReason::IpOptions,
    ),
    (
        "a source route at the very end",
        &[1, 1, 1, 137],
        DropReason::IpOptions,
    ),
    ("an option of no length", &[7, 0, 0, 0], DropReason::Malformed),
    (
        "an option of one byte with a length",
        &[7, 1, 1, 1],
        DropReason::Malformed,
    ),
    (
        "an option beyond the header",
        &[7, 5, 4, 0],
        DropReason::Malformed,
    ),
    (
        "an option as long as can be said",
        &[1, 7, 255, 0],
        DropReason::Malformed,
    ),
];

#[test]
fn p03_options_of_every_length_are_carried_and_left_as_they_are() {
    for transport in Transport::CARRIED {
        let node = Host::at(Site::A);
        let lengths = (1..=10).map(|words| ("no operation", &NO_OPERATION[..words * 4]));
        for (name, ip_options) in lengths.chain(CARRIED) {
            let case = format!("{transport:?}, {name}, {} bytes", ip_options.len());
            for (program, source) in WAYS_OUT {
                let packet = Packet {
                    transport,
                    source,
                    ip_options,
                    ..Packet::default()
                };
                let shown = if source == A {
                    A_SHOWN
                } else {
                    crate::topology::HOST_SHOWN
                };
                let sent = Packet {
                    source: shown,
                    destination: S,
                    ..packet.clone()
                };
                node.expect(
                    &case,
                    program,
                    &packet.frame(),
                    Action::Tunnel,
                    &A_TO_B.carrying(&sent),
                );
                let foreign = Packet {
                    destination: OUTER_B,
                    ..packet
                };
                node.passes(&case, program, &foreign.frame());
            }
            let answer = Packet {
                transport: transport.answer(),
                flags: SYN | ACK,
                source: S_SHOWN,
                source_port: 80,
                destination: A,
                destination_port: 5000,
                ip_options,
                ..Packet::default()
            };
            let shown = Packet {
                source: SINGLE,
                ..answer.clone()
            };
            for program in [Program::FromUplink, Program::FromOak0] {
                node.expect(
                    &case,
                    program,
                    &B_TO_A.carrying(&answer),
                    Action::Deliver,
                    &shown.out_of(&B_TO_A).frame(),
                );
            }
        }
    }
}

#[test]
fn p03_ports_behind_options_are_translated() {
    // a calls s by two names from one port: the second call gets another port towards s.
    let node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &Packet::default().frame());
    let packet = Packet {
        destination: crate::topology::TWIN,
        ip_options: &NO_OPERATION[..12],
        ..Packet::default()
    };
    let ran = node.run(Program::FromEndpoint, &packet.frame());
    let inner = ETHERNET + crate::frame::OVERHEAD;
    let at = inner + IPV4 + 12;
    let port = u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
    assert_ne!(port, 5000);
    let sent = Packet {
        source: A_SHOWN,
        source_port: port,
        destination: S,
        ..packet
    };
    assert_eq!(ran.frame[inner..], sent.ip());
}

#[test]
fn p03_source_routes_and_contradictions_are_counted_in_the_overlay_and_left_alone_elsewhere() {
    let node = Host::at(Site::A);
    for (name, ip_options, reason) in REFUSED {
        for (program, source) in WAYS_OUT {
            let packet = Packet {
                source,
                ip_options,
                ..Packet::default()
            };
            node.drops(&format!("{program:?}, {name}"), program, &packet.frame(), reason);
            let foreign = Packet {
                destination: OUTER_B,
                ..packet
            };
            node.passes(name, program, &foreign.frame());
        }
        let inner = Packet {
            source: S_SHOWN,
            destination: A,
            ip_options,
            ..Packet::default()
        };
        let reason = if reason == DropReason::Malformed {
            DropReason::InnerMalformed
        } else {
            reason
        };
        node.drops(name, Program::FromUplink, &B_TO_A.around(&inner.ip()), reason);
        let foreign = Packet {
            source: OUTER_B,
            destination: OUTER_A,
            ..inner
        };
        node.passes(name, Program::FromUplink, &foreign.frame());
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p03_a_stray_segment_with_options_is_answered_by_a_reset_without() {
    let node = Host::at(Site::A);
    let stray = Packet {
        flags: ACK,
        acknowledgement: 77,
        ip_options: &NO_OPERATION[..8],
        ..Packet::default()
    };
    let ran = node.run(Program::FromEndpoint, &stray.frame());
    let header = ipv4(&ran.frame);
    assert_eq!(
        (header.header_len(), header.source, header.destination),
        (IPV4, SINGLE, A)
    );
    let tcp = etherparse::TcpHeader::from_slice(&ran.frame[ETHERNET + IPV4..])
        .expect("TCP")
        .0;
    assert_eq!((tcp.rst, tcp.ack, tcp.sequence_number), (true, false, 77));
}

#[test]
fn p03_a_published_port_takes_options() {
    let node = published::publisher();
    let request = Packet {
        ip_options: &NO_OPERATION[..16],
        ..published::request()
    };
    let plain = node.run(Program::FromUplink, &published::request().frame());
    let ran = node.run(Program::FromUplink, &request.frame());
    assert_eq!(ran.counted[0].1, Action::Publish.as_str());
    assert_eq!(ran.frame[ETHERNET + IPV4..][..16], NO_OPERATION[..16]);
    assert_eq!(
        ran.frame[ETHERNET + IPV4 + 16..],
        plain.frame[ETHERNET + IPV4..],
        "the rest is the same"
    );
}

#[test]
fn p03_both_ends_on_one_node_exchange_options() {
    let node = Host::at(Site::A);
    let packet = Packet {
        transport: Transport::Udp,
        destination: C_SHOWN,
        ip_options: &NO_OPERATION[..4],
        ..Packet::default()
    };
    let received = Packet {
        source: A_SHOWN,
        destination: C,
        ..packet.clone()
    };
    node.expect(
        "out",
        Program::FromEndpoint,
        &packet.frame(),
        Action::Deliver,
        &received.frame(),
    );
    let answer = Packet {
        source: C,
        source_port: 80,
        destination: A_SHOWN,
        destination_port: 5000,
        ..packet
    };
    let shown = Packet {
        source: C_SHOWN,
        destination: A,
        ..answer.clone()
    };
    node.expect(
        "back",
        Program::FromEndpoint,
        &answer.frame(),
        Action::Deliver,
        &shown.frame(),
    );
}
