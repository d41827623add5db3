//! Registration, rights at the broker, and what cannot be read.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::node::{Client, Engine, login, options, with_will};
use crate::stage::{CLUSTER_ID, Stage, placement, within};

const N1: &str = "0123456789abcdef00000001";
const N2: &str = "0123456789abcdef00000002";

#[tokio::test]
async fn a_node_that_registers_gets_all_it_needs() {
    let stage = Stage::set().await;
    let first = stage.register(N1, "host").await;
    assert_eq!(first.id, N1);
    assert_eq!(first.broker_port, stage.mqtt.port().to_string());
    assert_eq!(first.subnet, Some("10.18.0.0".parse().expect("address")));
    assert_eq!(first.instance_ip, Some("10.30.0.1".parse().expect("address")));

    let again = stage.register(N1, "host").await;
    assert_eq!((&again.id, again.subnet), (&first.id, first.subnet));
    let twin = stage.register(N2, "host").await;
    assert_eq!(twin.id, N2, "the same host name, another node");
    assert_ne!(twin.subnet, first.subnet);

    // One daemon of the node may not have heard of the new password yet.
    for password in [&first.mqtt_password, &again.mqtt_password] {
        assert_eq!(login(options(stage.mqtt, N1, N1, password)).await, Ok(()));
    }
    let third = stage.register(N1, "host").await;
    assert!(
        login(options(stage.mqtt, N1, N1, &first.mqtt_password))
            .await
            .is_err()
    );
    assert_eq!(
        login(options(stage.mqtt, N1, N1, &third.mqtt_password)).await,
        Ok(())
    );
}

#[tokio::test]
async fn nobody_takes_over_the_id_of_another_node() {
    let stage = Stage::set().await;
    stage.register(N1, "host").await;
    let thief = json!({"id": N1, "node_key": "another", "host": "host"}).to_string();
    let (code, answer) = stage.post("/api/node/register", &thief).await;
    assert_eq!(code, 200);
    assert_ne!(answer["id"], N1);
    for strange in ["", "../../x", "0123456789ABCDEF00000001"] {
        let body = json!({"id": strange, "node_key": format!("of {strange}"), "host": "h"}).to_string();
        let (_, answer) = stage.post("/api/node/register", &body).await;
        let id = answer["id"].as_str().expect("an id");
        assert!(
            id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{id}"
        );
        let (_, again) = stage
            .post(
                "/api/node/register/",
                &json!({"id": "", "node_key": format!("of {strange}"), "host": "h"}).to_string(),
            )
            .await;
        assert_eq!(again["id"], id, "known by its key");
    }
}

