//! How flows end: with the instance at the other end, at once and told to whoever waits; by themselves, after they have
//! rested long enough. And what is forgotten when nobody uses it any more.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lab::worker::{Answers, Instance, Service, Worker};
use serde_json::{Value, json};

use crate::fixture::{
    DEADLINE, FAR_NAME, FAR_SERVICE, NEAR_NAME, NEAR_NODE, NEAR_SERVICE, Overlay, accept, bind, connect,
    exchange, listen, program,
};

/// How long a client that only waits may not know that there is nobody any more.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn p17_an_idle_connection_is_reset_when_its_instance_on_another_node_ends() {
    let overlay = Overlay::new("far end");
    let listeners = overlay.far_servers.each_ref().map(|server| listen(server, 80));
    overlay
        .near
        .answer(&far_answers(&overlay.far_instances))
        .expect("answered");
    let mut first = connect(&overlay.client, FAR_SERVICE, 80).expect("connected");
    let mut second = connect(&overlay.client, FAR_SERVICE, 80).expect("connected");
    let mut servers = listeners.each_ref().map(|listener| accept(listener).0);
    // Whichever of them the first one met.
    let is_first_there = peer_port(&servers[0]) == first.local_addr().expect("bound").port();
    let [ends, stays] = if is_first_there {
        [&mut first, &mut second]
    } else {
        [&mut second, &mut first]
    };
    exchange(ends, &mut servers[0]);
    exchange(stays, &mut servers[1]);

    let begun = Instant::now();
    let rest = far_answers(&overlay.far_instances[1..]);
    overlay.near.answer(&rest).expect("answered");
    is_reset(ends, begun);
    exchange(stays, &mut servers[1]);
}

#[test]
fn p17_an_idle_connection_is_reset_when_its_instance_on_the_same_node_ends() {
    let overlay = Overlay::new("near end");
    let listener = listen(&overlay.near_server, 80);
    // An endpoint, and the node itself.
    let mut clients = [&*overlay.client, &**overlay.near.host()].map(|client| {
        let mut client = connect(client, NEAR_SERVICE, 80).expect("connected");
        let (mut server, _) = accept(&listener);
        exchange(&mut client, &mut server);
        (client, server)
    });
    let begun = Instant::now();
    overlay.near.undeploy(NEAR_NAME, 0).expect("detached");
    for (client, _server) in &mut clients {
        is_reset(client, begun);
    }
}

#[test]
fn p24_datagrams_pick_anew_when_their_instance_ends_and_a_reused_address_catches_none() {
    let overlay = Overlay::new("datagrams");
    let sockets = overlay.far_servers.each_ref().map(|server| bind(server, 53));
    overlay
        .near
        .answer(&far_answers(&overlay.far_instances))
        .expect("answered");
    let client = bind(&overlay.client, 0);
    let served = ask(&client, &sockets);
    for _ in 0..3 {
        assert_eq!(ask(&client, &sockets), served, "a flow stays");
    }
    let rest = [overlay.far_instances[1 - served].clone()];
    overlay.near.answer(&far_answers(&rest)).expect("answered");
    wait_for_instances(&overlay.near, FAR_SERVICE, 1);
    wait_for_flows(&overlay.near, 0);
    assert_eq!(ask(&client, &sockets), 1 - served);

    // Its addresses, given to another placement.
    let successor = Instance {
        incarnation: 2,
        ..overlay.far_instances[served].clone()
    };
    let both = [rest[0].clone(), successor];
    overlay.near.answer(&far_answers(&both)).expect("answered");
    wait_for_instances(&overlay.near, FAR_SERVICE, 2);
    for _ in 0..3 {
        assert_eq!(ask(&client, &sockets), 1 - served, "it stays where it is");
    }
}

