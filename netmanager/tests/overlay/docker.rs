//! Next to Docker, which lets the host forward nothing but its own: containers reach the world all the same.

use std::net::Ipv4Addr;
use std::process::Output;
use std::time::Duration;

use lab::worker::Worker;
use lab::{Endpoint, Host, Lab};

use crate::fixture::{DEADLINE, lone_answers, lone_instance, program};

/// How long to wait for what is not to happen.
const IN_VAIN: Duration = Duration::from_millis(300);

/// What Docker makes of the forward chain, in the words of the program that it uses.
const DOCKER: [&str; 4] = [
    "-N DOCKER-USER",
    "-A DOCKER-USER -j RETURN",
    "-I FORWARD -j DOCKER-USER",
    "-P FORWARD DROP",
];

struct Node {
    worker: Worker,
    endpoint: Endpoint,
    host: Host,
    world: Host,
    program: &'static str,
    _lab: Lab,
}

impl Node {
    /// Docker comes before NetManager or after it.
    fn new(label: &str, iptables: &'static str, docker_first: bool) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let host = lab.host("node").expect("a host");
        let world = lab.host("world").expect("a host");
        if docker_first {
            docker(&host, iptables);
        }
        let worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
        let endpoint = host.endpoint("container").expect("an endpoint");
        worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
        Self {
            worker,
            endpoint,
            host,
            world,
            program: iptables,
            _lab: lab,
        }
    }

    fn rules(&self) -> Vec<String> {
        let output = iptables(&self.host, self.program, "-S DOCKER-USER");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter(|line| line.starts_with("-A "))
            .map(str::to_owned)
            .collect()
    }

    fn own_rules(&self) -> usize {
        let comment = format!("oakestra:{}", self.worker.node_id());
        self.rules().iter().filter(|rule| rule.contains(&comment)).count()
    }

    fn wait_for_rules(&self) {
        lab::wait_for("the rules to be there", DEADLINE, || Ok(self.own_rules() == 2)).expect("there");
    }

    fn reaches_the_world(&self) {
        let world: Ipv4Addr = self.world.address();
        let reached = self.endpoint.ping(world, DEADLINE);
        reached.unwrap_or_else(|error| panic!("{error:#}: {:#?}", self.rules()));
    }
}

fn docker(host: &Host, program: &str) {
    for command in DOCKER {
        iptables(host, program, command);
    }
}

fn iptables(host: &Host, program: &str, command: &str) -> Output {
    let arguments: Vec<&str> = ["-w", "5"].into_iter().chain(command.split(' ')).collect();
    host.run(program, &arguments).expect(command)
}

#[test]
fn containers_reach_the_world_past_a_docker_that_was_there_before() {
    let mut node = Node::new("docker first", "iptables-nft", true);
    assert_eq!(node.own_rules(), 2, "{:#?}", node.rules());
    assert!(
        node.rules()
            .last()
            .is_some_and(|rule| rule.ends_with("-j RETURN"))
    );
    node.reaches_the_world();

    // An administrator's word goes before.
    iptables(
        &node.host,
        node.program,
        "-I DOCKER-USER -s 198.51.100.0/24 -j DROP",
    );
    iptables(&node.host, node.program, "-F DOCKER-USER");
    node.wait_for_rules();
    iptables(&node.host, node.program, "-A DOCKER-USER -j RETURN");
    node.reaches_the_world();
    assert_eq!(node.own_rules(), 2, "no more than that");

    // It is these rules that let them.
    node.worker.daemon().kill().expect("killed");
    iptables(&node.host, node.program, "-F DOCKER-USER");
    node.endpoint
        .ping(node.world.address(), IN_VAIN)
        .expect_err("Docker forwards nothing");
    node.worker.restart().expect("started again");
    node.reaches_the_world();
}

#[test]
fn a_docker_that_comes_later_is_noticed() {
    let mut node = Node::new("docker later", "iptables-nft", false);
    let listed = node.host.run("nft", &["list", "tables"]).expect("listed");
    let tables = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        !tables.contains("filter"),
        "nothing is made where Docker is not: {tables}"
    );
    node.reaches_the_world();
    docker(&node.host, node.program);
    node.wait_for_rules();
    node.reaches_the_world();

    // Rules of an administrator stay in front, and Docker's program can read them all.
    iptables(
        &node.host,
        node.program,
        "-I DOCKER-USER -s 198.51.100.0/24 -j DROP",
    );
    node.worker.restart().expect("started again");
    node.wait_for_rules();
    let rules = node.rules();
    assert!(rules[0].contains("198.51.100.0/24"), "{rules:#?}");
    assert_eq!(rules.len(), 4, "{rules:#?}");

    node.worker.daemon().kill().expect("killed");
    let purged = node.worker.command_line(&["purge"]).expect("run");
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(node.own_rules(), 0);
    assert_eq!(node.rules().len(), 2, "the others stay");
}

#[test]
fn iptables_of_the_old_kind_is_served_too() {
    let node = Node::new("docker legacy", "iptables-legacy", true);
    assert_eq!(node.own_rules(), 2, "{:#?}", node.rules());
    node.reaches_the_world();
    let listed = node.host.run("nft", &["list", "tables"]).expect("listed");
    let tables = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(!tables.contains("table ip filter"), "{tables}");
}
