//! The resolver against a real broker, with the test in the place of the cluster.
//!
//! Needs `mosquitto` and a loopback interface.

mod broker;
mod cluster;
mod stage;

use std::net::Ipv4Addr;
use std::time::Duration;

use netmanager::resolver::{Credentials, Mqtt, MqttSettings, ResolveError, Resolver, Update};
use serde_json::{Value, json};

use broker::{Access, Broker};
use cluster::Cluster;
use stage::{ADDRESS, NAME, NODE, PATIENCE, Stage, deployed, ended, peer, running, within};

#[tokio::test]
async fn a_lease_is_asked_for_once_by_everyone_who_waits() {
    let mut stage = Stage::set().await;
    let leases = stage.both(|resolver| async move { resolver.lease().await });
    let request = stage.cluster.expect("subnet").await;
    assert_eq!(request, json!({"METHOD": "GET"}));
    let result = json!({"address": "10.18.0.64", "addressv6": "fc00::100", "instanceIp": "10.30.0.1"});
    stage.cluster.say("subnetwork/result", &result).await;
    for lease in leases {
        let lease = ended(lease).await.expect("a lease");
        assert_eq!(lease.subnet, Ipv4Addr::new(10, 18, 0, 64));
        assert_eq!(lease.subnet_v6, Some("fc00::100".parse().expect("address")));
        assert_eq!(lease.instance_address, Some(Ipv4Addr::new(10, 30, 0, 1)));
    }
    stage.nothing_else_was_asked().await;
}

#[tokio::test]
async fn concurrent_questions_about_one_address_are_one_request() {
    let mut stage = Stage::set().await;
    let answers = stage.both(|resolver| async move { resolver.resolve(ADDRESS).await });
    stage.cluster.expect_query(&ADDRESS.to_string()).await;
    stage
        .cluster
        .answer(&ADDRESS.to_string(), &[running(0, 66)])
        .await;
    for answer in answers {
        let record = ended(answer).await.expect("no error").expect("a service");
        assert_eq!(
            (record.name.as_str(), record.round_robin.as_slice()),
            (NAME, &[ADDRESS][..])
        );
        let instance = &record.instances[0];
        assert_eq!(instance.namespace_address, Ipv4Addr::new(10, 18, 0, 66));
        assert_eq!(
            (instance.node.address, instance.node.port),
            (Ipv4Addr::new(192, 0, 2, 11), 50103)
        );
    }
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer(NAME, &[running(0, 66)]).await;
    stage.nothing_else_was_asked().await;
}

#[tokio::test]
async fn an_unknown_address_is_known_not_to_exist() {
    let mut stage = Stage::set().await;
    for _ in 0..2 {
        let answer = stage.one(|resolver| async move { resolver.resolve(ADDRESS).await });
        stage.cluster.expect_query(&ADDRESS.to_string()).await;
        stage.cluster.answer_unknown(&ADDRESS.to_string()).await;
        assert_eq!(ended(answer).await, Ok(None));
    }
    stage.nothing_else_was_asked().await;
}

#[tokio::test]
async fn a_late_answer_is_late_for_its_own_question_only_and_can_be_asked_for_again() {
    let mut stage = Stage::set_with(Duration::from_millis(1_500)).await;
    let late = stage.one(|resolver| async move { resolver.resolve(ADDRESS).await });
    stage.cluster.expect_query(&ADDRESS.to_string()).await;
    // A question that waits for its answer does not hold up another one.
    stage.nothing_else_was_asked().await;
    let late = ended(late).await;
    assert!(matches!(late, Err(ResolveError::Late { .. })), "{late:?}");

    stage
        .cluster
        .answer(&ADDRESS.to_string(), &[running(0, 66)])
        .await;
    let again = stage.one(|resolver| async move { resolver.resolve(ADDRESS).await });
    stage.cluster.expect_query(&ADDRESS.to_string()).await;
    stage
        .cluster
        .answer(&ADDRESS.to_string(), &[running(0, 66)])
        .await;
    assert_eq!(
        ended(again)
            .await
            .expect("in time")
            .expect("a service")
            .instances
            .len(),
        1
    );
}

#[tokio::test]
async fn an_update_is_asked_about_and_told() {
    let mut stage = Stage::set().await;
    stage.resolve_service().await;
    stage.cluster.say_to_all(&json!({"type": "DEPLOYMENT"})).await;
    stage.cluster.expect_query(NAME).await;
    stage
        .cluster
        .answer(
            NAME,
            &[running(0, 66), running(1, 67), json!({"instance_number": 2})],
        )
        .await;
    let record = stage.service().await;
    assert_eq!(record.instances.len(), 2, "a pending instance is not one");

    stage.cluster.say_to_all(&json!({"type": "UNDEPLOYMENT"})).await;
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer(NAME, &[]).await;
    let record = stage.service().await;
    assert_eq!((record.instances.len(), record.round_robin), (0, vec![ADDRESS]));

    stage.cluster.say_to_all(&json!({"type": "UNDEPLOYMENT"})).await;
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer_unknown(NAME).await;
    let Update::Gone { name } = stage.update().await else {
        panic!("a service that is gone")
    };
    assert_eq!(name, NAME);
}

