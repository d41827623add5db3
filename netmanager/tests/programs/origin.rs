//! P-41: who may speak from inside a tunnel.

use dataplane_ebpf::tables::Peer;
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::Program;

use crate::admission::inner;
use crate::frame::{Packet, Transport};
use crate::host::Host;
use crate::topology::{
    A_SHOWN, B_TO_A, BALANCED, C, C_SHOWN, C_TO_A, GATEWAY_MAC, HOST_B_SHOWN, OUTER_B, S, S_SHOWN, SINGLE,
    Site, T, T_SHOWN, UNKNOWN, replace, set_node, vacate,
};

#[test]
fn p41_the_inner_source_has_to_live_with_the_sender_or_be_unknown() {
    use DropReason::{SourceNotOnNode, SourceNotOverlay};
    let node = Host::at(Site::A);
    let cases = [
        ("from B: an instance on B", B_TO_A, S_SHOWN, None),
        ("from B: the node itself", B_TO_A, HOST_B_SHOWN, None),
        ("from B: an instance on C", B_TO_A, T_SHOWN, Some(SourceNotOnNode)),
        ("from C: the same", C_TO_A, T_SHOWN, None),
        ("from C: an instance on B", C_TO_A, S_SHOWN, Some(SourceNotOnNode)),
        ("from B: the receiver", B_TO_A, A_SHOWN, Some(SourceNotOnNode)),
        (
            "from B: another instance here",
            B_TO_A,
            C_SHOWN,
            Some(SourceNotOnNode),
        ),
        ("from B: unknown", B_TO_A, UNKNOWN, None),
        // Every answer comes from an instance; only the receiver's own node shows a service as its source.
        (
            "from B: a service with an instance there",
            B_TO_A,
            SINGLE,
            Some(SourceNotOnNode),
        ),
        ("from C: a service", C_TO_A, BALANCED, Some(SourceNotOnNode)),
        (
            "from B: a namespace address there",
            B_TO_A,
            S,
            Some(SourceNotOverlay),
        ),
        ("from B: one here", B_TO_A, C, Some(SourceNotOverlay)),
        (
            "from B: its outer address",
            B_TO_A,
            OUTER_B,
            Some(SourceNotOverlay),
        ),
        (
            "from B: just below the services",
            B_TO_A,
            [10, 29, 255, 255],
            Some(SourceNotOverlay),
        ),
        (
            "from B: just above the services",
            B_TO_A,
            [10, 31, 0, 0],
            Some(SourceNotOverlay),
        ),
        ("from B: loopback", B_TO_A, [127, 0, 0, 1], Some(SourceNotOverlay)),
        ("from B: no address", B_TO_A, [0; 4], Some(SourceNotOverlay)),
    ];
    for (name, outer, source, refused) in cases {
        for transport in Transport::CARRIED {
            let packet = Packet {
                transport,
                source,
                ..inner()
            };
            let datagram = outer.carrying(&packet);
            match refused {
                Some(reason) => node.drops(name, Program::FromUplink, &datagram, reason),
                None => node.expect(
                    name,
                    Program::FromUplink,
                    &datagram,
                    Action::Deliver,
                    &packet.out_of(&outer).frame(),
                ),
            }
        }
    }
}

#[test]
fn p41_a_known_flow_is_no_way_around_the_check_of_the_source() {
    let mut node = Host::at(Site::A);
    node.run(Program::FromEndpoint, &Packet::default().frame());
    let flows = node.flows();
    let answer = Packet {
        source_port: 80,
        destination_port: 5000,
        ..inner()
    };
    node.drops(
        "an answer from the wrong node",
        Program::FromUplink,
        &C_TO_A.carrying(&answer),
        DropReason::SourceNotOnNode,
    );
    assert_eq!(node.flows(), flows, "and it leaves no trace in the flow");

    // Nodes behind one address cannot be told apart, and are one group.
    let index = Site::B.index(Site::A);
    let path = node.tables.nodes.get(&index, 0).expect("a node of the topology");
    let group = Site::C.index(Site::A);
    set_node(
        &mut node.tables,
        index,
        dataplane_ebpf::tables::Node { group, ..path },
    );
    let shown = Packet {
        source: SINGLE,
        ..answer.out_of(&C_TO_A)
    };
    node.expect(
        "an answer from the same group",
        Program::FromUplink,
        &C_TO_A.carrying(&answer),
        Action::Deliver,
        &shown.frame(),
    );
}

#[test]
fn p41_nobody_outside_is_of_this_node_s_own_group() {
    let mut node = Host::at(Site::A);
    let known = node
        .tables
        .peers
        .get(&OUTER_B, 0)
        .expect("a node of the topology");
    let nobodys = Peer { group: 0, ..known };
    node.tables
        .peers
        .insert(OUTER_B, nobodys, 0)
        .expect("room in PEERS");
    for source in [C_SHOWN, A_SHOWN, S_SHOWN] {
        let packet = Packet { source, ..inner() };
        node.drops(
            &format!("{source:?}"),
            Program::FromUplink,
            &B_TO_A.carrying(&packet),
            DropReason::SourceNotOnNode,
        );
    }
}

#[test]
fn p41_a_source_without_incarnation_is_not_known_yet() {
    let mut node = Host::at(Site::A);
    vacate(&mut node.tables, T);
    let packet = Packet {
        source: T_SHOWN,
        ..inner()
    };
    node.expect(
        "from anywhere",
        Program::FromUplink,
        &B_TO_A.carrying(&packet),
        Action::Deliver,
        &packet.out_of(&B_TO_A).frame(),
    );
}

#[test]
fn p41_what_replaced_an_instance_is_admitted_where_the_instance_was() {
    let mut node = Host::at(Site::A);
    replace(&mut node.tables, S);
    let packet = Packet {
        to_mac: GATEWAY_MAC,
        ..inner()
    };
    node.expect(
        "from B",
        Program::FromUplink,
        &B_TO_A.carrying(&packet),
        Action::Deliver,
        &packet.out_of(&B_TO_A).frame(),
    );
    node.drops(
        "from C",
        Program::FromUplink,
        &C_TO_A.carrying(&packet),
        DropReason::SourceNotOnNode,
    );
}
