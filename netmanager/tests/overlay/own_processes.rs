//! The node's own processes use services, on this node and on others, from the first packet on.

use std::net::Ipv4Addr;
use std::time::Instant;

use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Endpoint, Lab};

use crate::fixture::{
    DELAY, FAR_NAME, FAR_NODE, FAR_SERVICE, NEAR_NAME, NEAR_NODE, NEAR_SERVICE, accept, bind, connect,
    exchange, listen, program, retransmissions,
};

/// Two workers with a server on each; the node of one of them is the client.
struct Nodes {
    near: Worker,
    near_server: Endpoint,
    far_server: Endpoint,
    _far: Worker,
    _lab: Lab,
}

impl Nodes {
    fn new(label: &str) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let [near_host, far_host] = ["near", "far"].map(|role| lab.host(role).expect("a host"));
        let ip = Ipv4Addr::new;
        let instance = |service: &str, address, namespace_address, host: &lab::Host| Instance {
            service: service.to_owned(),
            number: 0,
            address,
            namespace_address,
            host: host.address(),
            incarnation: 1,
        };
        let near_instance = instance(NEAR_NAME, ip(10, 30, 1, 2), ip(10, 18, 0, 2), &near_host);
        let far_instance = instance(FAR_NAME, ip(10, 30, 2, 1), ip(10, 18, 0, 66), &far_host);
        let service = |name: &str, address, instance: &Instance| Service {
            name: name.to_owned(),
            addresses: vec![address],
            instances: vec![instance.clone()],
            delay: DELAY,
        };
        let near_answers = Answers {
            subnet: Some(ip(10, 18, 0, 0)),
            address: Some(NEAR_NODE),
            peers: Vec::new(),
            services: vec![
                service(NEAR_NAME, NEAR_SERVICE, &near_instance),
                service(FAR_NAME, FAR_SERVICE, &far_instance),
            ],
        };
        let far_answers = Answers {
            subnet: Some(ip(10, 18, 0, 64)),
            address: Some(FAR_NODE),
            // The asking node itself, which is what a cluster tells before it answers.
            peers: vec![instance(
                "node.test.near.test",
                NEAR_NODE,
                ip(10, 18, 0, 1),
                &near_host,
            )],
            services: Vec::new(),
        };
        let near = Worker::start(&lab, &near_host, program(), &near_answers).expect("a NetManager");
        let far = Worker::start(&lab, &far_host, program(), &far_answers).expect("a NetManager");
        let near_server = near_host.endpoint("server").expect("an endpoint");
        let far_server = far_host.endpoint("server").expect("an endpoint");
        near.deploy(&near_server, &near_instance).expect("attached");
        far.deploy(&far_server, &far_instance).expect("attached");
        Self {
            near,
            near_server,
            far_server,
            _far: far,
            _lab: lab,
        }
    }

    /// Both services, each with its server.
    fn services(&self) -> [(Ipv4Addr, &Endpoint); 2] {
        [(FAR_SERVICE, &self.far_server), (NEAR_SERVICE, &self.near_server)]
    }

    fn drops(&self) -> String {
        format!("{:#}", self.near.get("/drops").expect("counted"))
    }
}

#[test]
fn the_node_s_first_connection_waits_and_arrives_without_retransmission() {
    let nodes = Nodes::new("node tcp");
    for (service, server) in nodes.services() {
        let listener = listen(server, 80);
        let parked = nodes.near.counter("from_host", "PARK").expect("counted");
        let start = Instant::now();
        let client = connect(nodes.near.host(), service, 80);
        let mut client = client.unwrap_or_else(|error| panic!("{service}: {error}\n{}", nodes.drops()));
        assert!(start.elapsed() >= DELAY, "{service}: nobody knew the address");
        assert_eq!(retransmissions(&client), 0, "{service}");
        assert_eq!(
            nodes.near.counter("from_host", "PARK").expect("counted"),
            parked + 1,
            "{service}"
        );
        let (mut accepted, seen) = accept(&listener);
        assert_eq!(seen, NEAR_NODE, "{service}: the node's instance address");
        exchange(&mut client, &mut accepted);
        // And again, now that it is known.
        let mut client = connect(nodes.near.host(), service, 80).expect("connected");
        exchange(&mut client, &mut accept(&listener).0);
    }
}

#[test]
fn the_node_s_first_datagram_waits_and_is_answered_once() {
    let nodes = Nodes::new("node udp");
    for (service, server) in nodes.services() {
        let socket = bind(server, 53);
        let client = bind(nodes.near.host(), 0);
        for question in [&b"first"[..], b"second"] {
            client.send_to(question, (service, 53)).expect("sent");
            let mut buffer = [0; 16];
            let received = socket.recv_from(&mut buffer);
            let (length, peer) =
                received.unwrap_or_else(|error| panic!("{service}: {error}\n{}", nodes.drops()));
            assert_eq!(
                (&buffer[..length], peer.ip()),
                (question, NEAR_NODE.into()),
                "{service}"
            );
            socket.send_to(b"answer", peer).expect("sent");
            let (length, from) = client.recv_from(&mut buffer).expect("received");
            assert_eq!((&buffer[..length], from.ip()), (&b"answer"[..], service.into()));
        }
        socket.set_nonblocking(true).expect("set");
        assert!(
            socket.recv_from(&mut [0; 16]).is_err(),
            "{service}: nothing arrives twice"
        );
    }
}
