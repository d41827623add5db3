//! What changes while a node runs: wires, places of instances, addresses, and what others do to its host.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Host, UPLINK};
use netmanager::host::firewall;

use crate::fixture::{
    DEADLINE, FAR_NAME, FAR_SERVICE, NEAR_NODE, NEAR_SERVICE, Overlay, accept, connect, exchange, listen,
};

/// How long a packet is waited for that is not to arrive.
const IN_VAIN: Duration = Duration::from_millis(700);

#[test]
fn a_service_that_is_resolved_without_a_way_to_its_node_works_when_there_is_one() {
    let overlay = Overlay::new("no way yet");
    let host = overlay.near.host();
    set_link(host, "down");
    overlay
        .client
        .ping(FAR_SERVICE, IN_VAIN)
        .expect_err("there is no way");
    lab::wait_for("the service to be known", DEADLINE, || {
        Ok(overlay.near.get("/status")?["services"] == 1)
    })
    .expect("known");
    set_link(host, "up");
    answers_at_last(&overlay);
}

#[test]
fn a_service_that_is_resolved_while_the_far_wire_is_down_works_when_it_is_up() {
    let overlay = Overlay::new("far wire down");
    let [.., number] = overlay.far.host().address().octets();
    let wire = overlay.lab.wire();
    wire.ip(&format!("link set port{number} down")).expect("set down");
    overlay
        .client
        .ping(FAR_SERVICE, IN_VAIN)
        .expect_err("the far host is cut off");
    wire.ip(&format!("link set port{number} up")).expect("set up");
    answers_at_last(&overlay);
}

#[test]
fn new_flows_follow_an_instance_that_moves_here_and_away_again() {
    let overlay = Overlay::new("moving");
    let far_listener = listen(&overlay.far_servers[0], 80);
    let there = overlay.far_instances[0].clone();
    let here = Instance {
        namespace_address: Ipv4Addr::new(10, 18, 0, 4),
        host: overlay.near.host().address(),
        incarnation: 2,
        ..there.clone()
    };
    let there_again = Instance {
        incarnation: 3,
        ..there.clone()
    };
    overlay.near.answer(&answers(&there)).expect("answered");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    wait_until_behind(&overlay.near, there.namespace_address);
    leads_to(&overlay, &far_listener);

    overlay.near.answer(&answers(&here)).expect("answered");
    let endpoint = overlay.near.host().endpoint("moved").expect("an endpoint");
    let address = overlay.near.deploy(&endpoint, &here).expect("attached");
    assert_eq!(address, here.namespace_address);
    wait_until_behind(&overlay.near, here.namespace_address);
    leads_to(&overlay, &listen(&endpoint, 80));
    lab::wait_for("the far node to be forgotten", DEADLINE, || {
        Ok(overlay.near.get("/status")?["nodes"]
            .as_array()
            .is_some_and(Vec::is_empty))
    })
    .expect("forgotten");

    // Said before it has left: what is attached here is here, until it is not.
    overlay.near.answer(&answers(&there_again)).expect("answered");
    overlay
        .near
        .undeploy(&here.service, here.number)
        .expect("detached");
    wait_until_behind(&overlay.near, there.namespace_address);
    leads_to(&overlay, &far_listener);
}

#[test]
fn what_others_take_from_the_host_is_put_back() {
    let overlay = Overlay::new("put back");
    let host = overlay.near.host();
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    let address = overlay.client_instance.namespace_address;
    let table = firewall::table_name(overlay.near.node_id());
    let whole = |text: &str| text.contains("masquerade") && text.contains("tunnel_ports");
    for command in ["delete", "flush"] {
        host.run("nft", &[command, "table", "inet", &table])
            .expect("others may");
        let mut number = 0;
        lab::wait_for("the firewall to be put back", DEADLINE, || {
            // Any change of a link, so that nobody has to wait for the next look at everything.
            number += 1;
            host.ip(&format!("link set {UPLINK} alias change{number}"))?;
            Ok(whole(&output(host, "nft", &["list", "ruleset"])))
        })
        .expect("put back");
    }

    host.ip("link set oak0 down").expect("others may");
    host.ip(&format!("route delete {address}")).expect("others may");
    host.sysctl("net.ipv4.ip_forward", "0").expect("others may");
    // The one change that nobody is told of comes last; this is one of a link.
    host.ip(&format!("link set {UPLINK} alias changed")).expect("set");
    lab::wait_for("the host to be put right", DEADLINE, || {
        let routes = output(host, "ip", &["route"]);
        Ok(routes.contains("10.30.0.0/16 dev oak0")
            && routes.contains(&address.to_string())
            && output(host, "sysctl", &["-n", "net.ipv4.ip_forward"]).trim() == "1")
    })
    .expect("put right");
    host.ping(NEAR_SERVICE, DEADLINE)
        .expect("the host reaches the overlay");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
}

