//! Decisions, event by event.

mod draining;

use std::collections::BTreeMap;

use protocol::cluster::{FromRoot, Lease};
use protocol::instance::InstanceStatus;
use protocol::job::INCARNATION_STEP;
use protocol::node::{Acknowledgement, Command, ResourcesReport};
use serde_json::{Value, json};

use super::*;

const FIRST: u64 = INCARNATION_STEP;

#[test]
fn the_same_order_again_changes_nothing() {
    let mut play = Play::with_nodes(2);
    play.deploy("a", FIRST);
    let (topic, order) = play.published().remove(0);
    assert_eq!(
        (topic.as_str(), &order["incarnation"]),
        ("nodes/n0/control/deploy", &json!(FIRST))
    );
    for repeated in [FIRST, FIRST - 1] {
        play.deploy("a", repeated);
        assert_eq!(play.published(), [], "{repeated}");
    }
    let desired = FromRoot::Desired {
        placements: vec![placement("a", FIRST)],
        more: false,
    };
    play.core.heard(desired);
    assert_eq!(play.published(), []);
}

#[test]
fn a_new_placement_replaces_the_old_one() {
    let mut play = Play::with_nodes(1);
    play.deploy("a", FIRST);
    play.published();
    play.deploy("a", 2 * FIRST);
    let published = play.published();
    let topics: Vec<&str> = published.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["nodes/n0/control/delete", "nodes/n0/control/deploy"]);
    assert_eq!(published[0].1["incarnation"], json!(FIRST));
    assert_eq!(published[1].1["incarnation"], json!(2 * FIRST));

    let key = placement("a", FIRST).key();
    play.core.undeploy(&key, FIRST);
    assert_eq!(
        play.published(),
        [],
        "an order about the old one does not meet the new one"
    );
    play.core.undeploy(&key, 2 * FIRST);
    assert_eq!(play.published()[0].1["incarnation"], json!(2 * FIRST));
}

#[test]
fn what_waits_for_others_to_stop_is_not_refused() {
    let mut play = Play::with_nodes(1);
    for name in ["a", "b"] {
        play.deploy(name, FIRST);
    }
    play.core.undeploy(&placement("a", FIRST).key(), FIRST);
    play.deploy("c", FIRST);
    let (published, root) = play.effects();
    assert!(
        published
            .iter()
            .all(|(topic, order)| topic.ends_with("delete") || order["job_name"] != "a.b.c.d")
    );
    assert!(
        !root
            .iter()
            .any(|message| matches!(message, FromCluster::Refusal { .. })),
        "{root:?}"
    );

    play.acknowledge("n0", Command::Delete, "a", FIRST);
    let published = play.published();
    assert_eq!(published[0].1["job_name"], "a.b.c.d");
}

#[test]
fn what_fits_nowhere_is_refused_once_and_forgotten() {
    let mut play = Play::with_nodes(1);
    for name in ["a", "b", "c"] {
        play.deploy(name, FIRST);
    }
    let (_, root) = play.effects();
    let refusals: Vec<_> = root
        .iter()
        .filter_map(|message| match message {
            FromCluster::Refusal { key, status, .. } => Some((key.job_name.as_str(), *status)),
            FromCluster::State { .. }
            | FromCluster::Capacity { .. }
            | FromCluster::Instance { .. }
            | FromCluster::LeaseRequest { .. }
            | FromCluster::Lookup { .. } => None,
        })
        .collect();
    assert_eq!(refusals, [("a.b.c.d", InstanceStatus::NoWorkerCapacity)]);
    assert_eq!(play.core.instances.len(), 2);
}

#[test]
fn every_step_of_a_lost_node_counts_up_until_the_numbers_are_the_roots() {
    let mut play = Play::with_nodes(1);
    let last = 2 * FIRST - 1;
    play.deploy("a", FIRST);
    let key = placement("a", FIRST).key();
    play.core
        .instances
        .get_mut(&key)
        .expect("it is there")
        .record
        .incarnation = last;
    play.effects();
    play.later(play.core.patience.silence);
    play.later(play.core.patience.grace);
    let (_, root) = play.effects();
    assert!(
        root.iter()
            .any(|message| matches!(message, FromCluster::Refusal { .. })),
        "{root:?}"
    );
    assert!(play.core.instances.is_empty());
}

