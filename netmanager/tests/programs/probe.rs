//! Probes: turned around byte by byte for peers and for nobody else, and answers taken in once.

use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::probe::{ANSWERED_PER_SECOND, LENGTH, Probe, SLOTS};
use dataplane_ebpf::tables::{Node, Peer, SentProbe, capacity};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;
use nix::time::{ClockId, clock_gettime};

use crate::frame::{ETHERNET, IPV4, OVERHEAD, Outer, Packet, Transport, patched};
use crate::host::{Context, Host, Outcome, SHOT, assert_outcome, coarse_time, run};
use crate::outsiders::stay_on_this_processor;
use crate::topology::{A_TO_B, B_TO_A, C_TO_A, OTHER_INTERFACE, OUTER_B, Site, set_node};

const NONCE: u64 = 0x1122_3344_5566_7788;
/// The last slot of node B.
const SLOT: u32 = SLOTS - 1;

/// Where A notes its probes of B.
fn index() -> u32 {
    Site::B.index(Site::A) * SLOTS + SLOT
}

/// What B asks A; the index is B's own affair.
pub fn request() -> Vec<u8> {
    B_TO_A.around(&Probe::request(0xdead_beef, NONCE).to_bytes())
}

/// What B answers A.
pub fn answer() -> Vec<u8> {
    answer_to(Probe::request(index(), NONCE))
}

fn answer_to(request: Probe) -> Vec<u8> {
    B_TO_A.around(&request.answer().to_bytes())
}

/// A node that has just sent a probe to B.
pub fn asking() -> Host {
    let mut node = Host::at(Site::A);
    ask(&mut node, index(), NONCE);
    node
}

fn ask(node: &mut Host, index: u32, nonce: u64) {
    let sent = SentProbe {
        nonce,
        received_at: 0,
    };
    node.tables
        .probes
        .set(index, sent, 0)
        .expect("an index within PROBES");
}

fn sent(node: &Host) -> SentProbe {
    node.tables
        .probes
        .get(&index(), 0)
        .expect("an index within PROBES")
}

/// A node that has just answered as many probes as it may.
pub fn tired_of_probes() -> Host {
    let node = Host::at(Site::A);
    while run(node.program(Program::FromUplink), &request(), Context::default()).0 != SHOT {}
    node
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the kernel has this clock");
    (now.tv_sec() * 1_000_000_000 + now.tv_nsec()).cast_unsigned()
}

/// The probe as a socket sends it, with a checksum or without.
fn datagram(outer: &Outer, payload: &[u8], transport: Transport, time_to_live: u8) -> Vec<u8> {
    Packet {
        to_mac: outer.to_mac,
        from_mac: outer.from_mac,
        source: outer.source,
        source_port: outer.source_port,
        destination: outer.destination,
        destination_port: outer.destination_port,
        transport,
        time_to_live,
        payload: payload.to_vec(),
        ..Packet::default()
    }
    .frame()
}

