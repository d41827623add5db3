//! Registering, and what comes of it when something is in the way.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;

use lab::worker::Worker;
use lab::{Host, Lab};
use netmanager::endpoint::name;
use serde_json::{Value, json};

use crate::fixture::{DEADLINE, NEAR_NODE, lone_answers, lone_instance, program};
use crate::hostile::TUNNEL_PORT;

#[test]
fn a_host_in_the_overlays_range_is_not_cut_off() {
    let lab = Lab::new("overlap").expect("a lab");
    let host = lab.host("near").expect("a host");
    let mut worker = given_up(&lab, &host);
    host.ip("link add lan0 type bridge").expect("added");
    host.ip("address add 10.20.0.1/24 dev lan0").expect("added");
    let before = view(&host);

    let (code, answer) = register(&worker, worker.node_id(), "");
    assert_eq!(code, 409, "{answer}");
    for word in ["lan0", "10.20.0.1"] {
        assert!(answer.to_string().contains(word), "{answer}");
    }
    assert_eq!(view(&host), before);
    assert_eq!(worker.request("/status", None).expect("answered").0, 400);

    host.ip("address delete 10.20.0.1/24 dev lan0").expect("deleted");
    assert_eq!(register(&worker, worker.node_id(), "").0, 200);
    worker.restart().expect("resumed");
}

#[test]
fn a_first_start_that_fails_leaves_nothing_and_any_id_may_follow() {
    let lab = Lab::new("first start").expect("a lab");
    let host = lab.host("near").expect("a host");
    let worker = given_up(&lab, &host);
    let before = view(&host);
    let occupant = occupy(&host);

    let (code, answer) = register(&worker, worker.node_id(), "");
    assert_eq!(code, 500, "{answer}");
    assert!(answer.to_string().contains("50103"), "{answer}");
    assert_eq!(view(&host), before);
    drop(occupant);
    let other = format!("{}other", lab.prefix());
    let (code, answer) = register(&worker, &other, "");
    assert_eq!(code, 200, "{answer}");
    assert_eq!(worker.get("/status").expect("runs")["node_id"], json!(other));
}

#[test]
fn a_node_that_cannot_be_started_says_why_and_may_be_tried_again() {
    let lab = Lab::new("resume fails").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
    worker.daemon().kill().expect("killed");
    let occupant = occupy(&host);
    worker.daemon().restart().expect("started");
    worker.wait_until_ready().expect("it takes requests");
    lab::wait_for("an answer", DEADLINE, || {
        Ok(worker.request("/status", None).is_ok())
    })
    .expect("answered");

    let (code, answer) = worker.request("/status", None).expect("answered");
    assert_eq!(code, 503, "{answer}");
    for word in ["50103", worker.node_id()] {
        assert!(answer.to_string().contains(word), "{answer}");
    }
    let (code, answer) = register(&worker, worker.node_id(), "");
    assert_eq!(code, 500, "still in the way: {answer}");
    drop(occupant);
    let (code, answer) = register(&worker, worker.node_id(), "");
    assert_eq!(code, 200, "{answer}");
    let listed = worker.get("/endpoints").expect("listed");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    endpoint.ping(NEAR_NODE, DEADLINE).expect("the endpoint goes on");
}

#[test]
fn one_endpoint_that_cannot_be_taken_over_costs_the_others_nothing() {
    let lab = Lab::new("bad endpoint").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
    worker.daemon().kill().expect("killed");

    // Half-made, and what has its link's name is no link of NetManager.
    let address = Ipv4Addr::new(10, 18, 0, 9);
    let link = name::host_link(worker.node_id(), address);
    host.ip(&format!("link add {link} type bridge")).expect("added");
    let file = state_file(&worker);
    let mut state = state(&worker);
    let mut bad = state["endpoints"]["shop.test.client.test/0"].clone();
    bad["service"] = json!("shop.test.bad.test");
    bad["namespace_address"] = json!(address);
    bad["instance_address"] = json!("10.30.9.9");
    bad["attached"] = Value::Null;
    // Before the good one.
    state["endpoints"]["shop.test.bad.test/0"] = bad;
    fs::write(&file, state.to_string()).expect("written");

    worker.restart().expect("resumed");
    let listed = worker.get("/endpoints").expect("listed");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    endpoint.ping(NEAR_NODE, DEADLINE).expect("the good one goes on");

    host.ip(&format!("link delete {link}")).expect("deleted");
    worker.undeploy("shop.test.bad.test", 0).expect("detached now");
}

#[test]
fn another_address_of_the_cluster_is_kept() {
    let lab = Lab::new("cluster address").expect("a lab");
    let host = lab.host("near").expect("a host");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    for (given, kept) in [("192.0.2.77", "192.0.2.77"), ("", "192.0.2.77")] {
        assert_eq!(register(&worker, worker.node_id(), given).0, 200);
        assert_eq!(
            state(&worker)["registration"]["cluster_address"],
            kept,
            "{given:?}"
        );
    }
    worker.restart().expect("resumed");
    assert_eq!(
        state(&worker)["registration"]["cluster_address"],
        json!("192.0.2.77")
    );
}

/// A daemon that runs and is not registered.
fn given_up(lab: &Lab, host: &Host) -> Worker {
    let mut worker = Worker::start(lab, host, program(), &lone_answers()).expect("a NetManager");
    worker.daemon().kill().expect("killed");
    let output = worker.command_line(&["reset"]).expect("run");
    assert!(output.status.success(), "{output:?}");
    worker.daemon().restart().expect("started");
    worker.wait_until_ready().expect("it takes requests");
    worker
}

/// Another program that has the tunnel port.
fn occupy(host: &Host) -> UdpSocket {
    let bound = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, TUNNEL_PORT)));
    bound.expect("entered").expect("the port is free")
}

fn register(worker: &Worker, node_id: &str, cluster_address: &str) -> (u16, Value) {
    let body = json!({"client_id": node_id, "cluster_address": cluster_address});
    worker
        .request("/register", Some(&body.to_string()))
        .expect("answered")
}

fn state_file(worker: &Worker) -> PathBuf {
    worker.root().join("var/lib/oakestra/netmanager/state.json")
}

fn state(worker: &Worker) -> Value {
    let text = fs::read(state_file(worker)).expect("there is one");
    serde_json::from_slice(&text).expect("JSON")
}

/// What a node leaves on its host.
fn view(host: &Host) -> Vec<String> {
    let commands: [(&str, &[&str]); 5] = [
        ("ip", &["-o", "address"]),
        ("ip", &["route", "show", "table", "all"]),
        ("nft", &["-s", "list", "ruleset"]),
        ("sysctl", &["net.ipv4.ip_forward"]),
        ("ethtool", &["-k", lab::UPLINK]),
    ];
    let shown = commands.map(|(program, arguments)| host.run(program, arguments).expect("run").stdout);
    shown
        .iter()
        .map(|shown| String::from_utf8_lossy(shown).into_owned())
        .collect()
}
