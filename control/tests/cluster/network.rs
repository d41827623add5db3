//! Subnets, announcements, questions, and who hears of whom.

use protocol::cluster::FromRoot;
use protocol::network::{TableQuery, TableResult};
use protocol::node::Registered;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::node::{Client, Engine};
use crate::stage::{QUIET, Stage, placement};

const N1: &str = "0123456789abcdef00000001";
const N2: &str = "0123456789abcdef00000002";
const FIRST: u64 = 1 << 16;
const CLIENT: &str = "app.ns.client.ns";
const NGINX: &str = "app.ns.nginx.ns";

/// Client on the first node, nginx on the second, both attached.
struct Play {
    stage: Stage,
    engines: [Engine; 2],
    near: Client,
    far: Client,
    registered: [Registered; 2],
}

impl Play {
    async fn set() -> Self {
        let stage = Stage::set().await;
        let registered = [stage.register(N1, "one").await, stage.register(N2, "two").await];
        let engines = [
            Engine::start(stage.mqtt, &registered[0]).await,
            Engine::start(stage.mqtt, &registered[1]).await,
        ];
        stage.root.deploy(placement("client", 0, FIRST));
        engines[0]
            .until_runs("the client runs", |runs| runs.len() == 1)
            .await;
        stage.root.deploy(placement("nginx", 0, FIRST));
        engines[1]
            .until_runs("the server runs", |runs| runs.len() == 1)
            .await;
        let near = Client::connect(
            stage.mqtt,
            &registered[0],
            "",
            &["net/subnetwork/result", "net/tablequery/result", "net/peers"],
        )
        .await;
        let far = Client::connect(
            stage.mqtt,
            &registered[1],
            "",
            &["net/subnetwork/result", "net/tablequery/result", "net/peers"],
        )
        .await;
        let play = Self {
            stage,
            engines,
            near,
            far,
            registered,
        };
        play.attach(&play.near, CLIENT, "10.18.0.2", "192.0.2.11").await;
        play.attach(&play.far, NGINX, "10.18.0.66", "192.0.2.12").await;
        play
    }

    async fn attach(&self, node: &Client, name: &str, nsip: &str, host: &str) {
        node.say(
            "net/service/deployed",
            &announcement(name, "DEPLOYED", nsip, host),
        )
        .await;
        let key = placement(name.split('.').nth(2).expect("a part"), 0, FIRST).key();
        self.stage
            .root
            .until("the root has its row", |root| {
                root.reports.get(&key).is_some_and(|report| report.row.is_some())
            })
            .await;
    }
}

fn announcement(name: &str, status: &str, nsip: &str, host: &str) -> Value {
    json!({"appname": name, "status": status, "instance_number": 0, "nsip": nsip, "nsipv6": "", "host_port": "50103",
        "host_ip": host, "incarnation": FIRST})
}

fn service_ip(service: &str) -> String {
    placement(service, 0, FIRST).service_ip[0]
        .address
        .expect("an address")
        .to_string()
}

#[tokio::test]
async fn a_node_gets_its_subnet_over_the_broker_too() {
    let play = Play::set().await;
    play.far.say("net/subnet", &json!({"METHOD": "GET"})).await;
    let result = play.far.expect("net/subnetwork/result", |_| true).await;
    assert_eq!(
        result,
        json!({"address": "10.18.0.64", "addressv6": "", "instanceIp": "10.30.0.2"})
    );
    assert_eq!(
        play.registered[1].subnet,
        Some("10.18.0.64".parse().expect("address"))
    );
}

