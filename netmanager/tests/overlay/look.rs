//! Looking inside a running node: flows, nodes, drops, traces and figures.

use std::net::Ipv4Addr;
use std::process::Output;

use lab::worker::Worker;
use lab::{Lab, UPLINK};
use serde_json::Value;

use crate::fixture::{
    DEADLINE, FAR_NAME, FAR_SERVICE, NEAR_SERVICE, NO_SERVICE, Overlay, accept, connect, exchange, listen,
    lone_answers, program,
};

/// What a verb says as JSON.
fn json(worker: &Worker, arguments: &[&str]) -> Value {
    let output = run(worker, &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).expect("valid JSON")
}

fn run(worker: &Worker, arguments: &[&str]) -> Output {
    let output = worker.command_line(arguments).expect("run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    output
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The figures, as they are given on the API's socket.
fn figures(worker: &Worker) -> String {
    let socket = worker.root().join("etc/netmanager/netmanager.sock");
    let socket = socket.display().to_string();
    let arguments = [
        "-sS",
        "--fail",
        "--unix-socket",
        &socket,
        "http://netmanager/metrics",
    ];
    let output = worker.host().run("curl", &arguments).expect("run");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The value of a figure with exactly these labels, as they are written down.
fn figure(figures: &str, name: &str) -> f64 {
    let line = figures
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("{name} in {figures}"));
    value.parse().expect("a number")
}

#[test]
fn flows_are_shown_with_where_they_go_and_how_they_stand() {
    let overlay = Overlay::new("flows");
    let near = &overlay.near;
    let listeners = [0, 1].map(|index: usize| listen(&overlay.far_servers[index], 80));
    let first = overlay.far_instances[0].address;
    let mut stream = connect(&overlay.client, first, 80).expect("connected");
    let (mut server, _) = accept(&listeners[0]);
    exchange(&mut stream, &mut server);
    let port = stream.local_addr().expect("an address").port();
    // Nobody answers: this one stays as it began.
    let silent = crate::fixture::bind(&overlay.client, 4_000);
    silent.send_to(b"anybody?", (first, 9)).expect("sent");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");

    let shown = json(near, &["flows", "--protocol", "tcp"]);
    let [flow] = list(&shown["flows"]) else {
        panic!("one connection: {shown}")
    };
    assert_eq!(flow["source"], "10.18.0.2");
    assert_eq!(flow["source_port"], port);
    assert_eq!(flow["destination"], first.to_string());
    assert_eq!(flow["instance"], first.to_string());
    assert_eq!(flow["node"], format!("{}:50103", overlay.far.host().address()));
    assert_eq!(flow["state"], serde_json::json!(["settled"]));
    drop(stream);
    lab::wait_for("the client's end to be seen", DEADLINE, || {
        let shown = json(near, &["flows", "--protocol", "tcp"]);
        Ok(shown["flows"][0]["state"].to_string().contains("clos"))
    })
    .expect("seen");

    let number = |arguments: &[&str]| list(&json(near, arguments)["flows"]).len();
    assert_eq!(number(&["flows", "--service", FAR_NAME]), 1, "the ping");
    assert_eq!(number(&["flows", "--service", &FAR_SERVICE.to_string()]), 1);
    assert_eq!(number(&["flows", "--service", "shop.test.nobody.test"]), 0);
    assert_eq!(number(&["flows", "--source", "10.18.0.3"]), 0);
    let datagram = json(
        near,
        &["flows", "--protocol", "udp", "--destination", &first.to_string()],
    );
    assert_eq!(datagram["flows"][0]["state"], serde_json::json!(["unanswered"]));
    let limited = json(near, &["flows", "--limit", "1"]);
    let all = number(&["flows"]);
    assert!(all >= 3, "{all}");
    assert_eq!(
        (list(&limited["flows"]).len(), &limited["more"]),
        (1, &serde_json::json!(all - 1))
    );
    let table = String::from_utf8(run(near, &["flows", "--limit", "1"]).stdout).expect("text");
    assert!(table.contains(&format!("and {} more", all - 1)), "{table}");
}

#[test]
fn nodes_drops_and_bad_questions_are_answered() {
    let overlay = Overlay::new("nodes");
    let near = &overlay.near;
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    let far = overlay.far.host().address().to_string();
    lab::wait_for("the next hop to be known", DEADLINE, || {
        Ok(json(near, &["nodes"])[0]["next_hop_valid"] == true)
    })
    .expect("known");
    let nodes = json(near, &["nodes"]);
    let [node] = list(&nodes) else {
        panic!("one node: {nodes}")
    };
    assert_eq!(
        (&node["address"], &node["port"]),
        (&far.as_str().into(), &50_103.into())
    );
    assert_eq!(
        (&node["alive"], &node["interface"]),
        (&true.into(), &UPLINK.into())
    );
    assert_eq!((&node["mtu"], &node["instances"]), (&1_500.into(), &2.into()));

    let stray = crate::fixture::bind(&overlay.client, 4_000);
    stray
        .send_to(b"to a namespace address", ("10.18.0.3", 9))
        .expect("sent");
    let reason = [
        "drops",
        "--reason",
        "not_a_service",
        "--hook",
        "from_endpoint",
        "--dropped",
    ];
    lab::wait_for("the drop to be counted", DEADLINE, || {
        Ok(!list(&json(near, &reason)).is_empty())
    })
    .expect("counted");
    let rows = json(near, &reason);
    let [row] = list(&rows) else { panic!("one row") };
    assert_eq!(
        (&row["name"], &row["packets"]),
        (&"NOT_A_SERVICE".into(), &1.into())
    );
    let [shown, all] =
        [&["drops"][..], &["drops", "--all"]].map(|arguments| list(&json(near, arguments)).len());
    assert!(shown > 1 && all > 100 && all > shown, "{shown} of {all}");

    for path in [
        "/flows?protocol=sctp",
        "/trace",
        "/trace?source=a&destination=b&protocol=tcp",
        "/drops?all=2",
    ] {
        let (code, answer) = near.request(path, None).expect("answered");
        assert_eq!((code, &answer["code"]), (400, &400.into()), "{path}: {answer}");
    }
}

#[test]
fn a_trace_says_what_then_happens() {
    let overlay = Overlay::new("trace");
    let near = &overlay.near;
    let client = "10.18.0.2";
    let verdict = |arguments: &[&str]| {
        let trace = json(near, &[&["trace"], arguments].concat());
        assert!(!list(&trace["steps"]).is_empty(), "{trace}");
        trace["verdict"].as_str().expect("a verdict").to_owned()
    };
    let icmp = |destination: Ipv4Addr| {
        let destination = destination.to_string();
        verdict(&[client, &destination, "--protocol", "icmp"])
    };
    let counted = |name: &str| near.counter("from_endpoint", name).expect("counted");
    assert_eq!(icmp(FAR_SERVICE), "PARK", "nobody has asked for it yet");
    let parked = counted("PARK");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    assert_eq!(counted("PARK"), parked + 1);
    assert_eq!(icmp(FAR_SERVICE), "TUNNEL");
    let tunnelled = counted("TUNNEL");
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    assert_eq!(counted("TUNNEL"), tunnelled + 1);
    overlay.client.ping(NEAR_SERVICE, DEADLINE).expect("answered");
    assert_eq!(icmp(NEAR_SERVICE), "DELIVER");
    assert_eq!(icmp(NO_SERVICE), "PARK");
    assert_eq!(icmp(Ipv4Addr::new(10, 18, 0, 3)), "NOT_A_SERVICE");
    // By the address that it shows, and from the other side.
    let shown = overlay.client_instance.address.to_string();
    let far = overlay.far_instances[0].address.to_string();
    assert_eq!(verdict(&[&shown, &FAR_SERVICE.to_string()]), "TUNNEL");
    assert_eq!(verdict(&[&far, client, "--reply"]), "DELIVER");
    assert_eq!(verdict(&["192.0.2.99", client]), "UNENCAPSULATED");
    let table =
        String::from_utf8(run(near, &["trace", client, &FAR_SERVICE.to_string()]).stdout).expect("text");
    for word in ["each in turn", &far, "TUNNEL"] {
        assert!(table.contains(word), "{word} in {table}");
    }
}

#[test]
fn figures_agree_with_what_the_verbs_show() {
    let overlay = Overlay::new("figures");
    let near = &overlay.near;
    let listener = listen(&overlay.near_server, 80);
    let mut stream = connect(&overlay.client, NEAR_SERVICE, 80).expect("connected");
    let (mut server, _) = accept(&listener);
    exchange(&mut stream, &mut server);
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    let stray = crate::fixture::bind(&overlay.client, 4_000);
    stray
        .send_to(b"to a namespace address", ("10.18.0.3", 9))
        .expect("sent");
    lab::wait_for("the drop to be counted", DEADLINE, || {
        Ok(near.counter("from_endpoint", "NOT_A_SERVICE")? == 1)
    })
    .expect("counted");

    let text = figures(near);
    assert!(text.ends_with("# EOF\n"), "{text}");
    for row in list(&near.get("/drops").expect("listed")) {
        let (kind, label) = if row["dropped"] == true {
            ("dropped_packets", "reason")
        } else {
            ("packets", "verdict")
        };
        let name = format!(
            "oakestra_{kind}_total{{hook={},{label}={}}}",
            row["hook"], row["name"]
        );
        let before = figure(&text, &name);
        let now = row["packets"].as_f64().expect("a number");
        // Packets go on between the two questions: neighbours are asked for, and the like.
        assert!(
            before <= now && now - before < 20.0,
            "{name}: {before}, then {now}"
        );
    }
    let service = |direction: &str, figure_of: &str| {
        let name = format!(
            "oakestra_service_{figure_of}_total{{service=\"shop.test.near.test\",address=\"{NEAR_SERVICE}\",direction=\"{direction}\"}}"
        );
        figure(&text, &name)
    };
    assert!(
        service("sent", "packets") >= 3.0 && service("received", "packets") >= 2.0,
        "{text}"
    );
    assert!(service("sent", "bytes") > 3.0 * 54.0);
    // Flows are looked at every ten seconds.
    lab::wait_for("the flows to be counted", 2 * DEADLINE, || {
        Ok(figure(&figures(near), "oakestra_flows{state=\"settled\"}") >= 1.0)
    })
    .expect("counted");
    assert!(figure(&text, "oakestra_map_entries{map=\"ENDPOINTS\"}") >= 2.0);
    assert!(figure(&text, "oakestra_map_capacity{map=\"FLOWS\"}") > 1_000.0);
    assert!(figure(&text, "oakestra_resolution_seconds_count{outcome=\"installed\"}") >= 1.0);
    let node = format!(
        "oakestra_node_alive{{node=\"{}:50103\"}}",
        overlay.far.host().address()
    );
    assert_eq!(figure(&text, &node) as u32, 1);
}

#[test]
fn figures_are_served_at_an_address_of_their_own_where_asked_for() {
    let lab = Lab::new("figures port").expect("a lab");
    let host = lab.host("near").expect("a host");
    host.ip("link set lo up").expect("set up");
    let arguments = ["--metrics", "127.0.0.1:9100"];
    let _worker =
        Worker::start_with(&lab, &host, program(), &lone_answers(), &arguments).expect("a NetManager");
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:9100{path}");
        let mut curl = host.command("curl").expect("a command");
        curl.args(["-sS", "--fail", &url]).output().expect("run")
    };
    let output = get("/metrics");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("oakestra_cluster_connected"));
    assert!(!get("/status").status.success(), "figures and nothing else");
}

