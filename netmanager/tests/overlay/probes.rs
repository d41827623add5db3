//! Nodes that probe each other: how far away they are, who of them takes new flows, and who is the closest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Endpoint, Lab, UPLINK};
use serde_json::Value;

use crate::fixture::{CLIENT_NAME, DEADLINE, listen, program};

/// Has an instance on `middle` and one on `far`.
const SPREAD_NAME: &str = "shop.test.spread.test";
const SPREAD: Ipv4Addr = Ipv4Addr::new(10, 30, 60, 1);
const SPREAD_CLOSEST: Ipv4Addr = Ipv4Addr::new(10, 30, 60, 2);
/// Has an instance on the client's own node and one on `far`.
const HERE_NAME: &str = "shop.test.here.test";
const HERE: Ipv4Addr = Ipv4Addr::new(10, 30, 61, 1);
const HERE_CLOSEST: Ipv4Addr = Ipv4Addr::new(10, 30, 61, 2);

/// By when a node that is cut off takes no new flows any more.
const NOTICED: Duration = Duration::from_millis(1_500);
/// How long a connection may take to be made; the kernel sends a lost first packet again after one second.
const CONNECTED: Duration = Duration::from_secs(8);

/// What a server says of itself.
const ON_MIDDLE: u8 = b'm';
const ON_FAR: u8 = b'f';
const ON_NEAR: u8 = b'n';

/// Three nodes: the client's, and two with servers.
struct Nodes {
    near: Worker,
    middle: Worker,
    far: Worker,
    client: Endpoint,
    here: Instance,
    _endpoints: Vec<Endpoint>,
    _lab: Lab,
}

impl Nodes {
    fn new(label: &str) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let [near_host, middle_host, far_host] =
            ["near", "middle", "far"].map(|role| lab.host(role).expect("a host"));
        let ip = Ipv4Addr::new;
        let instance = |service: &str, number, address, namespace_address, host: &lab::Host| Instance {
            service: service.to_owned(),
            number,
            address,
            namespace_address,
            host: host.address(),
            incarnation: 1,
        };
        let client = instance(CLIENT_NAME, 0, ip(10, 30, 1, 1), ip(10, 18, 0, 2), &near_host);
        let here = instance(HERE_NAME, 0, ip(10, 30, 1, 2), ip(10, 18, 0, 3), &near_host);
        let on_middle = instance(SPREAD_NAME, 0, ip(10, 30, 2, 1), ip(10, 18, 0, 66), &middle_host);
        let on_far = instance(SPREAD_NAME, 1, ip(10, 30, 3, 1), ip(10, 18, 0, 130), &far_host);
        let there = instance(HERE_NAME, 1, ip(10, 30, 3, 2), ip(10, 18, 0, 131), &far_host);
        let service = |name: &str, address, instances: &[&Instance]| Service {
            name: name.to_owned(),
            addresses: vec![address],
            instances: instances.iter().map(|instance| (*instance).clone()).collect(),
            delay: Duration::ZERO,
        };
        let answers = |subnet, address, peers: &[&Instance], services| Answers {
            subnet: Some(subnet),
            address: Some(address),
            peers: peers.iter().map(|instance| (*instance).clone()).collect(),
            services,
        };
        let start = |host: &lab::Host, answers: &Answers| {
            Worker::start(&lab, host, program(), answers).expect("a NetManager")
        };
        let known = answers(
            ip(10, 18, 0, 0),
            ip(10, 30, 0, 1),
            &[],
            vec![
                service(SPREAD_NAME, SPREAD, &[&on_middle, &on_far]),
                service(HERE_NAME, HERE, &[&here, &there]),
            ],
        );
        // What a cluster announces before it answers the near node's question.
        let asking = [&client];
        let near = start(&near_host, &known);
        let closest = [(SPREAD_NAME, SPREAD_CLOSEST), (HERE_NAME, HERE_CLOSEST)];
        near.answer_with_closest(&known, &closest).expect("answered");
        let middle = start(
            &middle_host,
            &answers(ip(10, 18, 0, 64), ip(10, 30, 0, 2), &asking, Vec::new()),
        );
        let far = start(
            &far_host,
            &answers(ip(10, 18, 0, 128), ip(10, 30, 0, 3), &asking, Vec::new()),
        );