#[test]
fn a_report_without_what_was_acknowledged_brings_a_new_order() {
    let mut play = Play::with_nodes(1);
    play.give_key("n0");
    play.deploy("a", FIRST);
    play.acknowledge("n0", Command::Deploy, "a", FIRST);
    play.published();
    play.core.resources("n0", ResourcesReport::default());
    assert_eq!(play.published(), [], "the report may be older than the order");
    play.later(play.core.patience.resend);
    play.published();
    play.core.resources("n0", ResourcesReport::default());
    assert_eq!(play.published()[0].0, "nodes/n0/control/deploy");
}

#[test]
fn nodes_of_other_makes_are_not_pressed() {
    let mut play = Play::with_nodes(1);
    play.deploy("a", FIRST);
    play.published();
    let alive = json!({"services": []});
    let running = json!({"services": [{"job_name": "a.b.a.d", "instance": 0, "virtualization": "docker"}]});
    let say = |play: &mut Play, report: &Value| {
        play.later(play.core.patience.resend);
        let report = serde_json::from_value(report.clone()).expect("report");
        play.core.resources("n0", report);
        play.published()
    };
    assert_eq!(say(&mut play, &alive), [], "it may be pulling an image");
    assert_eq!(say(&mut play, &running), []);
    assert_eq!(
        play.core.instances[&placement("a", FIRST).key()].record.status,
        InstanceStatus::Running
    );
    for _ in 0..11 {
        assert_eq!(say(&mut play, &alive), [], "a report of another runtime");
    }
    assert_eq!(say(&mut play, &alive)[0].0, "nodes/n0/control/deploy");
}

#[test]
fn the_root_hears_of_the_end_of_what_it_ended() {
    let mut play = Play::with_nodes(1);
    play.deploy("a", FIRST);
    play.deploy("a", 2 * FIRST);
    play.effects();
    let key = placement("a", FIRST).key();
    let undeployed = |root: Vec<FromCluster>| -> Vec<u64> {
        let of = |message| match message {
            FromCluster::Instance { report } if report.status == InstanceStatus::Undeployed => {
                Some(report.incarnation)
            }
            FromCluster::State { .. }
            | FromCluster::Capacity { .. }
            | FromCluster::Instance { .. }
            | FromCluster::Refusal { .. }
            | FromCluster::LeaseRequest { .. }
            | FromCluster::Lookup { .. } => None,
        };
        root.into_iter().filter_map(of).collect()
    };
    play.core.undeploy(&key, 2 * FIRST);
    assert!(undeployed(play.effects().1).is_empty());
    play.acknowledge("n0", Command::Delete, "a", FIRST);
    assert!(
        undeployed(play.effects().1).is_empty(),
        "nobody asked about that one"
    );
    play.acknowledge("n0", Command::Delete, "a", 2 * FIRST);
    assert_eq!(undeployed(play.effects().1), [2 * FIRST]);
    play.core.undeploy(&key, 3 * FIRST);
    assert_eq!(undeployed(play.effects().1), [3 * FIRST], "it never was");
}

#[test]
fn nobody_waits_for_the_end_on_a_node_that_has_died() {
    let mut play = Play::with_nodes(1);
    play.deploy("a", FIRST);
    let key = placement("a", FIRST).key();
    let ends = |play: &mut Play| {
        let ends = |message: &FromCluster| matches!(message, FromCluster::Instance { report } if report.status == InstanceStatus::Undeployed);
        play.effects().1.iter().filter(|message| ends(message)).count()
    };
    // Dead, but nobody knows yet.
    play.core.undeploy(&key, FIRST);
    assert_eq!(ends(&mut play), 0);
    play.later(play.core.patience.silence);
    assert_eq!(ends(&mut play), 1);
    // The root has not heard it, and asks again.
    play.core.undeploy(&key, FIRST);
    play.later(Duration::ZERO);
    assert_eq!(ends(&mut play), 1);
    play.later(play.core.patience.silence);
    assert_eq!(ends(&mut play), 0);
    assert_eq!(play.core.stops.len(), 1, "the node is told when it comes back");
}

