//! Instances: from the wish to the end.

use protocol::cluster::{FromCluster, FromRoot, InstanceReport};
use protocol::instance::InstanceStatus;
use protocol::network::{InstanceRow, IpType, Lenient, TableQuery};
use serde_json::{Value, json};

use crate::fake::{Cluster, capacity, report};
use crate::fixture::{Root, descriptor, service};

/// The instance of a service's document.
fn instance(document: &Value, index: usize) -> &Value {
    &document["instance_list"][index]
}

fn has_status(status: &str) -> impl Fn(&Value) -> bool {
    move |document| instance(document, 0)["status"] == status
}

#[tokio::test]
async fn a_wish_becomes_a_running_instance_and_goes_again() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor(
            "app",
            &[service("one", json!({"future": 1, "instance_ip": "no"}))],
        ))
        .await
        .remove(0);
    let (mut cluster, placements) = Cluster::ready(root.address, "c1").await;
    assert_eq!(placements, []);

    // Whether the capacity has been taken in or not: the wish is granted.
    assert_eq!(admin.deploy(&id).await, 0);
    let placement = cluster.next_deploy().await;
    assert_eq!(placement.job.job_name.as_str(), "app.test.one.test");
    assert_eq!(
        (placement.job.memory, placement.job.vcpus, placement.app_id),
        (100, 1, 1)
    );
    assert_eq!(placement.job.rest["future"], 1);
    assert_eq!((placement.instance_number, placement.incarnation), (0, 65_536));
    let address = placement.instance_ip.expect("an address");
    let document = admin
        .until(&id, "the cluster", has_status("CLUSTER_SCHEDULED"))
        .await;
    assert_eq!(instance(&document, 0)["cluster_id"], cluster.welcome.cluster_id);
    assert_eq!(instance(&document, 0)["cluster_location"], "c1-town");
    assert_eq!(instance(&document, 0)["instance_ip"], address.to_string());
    assert_eq!(document["next_instance_progressive_number"], 1);

    for status in [
        InstanceStatus::NodeScheduled,
        InstanceStatus::Creating,
        InstanceStatus::Created,
    ] {
        cluster.report(&placement, status).await;
    }
    let mut running = report(&placement, InstanceStatus::Running);
    running.cpu_percent = "1.5".to_owned();
    running.memory_percent = "2.5".to_owned();
    running.disk = "3".to_owned();
    running.logs = format!("{}\u{e4}end", "x".repeat(3000));
    cluster
        .send(FromCluster::Instance {
            report: Box::new(running),
        })
        .await;
    let document = admin.until(&id, "running", has_status("RUNNING")).await;
    let shown = instance(&document, 0);
    for (key, value) in [
        ("instance_number", json!(0)),
        ("worker_id", json!("w1")),
        ("hostname", json!("h1")),
        ("host_ip", json!("192.0.2.7")),
        ("publicip", json!("192.0.2.7")),
        ("cpu_percent", json!("1.5")),
        ("memory_percent", json!("2.5")),
        ("disk", json!("3")),
        ("status_detail", json!("No extra information")),
        ("incarnation", json!(65_536)),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    let logs = shown["logs"].as_str().expect("logs");
    assert!(logs.len() <= 1024 && logs.ends_with("\u{e4}end"), "{logs}");
    assert_eq!(document["status"], "RUNNING");

    // A late report does not turn the clock back.
    cluster.report(&placement, InstanceStatus::Creating).await;
    cluster.report(&placement, InstanceStatus::Running).await;
    cluster.until_acknowledged().await;
    assert_eq!(
        instance(&admin.read(&format!("/api/service/{id}")).await, 0)["status"],
        "RUNNING"
    );

    assert_eq!(
        admin
            .delete(&format!("/api/service/{id}/instance/0"))
            .await
            .status,
        200
    );
    let document = admin.read(&format!("/api/service/{id}")).await;
    let detail = instance(&document, 0)["status_detail"].as_str().expect("detail");
    assert!(detail.contains("is being undeployed"), "{detail}");
    cluster.confirm_undeploy().await;
    admin
        .until(&id, "the end", |document| document["instance_list"] == json!([]))
        .await;
    // The number and the address are not used again soon.
    assert_eq!(admin.deploy(&id).await, 1);
    let next = cluster.next_deploy().await;
    assert!(next.incarnation > placement.incarnation && next.instance_ip != placement.instance_ip);
}

