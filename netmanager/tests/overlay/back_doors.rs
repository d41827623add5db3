//! Ways into the overlay past the programs of the data plane: the firewall shuts them.

use std::net::Ipv4Addr;

use lab::worker::{Answers, Instance, Service};

use crate::fixture::{DEADLINE, FAR_NODE, NEAR_NODE, Overlay, bind};
use crate::hostile::{
    Inner, PORT, TUNNEL_PORT, Target, expect_counter, nobody_sends, plain_socket, send_raw,
};

/// The far node's own namespace address.
const FAR_HOST: Ipv4Addr = Ipv4Addr::new(10, 18, 0, 65);
const INTRUDER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

/// An interface that is up and has no address is no uplink: no program of the data plane sits on it.
#[test]
fn an_interface_without_an_address_is_no_way_in() {
    let target = Target::new("no address");
    let far = &target.overlay.far;
    // Routed by a link that has no address on the host's side.
    let intruder = far
        .host()
        .routed_endpoint("intruder", INTRUDER, 1500)
        .expect("an endpoint");
    for scope in ["all", "routed0"] {
        let key = format!("net.ipv4.conf.{scope}.rp_filter");
        far.host().sysctl(&key, "0").expect("set");
    }
    intruder
        .ping(target.far_address(), DEADLINE)
        .expect("it reaches the host itself");

    let honest = target.inner();
    let instance = target.overlay.far_instances[0].address;
    let mut refused = 0;
    for source in [INTRUDER, honest.source] {
        for destination in [honest.destination, instance, FAR_HOST] {
            send_raw(&intruder, &Inner { source, destination }.bytes());
            refused += 1;
            expect_counter(far, "firewall", "UNENCAPSULATED", refused);
        }
    }
    target.nothing_arrived();
    let rows = far.get("/drops").expect("counted");
    let meaning = rows.as_array().into_iter().flatten().find_map(|row| {
        let meaning = row["meaning"].as_str()?;
        (row["hook"] == "firewall").then_some(meaning)
    });
    assert!(
        meaning.is_some_and(|meaning| meaning.contains("admitted")),
        "{rows}"
    );

    // The same packet without the rule: it is the firewall that keeps it out, and nothing else.
    let chain = format!("flush chain inet oakestra_{} overlay_forwarded", far.node_id());
    far.host().run("nft", &[&chain]).expect("flushed");
    send_raw(&intruder, &honest.bytes());
    let mut buffer = [0; 16];
    let length = target.socket.recv(&mut buffer).expect("received");
    assert_eq!(&buffer[..length], b"hostile");
}

/// The far host may know this one although nobody here has ever asked for it.
#[test]
fn a_tunnel_port_is_guarded_at_every_address() {
    let overlay = Overlay::new("no peer");
    let world = overlay.lab.host("world").expect("a host");
    let (tunnel, other) = (bind(&world, TUNNEL_PORT), bind(&world, TUNNEL_PORT + 1));
    let own = overlay.near.host().address();
    for (count, address) in [world.address(), own, Ipv4Addr::LOCALHOST].iter().enumerate() {
        if address.is_loopback() {
            overlay.near.host().ip("link set lo up").expect("set up");
        }
        assert!(!nobody_sends(&overlay.near, *address), "{address}");
        expect_counter(&overlay.near, "firewall", "TUNNEL_FROM_HOST", count as u64 + 1);
    }

    let sender = plain_socket(overlay.near.host());
    sender
        .send_to(b"another port", (world.address(), TUNNEL_PORT + 1))
        .expect("sent");
    let mut buffer = [0; 16];
    let length = other.recv(&mut buffer).expect("received");
    assert_eq!(&buffer[..length], b"another port");
    tunnel.set_nonblocking(true).expect("set");
    assert!(
        tunnel.recv(&mut buffer).is_err(),
        "what was sent before has not arrived"
    );
}

/// The walls do not stand in the way of those who come through the data plane.
#[test]
fn the_node_itself_is_reached_through_the_data_plane() {
    let overlay = Overlay::new("own address");
    overlay.near_server.ping(NEAR_NODE, DEADLINE).expect("from here");
    overlay.far_servers[0]
        .ping(FAR_NODE, DEADLINE)
        .expect("from here");

    let name = "node.test.far.test";
    let node = Instance {
        service: name.to_owned(),
        number: 0,
        address: FAR_NODE,
        namespace_address: FAR_HOST,
        host: overlay.far.host().address(),
        incarnation: 1,
    };
    let service = Service {
        name: name.to_owned(),
        instances: vec![node],
        ..Service::default()
    };
    let answers = Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 0)),
        address: Some(NEAR_NODE),
        services: vec![service],
        ..Answers::default()
    };
    overlay.near.answer(&answers).expect("exchanged");
    let server = bind(overlay.far.host(), PORT);
    let client = bind(&overlay.client, 0);
    let mut buffer = [0; 16];
    lab::wait_for("the new answer to be read and followed", DEADLINE, || {
        client.send_to(b"hello", (FAR_NODE, PORT))?;
        server.set_nonblocking(true)?;
        Ok(server.recv_from(&mut buffer).is_ok())
    })
    .expect("received by the far host itself");
    assert_eq!(&buffer[..5], b"hello");
    for worker in [&overlay.near, &overlay.far] {
        assert_eq!(worker.counter("firewall", "UNENCAPSULATED").expect("counted"), 0);
    }
}