#[test]
fn what_is_desired_may_come_in_parts() {
    let mut play = Play::with_nodes(2);
    for name in ["a", "b"] {
        play.deploy(name, FIRST);
    }
    play.effects();
    let part = |name: &str, more| FromRoot::Desired {
        placements: vec![placement(name, FIRST)],
        more,
    };
    play.core.heard(part("b", true));
    assert_eq!(play.published(), [], "the list is not at its end");
    play.core.heard(part("c", false));
    let topics: Vec<String> = play.published().into_iter().map(|(topic, _)| topic).collect();
    assert_eq!(topics.len(), 2, "{topics:?}");
    let names: Vec<&str> = play
        .core
        .instances
        .keys()
        .map(|key| key.job_name.as_str())
        .collect();
    assert_eq!(names, ["a.b.b.d", "a.b.c.d"]);
}

#[test]
fn a_node_that_makes_things_up_fills_no_disk() {
    let mut play = Play::with_nodes(1);
    let services: Vec<Value> = (0..2000)
        .map(|number| json!({"job_name": "a.b.c.d", "instance": number, "incarnation": number}))
        .collect();
    for _ in 0..3 {
        let report = serde_json::from_value(json!({"services": services})).expect("report");
        play.core.resources("n0", report);
    }
    assert_eq!(play.core.stops.len(), 256);
    play.effects();
    play.later(play.core.patience.resend);
    play.core.resources("n0", ResourcesReport::default());
    assert!(play.core.stops.is_empty(), "they have gone");
}

#[test]
fn sums_of_what_nodes_say_are_sums() {
    let mut play = Play::with_nodes(0);
    for host in ["a", "b"] {
        let information = serde_json::from_value(json!({
            "host": host, "ip": "10.30.0.9", "vcpus": u64::MAX, "memory": u64::MAX, "vgpus": u64::MAX,
            "cpu_percent": 1e308, "virtualization": ["docker"]
        }));
        let peer = [192, 0, 2, 9].into();
        let node = play.core.register(information.expect("information"), Some(peer));
        assert_eq!(
            play.core.nodes[&node.id].address(),
            Some(peer),
            "not one of the overlay"
        );
        let load = serde_json::from_value(json!({"cpu_percent": 1e308})).expect("load");
        play.core.information(&node.id, load);
    }
    let capacity = play.core.capacity();
    assert_eq!((capacity.vcpus, capacity.cpu_percent), (2 << 16, 100.0));
}

#[test]
fn completed_is_completed() {
    let mut play = Play::with_nodes(1);
    play.deploy("a", FIRST);
    for status in ["RUNNING", "COMPLETED", "RUNNING", "UNDEPLOYED"] {
        let report = json!({"sname": "a.b.a.d", "instance": 0, "status": status, "incarnation": FIRST});
        play.core
            .job_report("n0", serde_json::from_value(report).expect("report"));
    }
    let key = placement("a", FIRST).key();
    assert_eq!(play.core.instances[&key].record.status, InstanceStatus::Completed);
    play.effects();
    assert_eq!(play.core.capacity().vcpus_free, 2, "it occupies nothing");
    play.later(play.core.patience.resend);
    play.core.resources("n0", ResourcesReport::default());
    assert_eq!(play.published(), []);
}

#[test]
fn what_is_told_is_what_is_stored() {
    let mut play = Play::with_nodes(2);
    play.deploy("a", FIRST);
    let effects = play.core.take_effects().expect("effects");
    assert!(!effects.transaction.is_empty() && !effects.publish.is_empty());
    let again = play.core.take_effects().expect("effects");
    assert!(again.transaction.is_empty() && again.publish.is_empty() && again.root.is_empty());
}

