//! Endpoints come and go, steps fail, nodes are given up: nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lab::worker::Worker;
use lab::{Endpoint, Host, Lab, Namespace};
use netmanager::dataplane::Pins;
use netmanager::endpoint::Step;

use crate::fixture::{DEADLINE, FAR_SERVICE, Overlay, lone_answers, lone_instance, program};

/// Steps of detaching that can fail.
const DETACH_STEPS: [Step; 4] = [
    Step::FillTables,
    Step::AttachProgram,
    Step::CreateLink,
    Step::SaveState,
];

#[test]
fn n65_a_node_that_is_given_up_leaves_its_host_as_it_was() {
    let lab = Lab::new("give up").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let before = view(&host, &endpoint);
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
    assert_ne!(view(&host, &endpoint), before);

    let refused = worker.command_line(&["reset"]).expect("run");
    assert!(!refused.status.success(), "not while the daemon runs");
    worker.daemon().kill().expect("killed");
    for _ in 0..2 {
        let output = worker.command_line(&["reset"]).expect("run");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(view(&host, &endpoint), before);
    assert!(!Path::new(&pins(&worker)).exists());
}

#[test]
fn n66_a_failure_at_any_step_of_attaching_leaves_everything_as_it_was() {
    let lab = Lab::new("attach fails").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let instance = lone_instance(&host);
    // Once through, so that what stays after the first time (such as an entry in a cache) is there before.
    worker.deploy(&endpoint, &instance).expect("attached");
    worker
        .undeploy(&instance.service, instance.number)
        .expect("detached");

    for step in Step::ALL {
        restart_with(&lab, &mut worker, &["--fail-attach-at", &step.to_string()]);
        let before = view_of(&worker, &endpoint);
        let error = worker.deploy(&endpoint, &instance).expect_err("the step fails");
        assert!(
            format!("{error:#}").contains(&step.to_string()),
            "{step}: {error:#}"
        );
        assert_eq!(view_of(&worker, &endpoint), before, "{step}");
    }
    restart_with(&lab, &mut worker, &[]);
    worker
        .deploy(&endpoint, &instance)
        .expect("nothing is in the way");
}

#[test]
fn n66_a_failure_at_any_step_of_detaching_is_finished_by_the_next_try() {
    let lab = Lab::new("detach fails").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let instance = lone_instance(&host);
    worker.deploy(&endpoint, &instance).expect("attached");
    worker
        .undeploy(&instance.service, instance.number)
        .expect("detached");

    for step in DETACH_STEPS {
        restart_with(&lab, &mut worker, &["--fail-detach-at", &step.to_string()]);
        let before = view_of(&worker, &endpoint);
        worker.deploy(&endpoint, &instance).expect("attached");
        worker
            .undeploy(&instance.service, instance.number)
            .expect_err("the step fails");
        let listed = worker.get("/endpoints").expect("listed");
        assert_eq!(
            listed.as_array().map(Vec::len),
            Some(1),
            "{step}: it is still to be detached"
        );
        restart_with(&lab, &mut worker, &[]);
        worker
            .undeploy(&instance.service, instance.number)
            .expect("detached");
        assert_eq!(view_of(&worker, &endpoint), before, "{step}");
    }
}

#[test]
fn a_crash_at_any_step_is_cleaned_up_by_the_next_process() {
    let lab = Lab::new("crash").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let instance = lone_instance(&host);
    worker.deploy(&endpoint, &instance).expect("attached");
    worker
        .undeploy(&instance.service, instance.number)
        .expect("detached");
    let before = view_of(&worker, &endpoint);

    for step in Step::ALL {
        restart_with(&lab, &mut worker, &["--crash-attach-at", &step.to_string()]);
        worker.deploy(&endpoint, &instance).expect_err("it crashes");
        worker.daemon().wait(DEADLINE).expect("it has crashed");
        restart_with(&lab, &mut worker, &[]);
        assert_eq!(view_of(&worker, &endpoint), before, "{step}");
    }
    for step in DETACH_STEPS {
        worker.deploy(&endpoint, &instance).expect("attached");
        restart_with(&lab, &mut worker, &["--crash-detach-at", &step.to_string()]);
        worker
            .undeploy(&instance.service, instance.number)
            .expect_err("it crashes");
        worker.daemon().wait(DEADLINE).expect("it has crashed");
        restart_with(&lab, &mut worker, &[]);
        worker
            .undeploy(&instance.service, instance.number)
            .expect("detached");
        assert_eq!(view_of(&worker, &endpoint), before, "{step}");
    }
}

#[test]
fn attaching_again_changes_nothing_and_another_process_takes_the_place_over() {
    let lab = Lab::new("attach again").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let instance = lone_instance(&host);
    let address = worker.deploy(&endpoint, &instance).expect("attached");
    let before = view_of(&worker, &endpoint);
    assert_eq!(worker.deploy(&endpoint, &instance).expect("attached"), address);
    assert_eq!(view_of(&worker, &endpoint), before);

    let successor = host.endpoint("successor").expect("an endpoint");
    worker.deploy(&successor, &instance).expect("moved");
    assert_eq!(
        worker.get("/endpoints").expect("listed").as_array().map(Vec::len),
        Some(1)
    );
    assert!(
        !links(&endpoint).contains("eth0"),
        "the first process has lost its link"
    );
    assert!(links(&successor).contains("eth0"));
    worker
        .undeploy(&instance.service, instance.number)
        .expect("detached");
    worker
        .undeploy(&instance.service, instance.number)
        .expect("detached already");
}

#[test]
fn an_endpoint_whose_container_ends_is_taken_off_by_itself() {
    let lab = Lab::new("container ends").expect("a lab");
    let host = lab.host("near").expect("a host");
    let endpoint = host.endpoint("client").expect("an endpoint");
    let worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
    endpoint.remove().expect("ended");
    lab::wait_for("the endpoint to be taken off", DEADLINE, || {
        Ok(worker.get("/endpoints")?.as_array().is_some_and(Vec::is_empty))
    })
    .expect("taken off");
}

#[test]
fn bad_requests_are_answered_precisely_and_lose_nothing() {
    let mut overlay = Overlay::new("bad requests");
    // A process without a network of its own.
    let own = overlay.near.daemon().pid();
    let near = &overlay.near;
    let deploy = "/container/deploy";
    let pid = overlay.client.pid();
    let cases = [
        (
            "/register",
            r#"{"client_id":"other","cluster_address":""}"#.to_owned(),
            400,
            "registered as",
        ),
        ("/register", r#"{"client_id":"#.to_owned(), 400, "EOF"),
        (deploy, "{}".to_owned(), 400, "pid"),
        (
            deploy,
            format!(r#"{{"pid":{pid},"serviceName":"a.b.c","instanceNumber":0}}"#),
            400,
            "a.b.c",
        ),
        (
            deploy,
            format!(r#"{{"pid":{pid},"serviceName":"a.b.c.d","instanceNumber":0}}"#),
            503,
            "instance address",
        ),
        (
            deploy,
            format!(r#"{{"pid":{pid},"serviceName":"a.b.c.d","instanceNumber":0,"instanceIp":"10.30.1.1"}}"#),
            409,
            "10.30.1.1",
        ),
        (
            deploy,
            r#"{"pid":4194303,"serviceName":"a.b.c.d","instanceNumber":0,"instanceIp":"10.30.9.9"}"#
                .to_owned(),
            404,
            "4194303",
        ),
        (
            deploy,
            format!(r#"{{"pid":{own},"serviceName":"a.b.c.d","instanceNumber":0,"instanceIp":"10.30.9.9"}}"#),
            400,
            "",
        ),
        (
            deploy,
            format!(
                r#"{{"pid":{pid},"serviceName":"a.b.c.d","instanceNumber":0,"instanceIp":"10.30.9.9","portMappings":"80:80/sctp"}}"#
            ),
            400,
            "portMappings",
        ),
        ("/nowhere", "{}".to_owned(), 404, "/nowhere"),
        ("/status", "{}".to_owned(), 405, "POST"),
    ];
    for (path, body, code, text) in cases {
        let (got, answer) = near.request(path, Some(&body)).expect("answered");
        assert_eq!(got, code, "{path} {body}: {answer}");
        assert_eq!(answer["code"], code, "{path} {body}");
        assert!(answer.to_string().contains(text), "{path} {body}: {answer}");
    }
    assert_eq!(
        near.get("/endpoints").expect("listed").as_array().map(Vec::len),
        Some(2)
    );
    overlay
        .client
        .ping(FAR_SERVICE, DEADLINE)
        .expect("the overlay works");
}

#[test]
fn the_command_line_shows_what_the_daemon_knows() {
    let overlay = Overlay::new("command line");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    for (verb, text) in [
        ("status", overlay.near.node_id()),
        ("endpoints", "shop.test.client.test"),
        ("services", "10.30.55.55"),
        ("drops", "TUNNEL"),
        ("flows", "10.30.55.55"),
        ("nodes", "192.0.2."),
    ] {
        for format in ["table", "json"] {
            let output = overlay.near.command_line(&[verb, "-o", format]).expect("run");
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success() && shown.contains(text),
                "{verb} -o {format}: {shown}"
            );
            if format == "json" {
                serde_json::from_str::<serde_json::Value>(&shown).expect("valid JSON");
            }
        }
    }
}

fn pins(worker: &Worker) -> String {
    let folder = Pins::of(worker.node_id()).map("FLOWS");
    folder
        .ancestors()
        .nth(3)
        .map(|path| path.display().to_string())
        .expect("three folders deep")
}

/// Ends the daemon without warning and starts it with other arguments.
fn restart_with(lab: &Lab, worker: &mut Worker, arguments: &[&str]) {
    worker.daemon().kill().expect("killed");
    let host = worker.host().clone();
    *worker = Worker::start_with(lab, &host, program(), &lone_answers(), arguments).expect("a NetManager");
}

/// What there is to be seen of a host and an endpoint.
fn view(host: &Host, endpoint: &Endpoint) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("host links", links(host)),
        ("host addresses", output(host, "ip", &["-o", "address"])),
        (
            "host routes",
            output(host, "ip", &["route", "show", "table", "all"]),
        ),
        ("host rules", output(host, "nft", &["-s", "list", "ruleset"])),
        ("host settings", output(host, "sysctl", &["net.ipv4.ip_forward"])),
        ("host offloads", output(host, "ethtool", &["-k", lab::UPLINK])),
        ("endpoint links", links(endpoint)),
        ("endpoint addresses", output(endpoint, "ip", &["-o", "address"])),
        (
            "endpoint routes",
            output(endpoint, "ip", &["route", "show", "table", "all"]),
        ),
        ("endpoint neighbours", output(endpoint, "ip", &["neighbour"])),
    ])
}

/// As [`view`], with what a running NetManager has of endpoints.
fn view_of(worker: &Worker, endpoint: &Endpoint) -> BTreeMap<&'static str, String> {
    let mut view = view(worker.host(), endpoint);
    view.insert("endpoints", worker.get("/endpoints").expect("listed").to_string());
    let folder = Path::new(&pins(worker)).join(format!("v{}/links", dataplane_ebpf::tables::LAYOUT));
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("pins")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    view.insert("attachments", names.join(" "));
    view
}

/// Names only: counters of time and packets change by themselves.
fn links(namespace: &Namespace) -> String {
    let listed = output(namespace, "ip", &["-br", "link"]);
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    names.join(" ")
}

fn output(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    String::from_utf8_lossy(&namespace.run(program, arguments).expect("run").stdout).into_owned()
}
