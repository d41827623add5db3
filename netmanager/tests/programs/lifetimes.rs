//! What user space does with flows that have ended, on the kernel's own tables, and what clients are told of it.

use std::time::{Duration, Instant};

use dataplane_ebpf::header::{PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{Flow, FlowKey, state};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;
use netmanager::flows::{Lifetimes, Scope, Sweep, UNIT, reminder, sweep};
use nix::time::{ClockId, clock_gettime};

use crate::frame::{ACK, Packet, RST, SYN, Transport};
use crate::host::Host;
use crate::topology::{
    A, B_TO_A, GATEWAY_MAC, HOST, MAC_OF_A, S, S_SHOWN, SINGLE, Site, UNKNOWN, V, index_of, replace, vacate,
};

/// Flows in the large table.
const MANY: u32 = 100_000;
/// What a sweep over them may cost.
const CPU: Duration = Duration::from_millis(100);

/// The header that the tap puts before each frame.
const VIRTIO_HEADER: usize = 10;

fn forward(transport: Transport, source: [u8; 4]) -> FlowKey {
    FlowKey {
        source,
        destination: SINGLE,
        source_port: 5000_u16.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: transport.protocol(),
        zero: [0; 3],
    }
}

/// Endpoint a opens a flow to the single service, which is answered.
fn converse(node: &Host, transport: Transport) {
    let request = Packet {
        transport,
        ..Packet::default()
    };
    node.run(Program::FromEndpoint, &request.frame());
    let answer = B_TO_A.carrying(&Packet {
        transport,
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        flags: SYN | ACK,
        ..Packet::default()
    });
    node.run(Program::FromUplink, &answer);
    if transport == Transport::Tcp {
        let complete = Packet {
            flags: ACK,
            ..request
        };
        node.run(Program::FromEndpoint, &complete.frame());
    }
    assert_eq!(node.tables.flows.keys().count(), 2, "both entries are settled");
}

fn swept(node: &Host, now: u64, scope: Scope) -> Sweep {
    sweep(&node.tables.flow_maps, now, &Lifetimes::default(), scope).expect("swept")
}

fn now() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock")).as_nanos() as u64
}

#[test]
fn n68_an_answered_flow_goes_with_both_entries_when_its_lifetime_is_over() {
    let mut node = Host::at(Site::A);
    let lifetimes = Lifetimes::default();
    for (transport, lifetime) in [
        (Transport::Tcp, lifetimes.tcp_established),
        (Transport::Udp, lifetimes.udp_answered),
    ] {
        node.reset();
        converse(&node, transport);
        let used = node
            .tables
            .flows
            .iter()
            .map(|entry| entry.expect("readable").1.last_seen);
        let last_seen = used.max().expect("two entries");
        let end = (u64::from(last_seen) + 1) * UNIT.as_nanos() as u64 + lifetime.as_nanos() as u64;

        let early = swept(&node, end - 1, Scope::All);
        assert_eq!((early.removed, early.flows), (0, 2), "{transport:?}");
        assert!(early.leads_to(index_of(S)) && early.chose(SINGLE.into()));
        assert_eq!(swept(&node, end, Scope::OfGoneInstances).removed, 0);
        assert_eq!(node.flows().len(), 2);
        assert_eq!(swept(&node, end, Scope::All).removed, 2, "{transport:?}");
        assert!(node.flows().is_empty());
    }
}

#[test]
fn n68_an_unanswered_flow_goes_too() {
    let mut node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        node.reset();
        let request = Packet {
            transport,
            ..Packet::default()
        };
        node.run(Program::FromEndpoint, &request.frame());
        assert_eq!(swept(&node, now(), Scope::All).removed, 0, "{transport:?}");
        let later = now() + Lifetimes::default().udp_one_way.as_nanos() as u64 + 2 * UNIT.as_nanos() as u64;
        let last = swept(&node, later, Scope::All);
        assert_eq!((last.unanswered, last.removed), (2, 2), "{transport:?}");
    }
}

#[test]
fn p24_flows_of_a_replaced_instance_are_purged_and_those_of_its_successor_stay() {
    let mut node = Host::at(Site::A);
    converse(&node, Transport::Udp);
    replace(&mut node.tables, S);
    let other = Packet {
        transport: Transport::Udp,
        source_port: 5001,
        ..Packet::default()
    };
    node.run(Program::FromEndpoint, &other.frame());
    let swept = swept(&node, now(), Scope::OfGoneInstances);
    assert_eq!((swept.removed, swept.unaware.len()), (2, 0));
    let flows = node.flows();
    assert_eq!(flows.len(), 2);
    assert!(flows.keys().all(|key| {
        key.source_port == 5001_u16.to_be_bytes() || key.destination_port == 5001_u16.to_be_bytes()
    }));
}

