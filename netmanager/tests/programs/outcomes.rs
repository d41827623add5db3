//! Every outcome there is, reached by a packet: none is a name without a meaning.

use dataplane_ebpf::probe::MARKER;
use dataplane_ebpf::tables::{Node, Peer};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::flow_table::with_room_for;
use crate::frame::{ACK, Address, ETHERNET, IPV4, Outer, Packet, RST, Transport, patched};
use crate::gateway;
use crate::host::{Context, Host, Outcome, SHOT, assert_outcome};
use crate::outsiders::{from_stranger, stay_on_this_processor};
use crate::probe;
use crate::published;
use crate::topology::{
    A, B_TO_A, C, EMPTY, HOST, INTERFACE, NEIGHBOUR, OTHER_INTERFACE, OUTER_B, S, S_SHOWN, SINGLE, Site,
    T_SHOWN, UNKNOWN, replace, set_node,
};
use crate::unreachable;

/// A packet and the state of the node that give it this outcome.
struct Case {
    outcome: Outcome,
    program: Program,
    frame: Vec<u8>,
    context: Context,
    /// A node with something special about it.
    node: Option<fn() -> Host>,
}

impl Case {
    /// From endpoint a of a node that knows the whole topology.
    fn new(outcome: Outcome, frame: Vec<u8>) -> Self {
        Self {
            outcome,
            program: Program::FromEndpoint,
            frame,
            context: Context::default(),
            node: None,
        }
    }

    fn done(action: Action, packet: &Packet) -> Self {
        Self::new(Outcome::Did(action), packet.frame())
    }

    fn dropped(reason: DropReason, packet: &Packet) -> Self {
        Self::new(Outcome::Dropped(reason), packet.frame())
    }

    /// A frame from the wire.
    fn uplink(reason: DropReason, frame: Vec<u8>) -> Self {
        Self::new(Outcome::Dropped(reason), frame).through(Program::FromUplink)
    }

    fn through(self, program: Program) -> Self {
        Self { program, ..self }
    }

    fn at(self, node: fn() -> Host) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }
}

/// Hands each case to `test`, with a node in the state that the case is about.
fn each(cases: &[Case], test: impl Fn(&Case, &Host)) {
    let mut ordinary = Host::at(Site::A);
    for case in cases {
        match case.node {
            Some(node) => test(case, &node()),
            None => {
                ordinary.forget_flows();
                test(case, &ordinary);
            }
        }
    }
}

fn to(destination: Address) -> Packet {
    Packet {
        destination,
        ..Packet::default()
    }
}

/// From s on site B to a.
fn inner() -> Packet {
    Packet {
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..Packet::default()
    }
}

fn actions() -> Vec<Case> {
    let refused = Packet {
        flags: ACK,
        ..Packet::default()
    };
    let delivered = Packet {
        destination: HOST,
        ..inner()
    };
    vec![
        Case::done(Action::Pass, &to(OUTER_B)),
        Case::done(Action::Deliver, &to(NEIGHBOUR)),
        Case::done(Action::DeliverHost, &delivered).through(Program::FromOak0),
        Case::done(Action::Tunnel, &to(SINGLE)),
        Case::done(Action::Park, &to(UNKNOWN)),
        Case::done(Action::Reset, &refused),
        Case::new(Outcome::Did(Action::Stranger), from_stranger()).through(Program::FromUplink),
        Case::done(Action::Publish, &published::request())
            .through(Program::FromUplink)
            .at(published::publisher),
        Case::done(Action::PublishAnswer, &published::answer()).at(published::asked),
        Case::new(Outcome::Did(Action::AnswerGateway), gateway::request()),
        Case::done(
            Action::IcmpTooBig,
            &Packet {
                payload: vec![0; 1500],
                ..Packet::default()
            },
        ),
        Case::done(Action::IcmpUnreachable, &to(EMPTY)),
        Case::new(Outcome::Did(Action::ProbeAnswered), probe::request()).through(Program::FromUplink),
        Case::new(Outcome::Did(Action::ProbeReceived), probe::answer())
            .through(Program::FromUplink)
            .at(probe::asking),
    ]
}