        let mut endpoints = Vec::new();
        let mut attach = |worker: &Worker, role: &str, instance: &Instance, says: u8| {
            let endpoint = worker.host().endpoint(role).expect("an endpoint");
            let address = worker.deploy(&endpoint, instance).expect("attached");
            assert_eq!(address, instance.namespace_address);
            serve(listen(&endpoint, 80), says);
            endpoints.push(endpoint);
        };
        let client_endpoint = near_host.endpoint("client").expect("an endpoint");
        near.deploy(&client_endpoint, &client).expect("attached");
        attach(&near, "here", &here, ON_NEAR);
        attach(&middle, "server", &on_middle, ON_MIDDLE);
        attach(&far, "server", &on_far, ON_FAR);
        attach(&far, "there", &there, ON_FAR);
        Self {
            near,
            middle,
            far,
            client: client_endpoint,
            here,
            _endpoints: endpoints,
            _lab: lab,
        }
    }

    /// The near node knows the far ones, and how far away they are.
    fn measured(label: &str) -> Self {
        let nodes = Self::new(label);
        // Replaced after the start: told of when it has been read.
        lab::wait_for("the closest address to be known", DEADLINE, || {
            Ok(who(&nodes.client, SPREAD_CLOSEST, DEADLINE).is_ok())
        })
        .expect("known");
        lab::wait_for("both nodes to be measured", DEADLINE, || {
            let views = views(&nodes.near);
            let measured = |view: &&Value| view["round_trip_us"].is_u64() && view["alive"] == true;
            Ok(views.values().filter(measured).count() == 2)
        })
        .expect("measured");
        nodes
    }

    /// The servers that take these many new connections.
    fn servers(&self, service: Ipv4Addr, connections: usize) -> Vec<u8> {
        (0..connections)
            .map(|_| who(&self.client, service, CONNECTED).expect("connected"))
            .collect()
    }

    fn set_uplink_of_middle(&self, state: &str) {
        let host = self.middle.host();
        host.ip(&format!("link set {UPLINK} {state}")).expect("set");
    }

    fn wait_until_middle_is(&self, alive: bool) {
        let address = self.middle.host().address().to_string();
        lab::wait_for("the node to fall silent, or to answer again", DEADLINE, || {
            Ok(views(&self.near)[&address]["alive"] == alive)
        })
        .expect("noticed");
    }
}

/// Tells everybody who connects which server it is.
fn serve(listener: TcpListener, says: u8) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream: TcpStream = stream;
            // Whoever has hung up does not want to know.
            if stream.write_all(&[says]).is_err() {
                continue;
            }
        }
    });
}

/// Who takes a new connection.
fn who(client: &Endpoint, service: Ipv4Addr, patience: Duration) -> std::io::Result<u8> {
    let target = SocketAddrV4::new(service, 80).into();
    let mut stream = client
        .enter(|| TcpStream::connect_timeout(&target, patience))
        .expect("entered")?;
    stream.set_read_timeout(Some(patience))?;
    let mut says = [0];
    stream.read_exact(&mut says)?;
    Ok(says[0])
}

/// What a node says of the others, by address.
fn views(worker: &Worker) -> BTreeMap<String, Value> {
    let nodes = worker.get("/nodes").expect("told");
    let nodes = nodes.as_array().expect("a list").clone();
    let address = |node: &Value| node["address"].as_str().expect("an address").to_owned();
    nodes.into_iter().map(|node| (address(&node), node)).collect()
}

#[test]
fn nodes_with_interest_in_each_other_know_how_far_away_they_are() {
    let nodes = Nodes::measured("probes");
    for worker in [&nodes.middle, &nodes.far] {
        let view = views(&nodes.near)[&worker.host().address().to_string()].clone();
        assert_eq!(view["port"], 50_103);
        assert_eq!(view["mtu"], 1_500);
        assert_eq!(view["interface"], UPLINK);
        let round_trip = view["round_trip_us"].as_u64().expect("measured");
        assert!((1..100_000).contains(&round_trip), "{view}");

        // The other way round too, and nobody else.
        let near = nodes.near.host().address().to_string();
        lab::wait_for("the near node to be measured", DEADLINE, || {
            Ok(views(worker)[&near]["round_trip_us"].is_u64())
        })
        .expect("measured");
        assert_eq!(
            views(worker).len(),
            1,
            "who has no interest in each other does not probe"
        );
        for (name, expected) in [
            ("PROBE_ANSWERED", true),
            ("PROBE_RECEIVED", true),
            ("PROBE_UNEXPECTED", false),
        ] {
            let counted = worker.counter("from_uplink", name).expect("counted");
            assert_eq!(counted > 0, expected, "{name}: {counted}");
        }
    }
    let malformed = nodes
        .near
        .counter("from_uplink", "PROBE_MALFORMED")
        .expect("counted");
    assert_eq!(malformed, 0);
}

