//! What `NetManager trace` says about a packet is what the programs do with it.

use std::collections::BTreeSet;

use dataplane_ebpf::address::{TUNNEL_PORT, in_overlay};
use dataplane_ebpf::tables::Node;
use netmanager::dataplane::Program;
use netmanager::trace::{Protocol, Question, Site as TracedSite, trace};

use crate::frame::{ACK, Address, Packet, SYN, Transport};
use crate::host::{Context, Host};
use crate::published;
use crate::topology::{
    A, A_SHOWN, B_TO_A, BALANCED, C, C_TO_A, EMPTY, HOST, HOST_B, HOST_SHOWN, MACHINE, NEIGHBOUR, OUTER_A,
    OUTER_B, OWN, S, S_SHOWN, SINGLE, Site, T_SHOWN, TWIN, UNKNOWN, replace, set_node, vacate,
};

/// Somebody who is no node.
const CLIENT: Address = [198, 51, 100, 7];
const PORT: u16 = 5000;

/// What happens to a node before the question.
type Change = fn(&mut Host);

fn to(source: Address, destination: Address, protocol: Protocol) -> Question {
    Question {
        source: source.into(),
        destination: destination.into(),
        protocol,
        port: 80,
        source_port: Some(PORT),
        reply: false,
    }
}

fn tcp(source: Address, destination: Address) -> Question {
    to(source, destination, Protocol::Tcp)
}

fn at(question: Question, port: u16) -> Question {
    Question { port, ..question }
}

fn reply(question: Question) -> Question {
    Question {
        reply: true,
        ..question
    }
}

/// The packet that the question is about.
fn packet(question: &Question) -> Packet {
    let transport = match (question.protocol, question.reply) {
        (Protocol::Tcp, _) => Transport::Tcp,
        (Protocol::Udp, _) => Transport::Udp,
        (Protocol::Icmp, false) => Transport::Ping,
        (Protocol::Icmp, true) => Transport::Pong,
    };
    Packet {
        source: question.source.octets(),
        source_port: question.source_port.expect("given"),
        destination: question.destination.octets(),
        destination_port: question.port,
        transport,
        flags: if question.reply { ACK } else { SYN },
        ..Packet::default()
    }
}

/// The frame that brings it, in a tunnel datagram where it comes from another node.
fn frame(hook: &str, packet: &Packet) -> Vec<u8> {
    let from_overlay = hook == "from_uplink" && in_overlay(packet.source);
    match packet.source {
        T_SHOWN if from_overlay => C_TO_A.around(&packet.ip()),
        _ if from_overlay => B_TO_A.around(&packet.ip()),
        _ => packet.frame(),
    }
}

/// Asks first, then sends the packet; both outcomes: hook and name.
fn compare(node: &Host, question: &Question) -> String {
    let site = TracedSite {
        tunnel_port: TUNNEL_PORT,
        host_address: HOST.into(),
    };
    let told = trace(&node.tables, site, &|_| None, question).expect("readable tables");
    // Looking changes nothing: asked again, the answer is the same.
    assert_eq!(
        trace(&node.tables, site, &|_| None, question).expect("readable"),
        told
    );
    let program = Program::ALL
        .into_iter()
        .find(|program| program.name() == told.hook);
    let program = program.expect("a hook with a program");
    let ran = node.run_with(program, &frame(&told.hook, &packet(question)), Context::default());
    let counted: Vec<&str> = ran.counted.iter().map(|(_, name, ..)| name.as_str()).collect();
    assert_eq!([told.verdict.as_str()], counted[..], "{question:?}: {told:#?}");
    assert!(!told.steps.is_empty());
    told.verdict
}

/// Questions to a node that knows the whole topology, one after the other.
fn ordinary() -> Vec<Question> {
    let every = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
    let mut questions = Vec::new();
    for protocol in every {
        for destination in [
            SINGLE, BALANCED, TWIN, NEIGHBOUR, MACHINE, OWN, EMPTY, UNKNOWN, S_SHOWN, HOST_SHOWN, A_SHOWN, C,
            OUTER_B, HOST, CLIENT,
        ] {
            questions.push(to(A, destination, protocol));
            questions.push(to(HOST, destination, protocol));
        }
        for (source, destination) in [
            (S_SHOWN, A),
            (T_SHOWN, A),
            (S_SHOWN, HOST),
            (S_SHOWN, S),
            (BALANCED, A),
            (HOST_B, A),
            (UNKNOWN, A),
            (OUTER_B, A),
            (OUTER_B, SINGLE),
            (OUTER_B, OUTER_A),
        ] {
            questions.push(to(source, destination, protocol));
        }
    }
    questions.push(at(to(A, OUTER_B, Protocol::Udp), TUNNEL_PORT));
    questions.push(at(to(A, HOST_SHOWN, Protocol::Udp), TUNNEL_PORT));
    questions.push(at(to(S_SHOWN, HOST, Protocol::Udp), TUNNEL_PORT));
    questions
}