fn drops_on_the_way_out() -> Vec<Case> {
    use DropReason as Reason;
    let udp = |destination| Packet {
        transport: Transport::Udp,
        ..to(destination)
    };
    let tunnel = Packet {
        destination_port: 50_103,
        ..udp(OUTER_B)
    };
    let options = Packet {
        ip_options: &[131, 3, 4, 0],
        ..Packet::default()
    };
    let fragment = Packet {
        fragment_offset: 1,
        ..Packet::default()
    };
    let icmp = |kind| Packet {
        transport: Transport::Icmp(kind, 0),
        ..Packet::default()
    };
    let sctp = Packet {
        transport: Transport::Raw(132),
        ..Packet::default()
    };
    let stray_reset = Packet {
        flags: RST,
        ..Packet::default()
    };
    let large = Packet {
        dont_fragment: false,
        payload: vec![0; 1500],
        ..Packet::default()
    };
    let spoofed = Packet {
        source: S,
        ..Packet::default()
    };
    let truncated = Packet::default().frame()[..ETHERNET + IPV4].to_vec();
    let version_six = patched(Packet::default().frame(), ETHERNET, &[0x65]);
    let superframe = Case {
        context: Context {
            segment_size: 8,
            ..Context::default()
        },
        ..Case::dropped(Reason::KernelRefused, &Packet::default())
    };
    vec![
        Case::dropped(Reason::Spoofed, &spoofed),
        Case::dropped(Reason::TunnelFromEndpoint, &tunnel),
        Case::new(Outcome::Dropped(Reason::Short), truncated),
        Case::new(Outcome::Dropped(Reason::Malformed), version_six),
        Case::dropped(Reason::IpOptions, &options),
        Case::dropped(Reason::Fragment, &fragment).through(Program::FromOak0),
        Case::dropped(Reason::IcmpError, &icmp(3)),
        Case::dropped(Reason::IcmpType, &icmp(13)),
        Case::dropped(Reason::Protocol, &sctp),
        Case::dropped(Reason::NotAService, &to(C)),
        Case::dropped(Reason::Unresolved, &to(UNKNOWN))
            .through(Program::FromOak0)
            .at(unreachable::tired),
        Case::dropped(Reason::NoFlow, &stray_reset),
        Case::dropped(Reason::NoBackend, &to(EMPTY)).at(unreachable::tired),
        Case::dropped(Reason::PortCollision, &to_instance_behind_its_service()).at(with_flow_to_the_service),
        Case::dropped(Reason::FlowTableFull, &to(SINGLE)).at(|| with_room_for(1)),
        Case::uplink(Reason::InstanceGone, B_TO_A.carrying(&answer())).at(with_flow_of_a_replaced_instance),
        Case::dropped(Reason::NodeUnknown, &to(SINGLE)).at(without_path_to_b),
        Case::dropped(Reason::EndpointGone, &to(NEIGHBOUR)).at(without_c),
        Case::dropped(Reason::TooBig, &large),
        superframe,
    ]
}

fn drops_on_the_way_in() -> Vec<Case> {
    use DropReason as Reason;
    let carried = |packet: Packet| B_TO_A.around(&packet.ip());
    let bytes = inner().ip();
    let options = Outer {
        options: &[1; 4],
        ..B_TO_A
    };
    let fragment = Outer {
        more_fragments: true,
        source: [198, 51, 100, 1],
        ..B_TO_A
    };
    let version_six = [&[0x65], &bytes[1..]].concat();
    let from = |source| Packet { source, ..inner() };
    let to_s = Packet {
        destination: S,
        ..inner()
    };
    vec![
        Case::uplink(Reason::Unencapsulated, to(S_SHOWN).frame()),
        Case::uplink(Reason::OuterMalformed, options.around(&bytes)),
        Case::uplink(Reason::OuterFragment, fragment.around(&bytes)),
        Case {
            context: Context {
                interface: INTERFACE,
                ..Context::default()
            },
            ..Case::uplink(Reason::WrongInterface, carried(inner())).at(with_b_elsewhere)
        },
        Case::uplink(Reason::UnknownPeer, from_stranger()).at(tired_of_strangers),
        Case::uplink(Reason::InnerShort, B_TO_A.around(&bytes[..10])),
        Case::uplink(Reason::InnerVersion, B_TO_A.around(&version_six)),
        Case::uplink(Reason::InnerMalformed, B_TO_A.around(&bytes[..40])),
        Case::uplink(Reason::SourceNotOverlay, carried(from(OUTER_B))),
        Case::uplink(Reason::SourceNotOnNode, carried(from(T_SHOWN))),
        Case::uplink(Reason::DestinationNotLocal, carried(to_s)),
        Case::uplink(Reason::ProbeMalformed, B_TO_A.around(&[MARKER])),
        Case::uplink(Reason::ProbeUnexpected, probe::answer()),
        Case::uplink(Reason::ProbeRate, probe::request()).at(probe::tired_of_probes),
    ]
}