#[test]
fn capacity_is_the_sum_of_what_is_active() {
    let mut play = Play::with_nodes(2);
    play.deploy("a", FIRST);
    let capacity = play.core.capacity();
    assert_eq!(
        (capacity.active_nodes, capacity.vcpus, capacity.vcpus_free),
        (2, 4, 3)
    );
    assert_eq!((capacity.memory, capacity.memory_free), (2000, 1900));
    assert_eq!((capacity.largest_vcpus, capacity.largest_memory), (2, 1000));
    assert_eq!(capacity.hosts, ["h0", "h1"]);
    play.later(play.core.patience.silence);
    assert_eq!(play.core.capacity().active_nodes, 0);
}

/// A connected core with nodes of two cores each, `n0`, `n1`, ….
struct Play {
    core: Core,
}

impl Play {
    fn with_nodes(count: u32) -> Self {
        let now = Instant::now();
        let mut core = Core::new("c1", Patience::default(), now);
        for number in 0..count {
            let id = format!("n{number}");
            let information: NodeInformation = serde_json::from_value(json!({
                "host": format!("h{number}"), "ip": "192.0.2.1", "vcpus": 2, "memory_total": 1000,
                "virtualization": ["docker"], "architecture": "amd64"
            }))
            .expect("information");
            let record = NodeRecord {
                id: id.clone(),
                key: None,
                passwords: Vec::new(),
                information,
                address: None,
                lease: Some(Lease {
                    subnet: (u32::from_be_bytes([10, 18, 0, 0]) + number * 64).into(),
                    subnet_v6: None,
                    instance_ip: [10, 30, 0, 1].into(),
                    instance_ip_v6: None,
                }),
                tunnel: None,
            };
            core.nodes.insert(id, Node::new(record, now));
        }
        core.connected(true);
        core.take_effects().expect("effects");
        Self { core }
    }

    /// Makes the node one of this make.
    fn give_key(&mut self, node: &str) {
        let node = self.core.nodes.get_mut(node).expect("it is there");
        node.record.key = Some(crate::cluster::secret::Digest::of("key"));
    }

    fn deploy(&mut self, name: &str, incarnation: u64) {
        self.core.deploy(placement(name, incarnation));
    }

    fn acknowledge(&mut self, node: &str, command: Command, name: &str, incarnation: u64) {
        let key = placement(name, incarnation).key();
        let acknowledgement = Acknowledgement {
            command,
            job_name: key.job_name,
            instance_number: key.instance_number,
            incarnation: Some(incarnation),
        };
        self.core.acknowledged(node, acknowledgement);
    }

    fn later(&mut self, by: Duration) {
        self.core.at(self.core.now + by);
        self.core.tick();
    }

    fn effects(&mut self) -> (Vec<(String, Value)>, Vec<FromCluster>) {
        let effects = self.core.take_effects().expect("effects");
        let read =
            |(topic, payload): (String, Vec<u8>)| (topic, serde_json::from_slice(&payload).expect("JSON"));
        (effects.publish.into_iter().map(read).collect(), effects.root)
    }

    fn published(&mut self) -> Vec<(String, Value)> {
        self.effects().0
    }
}

/// A placement of `a.b.<name>.d` with one core and 100 MiB.
fn placement(name: &str, incarnation: u64) -> Placement {
    let fields = BTreeMap::from([
        ("microserviceID", json!("65f0")),
        ("job_name", json!(format!("a.b.{name}.d"))),
        ("image", json!("nginx")),
        ("virtualization", json!("docker")),
        ("vcpus", json!(1)),
        ("memory", json!(100)),
        ("instance_number", json!(0)),
        ("incarnation", json!(incarnation)),
    ]);
    serde_json::from_value(json!(fields)).expect("placement")
}