#[test]
fn the_trace_of_a_packet_says_what_the_programs_do_with_it() {
    let mut node = Host::at(Site::A);
    let mut reached = BTreeSet::new();
    for question in ordinary() {
        for question in [question, reply(question)] {
            node.forget_flows();
            reached.insert(compare(&node, &question));
            // And with the flow that the first one may have begun.
            reached.insert(compare(&node, &question));
            reached.insert(compare(&node, &reply(question)));
        }
    }
    for name in [
        "PASS",
        "DELIVER",
        "DELIVER_HOST",
        "TUNNEL",
        "PARK",
        "RESET",
        "NO_FLOW",
        "ICMP_UNREACHABLE",
        "NOT_A_SERVICE",
        "TUNNEL_FROM_ENDPOINT",
        "UNENCAPSULATED",
        "DESTINATION_NOT_LOCAL",
        "SOURCE_NOT_OVERLAY",
        "SOURCE_NOT_ON_NODE",
    ] {
        assert!(reached.contains(name), "{name} of {reached:?}");
    }
}

#[test]
fn the_trace_follows_flows_whose_instances_and_nodes_go() {
    let answer = Question {
        port: PORT,
        ..reply(tcp(S_SHOWN, A))
    };
    let cases: [(&str, Change, Question); 7] = [
        (
            "ICMP_UNREACHABLE",
            |node| set_node(&mut node.tables, Site::B.index(Site::A), Node::default()),
            tcp(A, SINGLE),
        ),
        (
            "ENDPOINT_GONE",
            |node| node.tables.endpoints.remove(&C).expect("c is there"),
            tcp(A, NEIGHBOUR),
        ),
        (
            "ICMP_UNREACHABLE",
            |node| vacate(&mut node.tables, S),
            tcp(A, SINGLE),
        ),
        (
            "RESET",
            |node| {
                node.run(Program::FromEndpoint, &packet(&tcp(A, SINGLE)).frame());
                replace(&mut node.tables, S);
            },
            reply(tcp(A, SINGLE)),
        ),
        (
            "TUNNEL",
            |node| {
                node.run(Program::FromEndpoint, &packet(&tcp(A, SINGLE)).frame());
                replace(&mut node.tables, S);
            },
            tcp(A, SINGLE),
        ),
        (
            "PORT_COLLISION",
            |node| {
                node.run(Program::FromEndpoint, &packet(&tcp(A, SINGLE)).frame());
            },
            reply(tcp(A, S_SHOWN)),
        ),
        (
            "INSTANCE_GONE",
            |node| {
                node.run(Program::FromEndpoint, &packet(&at(tcp(A, SINGLE), PORT)).frame());
                replace(&mut node.tables, S);
            },
            answer,
        ),
    ];
    for (name, change, question) in cases {
        let mut node = Host::at(Site::A);
        change(&mut node);
        assert_eq!(compare(&node, &question), name);
    }
}

#[test]
fn the_trace_follows_published_ports() {
    let to_port = |source, protocol| at(to(source, OUTER_A, protocol), 8080);
    let back = |protocol| Question {
        source: A.into(),
        source_port: Some(80),
        destination: CLIENT.into(),
        port: PORT,
        ..reply(to(A, CLIENT, protocol))
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for source in [CLIENT, C, A, OUTER_A] {
            let node = published::publisher();
            let stray = compare(&node, &reply(to_port(source, Protocol::Tcp)));
            assert_eq!(stray, "PASS", "{source:?}: no packet of a flow, and begins none");
            assert_eq!(
                compare(&node, &to_port(source, protocol)),
                "PUBLISH",
                "{source:?}"
            );
            assert_eq!(
                compare(&node, &reply(to_port(source, protocol))),
                "PUBLISH",
                "{source:?}"
            );
        }
        let node = published::publisher();
        assert_eq!(compare(&node, &back(protocol)), "PASS", "nobody has asked");
        assert_eq!(compare(&node, &to_port(CLIENT, protocol)), "PUBLISH");
        assert_eq!(compare(&node, &back(protocol)), "PUBLISH_ANSWER");

        let mut node = published::publisher();
        vacate(&mut node.tables, A);
        assert_eq!(
            compare(&node, &to_port(CLIENT, protocol)),
            "PASS",
            "the publisher is gone"
        );
        let node = published::publisher();
        assert_eq!(compare(&node, &at(to(OUTER_B, OUTER_A, protocol), 8081)), "PASS");
    }
}
