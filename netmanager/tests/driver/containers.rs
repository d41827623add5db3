//! Real containers.

use std::thread;

use lab::worker::{Instance, Worker};

use crate::docker::{Docker, IMAGE};
use crate::fixture::{DEADLINE, PLUGINS, SERVICE, Site, assert_nothing_left, driver_of, left, options_of};

pub const TOKEN: &str = "it-is-the-server-that-says-this";
const ROUNDS: usize = 20;

/// Makes the network of a worker's driver.
fn make_network(docker: &Docker, worker: &Worker) {
    let name = driver_of(worker);
    docker.run(&[
        "network",
        "create",
        "--driver",
        &name,
        "--ipam-driver",
        "null",
        &name,
    ]);
}

/// The argument that makes a container this instance.
pub fn network_of(worker: &Worker, options: &[(&str, String)]) -> String {
    let options = options
        .iter()
        .map(|(name, value)| format!(",driver-opt={name}={value}"));
    format!("name={}{}", driver_of(worker), options.collect::<String>())
}

fn create(docker: &Docker, worker: &Worker, instance: &Instance, name: &str, command: &str) {
    let network = network_of(worker, &options_of(instance));
    // Without a shell the first instruction would be the program's; with one it is the shell's, which is no later.
    let arguments = [
        "create",
        "--name",
        name,
        "--network",
        &network,
        IMAGE,
        "/bin/sh",
        "-c",
        command,
    ];
    docker.run(&arguments);
}

/// What a server does from its first instruction on.
fn serve(docker: &Docker, site: &Site, name: &str) {
    let command = format!("mkdir /www; echo {TOKEN} > /www/index.html; exec httpd -f -p 80 -h /www");
    create(docker, &site.far, &site.server, name, &command);
    docker.run(&["start", name]);
}

/// Links in the namespace of Docker's daemon, which is this process's.
pub fn links() -> String {
    let output = std::process::Command::new("ip").args(["-br", "link"]).output();
    String::from_utf8_lossy(&output.expect("run").stdout).into_owned()
}

fn exit_code(docker: &Docker, name: &str) -> String {
    docker.run(&["inspect", "--format", "{{.State.ExitCode}}", name])
}

pub fn endpoints(worker: &Worker) -> serde_json::Value {
    worker.get("/endpoints").expect("listed")
}

/// A site with both networks, and a Docker that both nodes share.
pub fn site(label: &str) -> (Site, Docker) {
    let site = Site::new(label, PLUGINS);
    let docker = Docker::start(site.lab.directory());
    for worker in [&site.near, &site.far] {
        make_network(&docker, worker);
    }
    (site, docker)
}

#[test]
fn the_first_instruction_reaches_a_service_on_another_node() {
    let (site, docker) = site("first instruction");
    serve(&docker, &site, "server");
    let network = network_of(&site.near, &options_of(&site.client));
    let url = format!("http://{SERVICE}/");
    // Nothing before the program itself, and it tries once.
    let program = ["/bin/wget", "-q", "-O", "-", &url];
    docker.run(
        &[
            &["create", "--name", "client", "--network", &network, IMAGE],
            &program[..],
        ]
        .concat(),
    );
    let printed = docker.run(&["start", "--attach", "client"]);
    assert_eq!(printed, TOKEN);
    assert_eq!(
        (
            docker.run(&["logs", "client"]).as_str(),
            exit_code(&docker, "client").as_str()
        ),
        (TOKEN, "0")
    );

    // Once more: Docker wires it again by itself, under the same addresses.
    docker.run(&["restart", "client"]);
    docker.run(&["wait", "client"]);
    assert_eq!(docker.run(&["logs", "client"]), format!("{TOKEN}\n{TOKEN}"));
    assert_eq!(exit_code(&docker, "client"), "0");
    assert!(
        site.near
            .counter("from_endpoint", "ANSWER_GATEWAY")
            .expect("counted")
            >= 2
    );
    assert!(site.near.counter("from_endpoint", "TUNNEL").expect("counted") > 0);

    docker.run(&["rm", "--force", "server", "client"]);
    assert_nothing_left(&site.near, links);
    assert_nothing_left(&site.far, links);
}

#[test]
fn a_container_that_is_started_again_keeps_its_addresses() {
    let (site, docker) = site("started again");
    create(
        &docker,
        &site.near,
        &site.client,
        "client",
        "ip -o address; sleep 1000",
    );
    docker.run(&["start", "client"]);
    let listed = endpoints(&site.near);
    let address = site.client.namespace_address.to_string();
    assert_eq!(listed[0]["namespace_address"], address);
    assert_eq!(listed[0]["instance_address"], site.client.address.to_string());
    assert!(listed[0]["docker_endpoint"].is_string(), "{listed}");
    let shown = site.near.command_line(&["endpoints"]).expect("run").stdout;
    assert!(String::from_utf8_lossy(&shown).contains("of Docker"));

    for again in [
        &["restart", "--time", "0", "client"][..],
        &["kill", "client"],
        &["wait", "client"],
        &["start", "client"],
        &["stop", "--time", "0", "client"],
        &["start", "client"],
    ] {
        docker.run(again);
    }
    assert_eq!(endpoints(&site.near)[0]["namespace_address"], address);
    let logged = docker.run(&["logs", "client"]);
    assert_eq!(logged.matches(&format!("{address}/32")).count(), 4, "{logged}");

    // Another container as the same instance takes its place; removing the first touches nothing.
    create(&docker, &site.near, &site.client, "successor", "sleep 1000");
    docker.run(&["start", "successor"]);
    let taken = endpoints(&site.near);
    assert_eq!(taken.as_array().map(Vec::len), Some(1));
    docker.run(&["rm", "--force", "client"]);
    assert_eq!(endpoints(&site.near), taken);
    docker.run(&["exec", "successor", "ip", "address", "show", "eth0"]);
    docker.run(&["rm", "--force", "successor"]);
    assert_nothing_left(&site.near, links);
}

