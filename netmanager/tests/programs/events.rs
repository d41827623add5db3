//! What is told to whoever watches: all of it while somebody does, at a limited rate, and nothing else.

use dataplane_ebpf::tables::{Event, capacity, event_kind};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};
use netmanager::dataplane::Program;

use crate::frame::{ACK, ETHERNET, IPV4, Packet, Transport};
use crate::host::{Host, SHOT, coarse_time};
use crate::outsiders::stay_on_this_processor;
use crate::topology::{A, B_TO_A, INTERFACE, OUTER_B, S, S_SHOWN, SINGLE, Site, T_SHOWN, UNKNOWN};

/// More than any test here makes.
const MANY: u32 = 1_000;

/// A packet that is dropped as it leaves endpoint a.
fn dropped() -> Packet {
    Packet {
        destination: S,
        transport: Transport::Udp,
        ..Packet::default()
    }
}

fn watch(node: &mut Host, events_per_window: u32) {
    let events = node.tables.events.as_mut().expect("nobody has taken it");
    events.settings.tell(events_per_window).expect("written");
}

fn told(node: &mut Host) -> Vec<Event> {
    let events = node.tables.events.as_mut().expect("nobody has taken it");
    events.ring.by_ref().collect()
}

fn left_out(node: &Host) -> u64 {
    let events = node.tables.events.as_ref().expect("nobody has taken it");
    events.settings.left_out().expect("readable")
}

#[test]
fn nothing_is_told_while_nobody_watches() {
    let mut node = Host::at(Site::A);
    let run_all = |node: &Host| {
        for packet in [dropped(), Packet::default()] {
            node.run(Program::FromEndpoint, &packet.frame());
        }
    };
    run_all(&node);
    assert_eq!((told(&mut node), left_out(&node)), (Vec::new(), 0));
    watch(&mut node, MANY);
    run_all(&node);
    assert_ne!(told(&mut node), []);
    watch(&mut node, 0);
    run_all(&node);
    assert_eq!((told(&mut node), left_out(&node)), (Vec::new(), 0));
}

#[test]
fn drops_misses_and_new_flows_are_told_once_each_and_nothing_else_is() {
    let mut node = Host::at(Site::A);
    watch(&mut node, MANY);
    let flow = Packet::default();
    let miss = Packet {
        destination: UNKNOWN,
        transport: Transport::Ping,
        ..Packet::default()
    };
    let refused = Packet {
        source_port: 5001,
        flags: ACK,
        ..Packet::default()
    };
    let outside = Packet {
        destination: OUTER_B,
        ..Packet::default()
    };
    for packet in [&flow, &flow, &miss, &dropped(), &refused, &outside] {
        node.run(Program::FromEndpoint, &packet.frame());
    }
    let mut events = told(&mut node);
    let mut before = 0;
    for event in &mut events {
        let time = std::mem::take(&mut event.time);
        assert!(before <= time, "in their order");
        before = time;
    }
    let end = |row: u32, packet: &Packet| {
        let (source_port, destination_port) = packet.ports();
        Event {
            length: u32::try_from(packet.frame().len()).expect("short"),
            interface: INTERFACE,
            source: packet.source,
            destination: packet.destination,
            source_port: source_port.to_be_bytes(),
            destination_port: destination_port.to_be_bytes(),
            protocol: packet.transport.protocol(),
            kind: event_kind::END,
            hook: Hook::FromEndpoint as u8,
            row: u8::try_from(row).expect("few rows"),
            ..Event::default()
        }
    };
    let begun = Event {
        length: 0,
        interface: 0,
        kind: event_kind::FLOW,
        hook: 0,
        instance: crate::topology::index_of(S),
        instance_address: S_SHOWN,
        ..end(0, &flow)
    };
    // The answer is written over the segment that is refused: the same packet, the other way round.
    let reset = events.pop().expect("the refusal");
    assert_eq!(
        (reset.kind, u32::from(reset.row)),
        (event_kind::END, Action::Reset.row())
    );
    assert_eq!(
        events,
        [
            begun,
            end(Action::Park.row(), &miss),
            end(DropReason::NotAService.row(), &dropped()),
        ]
    );
    assert_eq!(left_out(&node), 0);
}

#[test]
fn of_a_tunnel_datagram_the_inner_packet_is_told_and_who_sent_it() {
    let mut node = Host::at(Site::A);
    watch(&mut node, MANY);
    let inner = Packet {
        source: T_SHOWN,
        source_port: 80,
        destination: A,
        transport: Transport::Udp,
        ..Packet::default()
    };
    let frame = B_TO_A.around(&inner.ip());
    assert_eq!(node.run(Program::FromUplink, &frame).verdict, SHOT);
    let events = told(&mut node);
    let [event] = events[..] else {
        panic!("one event: {events:?}")
    };
    assert_eq!(u32::from(event.row), DropReason::SourceNotOnNode.row());
    assert_eq!(
        (event.source, event.destination, event.peer),
        (T_SHOWN, A, OUTER_B)
    );
    assert_eq!(event.source_port, 80u16.to_be_bytes());
    assert_eq!(event.length as usize, frame.len());
}

#[test]
fn frames_that_end_anywhere_are_told_all_the_same() {
    let mut node = Host::at(Site::A);
    watch(&mut node, MANY);
    let whole = dropped().frame();
    let mut dropped = 0;
    // The kernel makes no test of a frame that ends within its IPv4 header.
    for length in ETHERNET + IPV4..whole.len() {
        let ran = node.run(Program::FromEndpoint, &whole[..length]);
        dropped += usize::from(ran.verdict == SHOT);
    }
    assert_eq!(told(&mut node).len(), dropped);
    assert!(dropped > 20, "{dropped}");
}

#[test]
fn each_processor_tells_so_many_in_a_second_and_counts_the_rest() {
    const LIMIT: u32 = 5;
    const PACKETS: u32 = 12;
    stay_on_this_processor();
    let frame = dropped().frame();
    // The limit starts anew with every window of the coarse clock; a run in which one ends is repeated.
    for _ in 0..20 {
        let mut node = Host::at(Site::A);
        watch(&mut node, LIMIT);
        let window = coarse_time();
        for _ in 0..PACKETS {
            node.run(Program::FromEndpoint, &frame);
        }
        if coarse_time() != window {
            continue;
        }
        assert_eq!(told(&mut node).len() as u32, LIMIT);
        assert_eq!(left_out(&node), u64::from(PACKETS - LIMIT));
        return;
    }
    panic!("no run within one window");
}

#[test]
fn a_ring_that_nobody_empties_changes_nothing_for_the_packets() {
    let mut node = Host::at(Site::A);
    watch(&mut node, u32::MAX);
    let frame = dropped().frame();
    // An entry takes its own eight bytes beside the event's.
    let room = capacity::EVENT_BYTES as usize / (size_of::<Event>() + 8);
    let program = node.program(Program::FromEndpoint);
    for _ in 0..room + 100 {
        let (verdict, _) = crate::host::run(program, &frame, crate::host::Context::default());
        assert_eq!(verdict, SHOT);
    }
    assert!(left_out(&node) >= 100, "{}", left_out(&node));
    assert!(!told(&mut node).is_empty());
    // There is room again.
    let before = left_out(&node);
    node.run(
        Program::FromEndpoint,
        &Packet {
            destination: SINGLE,
            ..Packet::default()
        }
        .frame(),
    );
    assert_eq!((told(&mut node).len(), left_out(&node)), (1, before));
}
