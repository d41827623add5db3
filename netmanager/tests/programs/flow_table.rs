//! P-22: what happens when the table of flows takes no more.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::EbpfLoader;
use aya::maps::MapData;
use dataplane_ebpf::tables::{Flow, FlowKey, state};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::{OBJECT, Pins, Program};

use crate::frame::{ACK, PSH, Packet, SYN, Transport};
use crate::host::{Context, Host, Outcome, REDIRECT, assert_outcome, coarse_time, run};
use crate::topology::{
    A, A_SHOWN, A_TO_B, B_TO_A, ROW_OF_SINGLE, S, S_SHOWN, SINGLE, Site, incarnation_of, index_of,
};

/// A node whose table of flows is the map that `pin` pins at the path it is given, for the time of loading.
fn with_pinned_flows(pin: impl FnOnce(&Path)) -> Host {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // What a test that failed has left is removed all the same.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = PinFolder(Pins::of(&format!("oakt-{}-flows", std::process::id())));
    let path = folder.0.map("UNANSWERED");
    fs::create_dir_all(path.parent().expect("a folder")).expect("a BPF file system");
    pin(&path);
    Host::with_pins(Site::A, &[("UNANSWERED", path)])
}

/// The same, for a map that is there already.
fn with_flows(flows: aya::maps::HashMap<MapData, FlowKey, Flow>) -> Host {
    with_pinned_flows(|path| flows.pin(path).expect("a free name"))
}

/// A node whose table of flows takes this many entries, and not one more.
pub fn with_room_for(entries: u32) -> Host {
    with_flows(hash(entries))
}

struct PinFolder(Pins);

impl Drop for PinFolder {
    fn drop(&mut self) {
        self.0.remove().expect("the pins can be removed");
    }
}

fn hash(entries: u32) -> aya::maps::HashMap<MapData, FlowKey, Flow> {
    aya::maps::HashMap::create(entries, 0).expect("the kernel makes the map")
}

pub fn key(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16) -> FlowKey {
    FlowKey {
        source,
        destination,
        source_port: source_port.to_be_bytes(),
        destination_port: destination_port.to_be_bytes(),
        protocol: 6,
        zero: [0; 3],
    }
}

fn request(source_port: u16) -> Packet {
    Packet {
        source_port,
        ..Packet::default()
    }
}

fn sent(request: &Packet) -> Vec<u8> {
    A_TO_B.carrying(&Packet {
        source: A_SHOWN,
        destination: S,
        ..request.clone()
    })
}

#[test]
fn p22_a_table_without_room_for_both_entries_keeps_none() {
    // Room for the reverse entry alone, and for nothing at all.
    let stranger = (key(A, 1, SINGLE, 1), Flow::default());
    for (name, entries, present) in [
        ("half", 1, None),
        ("none", 1, Some(stranger)),
        ("one-left", 2, Some(stranger)),
    ] {
        let mut flows = hash(entries);
        if let Some((key, mut flow)) = present {
            flow.last_seen = coarse_time();
            flows.insert(key, flow, 0).expect("room for it");
        }
        let node = with_flows(flows);
        for transport in Transport::CARRIED {
            let packet = Packet {
                transport,
                ..request(5000)
            };
            let case = format!("{name}, {transport:?}");
            node.drops(
                &case,
                Program::FromEndpoint,
                &packet.frame(),
                DropReason::FlowTableFull,
            );
            assert_eq!(node.flows(), present.into_iter().collect(), "{case}");
        }
    }
}

#[test]
fn p22_a_full_table_keeps_the_flows_it_has() {
    let node = with_room_for(2);
    let first = request(5000);
    node.expect(
        "opening",
        Program::FromEndpoint,
        &first.frame(),
        Action::Tunnel,
        &sent(&first),
    );
    node.drops(
        "no room",
        Program::FromEndpoint,
        &request(5001).frame(),
        DropReason::FlowTableFull,
    );
    let more = Packet {
        flags: ACK | PSH,
        ..first
    };
    node.expect(
        "data",
        Program::FromEndpoint,
        &more.frame(),
        Action::Tunnel,
        &sent(&more),
    );

    let entry = Flow {
        incarnation: incarnation_of(S),
        instance: index_of(S),
        shown: SINGLE,
        service: ROW_OF_SINGLE,
        port: 5000u16.to_be_bytes(),
        ..Flow::default()
    };
    let reverse = Flow {
        state: state::REVERSE,
        ..entry
    };
    assert_eq!(
        node.flows(),
        HashMap::from([
            (key(A, 5000, SINGLE, 80), entry),
            (key(S_SHOWN, 80, A, 5000), reverse),
        ])
    );
}

