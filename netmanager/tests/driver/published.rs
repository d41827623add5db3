//! Ports of the node that lead to containers of Docker.

use std::net::TcpListener;

use lab::Namespace;
use lab::worker::{Instance, Worker};

use crate::containers::{TOKEN, endpoints, links, network_of, site};
use crate::docker::{Docker, IMAGE};
use crate::fixture::{DEADLINE, assert_nothing_left, options_of, published};

const PORT: u16 = 8080;

/// A server of the instance that has published [`PORT`], which says the token.
fn create(docker: &Docker, worker: &Worker, instance: &Instance, name: &str, token: &str) {
    let mut options = options_of(instance);
    options.push(("oakestra.port_mappings", format!("{PORT}:80")));
    let network = network_of(worker, &options);
    let command = format!("mkdir /www; echo {token} > /www/index.html; exec httpd -f -p 80 -h /www");
    let arguments = ["create", "--name", name, "--network", &network, IMAGE];
    docker.run(&[&arguments[..], &["/bin/sh", "-c", &command]].concat());
}

/// What a client gets from the worker's port.
fn fetch(client: &Namespace, worker: &Worker) -> String {
    let url = format!("http://{}:{PORT}/", worker.host().address());
    let arguments = ["--silent", "--show-error", "--max-time", "2", &url];
    client.run("curl", &arguments).map_or_else(
        |error| format!("{error:#}"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// That both another host and the node itself are served, as soon as the server listens.
#[track_caller]
fn assert_served(case: &str, clients: &[&Namespace], worker: &Worker, token: &str) {
    for client in clients {
        let mut last = String::new();
        let served = lab::wait_for("the server's answer", DEADLINE, || {
            last = fetch(client, worker);
            Ok(last == token)
        });
        assert!(served.is_ok(), "{case}, from {}: {last}", client.role());
    }
}

#[test]
fn a_port_leads_to_its_container_as_long_as_there_is_one() {
    let (mut site, docker) = site("ports");
    let (instance, far) = (site.client.clone(), site.far.host().clone());
    let near = site.near.host().clone();
    let clients: [&Namespace; 2] = [&far, &near];
    create(&docker, &site.near, &instance, "first", TOKEN);
    assert_eq!(published(&site.near), Vec::<u16>::new(), "not yet");
    docker.run(&["start", "first"]);
    assert_served("started", &clients, &site.near, TOKEN);
    assert_eq!(endpoints(&site.near)[0]["ports"], "8080:80/tcp");

    // Its own endpoint of before does not hold the port against it.
    for again in [
        &["restart", "--time", "0", "first"][..],
        &["kill", "first"],
        &["start", "first"],
    ] {
        docker.run(again);
    }
    assert_served("started again", &clients, &site.near, TOKEN);

    site.near.daemon().kill().expect("killed");
    assert_served("NetManager is dead", &clients, &site.near, TOKEN);
    site.near.restart().expect("started again");
    assert_served("NetManager is back", &clients, &site.near, TOKEN);
    assert_eq!(published(&site.near), [PORT]);

    // Another container as the same instance takes the port over, and the end of the first leaves it that.
    create(&docker, &site.near, &instance, "second", "the-second-says-this");
    docker.run(&["start", "second"]);
    assert_served("superseded", &clients, &site.near, "the-second-says-this");
    docker.run(&["rm", "--force", "first"]);
    assert_served("the first is gone", &clients, &site.near, "the-second-says-this");

    // Nobody else gets it meanwhile, and everybody afterwards.
    let other = Instance {
        number: 1,
        address: [10, 30, 1, 9].into(),
        ..instance
    };
    create(&docker, &site.near, &other, "other", "the-other-says-this");
    let refused = docker
        .try_run(&["start", "other"])
        .expect_err("taken")
        .to_string();
    assert!(refused.contains("port 8080/tcp of this node"), "{refused}");
    assert_served(
        "another was refused",
        &clients,
        &site.near,
        "the-second-says-this",
    );
    docker.run(&["stop", "--time", "0", "second"]);
    assert_eq!(published(&site.near), Vec::<u16>::new(), "given back");
    docker.run(&["start", "other"]);
    assert_served("it is free", &clients, &site.near, "the-other-says-this");

    let refused = docker
        .try_run(&["start", "second"])
        .expect_err("taken")
        .to_string();
    assert!(refused.contains("port 8080/tcp of this node"), "{refused}");
    docker.run(&["rm", "--force", "second", "other"]);
    assert_nothing_left(&site.near, links);
}

#[test]
fn a_port_of_a_process_of_the_node_is_refused_until_it_is_free() {
    let (site, docker) = site("port of a process");
    create(&docker, &site.near, &site.client, "server", TOKEN);
    let bind = || TcpListener::bind(("0.0.0.0", PORT));
    let taken = site.near.host().enter(bind).expect("entered").expect("bound");
    let refused = docker
        .try_run(&["start", "server"])
        .expect_err("taken")
        .to_string();
    assert!(refused.contains("a process of the node itself"), "{refused}");
    assert_nothing_left(&site.near, links);
    drop(taken);
    docker.run(&["start", "server"]);
    assert_served("it is free", &[site.far.host()], &site.near, TOKEN);
    docker.run(&["rm", "--force", "server"]);
    assert_nothing_left(&site.near, links);
}

#[test]
fn a_port_is_given_back_by_whoever_is_killed_in_the_middle() {
    let (mut site, mut docker) = site("port and kills");
    create(&docker, &site.near, &site.client, "server", TOKEN);
    for step in ["fill-tables", "save-state"] {
        site.restart_near_with(&["--crash-attach-at", step]);
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| docker.try_run(&["start", "server"]));
            site.near.daemon().wait(DEADLINE).expect("it has crashed");
            site.restart_near_with(&[]);
            starting
                .join()
                .expect("no panic")
                .expect_err("Docker cannot repeat itself");
        });
        assert_nothing_left(&site.near, links);
        docker.run(&["start", "server"]);
        assert_served(step, &[site.far.host()], &site.near, TOKEN);
        docker.run(&["stop", "--time", "0", "server"]);
        assert_nothing_left(&site.near, links);
    }
    docker.run(&["start", "server"]);
    docker.kill();
    assert_served("Docker is dead", &[site.far.host()], &site.near, TOKEN);
    docker.start_again();
    assert_nothing_left(&site.near, links);
    docker.run(&["start", "server"]);
    assert_served("Docker is back", &[site.far.host()], &site.near, TOKEN);

    // Everybody at once, and its container is removed before NetManager is back.
    docker.kill();
    site.near.daemon().kill().expect("killed");
    docker.start_again();
    site.near.restart().expect("started again");
    assert_nothing_left(&site.near, links);
    docker.run(&["start", "server"]);
    assert_served("both are back", &[site.far.host()], &site.near, TOKEN);
    docker.run(&["rm", "--force", "server"]);
    assert_nothing_left(&site.near, links);
}
