//! P-33: errors that the data plane sends itself.

use dataplane_ebpf::tables::{Node, SENT_ERRORS_PER_WINDOW};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::frame::{Packet, Transport};
use crate::host::{Context, Host, Outcome, SHOT, WAYS_OUT, assert_outcome, coarse_time};
use crate::icmp::{error, quote};
use crate::outsiders::stay_on_this_processor;
use crate::topology::{EMPTY, MTU, SINGLE, Site, UNKNOWN, set_node};

/// Code of "host unreachable".
pub const HOST_UNREACHABLE: u8 = 1;
/// Code of "fragmentation needed".
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// What the sender of `packet` is told: from the address that it has sent to, with its header and eight bytes.
pub fn answer(packet: &Packet, code: u8, mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let error = error(
        (3, code, [0, 0, high, low]),
        packet.destination,
        packet.source,
        (0, 0),
        &quote(packet, 8),
    );
    Packet {
        to_mac: packet.from_mac,
        from_mac: packet.to_mac,
        type_of_service: 0xc0,
        identification: 0,
        ..error
    }
    .frame()
}

/// A node that has just sent as many errors as it may.
pub fn tired() -> Host {
    let node = Host::at(Site::A);
    let packet = Packet {
        destination: EMPTY,
        ..Packet::default()
    };
    while node.run(Program::FromEndpoint, &packet.frame()).verdict != SHOT {}
    node
}

#[test]
fn p33_who_asks_for_nobody_is_told_so_at_once() {
    let node = Host::at(Site::A);
    for (program, source) in WAYS_OUT {
        for transport in Transport::CARRIED {
            for length in [0, 1, 1400, 3000] {
                let packet = Packet {
                    transport,
                    source,
                    destination: EMPTY,
                    payload: vec![0x5a; length],
                    trailer: vec![0; 18],
                    ..Packet::default()
                };
                let case = format!("{program:?}, {transport:?}, {length} bytes");
                let expected = answer(&packet, HOST_UNREACHABLE, 0);
                node.expect(
                    &case,
                    program,
                    &packet.frame(),
                    Action::IcmpUnreachable,
                    &expected,
                );
            }
        }
    }
    let packet = Packet {
        destination: UNKNOWN,
        ..Packet::default()
    };
    let expected = answer(&packet, HOST_UNREACHABLE, 0);
    node.expect(
        "an address that does not exist",
        Program::FromOak0,
        &packet.frame(),
        Action::IcmpUnreachable,
        &expected,
    );
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn p33_of_a_superframe_that_does_not_fit_the_first_header_is_quoted() {
    let mut node = Host::at(Site::A);
    let path = node.tables.nodes.get(&1, 0).expect("a node of the topology");
    set_node(&mut node.tables, 1, Node { mtu: 1400, ..path });
    let superframe = Packet {
        payload: vec![0x5a; 2800],
        ..Packet::default()
    };
    let context = Context {
        segment_size: 1400,
        ..Context::default()
    };
    let ran = node.run_with(Program::FromEndpoint, &superframe.frame(), context);
    assert_eq!(
        ran.frame,
        answer(&superframe, FRAGMENTATION_NEEDED, 1400 - 28),
        "what fits is said without the tunnel"
    );
    assert_outcome(
        "superframe",
        Program::FromEndpoint,
        &ran,
        Outcome::Did(Action::IcmpTooBig),
    );
}

#[test]
fn p33_who_lets_others_fragment_is_told_nothing() {
    let node = Host::at(Site::A);
    let large = Packet {
        dont_fragment: false,
        payload: vec![0; MTU as usize],
        ..Packet::default()
    };
    node.drops("large", Program::FromEndpoint, &large.frame(), DropReason::TooBig);
}

#[test]
fn p33_errors_are_sent_at_a_limited_rate() {
    const EXCESS: u32 = 3;
    stay_on_this_processor();
    let to_nobody = Packet {
        destination: EMPTY,
        ..Packet::default()
    };
    let too_big = Packet {
        destination: SINGLE,
        payload: vec![0; MTU as usize],
        ..Packet::default()
    };
    // The limit starts anew with every window of the coarse clock; a run in which one ends is repeated.
    for _ in 0..20 {
        let node = Host::at(Site::A);
        let window = coarse_time();
        let frame = to_nobody.frame();
        let runs: Vec<_> = (0..SENT_ERRORS_PER_WINDOW + EXCESS)
            .map(|_| node.run(Program::FromEndpoint, &frame))
            .collect();
        let large = node.run(Program::FromEndpoint, &too_big.frame());
        if coarse_time() != window {
            continue;
        }
        for (number, ran) in (0..).zip(runs) {
            let outcome = if number < SENT_ERRORS_PER_WINDOW {
                Outcome::Did(Action::IcmpUnreachable)
            } else {
                Outcome::Dropped(DropReason::NoBackend)
            };
            assert_outcome(&format!("packet {number}"), Program::FromEndpoint, &ran, outcome);
        }
        // Errors about sizes have a limit of their own.
        let told = Outcome::Did(Action::IcmpTooBig);
        assert_outcome("large", Program::FromEndpoint, &large, told);
        return;
    }
    panic!("every run met the end of a window");
}