#[test]
fn p17_an_idle_client_of_an_instance_that_is_gone_is_made_to_speak_and_reset() {
    let mut node = Host::at(Site::A);
    converse(&node, Transport::Tcp);
    vacate(&mut node.tables, S);
    let swept = swept(&node, now(), Scope::All);
    assert_eq!(swept.unaware, [forward(Transport::Tcp, A)]);
    assert_eq!(node.tables.flows.keys().count(), 2, "its next segment finds them");
    for reminder in reminder::frames(&swept.unaware[0]) {
        let frame = &reminder[VIRTIO_HEADER..];
        node.expect("reminder", Program::FromOak0, frame, Action::Deliver, frame);
    }
    // What the client's stack says to it.
    let answer = Packet {
        flags: ACK,
        sequence: 700,
        acknowledgement: 900,
        ..Packet::default()
    };
    let reset = Packet {
        to_mac: MAC_OF_A,
        from_mac: GATEWAY_MAC,
        source: SINGLE,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        flags: RST,
        sequence: 900,
        window: 0,
        identification: 0,
        payload: Vec::new(),
        ..Packet::default()
    };
    node.expect(
        "answer",
        Program::FromEndpoint,
        &answer.frame(),
        Action::Reset,
        &reset.frame(),
    );
    let swept = self::swept(&node, now(), Scope::All);
    assert!(swept.unaware.is_empty(), "told once");
}

#[test]
fn p17_reminders_reach_every_kind_of_endpoint() {
    let node = Host::at(Site::A);
    for (client, action) in [
        (A, Action::Deliver),
        (V, Action::Deliver),
        (HOST, Action::DeliverHost),
    ] {
        let [reminder, _] = reminder::frames(&forward(Transport::Tcp, client));
        let ran = node.run(Program::FromOak0, &reminder[VIRTIO_HEADER..]);
        assert_eq!(ran.counted[0].1, action.as_str(), "{client:?}");
    }
}

#[test]
fn only_netmanager_speaks_in_the_name_of_a_service() {
    let node = Host::at(Site::A);
    let from = |source| Packet {
        source,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        flags: ACK,
        ..Packet::default()
    };
    for program in [Program::FromEndpoint, Program::FromHost] {
        let frame = from(SINGLE).frame();
        node.drops("not from oak0", program, &frame, DropReason::Spoofed);
    }
    let outsider = [192, 0, 2, 99];
    let frame = from(outsider).frame();
    node.drops("no service", Program::FromOak0, &frame, DropReason::NotAService);
    let nobody = Packet {
        destination: [10, 18, 0, 60],
        ..from(UNKNOWN)
    };
    node.drops(
        "no endpoint",
        Program::FromOak0,
        &nobody.frame(),
        DropReason::NotAService,
    );
}

#[test]
fn a_look_at_100_000_flows_takes_less_than_a_tenth_of_a_second() {
    let mut node = Host::at(Site::A);
    let last_seen = (now() >> 30) as u32;
    for number in 0..MANY {
        let [_, _, high, low] = number.to_be_bytes();
        let client = [10, 18, 200 + (number >> 16) as u8, 1];
        let flow = Flow {
            incarnation: crate::topology::incarnation_of(S),
            instance: index_of(S),
            last_seen,
            shown: SINGLE,
            port: [high, low],
            state: state::ANSWERED,
            ..Flow::default()
        };
        let key = FlowKey {
            source: client,
            source_port: [high, low],
            ..forward(Transport::Tcp, A)
        };
        let answers = FlowKey {
            source: S_SHOWN,
            destination: client,
            source_port: key.destination_port,
            destination_port: key.source_port,
            protocol: if number % 2 == 0 {
                PROTOCOL_TCP
            } else {
                PROTOCOL_UDP
            },
            zero: [0; 3],
        };
        let reverse = Flow {
            state: state::ANSWERED | state::REVERSE,
            ..flow
        };
        node.tables.flows.insert(key, flow, 0).expect("room");
        node.tables.flows.insert(answers, reverse, 0).expect("room");
    }
    let (begun, wall) = (cpu(), Instant::now());
    let swept = swept(&node, now(), Scope::All);
    let (cpu, wall) = (cpu() - begun, wall.elapsed());
    assert_eq!((swept.flows, swept.removed), (2 * MANY, 0));
    assert!(cpu < CPU, "{cpu:?} of the CPU in {wall:?}");
}

/// What this thread has used.
fn cpu() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"))
}
