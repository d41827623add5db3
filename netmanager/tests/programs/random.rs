//! Bytes that nobody meant: whatever comes, the programs come to a verdict, and leave alone what is not ours.

use std::cell::Cell;

use dataplane_ebpf::address::{TUNNEL_PORT, in_overlay};
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use crate::frame::{ETHERNET, IPV4, Packet, Transport, hex};
use crate::host::{Host, PASS, REDIRECT, Ran, SHOT};
use crate::published;
use crate::topology::{
    A, B_TO_A, BALANCED, C, C_TO_A, HOST, NEIGHBOUR, OUTER_A, OUTER_B, S_SHOWN, SINGLE, Site, T_SHOWN,
    UNKNOWN, V,
};

/// The kernel runs programs on whole IPv6 headers only.
const SHORTEST: usize = ETHERNET + 40;

fn run_cases<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> TestCaseResult) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(strategy, test)
        .unwrap_or_else(|failure| panic!("{failure}"));
}

fn programs() -> impl Strategy<Value = Program> {
    proptest::sample::select(&Program::ALL[..])
}

/// Frames that something in the topology sends, and the program that sees them.
fn valid_frames() -> impl Strategy<Value = (Program, Vec<u8>)> {
    let transports = proptest::sample::select(vec![
        Transport::Tcp,
        Transport::Udp,
        Transport::UncheckedUdp,
        Transport::Ping,
        Transport::Pong,
        Transport::Icmp(3, 4),
    ]);
    let called = vec![SINGLE, BALANCED, NEIGHBOUR, UNKNOWN, S_SHOWN, C, OUTER_B];
    let called = proptest::sample::select(called);
    let here = proptest::sample::select(vec![A, C, V, HOST]);
    let ports = proptest::sample::select(vec![1, 80, 5000, TUNNEL_PORT]);
    (
        programs(),
        transports,
        called,
        here,
        ports,
        any::<u8>(),
        0..64usize,
    )
        .prop_map(
            |(program, transport, called, here, destination_port, flags, length)| {
                let packet = Packet {
                    transport,
                    source: if program == Program::FromHost { HOST } else { A },
                    destination: called,
                    destination_port,
                    flags,
                    payload: vec![0x5a; length],
                    ..Packet::default()
                };
                let frame = match program {
                    Program::FromEndpoint | Program::FromOak0 | Program::FromHost => packet.frame(),
                    Program::FromLoopback => Packet {
                        source: OUTER_A,
                        destination: OUTER_A,
                        destination_port: 8080,
                        ..packet
                    }
                    .frame(),
                    Program::FromUplink => {
                        let (outer, source) = if flags & 1 == 0 {
                            (B_TO_A, S_SHOWN)
                        } else {
                            (C_TO_A, T_SHOWN)
                        };
                        outer.carrying(&Packet {
                            source,
                            destination: here,
                            ..packet
                        })
                    }
                };
                (program, frame)
            },
        )
}

/// What is required of every run. Checksums are the harness' care.
fn check(node: &Host, program: Program, frame: &[u8]) -> Result<Ran, TestCaseError> {
    let ran = node.run(program, frame);
    let what = format!("{program:?}: {} -> {ran:?}", hex(frame));
    prop_assert!([PASS, SHOT, REDIRECT].contains(&ran.verdict), "{}", what);
    // One outcome, counted once, with the bytes that are left.
    prop_assert_eq!(ran.counted.len(), 1, "{}", what);
    let (hook, _, packets, bytes) = &ran.counted[0];
    prop_assert_eq!(hook, program.name(), "{}", what);
    prop_assert_eq!((*packets, *bytes), (1, ran.frame.len() as u64), "{}", what);
    if ran.verdict == PASS {
        prop_assert_eq!(&ran.frame, frame, "{}", what);
    }
    Ok(ran)
}

#[test]
fn p01_random_bytes_come_to_a_verdict() {
    let node = Host::at(Site::A);
    let frames = vec(any::<u8>(), SHORTEST..300);
    run_cases(
        2000,
        &(programs(), frames, any::<bool>()),
        |(program, mut frame, is_ipv4)| {
            if is_ipv4 {
                frame[12..14].copy_from_slice(&[0x08, 0x00]);
            }
            check(&node, program, &frame)?;
            Ok(())
        },
    );
}

