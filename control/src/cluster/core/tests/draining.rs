//! What others see of an instance that is about to be stopped.

use protocol::network::{
    InstanceRow, Lenient, PeersAcknowledgement, ServiceAnnouncement, ServiceName, TableQuery,
};

use super::*;

/// A running instance on the first of two nodes, in whose service the second one is interested.
fn followed() -> Play {
    let mut play = Play::with_nodes(2);
    play.deploy("a", FIRST);
    play.announce("DEPLOYED", FIRST);
    play.follow("n1");
    play.effects();
    play
}

impl Play {
    fn announce(&mut self, status: &str, incarnation: u64) {
        let announcement: ServiceAnnouncement = serde_json::from_value(json!({
            "appname": "a.b.a.d", "status": status, "instance_number": 0, "nsip": "10.18.0.2", "nsipv6": "",
            "host_port": "50103", "host_ip": "192.0.2.1", "incarnation": incarnation
        }))
        .expect("announcement");
        self.core.announced("n0", &announcement);
    }

    fn follow(&mut self, node: &str) {
        self.core.answer(node, &TableQuery::by_name(&service()));
    }

    fn undeploy(&mut self, incarnation: u64) -> Vec<(String, Value)> {
        self.core
            .undeploy(&placement("a", incarnation).key(), incarnation);
        self.published()
    }

    fn rows(&self) -> Vec<InstanceRow> {
        let table = self.core.table(&service()).unwrap_or_default();
        let read = |row| match row {
            Lenient::Read(row) => row,
            Lenient::Malformed { error, .. } => panic!("{error}"),
        };
        table.instance_list.into_iter().map(read).collect()
    }
}

fn service() -> ServiceName {
    "a.b.a.d".parse().expect("name")
}

#[test]
fn p17_what_is_followed_drains_until_its_node_has_taken_it_off() {
    let mut play = followed();
    let published = play.undeploy(FIRST);
    let topics: Vec<&str> = published.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(
        topics,
        ["nodes/n0/control/delete", "jobs/a.b.a.d/updates_available"]
    );
    assert_eq!(published[0].1["drain_ms"], 3_000);
    let rows = play.rows();
    assert!(rows[0].draining && rows[0].namespace_ip.is_some() && rows[0].host_ip.is_some());
    assert_eq!((rows.len(), rows[0].incarnation), (1, Some(FIRST)));

    play.announce("UNDEPLOYED", FIRST + 1);
    assert_eq!(play.rows().len(), 1, "another placement");
    play.announce("UNDEPLOYED", FIRST);
    assert_eq!(play.rows(), []);
    assert_eq!(play.published()[0].0, "jobs/a.b.a.d/updates_available");
    play.acknowledge("n0", Command::Delete, "a", FIRST);
    assert_eq!(play.published(), [], "that was told already");
}

#[test]
fn p17_a_stop_that_is_carried_out_ends_it_too() {
    let mut play = followed();
    play.undeploy(FIRST);
    play.acknowledge("n0", Command::Delete, "a", FIRST);
    assert_eq!(play.rows(), []);
    assert_eq!(play.published()[0].0, "jobs/a.b.a.d/updates_available");
}

#[test]
fn p17_nobody_waits_for_what_nobody_follows_or_where_it_is_switched_off() {
    let mut play = Play::with_nodes(2);
    play.deploy("a", FIRST);
    play.announce("DEPLOYED", FIRST);
    play.effects();
    assert_eq!(play.undeploy(FIRST)[0].1["drain_ms"], json!(null));
    assert_eq!(play.rows(), []);

    let mut play = followed();
    play.core.patience.drain = Duration::ZERO;
    assert_eq!(play.undeploy(FIRST)[0].1["drain_ms"], json!(null));
    assert_eq!(play.rows(), []);
}

#[test]
fn p17_a_node_that_has_died_serves_nobody() {
    let mut play = followed();
    play.undeploy(FIRST);
    play.later(play.core.patience.silence);
    assert_eq!(play.rows(), []);
    assert!(
        play.published()
            .iter()
            .any(|(topic, _)| topic == "jobs/a.b.a.d/updates_available")
    );
}

#[test]
fn p17_another_placement_of_the_same_instance_counts() {
    let mut play = followed();
    play.undeploy(FIRST);
    play.deploy("a", 2 * FIRST);
    let rows = play.rows();
    assert_eq!(
        (rows.len(), rows[0].incarnation, rows[0].draining),
        (1, Some(2 * FIRST), false)
    );
}

#[test]
fn p17_a_drain_outlives_the_process_with_its_order() {
    let mut play = followed();
    play.core.undeploy(&placement("a", FIRST).key(), FIRST);
    let stop = play.core.stops.values().next().expect("an order").record.clone();
    let stored = serde_json::to_value(&stop).expect("writable");
    let read: StopRecord = serde_json::from_value(stored.clone()).expect("readable");
    assert_eq!(read, stop);
    assert!(read.draining.is_some());
    let mut older = stored;
    older.as_object_mut().expect("an object").remove("draining");
    let read: StopRecord = serde_json::from_value(older).expect("an order of an earlier version");
    assert_eq!(read.draining, None);
}

#[test]
fn a_node_that_has_lost_interest_is_announced_anew_before_it_talks_again() {
    let mut play = followed();
    let query = TableQuery::by_name(&service());
    let announced = |play: &mut Play| {
        let receivers = play.core.tell_peers("n1", &query);
        let told = play.published();
        let peers = told.iter().find(|(topic, _)| topic == "nodes/n0/net/peers");
        (receivers.len(), peers.map(|(_, message)| message.clone()))
    };
    let (waits, message) = announced(&mut play);
    let message = message.expect("announced");
    assert_eq!(waits, 1);
    let acknowledgement: PeersAcknowledgement =
        serde_json::from_value(json!({"version": message["version"], "epoch": message["epoch"]}))
            .expect("acknowledgement");
    play.core.peers_acknowledged("n0", acknowledgement);
    assert_eq!(announced(&mut play), (0, None), "it is known there");
    play.core.uninterested("n1", "a.b.a.d");
    assert_eq!(play.core.network.interests.len(), 0);
    let (waits, message) = announced(&mut play);
    assert!(waits == 1 && message.is_some());
}
