//! Sessions with clusters: kept, broken, resumed, refused.

use protocol::cluster::{Frame, FromCluster, FromRoot};
use protocol::instance::InstanceStatus;
use serde_json::json;

use crate::fake::{Cluster, capacity, dial, greet, hello, report};
use crate::fixture::{Root, descriptor, service};

#[tokio::test]
async fn clusters_are_listed_while_they_are_connected_and_after() {
    let folder = tempfile::tempdir().expect("folder");
    let mut root = Root::start(folder.path());
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    cluster.until_acknowledged().await;
    let nobody = root.anonymous();
    for path in [
        "/api/clusters",
        "/api/clusters/",
        "/api/clusters/active",
        "/api/clusters/active/",
    ] {
        let list = nobody.read(path).await;
        assert_eq!(list.as_array().expect("a list").len(), 1, "{path}");
        for (key, value) in [
            ("_id", json!(cluster.welcome.cluster_id)),
            ("cluster_name", json!("c1")),
            ("candidate_name", json!("c1")),
            ("cluster_location", json!("c1-town")),
            ("ip", json!("127.0.0.1")),
            ("port", json!("10100")),
            ("active", json!(true)),
            ("active_nodes", json!(2)),
            ("memory_in_mb", json!(65_536)),
            ("total_cpu_cores", json!(64)),
            ("virtualization", json!(["docker"])),
        ] {
            assert_eq!(list[0][key], value, "{path}: {key}");
        }
        assert_eq!(list[0]["cpu_history"].as_array().expect("a list").len(), 1);
        assert!(
            !list.to_string().contains("key of"),
            "the key is nobody's business"
        );
    }
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    admin.deploy(&id).await;
    let placement = cluster.next_deploy().await;
    cluster.report(&placement, InstanceStatus::Running).await;
    admin
        .until(&id, "running", |document| document["status"] == "RUNNING")
        .await;

    let cluster_id = cluster.welcome.cluster_id.clone();
    drop(cluster);
    let lost = admin
        .until(&id, "the loss", |document| {
            let detail = document["instance_list"][0]["status_detail"]
                .as_str()
                .expect("detail");
            detail.contains("cluster c1 is not connected since 20")
        })
        .await;
    assert_eq!(lost["status"], "RUNNING", "the last status is kept");
    assert_eq!(nobody.read("/api/clusters/active").await, json!([]));
    assert_eq!(nobody.read("/api/clusters").await[0]["active"], false);

    root.kill();
    let root = Root::start(folder.path());
    let (_cluster, placements) = Cluster::ready(root.address, "c1").await;
    assert_eq!(placements, [placement], "what is desired is said again");
    assert_eq!(root.anonymous().read("/api/clusters").await[0]["_id"], cluster_id);
}

#[tokio::test]
async fn who_is_not_wanted_hears_why() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let (_cluster, _) = Cluster::ready(root.address, "c1").await;
    let mut impostor = hello("c1");
    impostor.cluster_key = "another key".to_owned();
    let mut nameless = hello(" ");
    nameless.cluster_key = "key".to_owned();
    let mut keyless = hello("c3");
    keyless.cluster_key = String::new();
    let mut newer = hello("c4");
    newer.version += 1;
    for (hello, reason) in [
        (impostor, "belongs to another cluster"),
        (nameless, "1 to 128"),
        (keyless, "no key"),
        (newer, "version"),
    ] {
        let (_socket, answer) = greet(root.address, hello).await;
        let Frame::Refused { message } = answer else {
            panic!("not refused: {answer:?}");
        };
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(
        root.anonymous()
            .read("/api/clusters")
            .await
            .as_array()
            .expect("a list")
            .len(),
        1
    );
}

#[tokio::test]
async fn a_broken_connection_resumes_where_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    cluster.until_acknowledged().await;
    let (mut resume, session) = (cluster.resume("c1"), cluster.welcome.session.clone());
    // One message is read and not acknowledged, one is never read.
    cluster.acknowledges = false;
    admin.deploy(&id).await;
    let first = cluster.next_deploy().await;
    drop(cluster);
    admin.deploy(&id).await;

    resume.received += 1;
    let mut cluster = Cluster::connect_with(root.address, resume).await;
    assert!(
        cluster.welcome.resumed && cluster.welcome.session == session,
        "{:?}",
        cluster.welcome
    );
    assert_eq!(cluster.welcome.received, 1, "the state was taken in");
    let second = cluster.next_deploy().await;
    assert_eq!(
        (first.instance_number, second.instance_number),
        (0, 1),
        "no more and no less"
    );
    cluster.report(&second, InstanceStatus::Running).await;
    admin
        .until(&id, "running", |document| {
            document["instance_list"][1]["status"] == "RUNNING"
        })
        .await;

    // A session that the root does not know begins anew, with everything.
    let mut unknown = cluster.resume("c1");
    unknown.session = Some("of another life".to_owned());
    let mut cluster = Cluster::connect_with(root.address, unknown).await;
    assert!(!cluster.welcome.resumed);
    let FromRoot::Desired { placements, .. } = cluster.next().await else {
        panic!("not what is desired");
    };
    assert_eq!(placements.len(), 2);
}

