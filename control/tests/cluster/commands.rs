//! Placements: ordered, acknowledged, lost, moved, stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::cluster::FromCluster;
use protocol::instance::InstanceStatus;
use protocol::job::INCARNATION_STEP;
use rand::Rng;
use serde_json::json;
use tokio::time::sleep;

use crate::node::{Client, Engine};
use crate::stage::{QUIET, Stage, placement, within};

const N1: &str = "0123456789abcdef00000001";
const N2: &str = "0123456789abcdef00000002";
const FIRST: u64 = INCARNATION_STEP;

#[tokio::test]
async fn two_services_go_to_two_nodes_and_the_root_hears_of_it() {
    let stage = Stage::set().await;
    let one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    let (client, server) = (placement("client", 0, FIRST), placement("nginx", 0, FIRST));
    stage.root.deploy(client.clone());
    stage.root.deploy(server.clone());
    stage
        .root
        .until("both run", |root| {
            [&client, &server]
                .iter()
                .all(|placement| root.status(&placement.key()) == Some(InstanceStatus::Running))
        })
        .await;
    assert_eq!(
        (one.runs(), two.runs()),
        (vec![(client.key(), FIRST)], vec![(server.key(), FIRST)])
    );
    stage
        .root
        .until("its use is told", |root| {
            root.reports
                .values()
                .all(|report| report.logs == "x" && report.disk == "3")
        })
        .await;
    let report = stage.root.known.lock().expect("known").reports[&server.key()].clone();
    assert_eq!((report.worker_id.as_str(), report.host.as_str()), (N2, "two"));

    stage.root.undeploy(&server.key());
    two.until_runs("it is stopped", <[_]>::is_empty).await;
    stage
        .root
        .until("the root hears that it is gone", |root| {
            root.status(&server.key()) == Some(InstanceStatus::Undeployed)
        })
        .await;
}

#[tokio::test]
async fn orders_are_repeated_until_they_are_acknowledged() {
    let stage = Stage::set().await;
    let registered = stage.register(N1, "one").await;
    let node = Client::connect(stage.mqtt, &registered, "-ne", &["control/#"]).await;
    let web = placement("web", 0, FIRST);
    stage.root.deploy(web.clone());
    for _ in 0..3 {
        let order = node.expect("control/deploy", |_| true).await;
        assert_eq!(
            (&order["incarnation"], &order["job_name"]),
            (&json!(FIRST), &json!("app.ns.web.ns"))
        );
        node.say("information", &json!({})).await;
    }
    let ack =
        json!({"command": "deploy", "job_name": "app.ns.web.ns", "instance_number": 0, "incarnation": FIRST});
    node.say("control/ack", &ack).await;
    node.say(
        "job",
        &json!({"sname": "app.ns.web.ns", "instance": 0, "status": "CREATED", "incarnation": FIRST}),
    )
    .await;
    stage
        .root
        .until("it is created", |root| {
            root.status(&web.key()) == Some(InstanceStatus::Created)
        })
        .await;
    while !node.seen("control/deploy").is_empty() {
        node.expect("control/deploy", |_| true).await;
    }
    node.expect_nothing("control/deploy").await;

    stage.root.undeploy(&web.key());
    for _ in 0..3 {
        let order = node.expect("control/delete", |_| true).await;
        assert_eq!(order["incarnation"], json!(FIRST));
        node.say("information", &json!({})).await;
    }
    let ack =
        json!({"command": "delete", "job_name": "app.ns.web.ns", "instance_number": 0, "incarnation": FIRST});
    node.say("control/ack", &ack).await;
    stage
        .root
        .until("it is gone", |root| {
            root.status(&web.key()) == Some(InstanceStatus::Undeployed)
        })
        .await;
}

#[tokio::test]
async fn what_a_node_has_lost_it_is_told_again_and_what_is_not_its_own_it_stops() {
    let stage = Stage::set().await;
    let one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    let web = placement("web", 0, FIRST);
    stage.root.deploy(web.clone());
    one.until_runs("it runs", |runs| runs.len() == 1).await;

    one.running.lock().expect("running").clear();
    one.until_runs("it runs again", |runs| runs == [(web.key(), FIRST)])
        .await;

    let stranger = placement("stranger", 3, FIRST).key();
    {
        let mut running = two.running.lock().expect("running");
        running.insert((stranger, 5), "RUNNING");
        running.insert((web.key(), FIRST), "RUNNING");
        one.running
            .lock()
            .expect("running")
            .insert((web.key(), FIRST - 1), "RUNNING");
    }
    two.until_runs("nothing of it is left", <[_]>::is_empty).await;
    one.until_runs("the old one is gone", |runs| runs == [(web.key(), FIRST)])
        .await;
}

#[tokio::test]
async fn nobody_reports_about_what_is_elsewhere() {
    let stage = Stage::set().await;
    let one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let liar = Client::connect(
        stage.mqtt,
        &stage.register(N2, "two").await,
        "-ne",
        &["control/#"],
    )
    .await;
    let web = placement("web", 0, FIRST);
    stage.root.deploy(web.clone());
    stage
        .root
        .until("it runs", |root| {
            root.status(&web.key()) == Some(InstanceStatus::Running)
        })
        .await;
    liar.say(
        "job",
        &json!({"sname": "app.ns.web.ns", "instance": 0, "status": "FAILED"}),
    )
    .await;
    one.client
        .say(
            "job",
            &json!({"sname": "app.ns.web.ns", "instance": 0, "status": "FAILED", "incarnation": 3}),
        )
        .await;
    sleep(QUIET).await;
    let known = stage.root.known.lock().expect("known");
    let lied = known.heard.iter().any(|message| {
        matches!(message, FromCluster::Instance { report } if report.status == InstanceStatus::Failed)
    });
    assert!(!lied);
}