#[test]
fn p41_a_probe_of_a_peer_is_turned_around_byte_by_byte() {
    let node = Host::at(Site::A);
    let request = Probe::request(0xdead_beef, NONCE);
    for transport in [Transport::Udp, Transport::UncheckedUdp] {
        // The port of a socket behind a NAT is any.
        for source_port in [TUNNEL_PORT, 1, 65_535] {
            for time_to_live in [64, 63, 1, 255] {
                let asked = Outer {
                    source_port,
                    ..B_TO_A
                };
                let answered = Outer {
                    to_mac: B_TO_A.from_mac,
                    from_mac: B_TO_A.to_mac,
                    source_port: TUNNEL_PORT,
                    destination_port: source_port,
                    ..A_TO_B
                };
                node.expect(
                    &format!("{transport:?} from {source_port}, {time_to_live} hops left"),
                    Program::FromUplink,
                    &datagram(&asked, &request.to_bytes(), transport, time_to_live),
                    Action::ProbeAnswered,
                    &datagram(&answered, &request.answer().to_bytes(), transport, 64),
                );
            }
        }
    }
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p41_probes_of_strangers_and_from_other_interfaces_are_dropped() {
    let mut node = Host::at(Site::A);
    let stranger = Outer {
        source: [192, 0, 2, 99],
        ..B_TO_A
    };
    let probe = Probe::request(1, NONCE);
    node.drops(
        "a stranger",
        Program::FromUplink,
        &stranger.around(&probe.to_bytes()),
        DropReason::UnknownPeer,
    );
    let elsewhere = Peer {
        group: Site::B.index(Site::A),
        interface: OTHER_INTERFACE,
    };
    node.tables
        .peers
        .insert(OUTER_B, elsewhere, 0)
        .expect("room in PEERS");
    for frame in [request(), answer()] {
        node.drops(
            "from another interface",
            Program::FromUplink,
            &frame,
            DropReason::WrongInterface,
        );
    }
}

#[test]
fn p41_probes_of_another_length_version_or_kind_are_dropped() {
    let node = asking();
    let request = Probe::request(index(), NONCE).to_bytes();
    let longer = [&request[..], &[0]].concat();
    for length in 1..=longer.len() {
        if length == LENGTH {
            continue;
        }
        node.drops(
            &format!("{length} bytes"),
            Program::FromUplink,
            &B_TO_A.around(&longer[..length]),
            DropReason::ProbeMalformed,
        );
    }
    let cases: [(&str, usize, &[u8]); 6] = [
        ("no version", 1, &[0]),
        ("the next version", 1, &[2]),
        ("neither request nor answer", 2, &[0, 3]),
        ("both", 4, &[0, 1]),
        ("another order of bytes", 2, &[1, 0, 2, 0]),
        ("nothing", 2, &[0, 0, 0, 0]),
    ];
    for (name, offset, bytes) in cases {
        let frame = patched(B_TO_A.around(&request), ETHERNET + OVERHEAD + offset, bytes);
        node.drops(name, Program::FromUplink, &frame, DropReason::ProbeMalformed);
    }
    assert_eq!(sent(&node).received_at, 0);
}

#[test]
fn p41_the_arrival_of_an_answer_is_noted_once() {
    let node = asking();
    let before = monotonic();
    let ran = node.run(Program::FromUplink, &answer());
    assert_outcome(
        "the answer",
        Program::FromUplink,
        &ran,
        Outcome::Did(Action::ProbeReceived),
    );
    let noted = sent(&node);
    assert!((before..=monotonic()).contains(&noted.received_at), "{noted:?}");
    assert_eq!(noted.nonce, NONCE);
    node.drops(
        "the same again",
        Program::FromUplink,
        &answer(),
        DropReason::ProbeUnexpected,
    );
    assert_eq!(sent(&node), noted);
}

#[test]
fn p41_answers_that_nobody_waits_for_are_dropped() {
    let mut node = asking();
    // A node that was forgotten, and one without an answer under way.
    set_node(&mut node.tables, 9, Node::default());
    ask(&mut node, 9 * SLOTS, NONCE);
    let of = |index, nonce| answer_to(Probe::request(index, nonce));
    let beyond = capacity::PROBES;
    let cases = [
        ("another nonce", of(index(), NONCE + 1)),
        ("no nonce", of(index(), 0)),
        ("another slot", of(index() - 1, NONCE)),
        ("another slot, no nonce", of(index() - 1, 0)),
        ("a node that is not known", of(9 * SLOTS, NONCE)),
        ("this node itself", of(0, 0)),
        ("beyond the table", of(beyond, NONCE)),
        ("far beyond the table", of(u32::MAX, NONCE)),
        (
            "another peer",
            C_TO_A.around(&Probe::request(index(), NONCE).answer().to_bytes()),
        ),
    ];
    for (name, frame) in cases {
        node.drops(name, Program::FromUplink, &frame, DropReason::ProbeUnexpected);
    }
    assert_eq!(sent(&node).received_at, 0);
    assert_eq!(
        node.tables
            .probes
            .get(&(9 * SLOTS), 0)
            .expect("an index")
            .received_at,
        0
    );
}

#[test]
fn p41_probes_are_answered_at_a_limited_rate() {
    stay_on_this_processor();
    // The limit starts anew with every window of the coarse clock; a run in which one ends is repeated.
    for _ in 0..20 {
        let node = Host::at(Site::A);
        let window = coarse_time();
        let verdicts: Vec<i32> = (0..ANSWERED_PER_SECOND + 3)
            .map(|_| run(node.program(Program::FromUplink), &request(), Context::default()).0)
            .collect();
        if coarse_time() != window {
            continue;
        }
        let answered = verdicts.iter().take_while(|verdict| **verdict != SHOT).count();
        assert_eq!(answered, ANSWERED_PER_SECOND as usize);
        assert!(verdicts[answered..].iter().all(|verdict| *verdict == SHOT));
        return;
    }
    panic!("no run within one window");
}

#[test]
fn p41_a_probe_with_options_or_in_fragments_is_no_probe() {
    let node = Host::at(Site::A);
    let payload = Probe::request(1, NONCE).to_bytes();
    let options = Outer {
        options: &[1; 4],
        ..B_TO_A
    };
    node.drops(
        "options",
        Program::FromUplink,
        &options.around(&payload),
        DropReason::OuterMalformed,
    );
    let fragment = Outer {
        more_fragments: true,
        ..B_TO_A
    };
    // Put together by the kernel, it is not one either: NetManager does not answer probes.
    node.passes("a fragment", Program::FromUplink, &fragment.around(&payload));
    let short = patched(B_TO_A.around(&payload), ETHERNET + IPV4 + 4, &[0, 8]);
    node.drops(
        "lengths that contradict each other",
        Program::FromUplink,
        &short,
        DropReason::OuterMalformed,
    );
}