#[test]
fn the_address_towards_others_is_announced_also_after_there_was_none() {
    let overlay = Overlay::new("announced");
    let host = overlay.near.host();
    let (old, new) = (host.address(), Ipv4Addr::new(192, 0, 2, 200));
    let gateway = overlay.far.host().address();
    assert_eq!(announced(&overlay.near), old.to_string());

    host.ip("link add other type veth peer name other-end")
        .expect("made");
    host.ip("address add 198.51.100.1/24 dev other").expect("added");
    host.ip("link set other up").expect("set up");
    host.ip(&format!("address delete {old}/24 dev {UPLINK}"))
        .expect("removed");
    lab::wait_for("the address to be missed", DEADLINE, || {
        let local = overlay.near.get("/status")?["local_addresses"].to_string();
        Ok(!local.contains(&old.to_string()) && local.contains("198.51.100.1"))
    })
    .expect("missed");
    assert_eq!(
        announced(&overlay.near),
        old.to_string(),
        "no other one leads to others"
    );

    host.ip(&format!("address add {new}/24 dev {UPLINK}"))
        .expect("added");
    host.ip(&format!("route add default via {gateway}"))
        .expect("added");
    lab::wait_for("the new address to be announced", DEADLINE, || {
        Ok(announced(&overlay.near) == new.to_string())
    })
    .expect("announced");
}

/// The near node is told of one service, with one instance.
fn answers(instance: &Instance) -> Answers {
    Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 0)),
        address: Some(NEAR_NODE),
        peers: Vec::new(),
        services: vec![Service {
            name: FAR_NAME.to_owned(),
            addresses: vec![FAR_SERVICE],
            instances: vec![instance.clone()],
            delay: Duration::ZERO,
        }],
    }
}

/// A ping is one packet, and the node needs a moment to notice what has changed.
fn answers_at_last(overlay: &Overlay) {
    lab::wait_for("an answer", DEADLINE, || {
        Ok(overlay.client.ping(FAR_SERVICE, IN_VAIN).is_ok())
    })
    .expect("answered");
}

/// Several new flows in a row arrive at this listener.
fn leads_to(overlay: &Overlay, listener: &TcpListener) {
    for _ in 0..4 {
        let mut client = connect(&overlay.client, FAR_SERVICE, 80).expect("connected");
        let (mut server, _) = accept(listener);
        exchange(&mut client, &mut server);
    }
}

/// Waits until the far service leads to this namespace address and to no other.
fn wait_until_behind(worker: &Worker, namespace_address: Ipv4Addr) {
    lab::wait_for("the service to lead there", DEADLINE, || {
        let services = worker.get("/services")?;
        let service = services.as_array().and_then(|services| {
            services
                .iter()
                .find(|service| service["address"] == FAR_SERVICE.to_string())
        });
        let Some([instance]) = service.and_then(|service| service["instances"].as_array().map(Vec::as_slice))
        else {
            return Ok(false);
        };
        Ok(instance["namespace_address"] == namespace_address.to_string())
    })
    .expect("it leads there");
}

fn announced(worker: &Worker) -> String {
    let status = worker.get("/status").expect("told");
    status["announced_address"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn set_link(host: &Host, state: &str) {
    host.ip(&format!("link set {UPLINK} {state}")).expect("set");
}

fn output(host: &Host, program: &str, arguments: &[&str]) -> String {
    String::from_utf8_lossy(&host.run(program, arguments).expect("run").stdout).into_owned()
}
