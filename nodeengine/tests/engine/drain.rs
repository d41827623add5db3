//! An instance that is to be stopped still serves what it has begun to, for as long as the order says.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::stage::Stage;

const NAME: &str = "app.ns.web.ns";
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(200);

/// Orders the removal of instance 0, after a while.
async fn delete_after(stage: &Stage, drain: Duration) {
    let order = json!({"job_name": NAME, "virtualization": "docker", "instance_number": 0, "incarnation": 65536,
        "drain_ms": drain.as_millis() as u64});
    stage.cluster.say(&stage.node.id, "control/delete", &order).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_a_container_goes_on_until_the_drain_is_over_and_an_order_said_again_gives_no_more_time() {
    let stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    let (drain, begun) = (Duration::from_secs(3), Instant::now());
    delete_after(&stage, drain).await;
    stage.node.is_draining().await;
    let state = stage.inspect(NAME)["State"]["Status"].clone();
    assert!(state == "running" && begun.elapsed() < drain, "{state}");
    delete_after(&stage, LONG).await;
    let report = stage.expect(NAME, "UNDEPLOYED").await;
    assert!(begun.elapsed() >= drain, "{report} after {:?}", begun.elapsed());
    stage.expect_acknowledgement("delete", NAME).await;
    stage.docker.is_empty().await;
    stage.node.has_forgotten().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_an_engine_that_is_killed_while_an_instance_drains_stops_it_when_it_is_back() {
    let mut stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    delete_after(&stage, LONG).await;
    stage.node.is_draining().await;
    stage.node.kill().await;
    stage.node.start();
    stage.expect(NAME, "UNDEPLOYED").await;
    stage.docker.is_empty().await;
    stage.node.has_forgotten().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_a_newer_placement_does_not_wait_for_one_that_drains() {
    let stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    delete_after(&stage, LONG).await;
    stage.node.is_draining().await;
    stage.deploy(NAME, &json!({"incarnation": 2 * 65536})).await;
    stage
        .cluster
        .expect(&stage.node.id, "job", "the new one", |report| {
            report["incarnation"] == 2 * 65536 && report["status"] == "RUNNING"
        })
        .await;
    let label = &stage.inspect(NAME)["Config"]["Labels"]["oakestra.incarnation"];
    assert_eq!(label, "131072");
    stage.end(NAME).await;
}