#[tokio::test]
async fn what_fits_nowhere_waits_and_is_tried_again() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let there = json!({"constraints": [{"type": "direct", "cluster": "c2"}]});
    let services = [
        service("one", json!({})),
        service("two", there),
        service("big", json!({"memory": 100_000})),
    ];
    let ids = admin.create(&descriptor("app", &services)).await;
    for id in &ids {
        admin.deploy(id).await;
    }
    admin
        .until(&ids[0], "no cluster", has_status("TargetClusterNotActive"))
        .await;
    admin
        .until(&ids[1], "no such cluster", has_status("TargetClusterNotFound"))
        .await;

    // A cluster without nodes is no help.
    let mut empty = Cluster::connect(root.address, "empty").await;
    assert!(matches!(empty.next().await, FromRoot::Desired { placements, .. } if placements.is_empty()));
    let waiting = admin
        .until(&ids[0], "no node", has_status("NoActiveClusterWithCapacity"))
        .await;
    assert_eq!(
        instance(&waiting, 0)["status_detail"],
        "empty: it has no active node"
    );
    drop(empty);

    let (mut c1, _) = Cluster::ready(root.address, "c1").await;
    let one = c1.next_deploy().await;
    assert_eq!(one.job.id, ids[0]);
    let big = admin
        .until(&ids[2], "no room", has_status("NoActiveClusterWithCapacity"))
        .await;
    let detail = instance(&big, 0)["status_detail"].as_str().expect("detail");
    assert!(detail.contains("100000 MiB of memory are wanted"), "{detail}");

    let (mut c2, _) = Cluster::ready(root.address, "c2").await;
    let two = c2.next_deploy().await;
    assert_eq!(two.job.id, ids[1]);
    // More room in one of them.
    let mut more = capacity();
    more.memory = 200_000;
    more.memory_free = 200_000;
    more.largest_memory = 200_000;
    c2.send(FromCluster::Capacity { capacity: more }).await;
    assert_eq!(c2.next_deploy().await.job.id, ids[2]);
    admin
        .until(&ids[2], "the cluster", has_status("CLUSTER_SCHEDULED"))
        .await;
}

#[tokio::test]
async fn a_refusal_sends_it_to_the_next_cluster() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let (mut c1, _) = Cluster::ready(root.address, "c1").await;
    let (mut c2, _) = Cluster::ready(root.address, "c2").await;
    c1.until_acknowledged().await;
    c2.until_acknowledged().await;
    admin.deploy(&id).await;
    // Both have the same room; whichever is first.
    let document = admin
        .until(&id, "a cluster", has_status("CLUSTER_SCHEDULED"))
        .await;
    let first_is_c1 = instance(&document, 0)["cluster_id"] == c1.welcome.cluster_id;
    let (mut first, mut second) = if first_is_c1 { (c1, c2) } else { (c2, c1) };
    let refusal = |placement: &protocol::job::Placement, detail: &str| FromCluster::Refusal {
        key: placement.key(),
        incarnation: placement.incarnation,
        status: InstanceStatus::NoWorkerCapacity,
        detail: detail.to_owned(),
    };
    let placement = first.next_deploy().await;
    first.send(refusal(&placement, "n1: 0 vCPUs are free")).await;
    let again = second.next_deploy().await;
    assert!(again.incarnation > placement.incarnation);
    assert_eq!(again.instance_ip, placement.instance_ip, "the address is kept");
    // The refusal of a placement that is not there any more says nothing.
    first.send(refusal(&placement, "late")).await;
    first.until_acknowledged().await;
    second.send(refusal(&again, "n2: port 80 is taken")).await;
    let document = admin
        .until(&id, "nowhere", has_status("NoActiveClusterWithCapacity"))
        .await;
    let detail = instance(&document, 0)["status_detail"].as_str().expect("detail");
    assert!(
        detail.contains("0 vCPUs are free") && detail.contains("port 80 is taken"),
        "{detail}"
    );
    // The same capacity is no reason to ask again, another one is.
    first.send(FromCluster::Capacity { capacity: capacity() }).await;
    first.until_acknowledged().await;
    let mut other = capacity();
    other.vcpus_free = 63;
    first.send(FromCluster::Capacity { capacity: other }).await;
    let third = first.next_deploy().await;
    assert_eq!(third.job.id, id);
    first.report(&third, InstanceStatus::Running).await;
    admin.until(&id, "running", has_status("RUNNING")).await;
}