#[tokio::test]
async fn instances_of_a_lost_node_go_elsewhere_and_the_old_ones_end() {
    let stage = Stage::set().await;
    let registered = stage.register(N1, "one").await;
    let one = Engine::start(stage.mqtt, &registered).await;
    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    let web = placement("web", 0, FIRST);
    stage.root.deploy(web.clone());
    one.until_runs("it runs", |runs| runs.len() == 1).await;

    drop(one);
    two.until_runs("it runs there", |runs| runs == [(web.key(), FIRST + 1)])
        .await;
    stage
        .root
        .until("the root hears of it", |root| {
            root.reports.get(&web.key()).is_some_and(|report| {
                report.incarnation == FIRST + 1
                    && report.worker_id == N2
                    && report.status == InstanceStatus::Running
            })
        })
        .await;

    // It comes back with what it had.
    let client = Client::connect(
        stage.mqtt,
        &registered,
        "-ne",
        &["control/deploy", "control/delete"],
    )
    .await;
    let back = Engine::with(client, BTreeMap::from([((web.key(), FIRST), "RUNNING")]));
    back.until_runs("the old one is stopped", <[_]>::is_empty).await;
    assert_eq!(two.runs(), [(web.key(), FIRST + 1)]);
}

#[tokio::test]
async fn what_fits_nowhere_goes_back_to_the_root_with_reasons() {
    let stage = Stage::set().await;
    let refused = |status: InstanceStatus, detail: &'static str| {
        move |root: &crate::stage::Known| {
            root.heard.iter().any(|message| {
                matches!(message, FromCluster::Refusal { status: of, detail: why, incarnation: FIRST, .. }
                    if *of == status && why.contains(detail))
            })
        }
    };
    stage.root.deploy(placement("a", 0, FIRST));
    stage
        .root
        .until("no node", refused(InstanceStatus::NoNodeFound, ""))
        .await;

    let _one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let mut big = placement("b", 0, FIRST);
    big.job.vcpus = 3;
    stage.root.deploy(big);
    let why = "one: 3 vCPUs are wanted, it has 2 in all";
    stage
        .root
        .until("too big", refused(InstanceStatus::NoQualifiedWorkerFound, why))
        .await;

    let mut published = placement("c", 0, FIRST);
    published.job.port = "80:80".to_owned();
    stage.root.deploy(published.clone());
    stage
        .root
        .until("it runs", |root| {
            root.status(&published.key()) == Some(InstanceStatus::Running)
        })
        .await;
    published.job.job_name = "app.ns.d.ns".parse().expect("name");
    stage.root.deploy(published);
    let why = "one: port 80/tcp is published by another instance";
    stage
        .root
        .until(
            "the port is taken",
            refused(InstanceStatus::NoWorkerCapacity, why),
        )
        .await;
}

#[tokio::test]
async fn all_goes_on_while_the_root_is_away() {
    let mut stage = Stage::set().await;
    let one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    let web = placement("web", 0, FIRST);
    stage.root.deploy(web.clone());
    one.until_runs("it runs", |runs| runs.len() == 1).await;
    stage.root.leave().await;
    stage.kill();
    stage.start().await;
    drop(one);
    two.until_runs("it is moved", |runs| runs == [(web.key(), FIRST + 1)])
        .await;
    drop(two);
    within("nobody has it", async {
        while stage.get("/api/nodes").await.1[1]["instances"] != json!({}) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    two.until_runs("it waited for room", |runs| {
        runs.len() == 1 && runs[0].1 > FIRST + 1
    })
    .await;
    stage.root.come_back().await;
    stage
        .root
        .until("the root hears of it", |root| {
            root.reports
                .get(&web.key())
                .is_some_and(|report| report.incarnation > FIRST + 1 && report.worker_id == N2)
        })
        .await;
}

#[tokio::test]
async fn killed_at_any_moment_it_comes_to_the_same() {
    let mut stage = Stage::set().await;
    let one = Engine::start(stage.mqtt, &stage.register(N1, "one").await).await;
    let two = Engine::start(stage.mqtt, &stage.register(N2, "two").await).await;
    let mut wanted = BTreeMap::new();
    for round in 0..8_u64 {
        // At most four fit.
        let incarnation = (round + 1) * INCARNATION_STEP;
        let placement = placement("web", u32::try_from(round % 4).expect("small"), incarnation);
        let key = placement.key();
        if round % 3 == 2
            && let Some((gone, _)) = wanted.pop_first()
        {
            stage.root.undeploy(&gone);
        }
        stage.root.deploy(placement);
        wanted.insert(key, incarnation);
        sleep(Duration::from_millis(rand::rng().random_range(0..60))).await;
        stage.kill();
        stage.start().await;
    }
    let expected: Vec<_> = wanted.into_iter().collect();
    let everywhere = || {
        let mut all = one.runs();
        all.extend(two.runs());
        all.sort();
        all
    };
    let settled = async {
        while everywhere() != expected {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(crate::stage::PATIENCE, settled).await;
    assert!(
        in_time.is_ok(),
        "wanted {expected:?}, there is {:?}",
        everywhere()
    );
    stage
        .root
        .until("the root knows", |root| {
            expected.iter().all(|(key, incarnation)| {
                root.reports.get(key).is_some_and(|report| {
                    report.incarnation == *incarnation && report.status == InstanceStatus::Running
                })
            })
        })
        .await;
    sleep(QUIET).await;
    assert_eq!(everywhere(), expected, "and it stays so");
}
