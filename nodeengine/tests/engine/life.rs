//! Instances come, run, end and go.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, placement};
use crate::stage::{Stage, eventually};

const NAME: &str = "app.ns.web.ns";

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_runs_as_ordered_and_its_removal_leaves_nothing() {
    let stage = Stage::set().await;
    let script = "trap 'exit 0' TERM; echo hello $A; hostname; while true; do :; done";
    stage
        .deploy(
            NAME,
            &json!({"cmd": ["sh", "-c", script], "environment": ["A=wörld"], "memory": 64, "vcpus": 1}),
        )
        .await;
    let acknowledgement = stage.expect_acknowledgement("deploy", NAME).await;
    assert_eq!(acknowledgement["incarnation"], 65536);
    for status in ["CREATING", "CREATED", "RUNNING"] {
        let report = stage.expect(NAME, status).await;
        assert_eq!(report["incarnation"], 65536, "{report}");
    }

    let found = stage.inspect(NAME);
    assert_eq!(found["State"]["Status"], "running");
    assert_eq!(
        found["Config"]["Labels"],
        json!({"oakestra.node": stage.node.id, "oakestra.service": NAME, "oakestra.instance": "0",
            "oakestra.incarnation": "65536"})
    );
    assert_eq!(found["Config"]["Hostname"], "instance-0");
    assert_eq!(found["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(found["HostConfig"]["MemorySwap"], 64 << 20);
    assert_eq!(found["HostConfig"]["NanoCpus"], 1_000_000_000);
    let policy = found["HostConfig"]["RestartPolicy"]["Name"]
        .as_str()
        .expect("policy");
    assert!(matches!(policy, "" | "no"), "{policy}");
    assert_eq!(found["HostConfig"]["Privileged"], false);
    assert_eq!(stage.docker.volumes().len(), 1, "the image's own volume");

    // It does nothing but burn its one core.
    let usage = stage
        .cluster
        .expect_usage(&stage.node.id, NAME, |usage| {
            let cpu: f64 = usage["cpu_percent"]
                .as_str()
                .expect("text")
                .parse()
                .expect("number");
            cpu > 10.0
        })
        .await;
    assert_eq!(usage["status"], "RUNNING");
    assert_eq!(usage["incarnation"], 65536);
    assert_eq!(usage["logs"], "hello wörld\ninstance-0\n");
    let memory: f64 = usage["memory_percent"]
        .as_str()
        .expect("text")
        .parse()
        .expect("number");
    assert!(memory > 0.0 && memory < 50.0, "{usage}");
    let information = stage
        .cluster
        .expect(&stage.node.id, "information", "figures", |_| true)
        .await;
    assert!(information["memory"].as_u64().expect("memory") > 0);
    assert_eq!(information.get("host"), None);

    let begin = Instant::now();
    stage.delete(NAME).await;
    let report = stage.expect(NAME, "UNDEPLOYED").await;
    assert_eq!(report["incarnation"], 65536);
    // It listens to SIGTERM, but a container is gone before its removal is told.
    assert!(stage.docker.containers().is_empty() && stage.docker.volumes().is_empty());
    assert!(begin.elapsed() < Duration::from_secs(20));
    stage.expect_acknowledgement("delete", NAME).await;
    stage.node.has_forgotten().await;
    stage
        .cluster
        .expect(&stage.node.id, "jobs/resources", "nothing", |report| {
            report["services"] == json!([])
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_leave_nothing_and_are_quick() {
    let stage = Stage::set().await;
    let mut times = Vec::new();
    // Docker alone, by its own command, in turn: what else the machine does befalls both.
    let mut alone = Vec::new();
    for round in 0..20_u64 {
        let begin = Instant::now();
        stage
            .run(NAME, &json!({"incarnation": 65536 * (round + 1)}))
            .await;
        times.push(begin.elapsed());
        stage.delete(NAME).await;
        stage.expect(NAME, "UNDEPLOYED").await;

        let begin = Instant::now();
        let id = stage
            .docker
            .run(&["create", "--network=none", crate::docker::IMAGE]);
        stage.docker.run(&["start", &id]);
        alone.push(begin.elapsed());
        stage.docker.run(&["rm", "-f", "-v", &id]);
    }
    stage.docker.is_empty().await;
    stage.node.has_forgotten().await;
    assert!(stage.node.status().await.expect("status").instances.is_empty());

    times.sort();
    alone.sort();
    eprintln!(
        "order to RUNNING {:?}, docker create and start {:?}",
        times[10], alone[10]
    );
    assert!(
        times[10] < alone[10] + Duration::from_millis(100),
        "{times:?} {alone:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_instance_completes_once() {
    let mut stage = Stage::set().await;
    let cmd = json!(["sh", "-c", "echo done"]);
    stage.deploy(NAME, &json!({"one_shot": true, "cmd": cmd})).await;
    let report = stage.expect(NAME, "COMPLETED").await;
    assert_eq!(report["status_detail"], "exit code 0");
    let usage = stage
        .cluster
        .expect_usage(&stage.node.id, NAME, |usage| usage["status"] == "COMPLETED")
        .await;
    assert_eq!(usage["logs"], "done\n");

    // Neither a repeated order nor a restart makes it run again.
    stage.deploy(NAME, &json!({"one_shot": true, "cmd": cmd})).await;
    stage.expect_acknowledgement("deploy", NAME).await;
    stage.node.kill().await;
    stage.node.start();
    stage.node.is_connected().await;
    stage.expect(NAME, "COMPLETED").await;
    let logs = stage.docker.run(&["logs", &stage.node.container(NAME, 0)]);
    assert_eq!(logs, "done");
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_instance_that_fails_is_started_again() {
    let stage = Stage::set().await;
    stage
        .deploy(NAME, &json!({"one_shot": true, "cmd": ["sh", "-c", "exit 4"]}))
        .await;
    for _ in 0..2 {
        let report = stage.expect(NAME, "DEAD").await;
        let detail = report["status_detail"].as_str().expect("detail");
        assert!(detail.starts_with("exit code 4"), "{detail}");
    }
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_slows_down_and_keeps_its_output() {
    let stage = Stage::set().await;
    stage
        .deploy(NAME, &json!({"cmd": ["sh", "-c", "echo run; exit 3"]}))
        .await;
    let mut told = Vec::new();
    for pause in [1, 2, 4] {
        let report = stage.expect(NAME, "DEAD").await;
        told.push(Instant::now());
        assert_eq!(
            report["status_detail"],
            format!("exit code 3; again in {pause} s")
        );
        stage.expect(NAME, "CREATING").await;
        stage.expect(NAME, "RUNNING").await;
    }
    assert!(told[1] - told[0] >= Duration::from_secs(1), "{told:?}");
    assert!(told[2] - told[1] >= Duration::from_secs(2), "{told:?}");
    let logs = stage.docker.run(&["logs", &stage.node.container(NAME, 0)]);
    assert!(logs.lines().count() >= 3, "{logs}");
    assert_eq!(stage.docker.containers().len(), 1);
    // Also while it waits for its next start.
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_incarnation_replaces_and_an_earlier_one_is_ignored() {
    let stage = Stage::set().await;
    stage.run(NAME, &json!({"incarnation": 200})).await;
    let first = stage.inspect(NAME)["Id"].clone();
    // The same again changes nothing, and is acknowledged again.
    stage.expect_acknowledgement("deploy", NAME).await;
    stage.run(NAME, &json!({"incarnation": 200})).await;
    stage.expect_acknowledgement("deploy", NAME).await;
    // An earlier one, and the removal of an earlier one, are not meant.
    stage.deploy(NAME, &json!({"incarnation": 100})).await;
    let order = json!({"job_name": NAME, "instance_number": 0, "incarnation": 100});
    stage.cluster.say(&stage.node.id, "control/delete", &order).await;
    stage.expect_acknowledgement("delete", NAME).await;
    assert_eq!(stage.inspect(NAME)["Id"], first);

    stage.deploy(NAME, &json!({"incarnation": 300})).await;
    let report = stage
        .cluster
        .expect(&stage.node.id, "job", "the later one", |report| {
            report["status"] == "RUNNING" && report["incarnation"] == 300
        })
        .await;
    assert_eq!(report["sname"], NAME);
    assert_eq!(stage.docker.containers().len(), 1);
    assert_eq!(
        stage.inspect(NAME)["Config"]["Labels"]["oakestra.incarnation"],
        "300"
    );
    assert_eq!(stage.docker.volumes().len(), 1, "the first one's volume is gone");
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_docker_leave_each_other_alone() {
    let mut stage = Stage::set().await;
    let other = Node::new(&stage.cluster, &stage.docker).await;
    stage.run(NAME, &json!({})).await;
    let order = placement(NAME, &json!({}));
    stage.cluster.say(&other.id, "control/deploy", &order).await;
    stage.cluster.expect_status(&other.id, NAME, 0, "RUNNING").await;
    assert_eq!(stage.docker.containers().len(), 2);

    // A node that starts looks for what nobody ordered of it.
    stage.node.kill().await;
    stage.node.start();
    stage.node.is_connected().await;
    stage.expect(NAME, "RUNNING").await;
    stage.delete(NAME).await;
    stage.expect(NAME, "UNDEPLOYED").await;
    assert_eq!(stage.docker.containers(), [other.container(NAME, 0)]);

    // And giving a node up is about that node.
    stage.node.kill().await;
    let purged = stage
        .node
        .run(&["--docker", &stage.docker.address(), "purge"])
        .await;
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(stage.docker.containers(), [other.container(NAME, 0)]);
    let order = json!({"job_name": NAME, "instance_number": 0});
    stage.cluster.say(&other.id, "control/delete", &order).await;
    stage
        .cluster
        .expect_status(&other.id, NAME, 0, "UNDEPLOYED")
        .await;
    stage.docker.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_on_different_instances_run_in_parallel() {
    let stage = Stage::set().await;
    // Deaf to SIGTERM: each takes its two seconds of grace.
    let deaf = json!(["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]);
    for number in 0..4 {
        stage
            .deploy(NAME, &json!({"instance_number": number, "cmd": deaf}))
            .await;
    }
    for number in 0..4 {
        stage
            .cluster
            .expect_status(&stage.node.id, NAME, number, "RUNNING")
            .await;
    }
    let begin = Instant::now();
    for number in 0..4 {
        let order = json!({"job_name": NAME, "instance_number": number});
        stage.cluster.say(&stage.node.id, "control/delete", &order).await;
    }
    eventually("all are gone", || stage.docker.containers().is_empty()).await;
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(7), "{took:?}");
    stage.node.has_forgotten().await;
}
