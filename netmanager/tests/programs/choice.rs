//! Which instances take new flows, as the directory writes it into the tables.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::tables::delivery;
use netmanager::dataplane::{Globals, MAPS, Pins, load};
use netmanager::directory::{Directory, LocalEndpoint, NodeKey, Path, Policy, RemoteInstance};

use crate::topology::INTERFACE;

const ROUND_ROBIN: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 1);
const CLOSEST: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 2);

/// A directory whose maps outlive it, as those of a process do.
struct Kept {
    pins: Pins,
    paths: Vec<(&'static str, PathBuf)>,
}

impl Kept {
    fn new(label: &str) -> Self {
        let pins = Pins::of(&format!("oakt-{}-{label}", std::process::id()));
        let paths: Vec<_> = MAPS.iter().map(|name| (*name, pins.map(name))).collect();
        let folder = paths[0].1.parent().expect("a folder");
        fs::create_dir_all(folder).expect("a BPF file system");
        Self { pins, paths }
    }

    fn directory(&self) -> Directory {
        let globals = Globals {
            oak0_interface: INTERFACE,
            tunnel_port: TUNNEL_PORT,
            host_address: Ipv4Addr::new(10, 18, 0, 1),
            probes_answered: 1,
            trace_walks: false,
        };
        let (_programs, tables) = load(globals, &self.paths).expect("the kernel takes the programs");
        Directory::adopt(tables, "here").expect("readable maps")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.pins.remove().expect("the pins can be removed");
    }
}

fn node(last: u8) -> NodeKey {
    NodeKey {
        address: Ipv4Addr::new(192, 0, 2, last),
        port: TUNNEL_PORT,
    }
}

/// The address that the instance with this number shows.
fn instance(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 30, 1, number)
}

/// An instance on the node with the same number.
fn place(directory: &mut Directory, number: u8, on: u8) -> u32 {
    let path = Path {
        interface: INTERFACE,
        source: Ipv4Addr::new(192, 0, 2, 99),
        mtu: 1_500,
        ethernet: None,
        flags: 0,
    };
    directory.set_node(node(on), &path).expect("room");
    let record = RemoteInstance {
        address: instance(number),
        namespace_address: Ipv4Addr::new(10, 18, on, 2 + number),
        node: node(on),
        incarnation: 1,
        application: 0,
        draining: false,
    };
    directory
        .add_remote(&record)
        .expect("room")
        .expect("a known node")
}

/// Both addresses lead to instances 1 to 3, on the nodes with the same numbers.
fn spread(directory: &mut Directory) -> Vec<u32> {
    let indexes: Vec<u32> = (1..=3).map(|number| place(directory, number, number)).collect();
    set(directory, &indexes, 3);
    indexes
}

fn set(directory: &mut Directory, candidates: &[u32], members: u8) {
    let addresses = [(ROUND_ROBIN, Policy::RoundRobin), (CLOSEST, Policy::Closest)];
    let members: Vec<Ipv4Addr> = (1..=members).map(instance).collect();
    directory
        .set_service("a.b.c.d", &addresses, candidates, &members)
        .expect("room");
}

/// The numbers of the instances that take new flows.
fn chosen(directory: &Directory, service: Ipv4Addr) -> Vec<u8> {
    let views = directory.services();
    let view = views.iter().find(|view| view.address == service).expect("known");
    view.instances
        .iter()
        .map(|instance| instance.address.octets()[3])
        .collect()
}