#[test]
fn p22_packets_keep_both_entries_of_their_flow_and_the_service_young() {
    let mut node = Host::at(Site::A);
    let first = request(5000);
    let before = coarse_time();
    node.run(Program::FromEndpoint, &first.frame());
    let service = node.tables.services.get(&SINGLE, 0).expect("a service");
    assert!(
        (before..=coarse_time()).contains(&service.last_used),
        "{service:?}"
    );

    let answer = Packet {
        flags: SYN | ACK,
        source: S_SHOWN,
        source_port: 80,
        destination: A,
        destination_port: 5000,
        ..Packet::default()
    };
    for (key, program, frame) in [
        (key(A, 5000, SINGLE, 80), Program::FromEndpoint, first.frame()),
        (
            key(S_SHOWN, 80, A, 5000),
            Program::FromUplink,
            B_TO_A.carrying(&answer),
        ),
    ] {
        let young = node.tables.unanswered.get(&key, 0).expect("an entry of the flow");
        let old = Flow {
            last_seen: young.last_seen - 10,
            ..young
        };
        node.tables.unanswered.insert(key, old, 0).expect("room");
        let before = coarse_time();
        node.run(program, &frame);
        let seen = node.tables.unanswered.get(&key, 0).expect("an entry of the flow");
        assert!(
            (before..=coarse_time()).contains(&seen.last_seen),
            "{program:?}: {seen:?}"
        );
    }
}

#[test]
fn p22_when_the_oldest_flows_give_way_every_new_one_still_opens() {
    const FLOWS: u16 = 3000;
    const ENTRIES: u32 = 1024;
    let node = with_pinned_flows(|path| {
        // The object's own table, only smaller.
        EbpfLoader::new()
            .map_max_entries("UNANSWERED", ENTRIES)
            .map_pin_path("UNANSWERED", path)
            .load(OBJECT)
            .expect("the kernel makes the maps");
    });
    for source_port in 10_000..10_000 + FLOWS {
        let packet = request(source_port);
        let ran = run(
            node.program(Program::FromEndpoint),
            &packet.frame(),
            Context::default(),
        );
        assert_eq!(ran, (REDIRECT, sent(&packet)), "port {source_port}");
    }

    let left = node.flows();
    assert!(left.len() <= ENTRIES as usize, "{} entries", left.len());
    let last = 10_000 + FLOWS - 1;
    for key in [key(A, last, SINGLE, 80), key(S_SHOWN, 80, A, last)] {
        assert!(left.contains_key(&key), "the newest flow is whole: {key:?}");
    }
    let first = 10_000;
    assert!(
        !left.contains_key(&key(A, first, SINGLE, 80)),
        "the oldest gave way"
    );
    let stray = Packet {
        flags: ACK,
        ..request(first)
    };
    let ran = node.run(Program::FromEndpoint, &stray.frame());
    assert_outcome(
        "the oldest flow goes on",
        Program::FromEndpoint,
        &ran,
        Outcome::Did(Action::Reset),
    );
    // And opens again, at its own port, whether or not its reverse entry is still there.
    let packet = request(first);
    node.expect(
        "again",
        Program::FromEndpoint,
        &packet.frame(),
        Action::Tunnel,
        &sent(&packet),
    );
}

#[test]
fn p22_a_flow_of_which_one_entry_gave_way_is_made_whole_by_a_new_beginning() {
    let mut node = Host::at(Site::A);
    let packet = request(5000);
    node.expect(
        "opening",
        Program::FromEndpoint,
        &packet.frame(),
        Action::Tunnel,
        &sent(&packet),
    );
    let whole = node.flows();
    node.tables
        .unanswered
        .remove(&key(A, 5000, SINGLE, 80))
        .expect("the forward entry is there");
    node.expect(
        "again",
        Program::FromEndpoint,
        &packet.frame(),
        Action::Tunnel,
        &sent(&packet),
    );
    assert_eq!(node.flows(), whole);
}
