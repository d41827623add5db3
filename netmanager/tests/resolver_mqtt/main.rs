//! The resolver against a real broker, with the test in the place of the cluster.
//!
//! Needs `mosquitto` and a loopback interface.

mod broker;
mod cluster;

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use netmanager::resolver::{Deployed, Mqtt, MqttSettings, ResolveError, Resolver, ServiceRecord, Update};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use broker::{Access, Broker, Gate};
use cluster::Cluster;

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const NODE: &str = "65f0a1b2c3d4e5f6a7b8c9d0";
const NAME: &str = "app.ns.server.ns";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);

#[tokio::test]
async fn a_lease_is_asked_for_once_by_everyone_who_waits() {
    let mut stage = Stage::set().await;
    let leases = stage.both(|resolver| async move { resolver.lease().await });
    let request = stage.cluster.expect("subnet").await;
    assert_eq!(request, json!({"METHOD": "GET"}));
    let result = json!({"address": "10.18.0.64", "addressv6": "fc00::100", "instanceIp": "10.30.0.1"});
    stage.cluster.say("subnetwork/result", &result).await;
    for lease in within(leases).await {
        let lease = lease.expect("a lease");
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
    for answer in within(answers).await {
        let record = answer.expect("no error").expect("a service");
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
        assert_eq!(within(answer).await, Ok(None));
    }
    stage.nothing_else_was_asked().await;
}

#[tokio::test]
async fn a_late_answer_is_late_for_its_own_question_only_and_can_be_asked_for_again() {
    let mut stage = Stage::set_with(Duration::from_millis(300)).await;
    let late = stage.one(|resolver| async move { resolver.resolve(ADDRESS).await });
    stage.cluster.expect_query(&ADDRESS.to_string()).await;
    // A question that waits for its answer does not hold up another one.
    stage.nothing_else_was_asked().await;
    let late = within(late).await;
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
        within(again)
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
    assert_eq!(within(lease).await.expect("a lease").subnet_v6, None);

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
        within(answer)
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
            other => panic!("{other:?}"),
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

/// A broker, a cluster and a resolver that is connected.
struct Stage {
    broker: Broker,
    gate: Gate,
    cluster: Cluster,
    resolver: Arc<Mqtt>,
    updates: mpsc::Receiver<Update>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(PATIENCE).await
    }

    async fn set_with(query_deadline: Duration) -> Self {
        let broker = Broker::new(Access::Everybody).await;
        let gate = Gate::before(broker.port()).await;
        let cluster = Cluster::connect(broker.port(), NODE, NAME).await;
        let settings = MqttSettings::new(NODE, "127.0.0.1", gate.port()).expect("settings");
        let (resolver, updates) = Mqtt::connect(&settings.with_deadlines(query_deadline, PATIENCE));
        let mut stage = Self {
            broker,
            gate,
            cluster,
            resolver: Arc::new(resolver),
            updates,
        };
        let Update::Connection { up: true, .. } = stage.update().await else {
            panic!("no connection")
        };
        stage
    }

    /// Makes the service one of interest, with one instance.
    async fn resolve_service(&mut self) {
        let answer = self.one(|resolver| async move { resolver.resolve_name(NAME).await });
        for _ in 0..2 {
            self.cluster.expect_query(NAME).await;
            self.cluster.answer(NAME, &[running(0, 66)]).await;
        }
        within(answer).await.expect("no error").expect("a service");
    }

    /// Asks a question of its own: what the node said before would reach the cluster before it.
    async fn nothing_else_was_asked(&mut self) {
        let mark = Ipv4Addr::new(10, 30, 254, 254);
        let answer = self.one(move |resolver| async move { resolver.resolve(mark).await });
        self.cluster.expect_query(&mark.to_string()).await;
        self.cluster.answer_unknown(&mark.to_string()).await;
        assert_eq!(within(answer).await, Ok(None));
    }

    async fn service(&mut self) -> ServiceRecord {
        match self.update().await {
            Update::Service(record) => record,
            other => panic!("{other:?}"),
        }
    }

    async fn update(&mut self) -> Update {
        within(self.updates.recv()).await.expect("an update")
    }

    fn one<T, F>(&self, ask: impl FnOnce(Arc<Mqtt>) -> F) -> impl Future<Output = T> + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let task = tokio::spawn(ask(Arc::clone(&self.resolver)));
        async { task.await.expect("the question ends") }
    }

    fn both<T, F>(&self, ask: impl Fn(Arc<Mqtt>) -> F) -> impl Future<Output = [T; 2]> + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let [first, second] = [self.one(&ask), self.one(&ask)];
        async { [first.await, second.await] }
    }
}

fn running(number: u32, octet: u8) -> Value {
    let [third, fourth] = u16::try_from(number + 2).expect("few instances").to_be_bytes();
    json!({
        "instance_number": number, "instance_ip": format!("10.30.{third}.{fourth}"), "cluster_id": "c1",
        "namespace_ip": format!("10.18.0.{octet}"), "namespace_ip_v6": "<nil>",
        "host_ip": "192.0.2.11", "host_port": 50103,
        "service_ip": [{"IpType": "RR", "Address": ADDRESS.to_string(), "Address_v6": "fdff:2000::1"}]
    })
}

fn peer(number: u32, octet: u8) -> Value {
    let mut row = running(number, octet);
    row["app_name"] = json!("app.ns.client.ns");
    row
}

fn deployed() -> Deployed {
    Deployed {
        service: NAME.parse().expect("name"),
        number: 2,
        namespace_address: Ipv4Addr::new(10, 18, 0, 2),
        namespace_address_v6: Some("fc00::2".parse().expect("address")),
        node_address: Ipv4Addr::new(192, 0, 2, 10),
        node_port: 50103,
        incarnation: Some(7),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}
