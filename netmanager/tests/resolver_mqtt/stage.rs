//! What a test needs around it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use netmanager::resolver::{Deployed, Mqtt, MqttSettings, Resolver, ServiceRecord, Update};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::broker::{Access, Broker, Gate};
use crate::cluster::Cluster;

/// Longer than anything here takes; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const NODE: &str = "65f0a1b2c3d4e5f6a7b8c9d0";
pub const NAME: &str = "app.ns.server.ns";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);

/// A broker, a cluster and a resolver that is connected.
pub struct Stage {
    pub broker: Broker,
    pub gate: Gate,
    pub cluster: Cluster,
    pub resolver: Arc<Mqtt>,
    pub updates: mpsc::Receiver<Update>,
}

impl Stage {
    /// Waits until the resolver is connected.
    pub async fn set() -> Self {
        Self::set_with(PATIENCE).await
    }

    /// The same with another deadline for answers about services.
    pub async fn set_with(query_deadline: Duration) -> Self {
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
    pub async fn resolve_service(&mut self) {
        let answer = self.one(|resolver| async move { resolver.resolve_name(NAME).await });
        for _ in 0..2 {
            self.cluster.expect_query(NAME).await;
            self.cluster.answer(NAME, &[running(0, 66)]).await;
        }
        ended(answer).await.expect("no error").expect("a service");
    }

    /// Asks a question of its own: what the node said before would reach the cluster before it.
    pub async fn nothing_else_was_asked(&mut self) {
        let mark = Ipv4Addr::new(10, 30, 254, 254);
        let answer = self.one(move |resolver| async move { resolver.resolve(mark).await });
        self.cluster.expect_query(&mark.to_string()).await;
        self.cluster.answer_unknown(&mark.to_string()).await;
        assert_eq!(ended(answer).await, Ok(None));
    }

    /// The next update, which has to be one of a service.
    pub async fn service(&mut self) -> ServiceRecord {
        match self.update().await {
            Update::Service(record) => record,
            other @ (Update::Peers { .. } | Update::Gone { .. } | Update::Connection { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    /// The next update.
    pub async fn update(&mut self) -> Update {
        within(self.updates.recv()).await.expect("an update")
    }

    /// Asks a question in a task of its own.
    pub fn one<T, F>(&self, ask: impl FnOnce(Arc<Mqtt>) -> F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        tokio::spawn(ask(Arc::clone(&self.resolver)))
    }

    /// Asks a question twice at the same time.
    pub fn both<T, F>(&self, ask: impl Fn(Arc<Mqtt>) -> F) -> [JoinHandle<T>; 2]
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        [self.one(&ask), self.one(&ask)]
    }
}

/// What came of a question.
pub async fn ended<T>(question: JoinHandle<T>) -> T {
    within(question).await.expect("the question ends")
}

/// A row of a running instance.
pub fn running(number: u32, octet: u8) -> Value {
    let [third, fourth] = u16::try_from(number + 2).expect("few instances").to_be_bytes();
    json!({
        "instance_number": number, "instance_ip": format!("10.30.{third}.{fourth}"), "cluster_id": "c1",
        "namespace_ip": format!("10.18.0.{octet}"), "namespace_ip_v6": "<nil>",
        "host_ip": "192.0.2.11", "host_port": 50103,
        "service_ip": [{"IpType": "RR", "Address": ADDRESS.to_string(), "Address_v6": "fdff:2000::1"}]
    })
}

/// The row of an instance that is about to talk to this node.
pub fn peer(number: u32, octet: u8) -> Value {
    let mut row = running(number, octet);
    row["app_name"] = json!("app.ns.client.ns");
    row
}

/// An instance of this node.
pub fn deployed() -> Deployed {
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

/// What comes of something that does not take long.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}