#[tokio::test]
async fn the_far_side_knows_who_comes_before_the_near_side_hears_where_it_is() {
    let play = Play::set().await;
    let sip = service_ip("nginx");
    play.near
        .say("net/tablequery/request", &json!({"sname": "", "sip": sip}))
        .await;
    let peers = play.far.expect("net/peers", |_| true).await;
    let names: Vec<&str> = peers["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["app_name"].as_str())
        .collect();
    assert_eq!(names, [format!("oakestra.system.{N1}.node").as_str(), CLIENT]);
    let client = &peers["rows"][1];
    for (field, expected) in [
        ("instance_number", json!(0)),
        ("namespace_ip", json!("10.18.0.2")),
        ("host_ip", json!("192.0.2.11")),
        ("host_port", json!(50103)),
        ("incarnation", json!(FIRST)),
        ("node_id", json!(N1)),
        ("appId", json!(7)),
    ] {
        assert_eq!(client[field], expected, "{field}");
    }
    assert_eq!(peers["rows"][0]["namespace_ip"], "10.18.0.1");
    assert_eq!(peers["rows"][0]["instance_ip"], "10.30.0.1");
    let ack = json!({"version": peers["version"], "epoch": peers["epoch"]});
    play.far.say("net/peers/ack", &ack).await;

    let result = play
        .near
        .expect("net/tablequery/result", |result| result["query_key"] == *sip)
        .await;
    assert_eq!(result["app_name"], NGINX);
    let row = &result["instance_list"][0];
    assert_eq!(
        (&row["namespace_ip"], &row["host_ip"]),
        (&json!("10.18.0.66"), &json!("192.0.2.12"))
    );
    assert_eq!(result["service_ip"][0]["Address"], *sip);

    // What it has acknowledged it is not told again.
    assert_eq!(play.near.query(NGINX, "").await["app_name"], NGINX);
    play.far.expect_nothing("net/peers").await;
}

#[tokio::test]
async fn an_answer_does_not_wait_for_a_far_side_that_is_mute() {
    let play = Play::set().await;
    let before = std::time::Instant::now();
    let result = play.near.query(NGINX, "").await;
    assert_eq!(result["instance_list"].as_array().map(Vec::len), Some(1));
    assert!(
        before.elapsed().as_millis() >= 50,
        "{:?}: it waits for the other side",
        before.elapsed()
    );
    // And tells it again until it has it.
    let first = play.far.expect("net/peers", |_| true).await;
    let again = play.far.expect("net/peers", |_| true).await;
    assert_eq!(first, again);
}

#[tokio::test]
async fn everything_is_found_by_each_of_its_addresses() {
    let play = Play::set().await;
    let instance_ip = placement("nginx", 0, FIRST)
        .instance_ip
        .expect("an address")
        .to_string();
    for sip in [service_ip("nginx"), instance_ip] {
        assert_eq!(play.near.query("", &sip).await["app_name"], NGINX, "{sip}");
    }
    let node = play.near.query("", "10.30.0.2").await;
    assert_eq!(node["app_name"], format!("oakestra.system.{N2}.node"));
    let row = &node["instance_list"][0];
    assert_eq!(
        (&row["namespace_ip"], &row["instance_ip"]),
        (&json!("10.18.0.65"), &json!("10.30.0.2"))
    );
    assert_eq!(
        (&row["host_ip"], &row["host_port"]),
        (&json!("192.0.2.12"), &json!(50103))
    );

    let nothing = json!({"app_name": null, "instance_list": []});
    for (sname, sip) in [
        ("", "10.30.99.99"),
        ("no.such.service.here", ""),
        ("nonsense", ""),
        ("", "nonsense"),
        ("", ""),
    ] {
        let result = play.near.query(sname, sip).await;
        assert_eq!(
            (&result["app_name"], &result["instance_list"]),
            (&nothing["app_name"], &nothing["instance_list"])
        );
    }
}

#[tokio::test]
async fn whoever_is_interested_hears_of_changes() {
    let play = Play::set().await;
    assert!(
        play.near
            .subscribe(&format!("jobs/{NGINX}/updates_available"))
            .await
    );
    play.near.query(NGINX, "").await;
    play.far
        .say(
            "net/service/undeployed",
            &announcement(NGINX, "UNDEPLOYED", "10.18.0.66", "192.0.2.12"),
        )
        .await;
    let update = play.near.expect("updates_available", |_| true).await;
    assert_eq!(update, json!({"type": "UNDEPLOYMENT"}));
    let pending = play.near.query(NGINX, "").await;
    assert_eq!(pending["instance_list"][0].get("namespace_ip"), None);

    play.attach(&play.far, NGINX, "10.18.0.67", "192.0.2.12").await;
    assert_eq!(
        play.near.expect("updates_available", |_| true).await,
        json!({"type": "DEPLOYMENT"})
    );
    let moved = json!({"appname": NGINX, "status": "", "instance_number": 0, "nsip": "", "nsipv6": "", "host_port": "50104", "host_ip": "192.0.2.22"});
    play.far.say("net/service/address-changed", &moved).await;
    play.near.expect("updates_available", |_| true).await;
    let row = play.near.query(NGINX, "").await["instance_list"][0].clone();
    assert_eq!(
        (&row["host_ip"], &row["host_port"]),
        (&json!("192.0.2.22"), &json!(50104))
    );

    play.near
        .say("net/interest/remove", &json!({"appname": NGINX}))
        .await;
    // What comes later on this connection is taken in later.
    play.near.query("", "nonsense").await;
    play.stage.root.undeploy(&placement("nginx", 0, FIRST).key());
    play.engines[1].until_runs("it is gone", <[_]>::is_empty).await;
    play.near.expect_nothing("updates_available").await;
}

#[tokio::test]
async fn a_new_instance_is_told_to_those_its_node_talks_to() {
    let play = Play::set().await;
    play.near.query(NGINX, "").await;
    let peers = play.far.expect("net/peers", |_| true).await;
    play.far
        .say(
            "net/peers/ack",
            &json!({"version": peers["version"], "epoch": peers["epoch"]}),
        )
        .await;
    play.near.query(NGINX, "").await;
    play.stage.root.deploy(placement("client", 1, FIRST));
    let on_near = |runs: &[_]| runs.len() == 2;
    play.engines[0].until_runs("a second client", on_near).await;
    let mut second = announcement(CLIENT, "DEPLOYED", "10.18.0.3", "192.0.2.11");
    second["instance_number"] = json!(1);
    play.near.say("net/service/deployed", &second).await;
    let peers = play
        .far
        .expect("net/peers", |peers| {
            peers["rows"].as_array().is_some_and(|rows| rows.len() == 1)
        })
        .await;
    assert_eq!(peers["rows"][0]["namespace_ip"], "10.18.0.3");
}

#[tokio::test]
async fn nobody_announces_what_is_not_there() {
    let play = Play::set().await;
    // Of another node; with an address of another node; of another placement; a service that is unknown.
    play.near
        .say(
            "net/service/deployed",
            &announcement(NGINX, "DEPLOYED", "10.18.0.9", "192.0.2.66"),
        )
        .await;
    play.near
        .say(
            "net/service/undeployed",
            &announcement(NGINX, "UNDEPLOYED", "10.18.0.66", "192.0.2.12"),
        )
        .await;
    play.near
        .say(
            "net/service/address-changed",
            &announcement(NGINX, "", "", "192.0.2.66"),
        )
        .await;
    play.near
        .say(
            "net/service/deployed",
            &announcement("no.such.service.here", "DEPLOYED", "10.18.0.9", "192.0.2.66"),
        )
        .await;
    play.far
        .say(
            "net/service/deployed",
            &announcement(NGINX, "DEPLOYED", "10.18.0.9", "192.0.2.12"),
        )
        .await;
    let mut other = announcement(NGINX, "UNDEPLOYED", "10.18.0.66", "192.0.2.12");
    other["incarnation"] = json!(5);
    play.far.say("net/service/undeployed", &other).await;
    play.far
        .say(
            "net/service/deployed",
            &announcement(NGINX, "DEPLOYED", "10.18.0.66", "10.30.0.1"),
        )
        .await;
    sleep(QUIET).await;
    let row = play.near.query(NGINX, "").await["instance_list"][0].clone();
    assert_eq!(
        (&row["namespace_ip"], &row["host_ip"]),
        (&json!("10.18.0.66"), &json!("192.0.2.12"))
    );
    let row = play.far.query(CLIENT, "").await["instance_list"][0].clone();
    assert_eq!(row["host_ip"], "192.0.2.11");
}

#[tokio::test]
async fn what_other_clusters_have_comes_from_the_root() {
    let play = Play::set().await;
    let far_away = |number: u32, cluster: &str| {
        json!({"instance_number": number, "instance_ip": format!("10.30.8.{number}"), "cluster_id": cluster,
            "namespace_ip": "10.18.9.2", "host_ip": "192.0.2.99", "host_port": 50103, "service_ip": [], "node_id": "f"})
    };
    let table = |name: &str, rows: Vec<Value>| -> TableResult {
        serde_json::from_value(json!({"app_name": name, "instance_list": rows, "query_key": "",
            "service_ip": [{"IpType": "RR", "Address": "10.30.60.1", "Address_v6": ""}]}))
        .expect("table")
    };
    let elsewhere = table("far.ns.away.ns", vec![far_away(0, "c2")]);
    let by_ip = TableQuery {
        sname: String::new(),
        sip: "10.30.60.1".to_owned(),
    };
    let mut nginx = table(
        NGINX,
        vec![far_away(4, "c2"), far_away(5, crate::stage::CLUSTER_ID)],
    );
    nginx.service_ip = placement("nginx", 0, FIRST).service_ip;
    let by_name = TableQuery {
        sname: NGINX.to_owned(),
        sip: String::new(),
    };
    play.stage.root.known.lock().expect("known").tables =
        vec![(by_ip, elsewhere), (by_name.clone(), nginx.clone())];

    let result = play.near.query("", "10.30.60.1").await;
    assert_eq!(
        (&result["app_name"], &result["instance_list"][0]["host_ip"]),
        (&json!("far.ns.away.ns"), &json!("192.0.2.99"))
    );

    assert!(
        play.near
            .subscribe(&format!("jobs/{NGINX}/updates_available"))
            .await
    );
    let numbers = |result: &Value| -> Vec<u64> {
        result["instance_list"]
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(|row| row["instance_number"].as_u64())
            .collect()
    };
    let local = play.near.query(NGINX, "").await;
    if numbers(&local) == [0] {
        // The root's answer was not there yet; it comes as a change.
        play.near.expect("updates_available", |_| true).await;
    }
    assert_eq!(numbers(&play.near.query(NGINX, "").await), [0, 4]);

    nginx.instance_list.clear();
    play.stage.root.known.lock().expect("known").tables = vec![(by_name, nginx)];
    play.stage.root.send(FromRoot::ServiceChanged {
        job_name: NGINX.parse().expect("name"),
    });
    play.near.expect("updates_available", |_| true).await;
    assert_eq!(numbers(&play.near.query(NGINX, "").await), [0]);
}

#[tokio::test]
async fn a_node_that_asks_too_much_keeps_nobody_waiting() {
    let play = Play::set().await;
    play.stage.root.known.lock().expect("known").withholds_tables = true;
    for number in 0..1500_u32 {
        let sip = std::net::Ipv4Addr::from_bits(0x0a1e_8000 + number).to_string();
        let question = json!({"sname": "", "sip": sip});
        play.near.say("net/tablequery/request", &question).await;
    }
    let before = std::time::Instant::now();
    assert_eq!(play.far.query(CLIENT, "").await["app_name"], CLIENT);
    // Behind the others it would wait for the root six times, two seconds each.
    assert!(before.elapsed().as_secs() < 8, "{:?}", before.elapsed());
    play.near
        .expect("net/tablequery/result", |result| {
            result["query_key"] == "10.30.128.0"
        })
        .await;
}

#[tokio::test]
async fn a_service_without_instances_has_addresses() {
    let play = Play::set().await;
    let query = TableQuery {
        sname: String::new(),
        sip: "10.30.61.1".to_owned(),
    };
    let table = json!({"app_name": "app.ns.empty.ns", "instance_list": [], "query_key": "",
        "service_ip": [{"IpType": "RR", "Address": "10.30.61.1", "Address_v6": ""}]});
    let table = serde_json::from_value(table).expect("table");
    play.stage.root.known.lock().expect("known").tables = vec![(query, table)];
    let result = play.near.query("", "10.30.61.1").await;
    assert_eq!(result["app_name"], "app.ns.empty.ns");
    assert_eq!(result["instance_list"], json!([]));
    assert_eq!(result["service_ip"][0]["Address"], "10.30.61.1");
}

#[tokio::test]
async fn a_node_that_registers_from_elsewhere_is_found_there() {
    let play = Play::set().await;
    assert!(
        play.near
            .subscribe(&format!("jobs/{NGINX}/updates_available"))
            .await
    );
    play.far
        .say(
            "net/service/address-changed",
            &json!({"appname": NGINX, "status": "", "instance_number": 0, "nsip": "", "nsipv6": "",
                "host_port": "50103", "host_ip": "192.0.2.11"}),
        )
        .await;
    play.far.query("", "nonsense").await;
    play.near.query(NGINX, "").await;
    let body = json!({"id": N2, "node_key": format!("key of {N2}"), "host": "two", "ip": "192.0.2.77", "vcpus": 2,
        "memory_total": 1000, "virtualization": ["docker"]});
    let (code, _) = play.stage.post("/api/node/register", &body.to_string()).await;
    assert_eq!(code, 200);
    play.near.expect("updates_available", |_| true).await;
    let row = play.near.query(NGINX, "").await["instance_list"][0].clone();
    assert_eq!(row["host_ip"], "192.0.2.77");
}

#[tokio::test]
async fn a_root_that_is_away_makes_answers_empty_and_not_late() {
    let play = Play::set().await;
    play.stage.root.leave().await;
    let before = std::time::Instant::now();
    // The cluster notices by itself; until then it waits for the root for a while.
    let result = play.near.query("", "10.30.60.1").await;
    assert_eq!(result["app_name"], json!(null));
    assert!(before.elapsed().as_secs() < 5, "{:?}", before.elapsed());
    assert_eq!(play.near.query(NGINX, "").await["app_name"], NGINX);
}

#[tokio::test]
async fn rows_survive_a_restart() {
    let mut play = Play::set().await;
    play.stage.kill();
    play.stage.start().await;
    let far = Client::connect(
        play.stage.mqtt,
        &play.registered[1],
        "-x",
        &["net/tablequery/result"],
    )
    .await;
    let row = far.query(CLIENT, "").await["instance_list"][0].clone();
    assert_eq!(
        (&row["namespace_ip"], &row["host_ip"]),
        (&json!("10.18.0.2"), &json!("192.0.2.11"))
    );
}
