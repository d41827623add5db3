//! The first packet to an unknown address waits for the answer and then arrives, whatever it is.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::fixture::{
    CLIENT_SERVICE, DEADLINE, DELAY, FAR_SERVICE, NEAR_SERVICE, NO_SERVICE, Overlay, accept, bind, connect,
    exchange, listen, retransmissions,
};

#[test]
fn the_first_syn_waits_and_arrives_without_retransmission() {
    let overlay = Overlay::new("first syn");
    let [first, second] = &overlay.far_servers;
    let far_listeners = [listen(first, 80), listen(second, 80)];
    let near_listener = listen(&overlay.near_server, 80);

    let start = Instant::now();
    let mut client = connect(&overlay.client, FAR_SERVICE, 80).expect("connected");
    assert!(start.elapsed() >= DELAY, "nobody knew the address");
    assert_eq!(retransmissions(&client), 0);
    for listener in &far_listeners {
        listener.set_nonblocking(true).expect("set");
    }
    // One of the two has it; which one is the node's choice.
    let (mut server, seen) = lab::wait_for("the connection to arrive", DEADLINE, || {
        let accepted = far_listeners.iter().find_map(|listener| listener.accept().ok());
        Ok(accepted.map(|(stream, peer)| (stream, peer.ip())))
    })
    .expect("accepted");
    server.set_nonblocking(false).expect("set");
    assert_eq!(
        seen, overlay.client_instance.address,
        "the server sees the client's instance address"
    );
    exchange(&mut client, &mut server);

    let mut client = connect(&overlay.client, NEAR_SERVICE, 80).expect("connected");
    assert_eq!(retransmissions(&client), 0);
    let (mut server, seen) = accept(&near_listener);
    assert_eq!(seen, overlay.client_instance.address);
    exchange(&mut client, &mut server);

    for (hook, action) in [
        ("from_endpoint", "PARK"),
        ("from_endpoint", "TUNNEL"),
        ("from_uplink", "DELIVER"),
    ] {
        assert!(
            overlay.near.counter(hook, action).expect("counted") > 0,
            "{hook} {action}"
        );
    }
}

#[test]
fn the_first_datagram_waits_and_arrives_once() {
    let overlay = Overlay::new("first datagram");
    for (service, servers) in [
        (FAR_SERVICE, overlay.far_servers.iter().collect::<Vec<_>>()),
        (NEAR_SERVICE, vec![&overlay.near_server]),
    ] {
        let sockets: Vec<_> = servers.iter().map(|server| bind(server, 53)).collect();
        for socket in &sockets {
            socket.set_nonblocking(true).expect("set");
        }
        let client = bind(&overlay.client, 0);
        client.send_to(b"question", (service, 53)).expect("sent");
        let mut buffer = [0; 64];
        let (socket, length, peer) = lab::wait_for("the datagram to arrive", DEADLINE, || {
            Ok(sockets.iter().find_map(|socket| {
                let (length, peer) = socket.recv_from(&mut buffer).ok()?;
                Some((socket, length, peer))
            }))
        })
        .expect("received");
        assert_eq!(&buffer[..length], b"question");
        assert_eq!(peer.ip(), overlay.client_instance.address);
        socket.send_to(b"answer", peer).expect("sent");
        let (length, peer) = client.recv_from(&mut buffer).expect("received");
        assert_eq!(&buffer[..length], b"answer");
        assert_eq!(
            peer.ip(),
            service,
            "the answer comes from where the question went"
        );
        for socket in &sockets {
            assert!(socket.recv_from(&mut buffer).is_err(), "nothing arrives twice");
        }
    }
}

#[test]
fn the_first_ping_waits_and_is_answered() {
    let overlay = Overlay::new("first ping");
    let instance = overlay.far_instances[1].address;
    let targets: [(&str, Ipv4Addr); 4] = [
        ("far service", FAR_SERVICE),
        ("near service", NEAR_SERVICE),
        ("oneself, through the own service", CLIENT_SERVICE),
        ("an instance", instance),
    ];
    for (what, target) in targets {
        overlay
            .client
            .ping(target, DEADLINE)
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
}

#[test]
fn the_far_side_reaches_back_by_a_service_of_its_own_choice() {
    let overlay = Overlay::new("reach back");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    let socket = bind(&overlay.client, 4_001);
    let sender = bind(&overlay.far_servers[0], 0);
    sender
        .send_to(b"question", (CLIENT_SERVICE, 4_001))
        .expect("sent");
    let mut buffer = [0; 64];
    let (length, peer) = socket.recv_from(&mut buffer).unwrap_or_else(|error| {
        let counters = [&overlay.near, &overlay.far].map(|worker| worker.get("/drops").expect("counted"));
        panic!("{error}: {counters:#?}")
    });
    assert_eq!(
        (&buffer[..length], peer.ip()),
        (&b"question"[..], overlay.far_instances[0].address.into())
    );
}

#[test]
fn an_address_that_nobody_has_takes_nothing_from_others() {
    let overlay = Overlay::new("no such address");
    let client = bind(&overlay.client, 0);
    client.send_to(b"lost", (NO_SERVICE, 53)).expect("sent");
    overlay
        .client
        .ping(FAR_SERVICE, DEADLINE)
        .expect("answered all the same");
    lab::wait_for("the sender to be told", DEADLINE, || {
        Ok(overlay.near.counter("from_oak0", "ICMP_UNREACHABLE")? == 1)
    })
    .expect("told");
}