#[test]
fn a_node_that_is_cut_off_takes_no_new_flows_after_a_second_and_a_half_and_some_again_when_it_is_back() {
    let nodes = Nodes::measured("cut off");
    let servers = nodes.servers(SPREAD, 4);
    assert_eq!(
        servers.iter().filter(|server| **server == ON_FAR).count(),
        2,
        "in turn"
    );

    nodes.set_uplink_of_middle("down");
    let down = Instant::now();
    let attempts: Vec<(Duration, std::io::Result<u8>)> = thread::scope(|scope| {
        let mut attempts = Vec::new();
        while down.elapsed() < Duration::from_secs(4) {
            let began = down.elapsed();
            let client = &nodes.client;
            attempts.push(scope.spawn(move || (began, who(client, SPREAD, CONNECTED))));
            // The load: fifty connections a second.
            thread::sleep(Duration::from_millis(20));
        }
        attempts
            .into_iter()
            .map(|attempt| attempt.join().expect("no panic"))
            .collect()
    });
    let late: Vec<_> = attempts.iter().filter(|(began, _)| *began >= NOTICED).collect();
    assert!(late.len() > 50, "{}", late.len());
    for (began, server) in &late {
        assert_eq!(*server.as_ref().expect("connected"), ON_FAR, "after {began:?}");
    }
    assert!(
        attempts
            .iter()
            .any(|(began, server)| *began < NOTICED && server.is_err()),
        "before that, the node that is cut off has its turn"
    );
    nodes.wait_until_middle_is(false);

    nodes.set_uplink_of_middle("up");
    nodes.wait_until_middle_is(true);
    let servers: BTreeSet<u8> = nodes.servers(SPREAD, 4).into_iter().collect();
    assert_eq!(servers, BTreeSet::from([ON_MIDDLE, ON_FAR]));
}

#[test]
fn what_runs_goes_on_through_a_short_silence_and_a_restart_begins_anew() {
    let mut nodes = Nodes::measured("silence");
    nodes.set_uplink_of_middle("down");
    nodes.wait_until_middle_is(false);
    // The next process takes everybody for alive, and learns better.
    nodes.near.restart().expect("restarted");
    nodes.wait_until_middle_is(false);
    assert_eq!(nodes.servers(SPREAD, 6), [ON_FAR; 6]);
    nodes.set_uplink_of_middle("up");
    nodes.wait_until_middle_is(true);
    let servers: BTreeSet<u8> = nodes.servers(SPREAD, 4).into_iter().collect();
    assert_eq!(servers, BTreeSet::from([ON_MIDDLE, ON_FAR]));
}

#[test]
fn p16_the_closest_instance_is_the_one_on_the_own_node_then_one_that_answers() {
    let nodes = Nodes::measured("closest");
    lab::wait_for("the other closest address to be known", DEADLINE, || {
        Ok(who(&nodes.client, HERE_CLOSEST, DEADLINE).is_ok())
    })
    .expect("known");
    assert_eq!(nodes.servers(HERE_CLOSEST, 10), [ON_NEAR; 10]);
    let in_turn: BTreeSet<u8> = nodes.servers(HERE, 4).into_iter().collect();
    assert_eq!(in_turn, BTreeSet::from([ON_NEAR, ON_FAR]));
    let policy = |address: Ipv4Addr| {
        let services = nodes.near.get("/services").expect("told");
        let services = services.as_array().expect("a list").clone();
        let service = services
            .into_iter()
            .find(|service| service["address"] == address.to_string());
        service.expect("known")["policy"].clone()
    };
    assert_eq!(
        (policy(HERE_CLOSEST), policy(HERE)),
        ("closest".into(), "round robin".into())
    );

    // On one wire, both others are as close; what does not answer is not.
    let tied: BTreeSet<u8> = nodes.servers(SPREAD_CLOSEST, 10).into_iter().collect();
    assert!(tied.is_subset(&BTreeSet::from([ON_MIDDLE, ON_FAR])), "{tied:?}");
    nodes.set_uplink_of_middle("down");
    nodes.wait_until_middle_is(false);
    assert_eq!(nodes.servers(SPREAD_CLOSEST, 6), [ON_FAR; 6]);

    // When the one here is gone, the next closest is taken.
    nodes
        .near
        .undeploy(&nodes.here.service, nodes.here.number)
        .expect("detached");
    assert_eq!(nodes.servers(HERE_CLOSEST, 4), [ON_FAR; 4]);
}