#[tokio::test]
async fn what_left_while_nobody_listened_is_settled_by_the_state() {
    let folder = tempfile::tempdir().expect("folder");
    let mut root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    let mut placements = Vec::new();
    for _ in 0..3 {
        admin.deploy(&id).await;
        let placement = cluster.next_deploy().await;
        cluster.report(&placement, InstanceStatus::Running).await;
        placements.push(placement);
    }
    admin
        .until(&id, "running", |document| {
            document["instance_list"][2]["status"] == "RUNNING"
        })
        .await;
    drop(cluster);
    for number in [0, 1] {
        assert_eq!(
            admin
                .delete(&format!("/api/service/{id}/instance/{number}"))
                .await
                .status,
            200
        );
    }
    root.kill();
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    // Instance 0 still runs there; the cluster says nothing of instance 1, which may be about to go.
    let runs = [0, 2].map(|index| report(&placements[index], InstanceStatus::Running));
    let (mut cluster, desired) = Cluster::ready_with(root.address, "c1", runs.to_vec()).await;
    assert_eq!(desired, placements[2..]);
    let numbers = |document: &serde_json::Value| {
        let list = document["instance_list"].as_array().expect("a list").iter();
        list.map(|instance| instance["instance_number"].as_u64().expect("number"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        numbers(&admin.read(&format!("/api/service/{id}")).await),
        [0, 1, 2]
    );
    cluster.confirm_undeploy().await;
    admin
        .until(&id, "instance 1 to go", |document| numbers(document) == [0, 2])
        .await;
    // The cluster ends what is not desired, and says so.
    let gone = Box::new(report(&placements[0], InstanceStatus::Undeployed));
    cluster.send(FromCluster::Instance { report: gone }).await;
    admin
        .until(&id, "instance 0 to go", |document| numbers(document) == [2])
        .await;
}

#[tokio::test]
async fn malformed_frames_stop_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    for first in [
        "",
        "{",
        "[]",
        "{\"frame\":\"message\",\"number\":1,\"message\":{}}",
        "{\"frame\":\"hello\"}",
    ] {
        let mut socket = dial(root.address).await;
        futures_util::SinkExt::send(&mut socket, tokio_tungstenite::tungstenite::Message::text(first))
            .await
            .expect("send");
    }
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    cluster.until_acknowledged().await;
    for bad in [
        "",
        "{",
        "null",
        "{\"frame\":\"unknown\"}",
        "{\"frame\":\"acknowledge\",\"number\":\"x\"}",
    ] {
        cluster.send_text(bad).await;
    }
    // A message that cannot be read has its number all the same.
    cluster.sent += 1;
    let number = cluster.sent;
    let unknown = json!({"frame": "message", "number": number, "message": {"kind": "from the future"}});
    cluster.send_text(&unknown.to_string()).await;
    cluster.send(FromCluster::Capacity { capacity: capacity() }).await;
    cluster.until_acknowledged().await;
    assert_eq!(
        root.anonymous()
            .read("/api/clusters/active")
            .await
            .as_array()
            .expect("a list")
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_and_new_sessions_at_once_are_each_said_once() {
    const WISHES: u32 = 60;
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let small = service("one", json!({"vcpus": 0, "memory": 0}));
    let id = admin.create(&descriptor("app", &[small])).await.remove(0);
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    cluster.until_acknowledged().await;
    let wishing = {
        let (admin, id) = (admin.clone(), id.clone());
        tokio::spawn(async move {
            for _ in 0..WISHES {
                admin.deploy(&id).await;
            }
        })
    };
    // Each session replaces the one before it, in the middle of what it was told.
    let mut sessions = vec![cluster];
    for round in 1..=5 {
        let some = |document: &serde_json::Value| {
            document["next_instance_progressive_number"].as_u64() >= Some(round * 8)
        };
        admin.until(&id, "some wishes", some).await;
        sessions.push(Cluster::ready(root.address, "c1").await.0);
    }
    let (mut last, desired) = Cluster::ready(root.address, "c1").await;
    let mut told: Vec<u32> = desired
        .iter()
        .map(|placement| placement.instance_number)
        .collect();
    while told.len() < WISHES as usize {
        told.push(last.next_deploy().await.instance_number);
    }
    wishing.await.expect("all wishes");
    told.sort_unstable();
    assert_eq!(told, (0..WISHES).collect::<Vec<_>>());
}