#[test]
fn v74_the_doctor_says_what_is_missing_and_fails_then() {
    let lab = Lab::new("doctor").expect("a lab");
    let host = lab.host("near").expect("a host");
    let doctor = |wrapper: &[&str]| {
        let program = program().display().to_string();
        let arguments = [wrapper, &[&program, "doctor", "-o", "json"]].concat();
        let mut command = host.command(arguments[0]).expect("a command");
        let output = command.args(&arguments[1..]).output().expect("run");
        let checks: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), checks)
    };
    let check = |checks: &Value, name: &str| {
        let found = list(checks).iter().find(|check| check["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("{name} in {checks}"))
    };
    let (code, checks) = doctor(&["env"]);
    assert_eq!(code, Some(0), "{checks}");
    for name in [
        "CAP_BPF",
        "CAP_NET_ADMIN",
        "kernel",
        "tcx",
        "helpers",
        "programs",
        "TUN",
        "nft",
        "routes",
    ] {
        assert_eq!(check(&checks, name)["state"], "open", "{name}");
    }

    let less = [
        "setpriv",
        "--bounding-set",
        "-bpf,-net_admin,-sys_admin",
        "--inh-caps",
        "-all",
    ];
    let (code, checks) = doctor(&less);
    assert_eq!(code, Some(1), "{checks}");
    for name in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        let found = check(&checks, name);
        assert_eq!(found["state"], "missing", "{found}");
        assert!(
            found["advice"]
                .as_str()
                .is_some_and(|advice| advice.contains("root")),
            "{found}"
        );
    }

    let hide = "mount -t tmpfs none /sys/fs/bpf && exec \"$@\"";
    let (code, checks) = doctor(&["unshare", "--mount", "sh", "-c", hide, "sh"]);
    assert_eq!(code, Some(0), "{checks}");
    let found = check(&checks, "bpffs");
    assert_eq!(
        (&found["state"], &found["needed"]),
        (&"missing".into(), &false.into())
    );
    assert!(
        found["instead"]
            .as_str()
            .is_some_and(|instead| instead.contains("mounts")),
        "{found}"
    );

    host.ip("link add vpn0 type veth peer name vpn1").expect("made");
    host.ip("link set vpn1 up").expect("set up");
    host.ip("address add 10.19.0.5/16 dev vpn0").expect("added");
    host.ip("link set vpn0 up").expect("set up");
    let (code, checks) = doctor(&["env"]);
    assert_eq!(code, Some(1), "{checks}");
    assert!(
        check(&checks, "addresses")["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("vpn0"))
    );
    assert!(
        check(&checks, "routes")["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("10.19.0.0/16"))
    );
}
