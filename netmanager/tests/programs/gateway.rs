//! Who asks where the gateway is, is told; nobody else's question is answered (RFC 826).

use dataplane_ebpf::address::GATEWAY_MAC;
use dataplane_ebpf::verdict::Action;
use netmanager::dataplane::Program;

use crate::frame::{Address, patched};
use crate::host::Host;
use crate::topology::{A, C, MAC_OF_A, Site};

const GATEWAY: Address = [169, 254, 1, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Where a frame's ARP packet has its operation, and its target's address.
const OPERATION: usize = 20;
const TARGET: usize = 38;

fn arp(to: [u8; 6], operation: u8, sender: ([u8; 6], Address), target: ([u8; 6], Address)) -> Vec<u8> {
    let kind = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
    [
        &to[..],
        &sender.0,
        &kind,
        &sender.0,
        &sender.1,
        &target.0,
        &target.1,
    ]
    .concat()
}

/// Endpoint a asks.
pub fn request() -> Vec<u8> {
    arp(BROADCAST, 1, (MAC_OF_A, A), ([0; 6], GATEWAY))
}

#[test]
fn an_endpoint_is_told_where_the_gateway_is() {
    let node = Host::at(Site::A);
    let reply = arp(MAC_OF_A, 2, (GATEWAY_MAC, GATEWAY), (MAC_OF_A, A));
    let act = Action::AnswerGateway;
    node.expect("a request", Program::FromEndpoint, &request(), act, &reply);

    // Confirming an entry that it has already.
    let mut unicast = request();
    unicast[..6].copy_from_slice(&GATEWAY_MAC);
    node.expect("to the gateway", Program::FromEndpoint, &unicast, act, &reply);

    // As short frames are on some links: what follows the packet stays as it is.
    let padded = |frame: &[u8]| [frame, &[0; 18]].concat();
    let (question, answer) = (padded(&request()), padded(&reply));
    node.expect("padded", Program::FromEndpoint, &question, act, &answer);

    // Before it has an address (RFC 5227).
    let probe = arp(BROADCAST, 1, (MAC_OF_A, [0; 4]), ([0; 6], GATEWAY));
    let told = arp(MAC_OF_A, 2, (GATEWAY_MAC, GATEWAY), (MAC_OF_A, [0; 4]));
    node.expect("a probe", Program::FromEndpoint, &probe, act, &told);
    assert_eq!(node.flows().len(), 0);
}

#[test]
fn nothing_else_of_arp_is_touched() {
    let node = Host::at(Site::A);
    let cases = [
        ("for another address", patched(request(), TARGET, &C)),
        (
            "for the address next to it",
            patched(request(), TARGET, &[169, 254, 1, 2]),
        ),
        ("a reply", patched(request(), OPERATION, &[0, 2])),
        ("of another protocol", patched(request(), 16, &[0x86, 0xdd])),
        ("of another hardware", patched(request(), 14, &[0, 6])),
        ("with other lengths", patched(request(), 18, &[8, 4])),
        ("cut off", request()[..request().len() - 1].to_vec()),
    ];
    for (name, frame) in cases {
        node.passes(name, Program::FromEndpoint, &frame);
    }
    for program in [Program::FromOak0, Program::FromHost, Program::FromUplink] {
        node.passes(&format!("{program:?}"), program, &request());
    }
}