#[test]
fn n68_flows_that_rest_go_and_those_that_are_used_stay() {
    let mut overlay = Overlay::new("lifetimes");
    let lifetimes =
        json!({"UdpAnswered": 1, "UdpOneWay": 1, "Icmp": 1, "TcpClosed": 1, "TcpEstablished": 600});
    configure(
        &mut overlay.near,
        &json!({"FlowSweepSeconds": 0.2, "FlowLifetimes": lifetimes}),
    );
    let listener = listen(&overlay.far_servers[0], 80);
    let other_listener = listen(&overlay.far_servers[1], 80);
    let sockets = overlay.far_servers.each_ref().map(|server| bind(server, 53));
    let mut clients: Vec<TcpStream> = (0..2)
        .map(|_| connect(&overlay.client, FAR_SERVICE, 80).expect("connected"))
        .collect();
    let mut servers = [accept(&listener).0, accept(&other_listener).0];
    if peer_port(&servers[0]) != clients[0].local_addr().expect("bound").port() {
        clients.reverse();
    }
    let busy = bind(&overlay.client, 0);
    let served = ask(&busy, &sockets);
    for _ in 0..20 {
        let idle = bind(&overlay.client, 0);
        ask(&idle, &sockets);
    }
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    // One connection ends, one rests.
    let (closed, resting) = (clients.remove(0), &mut clients[0]);
    drop(closed);
    let mut rest = Vec::new();
    servers[0].read_to_end(&mut rest).expect("closed");
    let [closed, mut resting_server] = servers;
    drop(closed);

    // The busy one and the resting connection, each with its two entries.
    lab::wait_for("all others to be gone", DEADLINE, || {
        assert_eq!(ask(&busy, &sockets), served);
        let flows = overlay.near.get("/status")?["flows"].clone();
        Ok(flows["answered"]["used"] == 4 && flows["unanswered"]["used"] == 0)
    })
    .expect("gone");
    exchange(resting, &mut resting_server);
    let removed = overlay.near.get("/status").expect("told")["flows"]["removed"].as_u64();
    assert!(removed >= Some(44), "{removed:?}");
}

#[test]
fn n64_while_the_cluster_is_away_nothing_is_forgotten_and_no_flow_is_collected() {
    let mut overlay = Overlay::new("away");
    let sockets = overlay.far_servers.each_ref().map(|server| bind(server, 53));
    let client = bind(&overlay.client, 0);
    ask(&client, &sockets);
    configure(
        &mut overlay.near,
        &json!({
            "ClusterUrl": "192.0.2.250", "FlowSweepSeconds": 0.2, "InterestSeconds": 0.5,
            "FlowLifetimes": {"UdpAnswered": 0.1, "UdpOneWay": 0.1}
        }),
    );
    // The answers from a file are there at once: what rests ends, and what is not used is forgotten.
    wait_for_flows(&overlay.near, 0);
    lab::wait_for("the service to be forgotten", DEADLINE, || {
        Ok(addresses(&overlay.near).is_empty())
    })
    .expect("forgotten");

    let served = ask(&client, &sockets);
    overlay.near.daemon().kill().expect("killed");
    let _away = run_without_answers(&overlay.near);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(addresses(&overlay.near), [FAR_SERVICE]);
        let status = overlay.near.get("/status").expect("told");
        let removed = &status["flows"]["removed"];
        assert_eq!((&status["connected"], removed), (&json!(false), &json!(0)));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(ask(&client, &sockets), served, "the flow is still there");
    ask(&bind(&overlay.client, 0), &sockets);
}

#[test]
fn what_nobody_uses_any_more_is_forgotten_and_found_again() {
    let mut overlay = Overlay::new("interest");
    let configuration = json!({
        "FlowSweepSeconds": 0.2, "InterestSeconds": 1.5,
        "FlowLifetimes": {"UdpAnswered": 1, "UdpOneWay": 1, "Icmp": 1, "TcpClosed": 1}
    });
    configure(&mut overlay.near, &configuration);
    configure(&mut overlay.far, &configuration);
    let listener = listen(&overlay.far_servers[0], 80);
    let other_listener = listen(&overlay.far_servers[1], 80);
    let mut client = connect(&overlay.client, FAR_SERVICE, 80).expect("connected");
    let mut server = first_of(&listener, &other_listener);
    exchange(&mut client, &mut server);
    let near_listener = listen(&overlay.near_server, 80);
    drop(connect(&overlay.client, NEAR_SERVICE, 80).expect("connected"));
    drop(accept(&near_listener));
    assert_eq!(addresses(&overlay.near), [NEAR_SERVICE, FAR_SERVICE]);

    lab::wait_for("what is not used to be forgotten", DEADLINE, || {
        Ok(addresses(&overlay.near) == [FAR_SERVICE])
    })
    .expect("forgotten");
    exchange(&mut client, &mut server);
    assert_eq!(node_count(&overlay.far), 1, "the client is there");

    drop((client, server));
    lab::wait_for("the rest to be forgotten", DEADLINE, || {
        Ok(addresses(&overlay.near).is_empty() && node_count(&overlay.near) == 0)
    })
    .expect("forgotten");
    lab::wait_for("the far node to forget its visitors", DEADLINE, || {
        Ok(node_count(&overlay.far) == 0)
    })
    .expect("forgotten");

    let mut client = connect(&overlay.client, FAR_SERVICE, 80).expect("connected again");
    let mut server = first_of(&listener, &other_listener);
    exchange(&mut client, &mut server);
}