#[test]
fn what_is_wrong_is_said_by_docker() {
    let (site, docker) = site("errors");
    let network = driver_of(&site.near);
    let whole = options_of(&site.client);
    let with = |name: &'static str, value: &str| [&whole[..], &[(name, value.to_owned())]].concat();
    let cases = [
        (with("oakestra.colour", "red"), "oakestra.colour is not known"),
        (whole[1..].to_vec(), "oakestra.service is missing"),
        (with("oakestra.instance", "one"), "oakestra.instance is \"one\""),
        (
            with("oakestra.port_mappings", "80:http"),
            "oakestra.port_mappings is",
        ),
    ];
    for (options, text) in cases {
        let wanted = network_of(&site.near, &options);
        let arguments = ["run", "--rm", "--network", &wanted, IMAGE, "/bin/echo"];
        let error = docker.try_run(&arguments).expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }
    let create = ["network", "create", "--driver", &network];
    for (arguments, text) in [
        (&["other"][..], "--ipam-driver null"),
        (
            &["--ipam-driver", "null", "--opt", "speed=high", "other"],
            "speed",
        ),
    ] {
        let error = docker
            .try_run(&[&create[..], arguments].concat())
            .expect_err(text)
            .to_string();
        assert!(error.contains(text), "{error}");
    }
    assert_nothing_left(&site.near, links);
}

#[test]
fn twenty_rounds_leave_nothing() {
    let (site, docker) = site("rounds");
    let before = left(&site.near, &links());
    let network = network_of(&site.near, &options_of(&site.client));
    for round in 0..ROUNDS {
        let command = if round % 2 == 0 { "sleep 1000" } else { "exit 0" };
        let arguments = [
            "run",
            "--detach",
            "--name",
            "client",
            "--network",
            &network,
            IMAGE,
        ];
        docker.run(&[&arguments[..], &["/bin/sh", "-c", command]].concat());
        docker.run(&["rm", "--force", "client"]);
    }
    assert_nothing_left(&site.near, links);
    assert_eq!(left(&site.near, &links()), before);
    let log = site
        .near
        .root()
        .parent()
        .map(|lab| lab.join("near-netmanager.log"));
    let log = std::fs::read_to_string(log.expect("a folder")).expect("a log");
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("ERROR") || line.contains("WARN"))
        .collect();
    assert_eq!(bad, Vec::<&str>::new());
}

#[test]
fn a_container_keeps_its_network_while_netmanager_is_dead_and_is_removed_without_it() {
    let (mut site, docker) = site("netmanager dies");
    serve(&docker, &site, "server");
    create(&docker, &site.near, &site.client, "client", "sleep 1000");
    docker.run(&["start", "client"]);
    let get = [
        "exec",
        "client",
        "timeout",
        "10",
        "wget",
        "-q",
        "-O",
        "-",
        &format!("http://{SERVICE}/"),
    ];
    assert_eq!(docker.run(&get), TOKEN);
    site.near.daemon().kill().expect("killed");
    assert_eq!(docker.run(&get), TOKEN, "nobody is needed for it");
    site.near.restart().expect("started again");
    assert_eq!(docker.run(&get), TOKEN, "taken over");
    assert_eq!(endpoints(&site.near).as_array().map(Vec::len), Some(1));

    // Docker asks in vain for half a minute, and takes the link out of the container then.
    site.near.daemon().kill().expect("killed");
    docker.run(&["rm", "--force", "client"]);
    site.near.restart().expect("started again");
    assert_nothing_left(&site.near, links);
}

#[test]
fn a_netmanager_that_is_killed_while_docker_waits_costs_this_start_only() {
    let (mut site, docker) = site("killed while joining");
    create(&docker, &site.near, &site.client, "client", "sleep 1000");
    for step in ["create-link", "save-state"] {
        site.restart_near_with(&["--crash-attach-at", step]);
        let outcome = thread::scope(|scope| {
            let starting = scope.spawn(|| docker.try_run(&["start", "client"]));
            site.near.daemon().wait(DEADLINE).expect("it has crashed");
            site.restart_near_with(&[]);
            starting.join().expect("no panic")
        });
        // Docker asks again, but without what it had asked.
        let error = outcome.expect_err("Docker cannot repeat itself").to_string();
        assert!(error.contains("start the container again"), "{error}");
        assert_nothing_left(&site.near, links);
        docker.run(&["start", "client"]);
        docker.run(&["exec", "client", "ping", "-c", "1", "-W", "5", "10.30.0.1"]);
        docker.run(&["stop", "--time", "0", "client"]);
        assert_nothing_left(&site.near, links);
    }
}

#[test]
fn a_docker_that_was_killed_ends_its_containers_when_it_is_back() {
    let (site, mut docker) = site("docker dies");
    create(&docker, &site.near, &site.client, "client", "sleep 1000");
    docker.run(&["start", "client"]);
    docker.kill();
    assert_eq!(
        endpoints(&site.near).as_array().map(Vec::len),
        Some(1),
        "it goes on"
    );
    docker.start_again();
    assert_nothing_left(&site.near, links);
    docker.run(&["start", "client"]);
    docker.run(&["exec", "client", "ping", "-c", "1", "-W", "5", "10.30.0.1"]);
    docker.run(&["rm", "--force", "client"]);
    assert_nothing_left(&site.near, links);
}