#[tokio::test]
async fn reports_that_nobody_waits_for_are_answered() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    admin.deploy(&id).await;
    let placement = cluster.next_deploy().await;
    let expect_end = |message: FromRoot, report: &InstanceReport| {
        let FromRoot::Undeploy { key, incarnation } = message else {
            panic!("not an undeploy: {message:?}");
        };
        assert_eq!((key, incarnation), (report.key.clone(), report.incarnation));
    };
    // Of another number, of another service, of another placement.
    let mut unknown = report(&placement, InstanceStatus::Running);
    unknown.key.instance_number = 7;
    let mut foreign = report(&placement, InstanceStatus::Running);
    foreign.key.job_name = "a.b.c.d".parse().expect("name");
    let mut old = report(&placement, InstanceStatus::Running);
    old.incarnation = 5;
    for stranger in [unknown, foreign, old] {
        cluster
            .send(FromCluster::Instance {
                report: Box::new(stranger.clone()),
            })
            .await;
        expect_end(cluster.next().await, &stranger);
    }
    // The cluster places it anew and counts up.
    cluster.report(&placement, InstanceStatus::Running).await;
    let mut anew = report(&placement, InstanceStatus::NodeScheduled);
    anew.incarnation += 1;
    cluster
        .send(FromCluster::Instance {
            report: Box::new(anew.clone()),
        })
        .await;
    admin.until(&id, "anew", has_status("NODE_SCHEDULED")).await;
    let before = report(&placement, InstanceStatus::Running);
    cluster
        .send(FromCluster::Instance {
            report: Box::new(before.clone()),
        })
        .await;
    expect_end(cluster.next().await, &before);
    // Taken away by itself: it is placed anew once the cluster has other room.
    anew.status = InstanceStatus::Undeployed;
    cluster
        .send(FromCluster::Instance {
            report: Box::new(anew),
        })
        .await;
    admin
        .until(&id, "waiting", has_status("NoActiveClusterWithCapacity"))
        .await;
    let mut other = capacity();
    other.vcpus_free -= 1;
    cluster.send(FromCluster::Capacity { capacity: other }).await;
    assert!(cluster.next_deploy().await.incarnation > placement.incarnation + 1);
}

#[tokio::test]
async fn nodes_keep_their_addresses_and_services_are_looked_up() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let address = json!({"addresses": {"rr_ip": "10.30.55.55", "closest_ip": "10.30.55.56"}, "constraints": [{"type": "direct", "cluster": "c1"}]});
    let id = admin
        .create(&descriptor("app", &[service("one", address)]))
        .await
        .remove(0);
    let (mut c1, _) = Cluster::ready(root.address, "c1").await;
    let (mut c2, _) = Cluster::ready(root.address, "c2").await;

    let mut leases = Vec::new();
    for node in ["n1", "n2", "n1"] {
        c1.send(FromCluster::LeaseRequest {
            node_id: node.to_owned(),
            key: Some("secret".to_owned()),
        })
        .await;
        let FromRoot::Lease { node_id, lease } = c1.next().await else {
            panic!("not a lease");
        };
        assert_eq!(node_id, node);
        leases.push(lease);
    }
    assert_eq!(leases[0], leases[2]);
    assert_eq!(leases[0].subnet.to_string(), "10.18.0.0");
    assert_eq!(leases[1].subnet.to_string(), "10.18.0.64");
    assert_ne!(leases[0].instance_ip, leases[1].instance_ip);
    c1.send(FromCluster::LeaseRequest {
        node_id: "../x".to_owned(),
        key: None,
    })
    .await;
    assert!(matches!(c1.next().await, FromRoot::LeaseRefused { .. }));

    // c2 asks, before there is an instance.
    let query = TableQuery {
        sname: String::new(),
        sip: "10.30.55.55".to_owned(),
    };
    c2.send(FromCluster::Lookup { query: query.clone() }).await;
    let FromRoot::Table {
        query: answered,
        result,
    } = c2.next().await
    else {
        panic!("not a table");
    };
    assert_eq!(
        (answered, result.query_key.as_str()),
        (query.clone(), "10.30.55.55")
    );
    assert_eq!(result.app_name.expect("a name").as_str(), "app.test.one.test");
    assert_eq!(result.instance_list.len(), 0);
    let addresses = result
        .service_ip
        .iter()
        .map(|address| (address.kind.clone(), address.address));
    assert_eq!(
        addresses.collect::<Vec<_>>(),
        [
            (IpType::RoundRobin, Some([10, 30, 55, 55].into())),
            (IpType::Closest, Some([10, 30, 55, 56].into()))
        ]
    );

    admin.deploy(&id).await;
    let placement = c1.next_deploy().await;
    let changed = |message: FromRoot| {
        let FromRoot::ServiceChanged { job_name } = message else {
            panic!("not a change: {message:?}");
        };
        assert_eq!(job_name.as_str(), "app.test.one.test");
    };
    changed(c2.next().await);
    let mut attached = report(&placement, InstanceStatus::Running);
    attached.row = Some(InstanceRow {
        instance_number: 0,
        namespace_ip: Some([10, 18, 0, 2].into()),
        host_ip: Some([192, 0, 2, 7].into()),
        host_port: Some(50103),
        node_id: Some("n1".to_owned()),
        ..InstanceRow::default()
    });
    c1.send(FromCluster::Instance {
        report: Box::new(attached),
    })
    .await;
    changed(c2.next().await);
    let own = placement.instance_ip.expect("an address").to_string();
    for query in [
        query,
        TableQuery {
            sname: String::new(),
            sip: own,
        },
        TableQuery {
            sname: String::new(),
            sip: "10.30.55.56".to_owned(),
        },
        TableQuery {
            sname: "app.test.one.test".to_owned(),
            sip: String::new(),
        },
    ] {
        c2.send(FromCluster::Lookup { query }).await;
        let FromRoot::Table { result, .. } = c2.next().await else {
            panic!("not a table");
        };
        let [Lenient::Read(row)] = &result.instance_list[..] else {
            panic!("one row: {result:?}");
        };
        assert_eq!(row.namespace_ip.expect("where").to_string(), "10.18.0.2");
        assert_eq!(
            (row.host_port, row.instance_ip),
            (Some(50103), placement.instance_ip)
        );
        assert_eq!(
            (row.incarnation, row.app_id),
            (Some(placement.incarnation), Some(1))
        );
    }
    for sip in ["10.30.1.1", "nonsense", &leases[0].instance_ip.to_string()] {
        let query = TableQuery {
            sname: String::new(),
            sip: sip.to_owned(),
        };
        c2.send(FromCluster::Lookup { query }).await;
        let FromRoot::Table { result, .. } = c2.next().await else {
            panic!("not a table");
        };
        assert_eq!((result.app_name, result.instance_list.len()), (None, 0), "{sip}");
    }
}

