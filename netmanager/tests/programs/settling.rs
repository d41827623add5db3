//! Which flows are kept for good, and that nothing pushes those out.

use std::fs;
use std::path::PathBuf;

use aya::EbpfLoader;
use dataplane_ebpf::tables::{Flow, FlowKey, state};
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::{OBJECT, Pins, Program};

use crate::flow_table::key;
use crate::frame::{ACK, FIN, PSH, Packet, RST, SYN, Transport};
use crate::host::{Context, Host, REDIRECT, run};
use crate::topology::{A, A_SHOWN, A_TO_B, B_TO_A, S, S_SHOWN, SINGLE, Site, TWIN};

fn request(transport: Transport, flags: u8) -> Packet {
    Packet {
        transport,
        flags,
        ..Packet::default()
    }
}

/// What arrives from the instance in answer to [`request`].
fn answer(transport: Transport, flags: u8) -> Vec<u8> {
    B_TO_A.carrying(&Packet {
        transport: transport.answer(),
        flags,
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..Packet::default()
    })
}

/// Both keys of the flow of [`request`].
fn keys(transport: Transport) -> [FlowKey; 2] {
    let to = if transport == Transport::Ping { 0 } else { 80 };
    let from = 5000;
    [key(A, from, SINGLE, to), key(S_SHOWN, to, A, from)].map(|key| FlowKey {
        protocol: transport.protocol(),
        ..key
    })
}

/// How many of the keys are in `FLOWS`, and how many in `UNANSWERED`.
fn placed(node: &Host, keys: &[FlowKey]) -> (usize, usize) {
    let settled = keys
        .iter()
        .filter(|key| node.tables.flows.get(key, 0).is_ok())
        .count();
    let others = keys
        .iter()
        .filter(|key| node.tables.unanswered.get(key, 0).is_ok())
        .count();
    (settled, others)
}

/// The state of the forward entry, wherever it is.
fn forward_state(node: &Host, transport: Transport) -> u8 {
    let flows = node.flows();
    let flow: &Flow = flows.get(&keys(transport)[0]).expect("the flow is known");
    flow.state
}

const SETTLED: (usize, usize) = (2, 0);
const UNSETTLED: (usize, usize) = (0, 2);

#[test]
fn p22_a_handshake_settles_when_the_client_has_answered_too() {
    let node = Host::at(Site::A);
    let keys = keys(Transport::Tcp);
    for (case, program, frame, expected) in [
        (
            "SYN",
            Program::FromEndpoint,
            request(Transport::Tcp, SYN).frame(),
            UNSETTLED,
        ),
        (
            "SYN again",
            Program::FromEndpoint,
            request(Transport::Tcp, SYN).frame(),
            UNSETTLED,
        ),
        (
            "SYN-ACK",
            Program::FromUplink,
            answer(Transport::Tcp, SYN | ACK),
            UNSETTLED,
        ),
        (
            "SYN-ACK again",
            Program::FromUplink,
            answer(Transport::Tcp, SYN | ACK),
            UNSETTLED,
        ),
        (
            "ACK",
            Program::FromEndpoint,
            request(Transport::Tcp, ACK).frame(),
            SETTLED,
        ),
        (
            "data",
            Program::FromUplink,
            answer(Transport::Tcp, ACK | PSH),
            SETTLED,
        ),
    ] {
        assert_eq!(node.run(program, &frame).verdict, REDIRECT, "{case}");
        assert_eq!(placed(&node, &keys), expected, "{case}");
    }
}

#[test]
fn p22_only_what_goes_on_settles() {
    for (case, transport, answers, expected) in [
        ("a refused connection", Transport::Tcp, RST | ACK, UNSETTLED),
        ("data without a handshake seen", Transport::Tcp, ACK, SETTLED),
        ("an answered datagram", Transport::Udp, 0, SETTLED),
        ("one without a checksum", Transport::UncheckedUdp, 0, SETTLED),
        ("a ping", Transport::Ping, 0, UNSETTLED),
    ] {
        let node = Host::at(Site::A);
        node.run(Program::FromEndpoint, &request(transport, SYN).frame());
        assert_eq!(placed(&node, &keys(transport)), UNSETTLED, "{case}, unanswered");
        node.run(Program::FromUplink, &answer(transport, answers));
        assert_eq!(placed(&node, &keys(transport)), expected, "{case}");
    }
}

#[test]
fn p22_the_forward_entry_tells_how_the_connection_stands() {
    let tcp = Transport::Tcp;
    let established = || {
        let node = Host::at(Site::A);
        node.run(Program::FromEndpoint, &request(tcp, SYN).frame());
        assert_eq!(forward_state(&node, tcp), 0);
        node.run(Program::FromUplink, &answer(tcp, SYN | ACK));
        node.run(Program::FromEndpoint, &request(tcp, ACK).frame());
        assert_eq!(forward_state(&node, tcp), state::ANSWERED);
        node
    };
    let node = established();
    node.run(Program::FromEndpoint, &request(tcp, FIN | ACK).frame());
    assert_eq!(
        forward_state(&node, tcp),
        state::ANSWERED | state::FIN_FORWARD,
        "the client has ended"
    );
    node.run(Program::FromUplink, &answer(tcp, FIN | ACK));
    let both = state::ANSWERED | state::FIN_FORWARD | state::FIN_REVERSE;
    assert_eq!(forward_state(&node, tcp), both, "the server has ended");
    node.run(Program::FromEndpoint, &request(tcp, SYN).frame());
    assert_eq!(forward_state(&node, tcp), 0, "a new connection");
    assert_eq!(placed(&node, &keys(tcp)), UNSETTLED);

    for (program, frame) in [
        (Program::FromEndpoint, request(tcp, RST).frame()),
        (Program::FromUplink, answer(tcp, RST | ACK)),
    ] {
        let node = established();
        node.run(program, &frame);
        assert_eq!(
            forward_state(&node, tcp),
            state::ANSWERED | state::RESET,
            "{program:?}"
        );
    }
}