fn to_instance_behind_its_service() -> Packet {
    Packet {
        flags: ACK,
        destination: S_SHOWN,
        ..Packet::default()
    }
}

fn with_flow_to_the_service() -> Host {
    let node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &to(SINGLE).frame());
    node
}

fn answer() -> Packet {
    Packet {
        flags: ACK,
        ..inner()
    }
}

fn with_flow_of_a_replaced_instance() -> Host {
    let mut node = with_flow_to_the_service();
    replace(&mut node.tables, S);
    node
}

fn without_path_to_b() -> Host {
    let mut node = unreachable::tired();
    set_node(&mut node.tables, Site::B.index(Site::A), Node::default());
    node
}

fn with_b_elsewhere() -> Host {
    let mut node = Host::at(Site::A);
    let group = Site::B.index(Site::A);
    let peer = Peer {
        group,
        interface: OTHER_INTERFACE,
    };
    node.tables.peers.insert(OUTER_B, peer, 0).expect("room in PEERS");
    node
}

fn without_c() -> Host {
    let mut node = Host::at(Site::A);
    node.tables.endpoints.remove(&C).expect("c is there");
    node
}

/// A node that has just handed up as many strangers as it may.
fn tired_of_strangers() -> Host {
    let node = Host::at(Site::A);
    let stranger = from_stranger();
    while node.run(Program::FromUplink, &stranger).verdict != SHOT {}
    node
}

#[test]
fn p41_every_action_and_every_drop_reason_is_reached() {
    stay_on_this_processor();
    let cases: Vec<Case> = [actions(), drops_on_the_way_out(), drops_on_the_way_in()]
        .into_iter()
        .flatten()
        .collect();
    each(&cases, |case, node| {
        let name = case.outcome.name();
        let ran = node.run_with(case.program, &case.frame, case.context);
        assert_outcome(name, case.program, &ran, case.outcome);
    });
    let reached: Vec<&str> = cases.iter().map(|case| case.outcome.name()).collect();
    let all: Vec<&str> = Action::ALL
        .iter()
        .map(|action| action.as_str())
        .chain(DropReason::ALL.iter().map(|reason| reason.as_str()))
        .collect();
    // The kernel gives a test run no tag; a real link does, in the tests of the overlay.
    let reachable: Vec<&str> = all
        .into_iter()
        .filter(|name| *name != DropReason::VlanTagged.as_str())
        .collect();
    assert_eq!(reached, reachable, "one case for each outcome, in their order");
}

#[test]
fn p22_an_outcome_that_drops_a_first_packet_leaves_no_flow_that_could_not_go_on() {
    // Too large, or no way there: the decision stays, because the next packet may get through. All other reasons
    // to drop a first packet leave no flow.
    let waits = [
        DropReason::NodeUnknown,
        DropReason::EndpointGone,
        DropReason::TooBig,
        DropReason::KernelRefused,
    ]
    .map(Outcome::Dropped);
    stay_on_this_processor();
    let cases = [drops_on_the_way_out(), drops_on_the_way_in()].map(|cases| {
        each(&cases, |case, node| {
            let before = node.flows();
            node.run_with(case.program, &case.frame, case.context);
            let opened = node
                .flows()
                .keys()
                .filter(|key| !before.contains_key(key))
                .count();
            let expected = if waits.contains(&case.outcome) { 2 } else { 0 };
            assert_eq!(opened, expected, "{}", case.outcome.name());
        });
        cases.len()
    });
    assert_eq!(cases.iter().sum::<usize>(), DropReason::ALL.len() - 1);
}
