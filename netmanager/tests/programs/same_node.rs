//! P-18: both ends of a flow on one node, or at one endpoint.

use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;

use crate::frame::{ACK, Address, FIN, Packet, SYN, Transport};
use crate::host::Host;
use crate::topology::{A, A_SHOWN, C, C_SHOWN, NEIGHBOUR, OWN, Site};

/// Carries a packet and its answer between two endpoints of one node.
fn exchange_on_node(
    case: &str,
    node: &Host,
    request: &Packet,
    server: Address,
    server_shown: Address,
    client_shown: Address,
) {
    let received = Packet {
        source: client_shown,
        destination: server,
        ..request.clone()
    };
    node.expect(
        &format!("{case}: request"),
        Program::FromEndpoint,
        &request.frame(),
        Action::Deliver,
        &received.frame(),
    );
    assert_ne!(
        server_shown, request.destination,
        "the service hides its instance"
    );
    let answer = Packet {
        transport: request.transport.answer(),
        flags: ACK | request.flags,
        source: server,
        source_port: request.destination_port,
        destination: client_shown,
        destination_port: request.source_port,
        payload: b"answer".to_vec(),
        ..Packet::default()
    };
    let shown = Packet {
        source: request.destination,
        destination: request.source,
        ..answer.clone()
    };
    node.expect(
        &format!("{case}: answer"),
        Program::FromEndpoint,
        &answer.frame(),
        Action::Deliver,
        &shown.frame(),
    );
}

#[test]
fn p18_client_and_instance_on_one_node_see_what_they_would_see_from_afar() {
    let mut node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        node.forget_flows();
        for (turn, flags) in [("opening", SYN), ("data", ACK), ("closing", FIN | ACK)] {
            let request = Packet {
                transport,
                flags,
                destination: NEIGHBOUR,
                ..Packet::default()
            };
            exchange_on_node(
                &format!("{transport:?}, {turn}"),
                &node,
                &request,
                C,
                C_SHOWN,
                A_SHOWN,
            );
        }
        assert_eq!(node.flows().len(), 4, "{transport:?}: two each way");
    }
}

#[test]
fn p18_an_instance_reaches_itself_through_its_own_service() {
    let mut node = Host::at(Site::A);
    for transport in Transport::CARRIED {
        node.forget_flows();
        for (turn, flags) in [("opening", SYN), ("data", ACK), ("closing", FIN | ACK)] {
            let request = Packet {
                transport,
                flags,
                destination: OWN,
                ..Packet::default()
            };
            exchange_on_node(
                &format!("{transport:?}, {turn}"),
                &node,
                &request,
                A,
                A_SHOWN,
                A_SHOWN,
            );
        }
        assert_eq!(node.flows().len(), 4, "{transport:?}: two each way");
    }
}

#[test]
fn p18_two_instances_that_call_each_other_from_the_same_port_keep_to_the_addresses_they_called() {
    // As gossip protocols do: each side's requests and its answers come from one socket.
    let node = Host::at(Site::A);
    let request = Packet {
        transport: Transport::Udp,
        source_port: 7946,
        destination_port: 7946,
        destination: NEIGHBOUR,
        ..Packet::default()
    };
    let received = Packet {
        source: A_SHOWN,
        destination: C,
        ..request.clone()
    };
    node.expect(
        "a calls c",
        Program::FromEndpoint,
        &request.frame(),
        Action::Deliver,
        &received.frame(),
    );
    let call = Packet {
        source: C,
        destination: OWN,
        ..request
    };
    let received = Packet {
        source: NEIGHBOUR,
        destination: A,
        ..call.clone()
    };
    node.expect(
        "c calls a, whom it has called already",
        Program::FromEndpoint,
        &call.frame(),
        Action::Deliver,
        &received.frame(),
    );
}
