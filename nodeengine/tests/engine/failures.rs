//! What does not work is said, and tried again.

use serde_json::json;

use crate::stage::{Stage, eventually};

const NAME: &str = "app.ns.web.ns";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_missing_is_told_and_taken_as_soon_as_it_is_there() {
    let stage = Stage::set().await;
    // Nothing listens there.
    let image = "127.0.0.1:9/nothing:1";
    stage.deploy(NAME, &json!({"image": image})).await;
    stage.expect(NAME, "CREATING").await;
    let report = stage.expect(NAME, "FAILED").await;
    let detail = report["status_detail"].as_str().expect("detail");
    assert!(detail.contains(image) && detail.contains("refused"), "{detail}");
    // The reason stays while it is tried again.
    let usage = stage.cluster.expect_usage(&stage.node.id, NAME, |_| true).await;
    assert_eq!(usage["status"], "FAILED");
    assert_eq!(usage["status_detail"], detail);
    stage.docker.import(image);
    stage.expect(NAME, "RUNNING").await;
    assert!(
        !stage
            .cluster
            .statuses(&stage.node.id, NAME)
            .contains(&"CREATING".to_owned())
    );
    stage.end(NAME).await;

    // A removal does not wait for the next attempt.
    stage
        .deploy(
            NAME,
            &json!({"image": "127.0.0.1:9/nothing:2", "incarnation": 65537}),
        )
        .await;
    stage.expect(NAME, "FAILED").await;
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_is_told_with_dockers_own_words() {
    let stage = Stage::set().await;
    let cases = [
        (json!({"cmd": ["/no/such/program"]}), "/no/such/program"),
        (json!({"memory": 1}), "Minimum memory"),
        (json!({"vcpus": 10_000}), "CPU"),
    ];
    for (index, (changes, expected)) in cases.into_iter().enumerate() {
        let mut changes = changes;
        changes["incarnation"] = json!(65536 + index);
        stage.deploy(NAME, &changes).await;
        let report = stage.expect(NAME, "FAILED").await;
        let detail = report["status_detail"].as_str().expect("detail");
        assert!(detail.contains(expected), "{detail}");
        stage.end(NAME).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_uses_too_much_memory_is_told_so() {
    let stage = Stage::set().await;
    let hungry = json!(["sh", "-c", "exec tail /dev/zero"]);
    stage.deploy(NAME, &json!({"cmd": hungry, "memory": 8})).await;
    let report = stage.expect(NAME, "DEAD").await;
    let detail = report["status_detail"].as_str().expect("detail");
    assert!(detail.starts_with("exit code 137, out of memory"), "{detail}");
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_not_there_is_told() {
    let stage = Stage::set().await;
    stage.deploy(NAME, &json!({"virtualization": "unikernel"})).await;
    let report = stage.expect(NAME, "FAILED").await;
    let detail = report["status_detail"].as_str().expect("detail");
    assert!(detail.contains("unikernel"), "{detail}");
    stage.end(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_make_no_sense_stop_nothing() {
    let stage = Stage::set().await;
    let node = &stage.node.id;
    let nonsense = [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "5",
        "\u{0}",
        r#"{"job_name": "a/b.c.d.e"}"#,
    ];
    for topic in ["control/deploy", "control/delete", "control/error"] {
        for text in nonsense {
            stage.cluster.say_text(node, topic, text).await;
        }
    }
    let cases = [
        (json!({"memory": "much"}), "memory"),
        (json!({"image": 5}), "image"),
        (json!({"environment": "A=b"}), "environment"),
        (json!({"instance_ip": "10.30.0.300"}), "instance_ip"),
    ];
    for (changes, field) in cases {
        stage.deploy(NAME, &changes).await;
        let report = stage.expect(NAME, "FAILED").await;
        let detail = report["status_detail"].as_str().expect("detail");
        assert!(detail.contains(&format!("{field}:")), "{detail}");
        assert_eq!(report["incarnation"], 65536);
    }
    // Deleting what is not here is no mistake.
    stage.delete("app.ns.nobody.ns").await;
    stage.expect_acknowledgement("delete", "app.ns.nobody.ns").await;
    stage.run(NAME, &json!({})).await;
    stage.end(NAME).await;
    assert_eq!(
        stage.cluster.registrations().len(),
        1,
        "it never registered again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_containers_by_hand_is_mended() {
    let stage = Stage::set().await;
    stage.run(NAME, &json!({})).await;
    let container = stage.node.container(NAME, 0);
    let first = stage.inspect(NAME)["Id"].clone();

    stage.docker.run(&["rm", "-f", "-v", &container]);
    stage.expect(NAME, "RUNNING").await;
    let second = stage.inspect(NAME)["Id"].clone();
    assert_ne!(first, second);

    stage.docker.run(&["pause", &container]);
    eventually("it goes on", || {
        stage.inspect(NAME)["State"]["Status"] == "running"
    })
    .await;

    stage.docker.run(&["kill", &container]);
    let report = stage.expect(NAME, "DEAD").await;
    let detail = report["status_detail"].as_str().expect("detail");
    assert!(detail.starts_with("exit code 137;"), "{detail}");
    stage.expect(NAME, "RUNNING").await;
    stage.docker.run(&["restart", "-t", "1", &container]);
    eventually("it runs", || stage.inspect(NAME)["State"]["Status"] == "running").await;
    assert_eq!(stage.inspect(NAME)["Id"], second);

    // What looks like one of this node's and was not ordered.
    let node = format!("oakestra.node={}", stage.node.id);
    stage.docker.run(&[
        "create",
        "--name",
        "stranger",
        "--network=none",
        "--label",
        &node,
        "--label",
        "oakestra.service=a.b.c.d",
        "--label",
        "oakestra.instance=7",
        crate::docker::IMAGE,
    ]);
    stage.docker.run(&[
        "create",
        "--name",
        "foreign",
        "--network=none",
        crate::docker::IMAGE,
    ]);
    stage.end_besides(NAME, &["foreign"]).await;
    stage.docker.run(&["rm", "-v", "foreign"]);
}
