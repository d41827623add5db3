//! What does not come back: a cluster, the state of a cluster, the state of the root.

use protocol::cluster::{FromCluster, FromRoot, HeldLease, Lease};
use protocol::instance::InstanceStatus;
use serde_json::json;

use crate::fake::{Cluster, capacity, greet, hello};
use crate::fixture::{Root, descriptor, service};

#[tokio::test]
async fn a_cluster_that_does_not_come_back_is_given_up() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let ids = admin
        .create(&descriptor(
            "app",
            &[
                service("stays", json!({})),
                service("leaves", json!({})),
                service("done", json!({})),
            ],
        ))
        .await;
    let (mut c1, _) = Cluster::ready(root.address, "c1").await;
    let mut placements = Vec::new();
    for id in &ids {
        admin.deploy(id).await;
        placements.push(c1.next_deploy().await);
    }
    c1.report(&placements[0], InstanceStatus::Running).await;
    c1.report(&placements[2], InstanceStatus::Completed).await;
    c1.until_acknowledged().await;
    let cluster = format!("/api/clusters/{}", c1.welcome.cluster_id);
    let connected = admin.delete(&cluster).await;
    assert_eq!(connected.status, 409, "{connected:?}");

    drop(c1);
    admin
        .until(&ids[0], "the end of the connection", |document| {
            document["instance_list"][0]["status_detail"]
                .as_str()
                .is_some_and(|text| text.contains("not connected"))
        })
        .await;
    assert_eq!(
        admin.delete(&format!("/api/service/{}", ids[1])).await.status,
        200
    );
    let address = json!({"addresses": {"rr_ip": placements[1].service_ip[0].address}});
    let reused = descriptor("other", &[service("leaves", address)]);
    let early = admin.post("/api/application", &reused).await;
    assert_eq!(early.status, 409, "the cluster may come back: {early:?}");

    let register = json!({"name": "anna", "password": "p"});
    assert_eq!(admin.post("/api/auth/register", &register).await.status, 200);
    let anna = root.login("anna", "p").await;
    assert_eq!(anna.delete(&cluster).await.status, 403);
    assert_eq!(root.anonymous().delete(&cluster).await.status, 401);
    let done = admin.delete(&cluster).await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(admin.delete(&cluster).await.status, 404);
    assert_eq!(admin.read("/api/clusters").await, json!([]));

    admin.create(&reused).await;
    // Another cluster may have the name, and gets what is still wanted and not done.
    let mut other = hello("c1");
    other.cluster_key = "of the one that was set up anew".to_owned();
    let mut c2 = Cluster::connect_with(root.address, other).await;
    assert_eq!(
        c2.next().await,
        FromRoot::Desired {
            placements: Vec::new(),
            more: false
        }
    );
    c2.send(FromCluster::State {
        capacity: capacity(),
        instances: Vec::new(),
        leases: Vec::new(),
    })
    .await;
    let placement = c2.next_deploy().await;
    assert_eq!(placement.job.id, ids[0]);
    assert!(placement.incarnation > placements[0].incarnation);
    assert_eq!(placement.instance_ip, placements[0].instance_ip);
    let document = admin.read(&format!("/api/service/{}", ids[2])).await;
    assert_eq!(
        document["instance_list"][0]["status"], "COMPLETED",
        "{document:#}"
    );
    c2.until_acknowledged().await;
}

#[tokio::test]
async fn nodes_keep_their_addresses_where_the_root_has_lost_its_state() {
    let held = |node: &str, last: u8| HeldLease {
        node_id: node.to_owned(),
        key: Some(format!("key of {node}")),
        lease: Lease {
            subnet: [10, 18, 0, last * 64].into(),
            subnet_v6: Some(format!("fc00::{last}00").parse().expect("address")),
            instance_ip: [10, 30, 0, 7 + last].into(),
            instance_ip_v6: Some(format!("fdff::{}", 7 + last).parse().expect("address")),
        },
    };
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let mut c1 = Cluster::connect(root.address, "c1").await;
    assert!(matches!(c1.next().await, FromRoot::Desired { .. }));
    let mut forged = held("n9", 3);
    forged.lease.instance_ip = held("n1", 1).lease.instance_ip;
    c1.send(FromCluster::State {
        capacity: capacity(),
        instances: Vec::new(),
        leases: vec![held("n0", 0), held("n1", 1), forged],
    })
    .await;
    let FromRoot::Lease { node_id, lease } = c1.next().await else {
        panic!("not a lease");
    };
    assert_eq!(node_id, "n9", "the others keep what they have");
    assert_eq!(
        lease.subnet.to_string(),
        "10.18.0.128",
        "the next that nobody has"
    );

    // Another cluster has a node that says it is the first.
    let (mut c2, _) = Cluster::ready(root.address, "c2").await;
    for (key, right) in [("key of n0", true), ("another", false)] {
        c2.send(FromCluster::LeaseRequest {
            node_id: "n0".to_owned(),
            key: Some(key.to_owned()),
        })
        .await;
        let answer = c2.next().await;
        if let FromRoot::Lease { lease, .. } = answer {
            assert!(right && lease == held("n0", 0).lease);
        } else {
            assert!(
                !right && matches!(answer, FromRoot::LeaseRefused { .. }),
                "{answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_no_frame_holds_is_said_in_several() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let much = service("one", json!({"vcpus": 0, "future": "x".repeat(1_000_000)}));
    let id = admin.create(&descriptor("app", &[much])).await.remove(0);
    let (mut c1, _) = Cluster::ready(root.address, "c1").await;
    for _ in 0..70 {
        admin.deploy(&id).await;
        c1.next_deploy().await;
    }
    drop(c1);
    let mut c1 = Cluster::connect(root.address, "c1").await;
    let mut count = 0;
    loop {
        let FromRoot::Desired { placements, more } = c1.next().await else {
            panic!("not what is desired");
        };
        assert!(placements.len() < 10, "{}", placements.len());
        count += placements.len();
        if !more {
            break;
        }
    }
    assert_eq!(count, 70);
}

#[tokio::test]
async fn clusters_are_no_browsers() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let mut headers = vec![
        ("Connection", "upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    headers.push(("Origin", "http://192.0.2.66"));
    let answer = root
        .anonymous()
        .try_send("GET", protocol::cluster::PATH, &headers, Vec::new())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 403, "{answer:?}");
    let (_, welcome) = greet(root.address, hello("c1")).await;
    assert!(matches!(welcome, protocol::cluster::Frame::Welcome(_)));
}
