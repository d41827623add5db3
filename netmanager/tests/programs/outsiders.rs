//! Who is not part of the overlay: unknown senders, and overlay addresses without a tunnel.

use dataplane_ebpf::tables::{Peer, UNKNOWN_PEERS_PER_WINDOW};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::frame::{Outer, Packet, Transport};
use crate::host::{Host, Outcome, SHOT, assert_outcome, coarse_time};
use crate::topology::{
    A, B_TO_A, C, HOST, OTHER_INTERFACE, OUTER_A, OUTER_B, S, S_SHOWN, SINGLE, Site, UNKNOWN,
};

/// A datagram of a node that nobody has announced.
pub fn from_stranger() -> Vec<u8> {
    let inner = Packet {
        source: S_SHOWN,
        destination: A,
        ..Packet::default()
    };
    let outer = Outer {
        source: [203, 0, 113, 5],
        ..B_TO_A
    };
    outer.around(&inner.ip())
}

/// Keeps the calling thread on one processor: the rate is counted on each.
pub fn stay_on_this_processor() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the affinity can be read");
    let first = (0..CpuSet::count())
        .find(|cpu| allowed.is_set(*cpu) == Ok(true))
        .expect("some processor");
    let mut only = CpuSet::new();
    only.set(first).expect("a processor that there is");
    sched_setaffinity(Pid::from_raw(0), &only).expect("the affinity can be set");
}

#[test]
fn p41_strangers_are_handed_up_at_a_limited_rate_and_then_dropped() {
    const EXCESS: u32 = 3;
    stay_on_this_processor();
    let stranger = from_stranger();
    // The limit starts anew with every window of the coarse clock; a run in which one ends is repeated.
    for _ in 0..20 {
        let node = Host::at(Site::A);
        let window = coarse_time();
        let runs: Vec<_> = (0..UNKNOWN_PEERS_PER_WINDOW + EXCESS)
            .map(|_| node.run(Program::FromUplink, &stranger))
            .collect();
        if coarse_time() != window {
            continue;
        }
        for (number, ran) in (0..).zip(runs) {
            let case = format!("datagram {number}");
            let outcome = if number < UNKNOWN_PEERS_PER_WINDOW {
                assert_eq!(ran.frame, stranger, "{case}: unchanged");
                Outcome::Did(Action::Stranger)
            } else {
                Outcome::Dropped(DropReason::UnknownPeer)
            };
            assert_outcome(&case, Program::FromUplink, &ran, outcome);
        }
        // Known nodes do not suffer.
        let inner = Packet {
            source: S_SHOWN,
            destination: A,
            ..Packet::default()
        };
        node.expect(
            "a known node",
            Program::FromUplink,
            &B_TO_A.carrying(&inner),
            Action::Deliver,
            &inner.out_of(&B_TO_A).frame(),
        );
        return;
    }
    panic!("no run within one window");
}

#[test]
fn p41_the_limit_for_strangers_starts_anew() {
    stay_on_this_processor();
    let node = Host::at(Site::A);
    let stranger = from_stranger();
    let exhausted = (0..100_000)
        .map(|_| node.run(Program::FromUplink, &stranger))
        .find(|ran| ran.verdict == SHOT);
    let exhausted = exhausted.expect("the limit is reached");
    assert_outcome(
        "beyond the limit",
        Program::FromUplink,
        &exhausted,
        Outcome::Dropped(DropReason::UnknownPeer),
    );
    let window = coarse_time();
    while coarse_time() == window {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    node.expect(
        "in the next window",
        Program::FromUplink,
        &stranger,
        Action::Stranger,
        &stranger,
    );
}

#[test]
fn p41_a_known_peer_sends_from_where_it_is_or_not_at_all() {
    let mut node = Host::at(Site::A);
    let inner = Packet {
        source: S_SHOWN,
        destination: A,
        ..Packet::default()
    };
    let datagram = B_TO_A.carrying(&inner);
    let known = node
        .tables
        .peers
        .get(&OUTER_B, 0)
        .expect("a node of the topology");
    for (name, interface) in [
        ("at another interface", OTHER_INTERFACE),
        ("without a way to it", 0),
    ] {
        let peer = Peer { interface, ..known };
        node.tables.peers.insert(OUTER_B, peer, 0).expect("room in PEERS");
        node.drops(name, Program::FromUplink, &datagram, DropReason::WrongInterface);
    }
    node.tables
        .peers
        .insert(OUTER_B, known, 0)
        .expect("room in PEERS");
    let delivered = inner.out_of(&B_TO_A).frame();
    node.expect(
        "where it is",
        Program::FromUplink,
        &datagram,
        Action::Deliver,
        &delivered,
    );
}

#[test]
fn p41_overlay_addresses_on_the_wire_are_dropped_whatever_they_carry() {
    let node = Host::at(Site::A);
    let destinations = [
        ("an endpoint here", A),
        ("the node's own", HOST),
        ("an endpoint elsewhere", S),
        ("an instance", S_SHOWN),
        ("a service", SINGLE),
        ("unknown", UNKNOWN),
        ("the first of the overlay", [10, 16, 0, 0]),
        ("the last of the overlay", [10, 31, 255, 255]),
    ];
    let carried = [
        Packet::default(),
        Packet {
            transport: Transport::Udp,
            destination_port: 50_103,
            ..Packet::default()
        },
        Packet {
            transport: Transport::Ping,
            ..Packet::default()
        },
        Packet {
            transport: Transport::Raw(132),
            ..Packet::default()
        },
        Packet {
            transport: Transport::Raw(17),
            more_fragments: true,
            fragment_offset: 5,
            ..Packet::default()
        },
        Packet {
            ip_options: &[1, 1, 1, 1],
            ..Packet::default()
        },
    ];
    for (name, destination) in destinations {
        for source in [S_SHOWN, C, [203, 0, 113, 5], OUTER_A] {
            for packet in &carried {
                let packet = Packet {
                    source,
                    destination,
                    ..packet.clone()
                };
                node.drops(
                    &format!("{name}: {packet:?}"),
                    Program::FromUplink,
                    &packet.frame(),
                    DropReason::Unencapsulated,
                );
            }
        }
    }
    for (name, destination) in [("below", [10, 15, 255, 255]), ("above", [10, 32, 0, 0])] {
        let packet = Packet {
            destination,
            ..Packet::default()
        };
        node.passes(name, Program::FromUplink, &packet.frame());
    }
}