#[test]
fn p16_the_closest_address_leads_to_the_nearest_and_follows_them() {
    let kept = Kept::new("closest");
    let mut directory = kept.directory();
    let mut indexes = spread(&mut directory);
    assert_eq!(chosen(&directory, CLOSEST), [1, 2, 3], "nothing is measured");

    directory.set_round_trip(node(2), 40_000).expect("room");
    assert_eq!(
        chosen(&directory, CLOSEST),
        [2],
        "what is not measured comes last"
    );
    directory.set_round_trip(node(1), 10_000).expect("room");
    directory.set_round_trip(node(3), 11_900).expect("room");
    assert_eq!(chosen(&directory, CLOSEST), [1, 3], "less than a fifth is a tie");
    directory.set_round_trip(node(1), 20_000).expect("room");
    assert_eq!(chosen(&directory, CLOSEST), [3]);

    // The one that is nearest now moves to the farthest node.
    place(&mut directory, 3, 2);
    assert_eq!(chosen(&directory, CLOSEST), [1]);

    let here = LocalEndpoint {
        address: instance(4),
        namespace_address: Ipv4Addr::new(10, 18, 0, 6),
        incarnation: 1,
        application: 0,
        interface: INTERFACE,
        mac: [0; 6],
        delivery: delivery::PEER,
        publishes: false,
    };
    directory.add_endpoint(&here).expect("room");
    indexes.push(directory.index_of(instance(4)).expect("known"));
    directory.set_round_trip(node(1), 1).expect("room");
    set(&mut directory, &indexes, 4);
    assert_eq!(
        chosen(&directory, CLOSEST),
        [4],
        "nothing is as near as the own node"
    );
    directory.withdraw(instance(4)).expect("room");
    assert_eq!(chosen(&directory, CLOSEST), [1]);
    assert_eq!(chosen(&directory, ROUND_ROBIN), [1, 2, 3]);
}

#[test]
fn what_is_on_a_silent_node_takes_no_new_flows_unless_nothing_else_is_left() {
    let kept = Kept::new("silent");
    let mut directory = kept.directory();
    let indexes = spread(&mut directory);
    directory.set_round_trip(node(1), 10_000).expect("room");
    directory.set_round_trip(node(2), 40_000).expect("room");

    directory.set_silent(node(1), true).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [2, 3]);
    assert_eq!(chosen(&directory, CLOSEST), [2]);
    directory.set_silent(node(2), true).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [3]);
    directory.set_silent(node(3), true).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [3], "the last one still serves");
    assert_eq!(chosen(&directory, CLOSEST), [3]);
    // Said anew while all are silent: of those that are left, the last.
    set(&mut directory, &indexes[1..], 3);
    assert_eq!(chosen(&directory, ROUND_ROBIN), [3]);
    set(&mut directory, &indexes[..2], 3);
    assert_eq!(chosen(&directory, ROUND_ROBIN), [1, 2], "or all");
    set(&mut directory, &indexes, 3);

    directory.set_silent(node(2), false).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [2]);
    // An instance that moves away from a silent node.
    place(&mut directory, 1, 2);
    assert_eq!(chosen(&directory, ROUND_ROBIN), [1, 2]);
    directory.set_silent(node(3), false).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [1, 2, 3]);
}

#[test]
fn the_next_process_finds_all_instances_and_all_distances() {
    let kept = Kept::new("next");
    let mut directory = kept.directory();
    spread(&mut directory);
    directory.set_round_trip(node(1), 10_000).expect("room");
    directory.set_round_trip(node(2), 40_000).expect("room");
    directory.set_silent(node(1), true).expect("room");
    assert_eq!(chosen(&directory, ROUND_ROBIN), [2, 3]);
    drop(directory);

    let mut directory = kept.directory();
    let mut all = chosen(&directory, ROUND_ROBIN);
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3], "whoever was silent is given another chance");
    assert_eq!(
        chosen(&directory, CLOSEST),
        [1],
        "nothing has to be measured again"
    );
    let known = directory.known_paths().expect("readable");
    let round_trips: Vec<u32> = known.iter().map(|path| path.round_trip).collect();
    assert_eq!(round_trips, [10_000, 40_000, 0]);
    directory.set_silent(node(1), true).expect("room");
    assert_eq!(chosen(&directory, CLOSEST), [2]);
    assert_eq!(chosen(&directory, ROUND_ROBIN).len(), 2);
}