#[tokio::test]
async fn fifty_rounds_leave_no_address() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    for round in 0..50 {
        let document = descriptor(
            "app",
            &[service("one", json!({"addresses": {"rr_ip": "10.30.55.55"}}))],
        );
        let id = admin.create(&document).await.remove(0);
        for _ in 0..2 {
            admin.deploy(&id).await;
            let placement = cluster.next_deploy().await;
            cluster.report(&placement, InstanceStatus::Running).await;
        }
        let application = admin.read("/api/applications").await[0]["applicationID"]
            .as_str()
            .expect("id")
            .to_owned();
        assert_eq!(
            admin
                .delete(&format!("/api/application/{application}"))
                .await
                .status,
            200
        );
        assert_eq!(
            admin.read("/api/applications").await,
            json!([]),
            "it is gone at once"
        );
        if round == 0 {
            // Its name and address are free when the cluster has confirmed, and not before.
            let early = admin.post("/api/application", &document).await;
            assert_eq!(early.status, 409, "{early:?}");
            assert!(
                early.body["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("still being undeployed"))
            );
        }
        cluster.confirm_undeploy().await;
        cluster.confirm_undeploy().await;
        cluster.until_acknowledged().await;
    }
    assert_eq!(admin.read("/api/services").await, json!([]));
    assert!(root.stop().success());
    let store = control::store::Embedded::open(&folder.path().join("var/lib/oakestra/root")).expect("store");
    for prefix in ["address/", "instance/", "service/", "application/"] {
        let left = control::store::Store::range(&store, prefix).await.expect("range");
        assert!(left.is_empty(), "{prefix}: {left:?}");
    }
}

#[tokio::test]
async fn figures_are_shown_and_not_written() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let id = admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    admin.deploy(&id).await;
    let placement = cluster.next_deploy().await;
    cluster.report(&placement, InstanceStatus::Running).await;
    cluster.until_acknowledged().await;
    let file = folder.path().join("var/lib/oakestra/root/state.redb");
    let written = || std::fs::metadata(&file).expect("file").modified().expect("time");
    let before = written();
    for figure in 0..100 {
        let mut usage = report(&placement, InstanceStatus::Running);
        usage.cpu_percent = figure.to_string();
        cluster
            .send(FromCluster::Instance {
                report: Box::new(usage),
            })
            .await;
        let mut load = capacity();
        load.cpu_percent = f64::from(figure);
        cluster.send(FromCluster::Capacity { capacity: load }).await;
    }
    cluster.until_acknowledged().await;
    let document = admin.read(&format!("/api/service/{id}")).await;
    assert_eq!(instance(&document, 0)["cpu_percent"], "99");
    let list = root.anonymous().read("/api/clusters").await;
    assert_eq!(list[0]["aggregated_cpu_percent"], 99.0);
    assert_eq!(
        list[0]["cpu_history"].as_array().expect("a list").len(),
        100,
        "the past is bounded"
    );
    assert_eq!(before, written());
    cluster.report(&placement, InstanceStatus::Failed).await;
    cluster.until_acknowledged().await;
    assert_ne!(before, written(), "a status is");
}