#[tokio::test]
async fn nodes_of_other_makes_are_known_by_their_host() {
    let stage = Stage::set().await;
    let body = |host: &str| json!({"id": "", "host": host, "vcpus": 4, "Overlay": "x"}).to_string();
    let (code, first) = stage.post("/api/node/register", &body("one")).await;
    assert_eq!(code, 200, "{first}");
    let (_, again) = stage.post("/api/node/register", &body("one")).await;
    let (_, other) = stage.post("/api/node/register", &body("two")).await;
    assert_eq!(first["id"], again["id"]);
    assert_ne!(first["id"], other["id"]);
    let (code, _) = stage.post("/api/node/register", "{}").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn without_a_root_only_known_nodes_register() {
    let mut stage = Stage::set().await;
    let known = stage.register(N1, "one").await;
    stage.root.leave().await;
    let (code, answer) = stage.get("/api/cluster/status").await;
    assert_eq!(code, 200);
    assert_eq!(answer["cluster_name"], "c1");

    stage.kill();
    stage.start().await;
    let (_, answer) = stage.get("/api/cluster/status/").await;
    assert_eq!(
        answer,
        json!({"cluster_name": "c1", "cluster_id": null, "connected_to_root": false})
    );
    let again = stage.register(N1, "one").await;
    assert_eq!(
        (again.subnet, again.instance_ip),
        (known.subnet, known.instance_ip)
    );
    let stranger = json!({"id": N2, "node_key": "k", "host": "two"}).to_string();
    let (code, answer) = stage.post("/api/node/register", &stranger).await;
    assert_eq!(code, 503, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .expect("a sentence")
            .contains("root is away"),
        "{answer}"
    );

    stage.root.come_back().await;
    stage.until_connected().await;
    stage.register(N2, "two").await;
    let (_, answer) = stage.get("/api/cluster/status").await;
    assert_eq!(answer["cluster_id"], CLUSTER_ID);
    assert_eq!(answer["connected_to_root"], true);
}

#[tokio::test]
async fn people_see_the_nodes() {
    let stage = Stage::set().await;
    let registered = stage.register(N1, "one").await;
    let engine = Engine::start(stage.mqtt, &registered).await;
    stage.root.deploy(placement("web", 0, 1 << 16));
    engine.until_runs("it runs", |runs| runs.len() == 1).await;
    engine
        .client
        .say(
            "information",
            &json!({"cpu_percent": 12.5, "memory_percent": 3.5, "host": "", "id": ""}),
        )
        .await;
    stage
        .root
        .until("it runs", |root| {
            root.reports
                .values()
                .any(|report| report.status.as_str() == "RUNNING")
        })
        .await;
    // What it says of itself and what it says of its instances are taken in one after the other.
    let nodes = within("its figures are known", async {
        loop {
            let (code, nodes) = stage.get("/api/nodes").await;
            assert_eq!(code, 200);
            if nodes[0]["cpu_percent"] != 0.0 {
                return nodes;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let node = &nodes[0];
    for (field, expected) in [
        ("id", json!(N1)),
        ("host", json!("one")),
        ("ip", json!("192.0.2.11")),
        ("active", json!(true)),
        ("vcpus", json!(2)),
        ("vcpus_free", json!(1)),
        ("memory", json!(1000)),
        ("memory_free", json!(900)),
        ("cpu_percent", json!(12.5)),
        ("instances", json!({"RUNNING": 1})),
    ] {
        assert_eq!(node[field], expected, "{field} of {node}");
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_with_a_sentence() {
    let stage = Stage::set().await;
    for (method, path, body, expected) in [
        ("POST", "/api/node/register", "nonsense", 400),
        ("POST", "/api/node/register", "[]", 400),
        ("POST", "/api/node/register", r#"{"vcpus":"many"}"#, 400),
        ("GET", "/api/node/register", "", 405),
        ("GET", "/api/nonsense", "", 404),
        ("POST", "/api/nodes/", "{}", 405),
    ] {
        let (code, answer) = if method == "GET" {
            stage.get(path).await
        } else {
            stage.post(path, body).await
        };
        assert_eq!(
            (code, &answer["code"]),
            (expected, &json!(expected)),
            "{method} {path} {body}"
        );
        assert_eq!(answer["path"], path);
        assert!(!answer["message"].as_str().expect("a sentence").is_empty());
    }
    let (code, answer) = stage.post("/api/node/register", &" ".repeat(2 << 20)).await;
    assert_eq!((code, &answer["code"]), (413, &json!(413)));
    stage.register(N1, "one").await;
}

#[tokio::test]
async fn the_broker_admits_only_nodes_as_themselves() {
    let stage = Stage::set().await;
    let one = stage.register(N1, "one").await;
    let two = stage.register(N2, "two").await;
    let password = &one.mqtt_password;
    for client in [N1.to_owned(), format!("{N1}-ne")] {
        assert_eq!(
            login(options(stage.mqtt, &client, N1, password)).await,
            Ok(()),
            "{client}"
        );
    }
    let own_will = with_will(
        options(stage.mqtt, N1, N1, password),
        &format!("nodes/{N1}/information"),
    );
    assert_eq!(login(own_will).await, Ok(()));

    let long = format!("{N1}ne");
    for (what, refused) in [
        ("anonymous", options(stage.mqtt, N1, "", "")),
        ("wrong password", options(stage.mqtt, N1, N1, "wrong")),
        (
            "password of another",
            options(stage.mqtt, N1, N1, &two.mqtt_password),
        ),
        ("unknown user", options(stage.mqtt, "x", "x", password)),
        ("client id of another", options(stage.mqtt, N2, N1, password)),
        (
            "client id that only begins so",
            options(stage.mqtt, &long, N1, password),
        ),
        (
            "will of another",
            with_will(options(stage.mqtt, N1, N1, password), &format!("nodes/{N2}/job")),
        ),
        (
            "will of the cluster",
            with_will(
                options(stage.mqtt, N1, N1, password),
                &format!("nodes/{N1}/control/deploy"),
            ),
        ),
    ] {
        assert!(login(refused).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_node_hears_and_says_only_what_is_its_own() {
    let stage = Stage::set().await;
    let one = stage.register(N1, "one").await;
    let two = stage.register(N2, "two").await;
    let victim = Client::connect(stage.mqtt, &two, "", &["#"]).await;
    let attacker = Client::connect(stage.mqtt, &one, "", &["#"]).await;

    assert!(attacker.subscribe("jobs/a.b.c.d/updates_available").await);
    for filter in [
        "#".to_owned(),
        "nodes/#".to_owned(),
        "nodes/+/control/#".to_owned(),
        format!("nodes/{N2}/control/deploy"),
        "+/+/control/deploy".to_owned(),
        "jobs/#".to_owned(),
        "jobs/+/updates_available".to_owned(),
        "$SYS/#".to_owned(),
        format!("$share/g/nodes/{N2}/#"),
    ] {
        assert!(!attacker.subscribe(&filter).await, "{filter}");
    }

    let topics = [
        "control/deploy",
        "control/delete",
        "control/error",
        "net/subnetwork/result",
        "net/tablequery/result",
        "net/peers",
    ];
    for target in [N1, N2] {
        for rest in topics.iter().chain(&["information", "job", "x"]) {
            if target == N1 && !topics.contains(rest) {
                continue;
            }
            let publishing = attacker.mqtt.publish(
                format!("nodes/{target}/{rest}"),
                rumqttc::QoS::AtLeastOnce,
                false,
                "{}",
            );
            publishing.await.expect("publish");
        }
    }
    let updates = attacker.mqtt.publish(
        "jobs/a.b.c.d/updates_available",
        rumqttc::QoS::AtLeastOnce,
        false,
        "{}",
    );
    updates.await.expect("publish");
    // What comes after the refused ones gets through, and nothing of them has.
    attacker.say("net/subnet", &json!({"METHOD": "GET"})).await;
    attacker.expect("net/subnetwork/result", |_| true).await;
    victim.expect_nothing("").await;
    let heard = attacker.order();
    // The node hears itself on its own topics, where it subscribed to all of them.
    assert!(
        heard.iter().all(|topic| topic.ends_with("net/subnet")),
        "{heard:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_read_stops_nothing() {
    let stage = Stage::set().await;
    let registered = stage.register(N1, "one").await;
    let engine = Engine::start(stage.mqtt, &registered).await;
    let manager = Client::connect(stage.mqtt, &registered, "", &["net/subnetwork/result"]).await;
    for rest in [
        "information",
        "job",
        "jobs/resources",
        "control/ack",
        "net/subnet",
        "net/service/deployed",
        "net/service/undeployed",
        "net/service/address-changed",
        "net/tablequery/request",
        "net/interest/remove",
        "net/peers/ack",
        "unheard/of",
    ] {
        for payload in [
            "",
            "nonsense",
            "{}",
            "[]",
            "null",
            "7",
            "{\"status\":\"BOGUS\"}",
            "\u{0}\u{1}",
            "{\"services\":[{}]}",
        ] {
            manager.say_raw(rest, payload).await;
        }
        manager.say_raw(rest, vec![0xff, 0xfe]).await;
    }
    manager
        .say(
            "jobs/resources",
            &json!({"services": [{"job_name": "nonsense"}, 7]}),
        )
        .await;
    manager
        .say(
            "job",
            &json!({"sname": "a.b.c.d", "status": "BOGUS", "instance": 0}),
        )
        .await;
    stage.root.deploy(placement("web", 0, 1 << 16));
    engine.until_runs("it is ordered", |runs| runs.len() == 1).await;
    manager.say("net/subnet", &json!({"METHOD": "GET"})).await;
    manager
        .expect("net/subnetwork/result", |result| result["address"] == "10.18.0.0")
        .await;
    let (code, _) = stage.get("/api/nodes").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn it_ends_when_it_is_asked_to() {
    let mut stage = Stage::set().await;
    stage.register(N1, "one").await;
    assert_eq!(stage.terminate().await, Some(0));
    stage.root.until("the root notices", |root| !root.connected).await;
    assert!(stage.folder().join("var/lib/oakestra/cluster").is_dir());
}
