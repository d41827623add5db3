//! The user's client reaches the user's server.

use anyhow::{Context as _, Result, ensure};
use lab::wait_for;

use lab::capture::{Capture, Datagram};

use crate::stage::{PATIENCE, SERVICE_ADDRESS, Stage, ensure_different_nodes};

/// UDP port of the tunnels.
const TUNNEL_PORT: u16 = 50103;

#[test]
fn the_client_gets_the_servers_page_from_the_other_node() -> Result<()> {
    let stage = Stage::set("walk", 2)?;
    let application = stage.create()?;
    let server = stage.run(&application.nginx)?;
    let token = format!("page-{}", std::process::id());
    stage.put_page(&token)?;

    let capture = Capture::start(stage.lab.wire(), TUNNEL_PORT)?;
    stage.system.client().deploy(&application.curl)?;
    stage.wait_for_output(&token)?;
    let client = stage.system.client().wait_for_status(
        &application.curl,
        &["RUNNING", "DEAD", "CREATED", "CREATING"],
        PATIENCE,
    )?;
    ensure_different_nodes(&server, &client)?;

    // What crossed the wire was the bare inner packet, from one instance address or namespace address to the other.
    let mut datagrams = capture.end()?;
    datagrams.retain(|datagram| !datagram.is_among_nodes());
    ensure!(!datagrams.is_empty(), "nothing went through the tunnel");
    for datagram in &datagrams {
        ensure!(datagram.inner().is_some(), "no bare packet: {datagram:?}");
    }
    let from_client = datagrams
        .iter()
        .filter_map(Datagram::inner)
        .any(|flow| flow.source.ip().to_string() == client.instance_ip && flow.destination.port() == 80);
    ensure!(
        from_client,
        "no packet of the client's instance address among {datagrams:?}"
    );
    Ok(())
}

#[test]
fn the_service_is_reached_from_everywhere_and_by_no_proxy() -> Result<()> {
    let stage = Stage::set("paths", 2)?;
    let application = stage.create()?;
    let server = stage.run(&application.nginx)?;
    stage.put_page("from-everywhere")?;
    let plan = stage.system.plan().clone();
    let here = plan
        .workers
        .iter()
        .find(|seat| seat.address.to_string() == server.host_ip)
        .context("the server is on no worker")?;
    let elsewhere = plan
        .workers
        .iter()
        .find(|seat| seat.address != here.address)
        .context("one worker only")?;
    let published = format!("http://{}", here.address);
    let service = format!("http://{SERVICE_ADDRESS}");
    let instance = format!("http://{}", server.instance_ip);
    let ways = [
        (
            "the published port, from another host",
            &plan.root.namespace,
            published.as_str(),
        ),
        (
            "the published port, from another worker",
            &elsewhere.namespace,
            &published,
        ),
        (
            "the published port, from the node itself",
            &here.namespace,
            &published,
        ),
        (
            "the published port, by loopback",
            &here.namespace,
            "http://127.0.0.1",
        ),
        (
            "the service address, from the node itself",
            &here.namespace,
            &service,
        ),
        (
            "the service address, from another node",
            &elsewhere.namespace,
            &service,
        ),
        (
            "the instance address, from another node",
            &elsewhere.namespace,
            &instance,
        ),
    ];
    for (what, from, address) in ways {
        wait_for(what, PATIENCE, || {
            Ok(stage.fetch(from, address)? == "from-everywhere")
        })?;
    }
    // Nobody in between: the hosts hold no connection with an address of the overlay but those of their own clients.
    for seat in &plan.workers {
        let sockets = seat.namespace.run("ss", &["-Htnp", "state", "established"])?;
        for line in String::from_utf8(sockets.stdout)?.lines() {
            ensure!(
                !line.contains(&server.instance_ip) && !line.contains(" 10.18."),
                "{} holds a connection: {line}",
                seat.name
            );
        }
    }
    Ok(())
}