/// A node whose `UNANSWERED` has this many entries, in a kernel's own kind of table.
fn with_few_unanswered(entries: u32) -> (Host, Pinned) {
    let pinned = Pinned(Pins::of(&format!("oakt-{}-settling", std::process::id())));
    let path: PathBuf = pinned.0.map("UNANSWERED");
    fs::create_dir_all(path.parent().expect("a folder")).expect("a BPF file system");
    EbpfLoader::new()
        .map_max_entries("UNANSWERED", entries)
        .map_pin_path("UNANSWERED", &path)
        .load(OBJECT)
        .expect("the kernel makes the maps");
    (Host::with_pins(Site::A, &[("UNANSWERED", path)]), pinned)
}

struct Pinned(Pins);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.remove().expect("the pins can be removed");
    }
}

#[test]
fn p22_neither_a_scan_nor_a_flood_pushes_out_an_answered_flow() {
    let (node, _pinned) = with_few_unanswered(256);
    for transport in [Transport::Tcp, Transport::Udp] {
        node.run(Program::FromEndpoint, &request(transport, SYN).frame());
        node.run(Program::FromUplink, &answer(transport, ACK));
        assert_eq!(placed(&node, &keys(transport)), SETTLED);
    }
    for flood in 0..20_000u16 {
        let packet = Packet {
            source_port: 10_000 + flood,
            transport: if flood % 2 == 0 {
                Transport::Tcp
            } else {
                Transport::Udp
            },
            ..Packet::default()
        };
        let (verdict, _) = run(
            node.program(Program::FromEndpoint),
            &packet.frame(),
            Context::default(),
        );
        assert_eq!(verdict, REDIRECT);
    }
    for transport in [Transport::Tcp, Transport::Udp] {
        assert_eq!(placed(&node, &keys(transport)), SETTLED, "{transport:?}");
        let more = request(transport, ACK | PSH);
        let sent = A_TO_B.carrying(&Packet {
            source: A_SHOWN,
            destination: S,
            ..more.clone()
        });
        node.expect(
            "goes on",
            Program::FromEndpoint,
            &more.frame(),
            Action::Tunnel,
            &sent,
        );
    }
}

#[test]
fn p21_a_settled_flow_keeps_its_port_towards_the_instance() {
    let node = Host::at(Site::A);
    let udp = Transport::Udp;
    node.run(Program::FromEndpoint, &request(udp, 0).frame());
    node.run(Program::FromUplink, &answer(udp, 0));
    assert_eq!(placed(&node, &keys(udp)), SETTLED);
    let twin = Packet {
        destination: TWIN,
        ..request(udp, 0)
    };
    let ran = node.run(Program::FromEndpoint, &twin.frame());
    assert_eq!(ran.verdict, REDIRECT);
    let flows = node.flows();
    let other = flows
        .get(&FlowKey {
            destination: TWIN,
            ..keys(udp)[0]
        })
        .expect("the second flow");
    assert_ne!(other.port, 5000u16.to_be_bytes(), "another port");
    assert_eq!(flows.len(), 4);
}

#[test]
fn packets_and_bytes_are_counted_by_service_and_direction() {
    let node = Host::at(Site::A);
    let udp = Transport::Udp;
    let (request, answer) = (request(udp, 0).frame(), answer(udp, 0));
    for _ in 0..3 {
        node.run(Program::FromEndpoint, &request);
    }
    node.run(Program::FromUplink, &answer);
    let row = crate::topology::ROW_OF_SINGLE - 1;
    let counters = node.tables.service_counters.get(&row, 0).expect("a row");
    let sum = |figure: fn(&dataplane_ebpf::tables::ServiceCounter) -> u64| -> u64 {
        counters.iter().map(figure).sum()
    };
    assert_eq!(
        [
            sum(|row| row.sent.packets),
            sum(|row| row.sent.bytes),
            sum(|row| row.received.packets),
            sum(|row| row.received.bytes)
        ],
        [3, 3 * request.len() as u64, 1, answer.len() as u64]
    );
}

#[test]
fn an_established_flow_costs_one_look_up_each_way() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let mut node = Host::traced(Site::A);
        let (request, answer) = (request(transport, ACK).frame(), answer(transport, ACK));
        let opening = Packet {
            transport,
            ..Packet::default()
        };
        node.run(Program::FromEndpoint, &opening.frame());
        node.run(Program::FromUplink, &answer);
        assert_eq!(placed(&node, &keys(transport)), SETTLED);
        for (program, frame) in [(Program::FromEndpoint, &request), (Program::FromUplink, &answer)] {
            let (ran, walk) = node.trace(program, frame);
            assert_eq!(ran.verdict, REDIRECT);
            assert_eq!(walk.look_ups, 1, "{transport:?}, {program:?}: {walk:?}");
        }
    }
}
