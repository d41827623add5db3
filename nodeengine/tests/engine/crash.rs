//! Daemons are killed and come back.

use std::time::Duration;

use serde_json::json;

use crate::node::placement;
use crate::stage::{Stage, eventually};

const NAME: &str = "app.ns.web.ns";

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_adopted_and_orders_given_meanwhile_are_carried_out() {
    let mut stage = Stage::set().await;
    let gone = "app.ns.gone.ns";
    let late = "app.ns.late.ns";
    stage.run(NAME, &json!({})).await;
    stage.run(gone, &json!({})).await;
    let before = stage.inspect(NAME)["State"].clone();
    stage.node.kill().await;
    stage.delete(gone).await;
    stage.deploy(late, &json!({})).await;
    stage.node.start();
    stage.expect(gone, "UNDEPLOYED").await;
    stage.expect(late, "RUNNING").await;
    let usage = stage
        .cluster
        .expect_usage(&stage.node.id, NAME, |usage| usage["logs"] != "")
        .await;
    assert_eq!(
        (&usage["status"], &usage["logs"]),
        (&json!("RUNNING"), &json!("from the image\n"))
    );
    let after = stage.inspect(NAME)["State"].clone();
    assert_eq!(
        (&after["Pid"], &after["StartedAt"]),
        (&before["Pid"], &before["StartedAt"])
    );
    stage.delete(late).await;
    stage.expect(late, "UNDEPLOYED").await;
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_leave_neither_too_much_nor_too_little() {
    let mut stage = Stage::set().await;
    for round in 0..12_u64 {
        let wanted = "app.ns.wanted.ns";
        let unwanted = "app.ns.unwanted.ns";
        let incarnation = 65536 * (round + 1);
        stage.deploy(unwanted, &json!({"incarnation": incarnation})).await;
        stage.deploy(wanted, &json!({"incarnation": incarnation})).await;
        if round % 2 == 0 {
            stage
                .cluster
                .expect(&stage.node.id, "job", "the new one", |report| {
                    report["sname"] == unwanted
                        && report["incarnation"] == incarnation
                        && report["status"] == "RUNNING"
                })
                .await;
        }
        stage.delete(unwanted).await;
        // Steps take some tens of milliseconds each: every round is killed in another one.
        tokio::time::sleep(Duration::from_millis(17 * round)).await;
        stage.node.kill().await;
        stage.node.start();
        stage
            .cluster
            .expect(&stage.node.id, "job", "the wanted one", |report| {
                report["sname"] == wanted
                    && report["incarnation"] == incarnation
                    && report["status"] == "RUNNING"
            })
            .await;
        let name = stage.node.container(wanted, 0);
        let docker = &stage.docker;
        eventually("only what is wanted is there", || {
            docker.containers() == [name.as_str()] && docker.volumes().len() == 1
        })
        .await;
        let label = &stage.inspect(wanted)["Config"]["Labels"]["oakestra.incarnation"];
        assert_eq!(label, &incarnation.to_string());
    }
    stage.end("app.ns.wanted.ns").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_still_made_for_a_killed_engine_is_removed() {
    let mut stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    stage.node.kill().await;
    // As if the engine had been killed between Docker's create and its own note of the removal.
    for file in stage.node.noted() {
        std::fs::remove_file(file).expect("removed");
    }
    stage.node.start();
    stage.docker.is_empty().await;
    stage.node.is_connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_come_back_with_docker() {
    let mut stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    let container = stage.inspect(NAME)["Id"].clone();
    stage.docker.stop().await;
    let away = stage.node.status().await.expect("status");
    assert_eq!(away.runtime["state"], "away", "{away:?}");
    // What is ordered meanwhile waits, and says for what.
    let late = "app.ns.late.ns";
    stage.deploy(late, &json!({})).await;
    let report = stage.expect(late, "CREATING").await;
    let detail = report["status_detail"].as_str().expect("detail");
    assert!(detail.contains("Docker does not answer"), "{detail}");
    stage.docker.start().await;
    stage.expect(NAME, "RUNNING").await;
    stage.expect(late, "RUNNING").await;
    assert_eq!(stage.inspect(NAME)["Id"], container, "the same container");
    stage.delete(late).await;
    stage.expect(late, "UNDEPLOYED").await;
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgets_everything_hears_the_latest() {
    let mut stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    stage.cluster.broker.kill().await;
    let container = stage.node.container(NAME, 0);
    stage.docker.run(&["kill", &container]);
    eventually("it runs again", || {
        stage.inspect(NAME)["State"]["Running"] == true
    })
    .await;
    stage.cluster.forget();
    stage.cluster.broker.start(true).await;
    // The broker has forgotten who listens: only what is told again and again is sure to be heard.
    stage
        .cluster
        .expect_usage(&stage.node.id, NAME, |usage| usage["status"] == "RUNNING")
        .await;
    stage.node.is_connected().await;
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_the_node_makes_it_register_again() {
    let mut stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    let pid = stage.inspect(NAME)["State"]["Pid"].clone();
    stage.cluster.broker.kill().await;
    stage.cluster.broker.start(false).await;
    stage.cluster.registered(2).await;
    stage.cluster.broker.kill().await;
    stage.cluster.forget();
    stage.cluster.broker.start(true).await;
    stage
        .cluster
        .expect_usage(&stage.node.id, NAME, |usage| usage["status"] == "RUNNING")
        .await;
    assert_eq!(stage.inspect(NAME)["State"]["Pid"], pid);

    // And so does a cluster that does not know it.
    let before = stage.cluster.registrations().len();
    let error = json!({"message": "Node not registered to the cluster"});
    stage.cluster.say(&stage.node.id, "control/error", &error).await;
    stage.cluster.registered(before + 1).await;
    stage.node.is_connected().await;
    let registrations = stage.cluster.registrations();
    let (first, last) = (&registrations[0], &registrations[registrations.len() - 1]);
    assert_eq!(
        (&first["id"], &first["node_key"]),
        (&last["id"], &last["node_key"])
    );
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_waits_for_its_cluster_and_its_docker() {
    let mut stage = Stage::set().await;
    stage.node.kill().await;
    stage.docker.stop().await;
    stage.cluster.refuse(true);
    stage.node.start();
    let mut reason = String::new();
    for _ in 0..200 {
        if let Some(status) = stage.node.status().await {
            reason = status.standing.to_string();
            if reason.contains("no root yet") {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(reason.contains("no root yet"), "{reason}");
    stage.cluster.refuse(false);
    let order = placement(NAME, &json!({}));
    stage.cluster.say(&stage.node.id, "control/deploy", &order).await;
    stage.node.is_connected().await;
    stage.docker.start().await;
    stage.expect(NAME, "RUNNING").await;
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_takes_long_does_not_keep_the_figures_of_others_back() {
    let mut stage = Stage::set().await;
    let other = "app.ns.other.ns";
    stage.run(NAME, &json!({})).await;
    stage.run(other, &json!({})).await;
    stage.docker.stop().await;
    stage.delete(NAME).await;
    let node = &stage.node;
    let is_noted = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).is_ok_and(|record| record.contains("unwanted"))
    };
    eventually("the order is noted", || node.noted().iter().any(is_noted)).await;
    stage.node.kill().await;
    stage.cluster.forget();
    stage.node.start();
    let usage = |usage: &serde_json::Value| usage["incarnation"] == 65536;
    stage.cluster.expect_usage(&stage.node.id, other, usage).await;
    stage.cluster.expect_usage(&stage.node.id, NAME, usage).await;
    stage.docker.start().await;
    stage.expect(NAME, "UNDEPLOYED").await;
    stage.expect(other, "RUNNING").await;
    stage.end(other).await;
}