#[tokio::test]
async fn who_is_not_interested_any_more_hears_nothing_any_more() {
    let mut stage = Stage::set().await;
    stage.resolve_service().await;
    stage.resolver.uninterested(NAME).await.expect("a name");
    assert_eq!(
        stage.cluster.expect("interest/remove").await,
        json!({"appname": NAME})
    );
    stage.cluster.say_to_all(&json!({"type": "DEPLOYMENT"})).await;
    stage.nothing_else_was_asked().await;
}

#[tokio::test]
async fn peers_are_acknowledged_when_and_only_when_they_are_installed() {
    let mut stage = Stage::set().await;
    let push =
        |version: u64| json!({"version": version, "rows": [peer(0, 70), {"app_name": "x"}, peer(1, 71)]});
    stage.cluster.say("peers", &push(5)).await;
    let Update::Peers {
        instances,
        acknowledge,
    } = stage.update().await
    else {
        panic!("peers")
    };
    assert_eq!(instances.len(), 2, "the malformed row is skipped alone");
    stage.nothing_else_was_asked().await;
    acknowledge.send(()).expect("somebody waits for it");
    assert_eq!(stage.cluster.expect("peers/ack").await, json!({"version": 5}));

    for version in [5, 4] {
        stage.cluster.say("peers", &push(version)).await;
        assert_eq!(
            stage.cluster.expect("peers/ack").await,
            json!({"version": version})
        );
    }
    stage.cluster.say("peers", &push(6)).await;
    let Update::Peers { acknowledge, .. } = stage.update().await else {
        panic!("only the new version")
    };
    drop(acknowledge);
    stage.nothing_else_was_asked().await;
    stage.cluster.say("peers", &push(6)).await;
    let Update::Peers { acknowledge, .. } = stage.update().await else {
        panic!("what failed comes again")
    };
    acknowledge.send(()).expect("somebody waits for it");
    assert_eq!(stage.cluster.expect("peers/ack").await, json!({"version": 6}));
}

#[tokio::test]
async fn malformed_messages_stop_nothing() {
    let mut stage = Stage::set().await;
    stage.resolve_service().await;
    for topic in ["subnetwork/result", "tablequery/result", "peers"] {
        for payload in [
            "",
            "{",
            "[]",
            "null",
            "\u{0}",
            r#"{"version":"x","instance_list":7,"address":"?"}"#,
        ] {
            stage
                .cluster
                .say_bytes(&format!("nodes/{NODE}/net/{topic}"), payload.as_bytes())
                .await;
        }
    }
    let lease = stage.one(|resolver| async move { resolver.lease().await });
    stage.cluster.expect("subnet").await;
    stage
        .cluster
        .say("subnetwork/result", &json!({"address": "10.18.0.64"}))
        .await;
    assert_eq!(ended(lease).await.expect("a lease").subnet_v6, None);

    // Whatever an update says, it says that there is one.
    stage
        .cluster
        .say_bytes(&format!("jobs/{NAME}/updates_available"), b"\xff{")
        .await;
    stage.cluster.expect_query(NAME).await;
    stage
        .cluster
        .answer(NAME, &[running(0, 66), json!("row"), running(3, 67)])
        .await;
    assert_eq!(stage.service().await.instances.len(), 2);

    stage
        .cluster
        .say("peers", &json!({"version": 1, "rows": [peer(0, 70)]}))
        .await;
    let Update::Peers { acknowledge, .. } = stage.update().await else {
        panic!("peers")
    };
    acknowledge.send(()).expect("somebody waits for it");
    stage.cluster.expect("peers/ack").await;
}