#[test]
fn p01_valid_frames_with_bytes_exchanged_cut_or_appended_come_to_a_verdict() {
    let node = published::publisher();
    let changes = (
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        vec(any::<u8>(), 0..20),
        proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    );
    let reached: Cell<[u32; 3]> = Cell::default();
    run_cases(
        4000,
        &(valid_frames(), changes),
        |((program, mut frame), (patches, appended, cut))| {
            for (index, byte) in patches {
                let packet = &mut frame[ETHERNET..];
                packet[index.index(packet.len())] = byte;
            }
            if let Some(length) = cut {
                frame.truncate(SHORTEST.max(length.index(frame.len())));
            }
            frame.extend(appended);
            frame.resize(frame.len().max(SHORTEST), 0);
            let ran = check(&node, program, &frame)?;
            let mut counts = reached.get();
            counts[usize::from(ran.verdict == SHOT) + 2 * usize::from(ran.verdict == REDIRECT)] += 1;
            reached.set(counts);
            let waits = ran.counted[0].1 == Action::Park.as_str();
            if program == Program::FromUplink && ran.verdict == REDIRECT && !waits {
                // Whatever came in as a datagram goes to an endpoint here, from an instance elsewhere.
                let (source, destination) = addresses(&ran.frame);
                prop_assert!([A, C, V, HOST].contains(&destination), "{ran:?}");
                prop_assert!(source.starts_with(&[10, 30]), "{ran:?}");
            }
            Ok(())
        },
    );
    // The frames are close enough to valid ones that all happens.
    let counts = reached.get();
    assert!(counts.iter().all(|count| *count > 400), "{counts:?}");
}

fn addresses(frame: &[u8]) -> ([u8; 4], [u8; 4]) {
    let address = |offset: usize| {
        let at = ETHERNET + offset;
        [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]
    };
    (address(12), address(16))
}

/// Whether a well-formed IPv4 frame is none of the data plane's business, by the rules of the design.
fn is_foreign(program: Program, frame: &[u8]) -> bool {
    let (source, destination) = addresses(frame);
    let fragment = u16::from_be_bytes([frame[ETHERNET + 6], frame[ETHERNET + 7]]);
    let (is_fragment, later_fragment) = (fragment & 0x3fff != 0, fragment & 0x1fff != 0);
    let header = usize::from(frame[ETHERNET] & 0x0f) * 4;
    let to_tunnel_port = frame[ETHERNET + 9] == 17
        && !later_fragment
        && frame[ETHERNET + header + 2..][..2] == TUNNEL_PORT.to_be_bytes();
    match program {
        // All endpoints of the topology are behind one interface, the node itself too.
        Program::FromEndpoint => [A, HOST].contains(&source) && !(in_overlay(destination) || to_tunnel_port),
        Program::FromOak0 => !(in_overlay(destination) || to_tunnel_port),
        Program::FromHost => !(in_overlay(destination) || to_tunnel_port),
        // Nothing is published.
        Program::FromLoopback => true,
        // The kernel puts a peer's fragments together.
        Program::FromUplink => {
            let is_tunnel = to_tunnel_port && destination == OUTER_A && !(is_fragment && source == OUTER_B);
            !(in_overlay(destination) || is_tunnel)
        }
    }
}

#[test]
fn p02_what_is_not_ours_passes_byte_for_byte() {
    let node = Host::at(Site::A);
    let protocols = proptest::sample::select(vec![0, 1, 2, 4, 6, 17, 17, 17, 41, 47, 50, 132, 255]);
    let outside = any::<[u8; 4]>().prop_filter("outside", |address| !in_overlay(*address));
    let destinations = prop_oneof![Just(OUTER_A), Just(OUTER_B), Just(UNKNOWN), outside];
    let sources = prop_oneof![Just(A), Just(HOST), Just(OUTER_B), any::<[u8; 4]>()];
    let headers = (any::<u8>(), 0..=3u16, any::<bool>(), any::<bool>(), any::<u8>());
    let ports = prop_oneof![Just(TUNNEL_PORT), any::<u16>()];
    let payloads = (ports, vec(any::<u8>(), 16..100), vec(any::<u8>(), 0..20));
    let foreign = Cell::new(0);
    run_cases(
        3000,
        &(programs(), sources, destinations, protocols, headers, payloads),
        |(program, source, destination, protocol, headers, (port, mut payload, trailer))| {
            let (type_of_service, fragment_offset, more_fragments, with_options, time_to_live) = headers;
            payload[2..4].copy_from_slice(&port.to_be_bytes());
            let frame = Packet {
                source,
                destination,
                transport: Transport::Raw(protocol),
                type_of_service,
                fragment_offset,
                more_fragments,
                time_to_live,
                ip_options: if with_options { &[1; 8] } else { &[] },
                payload,
                trailer,
                ..Packet::default()
            }
            .frame();
            let ran = check(&node, program, &frame)?;
            if is_foreign(program, &frame) {
                foreign.set(foreign.get() + 1);
                prop_assert_eq!(
                    &ran.counted[0].1,
                    Action::Pass.as_str(),
                    "{:?}: {}",
                    program,
                    hex(&frame)
                );
            } else {
                prop_assert_ne!(
                    &ran.counted[0].1,
                    Action::Pass.as_str(),
                    "{:?}: {}",
                    program,
                    hex(&frame)
                );
            }
            Ok(())
        },
    );
    assert!(foreign.get() > 1000, "{} were foreign", foreign.get());
}

const _: () = assert!(SHORTEST > ETHERNET + IPV4);