/// The far service, with these instances.
fn far_answers(instances: &[Instance]) -> Answers {
    Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 0)),
        address: Some(NEAR_NODE),
        peers: Vec::new(),
        services: vec![Service {
            name: FAR_NAME.to_owned(),
            addresses: vec![FAR_SERVICE],
            instances: instances.to_vec(),
            delay: Duration::ZERO,
        }],
    }
}

/// Restarts a worker with this `netcfg.json`.
fn configure(worker: &mut Worker, configuration: &Value) {
    let file = worker.root().join("etc/netmanager/netcfg.json");
    fs::write(file, configuration.to_string()).expect("written");
    worker.restart().expect("started again");
}

/// Starts the NetManager of a worker with a cluster that is not there.
fn run_without_answers(worker: &Worker) -> lab::Daemon {
    let program = program().display().to_string();
    let mut command = worker.host().command(&program).expect("a command");
    command
        .arg("--root")
        .arg(worker.root())
        .args(["--docker-plugins", "off"]);
    let daemon = worker.host().daemon("netmanager-away", command).expect("started");
    lab::wait_for("it to have resumed", DEADLINE, || {
        Ok(worker.request("/status", None)?.0 == 200)
    })
    .expect("resumed");
    daemon
}

/// Waits on the connection, which is to be reset.
fn is_reset(client: &mut TcpStream, begun: Instant) {
    let error = client.read(&mut [0; 8]).expect_err("nobody sends anything");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(begun.elapsed() < TOLD_WITHIN, "{:?}", begun.elapsed());
}

/// Asks the far service, and lets the server that hears it answer: which one.
fn ask(client: &UdpSocket, servers: &[UdpSocket; 2]) -> usize {
    client.send_to(b"question", (FAR_SERVICE, 53)).expect("sent");
    let begun = Instant::now();
    let mut buffer = [0; 16];
    for server in servers {
        server
            .set_read_timeout(Some(Duration::from_millis(10)))
            .expect("set");
    }
    let (number, peer) = loop {
        assert!(begun.elapsed() < DEADLINE, "nobody heard it");
        let heard = servers.iter().enumerate().find_map(|(number, server)| {
            let (_, peer) = server.recv_from(&mut buffer).ok()?;
            Some((number, peer))
        });
        if let Some(heard) = heard {
            break heard;
        }
    };
    servers[number].send_to(b"answer", peer).expect("sent");
    let (length, from) = client.recv_from(&mut buffer).expect("answered");
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"answer"[..], FAR_SERVICE.into())
    );
    number
}

/// The connection that arrives at one of two listeners.
fn first_of(one: &std::net::TcpListener, other: &std::net::TcpListener) -> TcpStream {
    let mut accepted = None;
    for listener in [one, other] {
        listener.set_nonblocking(true).expect("set");
    }
    lab::wait_for("a connection", DEADLINE, || {
        accepted = [one, other].iter().find_map(|listener| listener.accept().ok());
        Ok(accepted.is_some())
    })
    .expect("accepted");
    let (stream, _) = accepted.expect("accepted");
    stream.set_nonblocking(false).expect("set");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream
}

fn peer_port(stream: &TcpStream) -> u16 {
    stream.peer_addr().expect("connected").port()
}

fn addresses(worker: &Worker) -> Vec<Ipv4Addr> {
    let services = worker.get("/services").expect("listed");
    let services = services.as_array().expect("a list");
    let address = |service: &Value| service["address"].as_str()?.parse().ok();
    services.iter().filter_map(address).collect()
}

fn node_count(worker: &Worker) -> usize {
    let status = worker.get("/status").expect("told");
    status["nodes"].as_array().expect("a list").len()
}

fn wait_for_instances(worker: &Worker, address: Ipv4Addr, count: usize) {
    lab::wait_for("the instances of a service", DEADLINE, || {
        let services = worker.get("/services")?;
        let services = services.as_array().expect("a list");
        let service = services
            .iter()
            .find(|service| service["address"] == address.to_string());
        let instances = service.and_then(|service| service["instances"].as_array());
        Ok(instances.map(Vec::len) == Some(count))
    })
    .expect("as told");
}

/// Waits until so many entries of answered flows are left.
fn wait_for_flows(worker: &Worker, count: u32) {
    lab::wait_for("flows to be gone", DEADLINE, || {
        Ok(worker.get("/status")?["flows"]["answered"]["used"] == count)
    })
    .expect("gone");
}