#[tokio::test]
async fn a_table_of_thousands_of_rows_arrives() {
    let mut stage = Stage::set().await;
    let rows: Vec<Value> = (0..5_000).map(|number| running(number, 66)).collect();
    let answer = stage.one(|resolver| async move { resolver.resolve_name(NAME).await });
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer(NAME, &rows).await;
    assert_eq!(
        ended(answer)
            .await
            .expect("no error")
            .expect("a service")
            .instances
            .len(),
        5_000
    );
}

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_finds_everything_as_it_was() {
    let mut stage = Stage::set().await;
    stage.resolve_service().await;
    stage.resolver.deployed(&deployed()).await.expect("told");
    let announced = stage.cluster.expect("service/deployed").await;
    assert_eq!(
        announced,
        json!({
            "appname": NAME, "status": "DEPLOYED", "instance_number": 2, "nsip": "10.18.0.2",
            "nsipv6": "fc00::2", "host_port": "50103", "host_ip": "192.0.2.10", "incarnation": 7
        })
    );

    stage.broker.kill().await;
    let Update::Connection { up: false, .. } = stage.update().await else {
        panic!("the connection is gone")
    };
    let away = within(stage.resolver.resolve(ADDRESS)).await;
    assert!(matches!(away, Err(ResolveError::Away(_))), "{away:?}");

    // The node comes back when the cluster listens again, else what it says at once would be lost to the test.
    stage.gate.close();
    stage.broker.start().await;
    stage.cluster = Cluster::connect(stage.broker.port(), NODE, NAME).await;
    stage.gate.open().await;
    assert_eq!(stage.cluster.expect("service/deployed").await, announced);
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer(NAME, &[running(0, 68)]).await;
    let record = loop {
        match stage.update().await {
            Update::Service(record) => break record,
            Update::Connection { .. } => {}
            other @ (Update::Peers { .. } | Update::Gone { .. }) => panic!("{other:?}"),
        }
    };
    assert_eq!(
        record.instances[0].namespace_address,
        Ipv4Addr::new(10, 18, 0, 68)
    );

    stage.cluster.say_to_all(&json!({"type": "DEPLOYMENT"})).await;
    stage.cluster.expect_query(NAME).await;
    stage.cluster.answer(NAME, &[running(0, 69)]).await;
    assert_eq!(
        stage.service().await.instances[0].namespace_address,
        Ipv4Addr::new(10, 18, 0, 69)
    );

    stage.resolver.undeployed(&deployed()).await.expect("told");
    assert_eq!(
        stage.cluster.expect("service/undeployed").await["status"],
        "UNDEPLOYED"
    );
}

#[tokio::test]
async fn what_was_said_while_the_node_was_away_is_heard_when_it_is_back() {
    let mut stage = Stage::set().await;
    stage.resolve_service().await;
    stage.resolver.deployed(&deployed()).await.expect("told");
    stage.cluster.expect("service/deployed").await;

    stage.gate.close();
    let Update::Connection { up: false, .. } = stage.update().await else {
        panic!("the connection is gone")
    };
    stage
        .cluster
        .say("peers", &json!({"version": 1, "rows": [peer(0, 70)]}))
        .await;
    stage.resolver.undeployed(&deployed()).await.expect("told later");
    stage.gate.open().await;

    let acknowledge = loop {
        match stage.update().await {
            Update::Peers { acknowledge, .. } => break acknowledge,
            Update::Connection { .. } => {}
            other @ (Update::Service(_) | Update::Gone { .. }) => panic!("{other:?}"),
        }
    };
    // What is true by now, and not first what was true before.
    stage.cluster.expect("service/undeployed").await;
    stage.cluster.expect_query(NAME).await;
    acknowledge.send(()).expect("somebody waits for it");
    stage.cluster.expect("peers/ack").await;
}

#[tokio::test]
async fn a_node_follows_its_cluster_to_another_broker_with_another_login() {
    let mut stage = Stage::set().await;
    let guarded = Broker::new(Access::User("n1", "secret")).await;
    let settings = |password: &str| {
        let settings = MqttSettings::new(NODE, "127.0.0.1", guarded.port()).expect("settings");
        let (user, password) = ("n1".to_owned(), password.to_owned());
        settings.with_credentials(Credentials { user, password })
    };
    stage.resolver.follow(settings("wrong"));
    let detail = loop {
        match stage.update().await {
            Update::Connection { up: false, detail } if detail.contains("refuses this node") => break detail,
            Update::Connection { up: false, .. } => {}
            other @ (Update::Connection { .. }
            | Update::Peers { .. }
            | Update::Service(_)
            | Update::Gone { .. }) => panic!("{other:?}"),
        }
    };
    assert!(!detail.contains("secret"), "{detail}");
    stage.resolver.follow(settings("secret"));
    while !matches!(stage.update().await, Update::Connection { up: true, .. }) {}
    // The same again is no reason to connect anew.
    stage.resolver.follow(settings("secret"));
    let quiet = tokio::time::timeout(Duration::from_millis(300), stage.updates.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_broker_that_refuses_the_node_is_not_merely_away() {
    let broker = Broker::new(Access::Nobody).await;
    let settings = MqttSettings::new(NODE, "127.0.0.1", broker.port()).expect("settings");
    let (resolver, mut updates) =
        Mqtt::connect(&settings.with_deadlines(PATIENCE, Duration::from_millis(300)));
    let refused = within(resolver.resolve(ADDRESS)).await;
    assert!(matches!(refused, Err(ResolveError::Refused(_))), "{refused:?}");
    let refused = within(resolver.lease()).await;
    assert!(matches!(refused, Err(ResolveError::Refused(_))), "{refused:?}");
    let update = within(updates.recv()).await;
    assert!(
        matches!(update, Some(Update::Connection { up: false, .. })),
        "{update:?}"
    );
}
