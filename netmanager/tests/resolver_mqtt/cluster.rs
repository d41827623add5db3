//! The cluster, played by the test.

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::stage::within;

/// What a cluster says to its nodes; the broker tells it that too.
const OWN_TOPICS: [&str; 3] = ["subnetwork/result", "tablequery/result", "peers"];
const LARGEST_PACKET: usize = 64 * 1024 * 1024;

/// A cluster that says what it is told to, about one service, to one node.
pub struct Cluster {
    client: AsyncClient,
    /// What the node said: the end of its topic, and the message.
    heard: mpsc::UnboundedReceiver<(String, Value)>,
    node: String,
    service: String,
    events: JoinHandle<()>,
}

impl Cluster {
    /// Connects, and waits until it hears every node.
    pub async fn connect(port: u16, node: &str, service: &str) -> Self {
        let mut options = MqttOptions::new("cluster", "127.0.0.1", port);
        options.set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
        let (client, mut events) = AsyncClient::new(options, 64);
        client
            .subscribe("nodes/+/net/#", QoS::AtLeastOnce)
            .await
            .expect("subscription");
        within(async {
            loop {
                let event = events.poll().await.expect("the broker is there");
                if matches!(event, Event::Incoming(Packet::SubAck(_))) {
                    return;
                }
            }
        })
        .await;

        let (sender, heard) = mpsc::unbounded_channel();
        let prefix = format!("nodes/{node}/net/");
        let events = tokio::spawn(async move {
            // Ends with the broker: a restarted one is heard by a cluster of its own.
            while let Ok(event) = events.poll().await {
                let Event::Incoming(Packet::Publish(message)) = event else {
                    continue;
                };
                let topic = message
                    .topic
                    .strip_prefix(&prefix)
                    .unwrap_or(&message.topic)
                    .to_owned();
                if OWN_TOPICS.contains(&topic.as_str()) {
                    continue;
                }
                let payload = serde_json::from_slice(&message.payload).expect("a node speaks JSON");
                if sender.send((topic, payload)).is_err() {
                    return;
                }
            }
        });
        Self {
            client,
            heard,
            node: node.to_owned(),
            service: service.to_owned(),
            events,
        }
    }

    /// The next message of the node, which has to be on `topic`.
    pub async fn expect(&mut self, topic: &str) -> Value {
        let (heard, message) = within(self.heard.recv()).await.expect("the broker is there");
        assert_eq!(heard, topic, "{message}");
        message
    }

    /// The next message of the node, which has to be a query for `key`.
    pub async fn expect_query(&mut self, key: &str) {
        let query = self.expect("tablequery/request").await;
        let expected = match key.parse::<std::net::Ipv4Addr>() {
            Ok(_) => json!({"sname": "", "sip": key}),
            Err(_) => json!({"sname": key, "sip": ""}),
        };
        assert_eq!(query, expected);
    }

    /// Answers a query with the instances of the service.
    pub async fn answer(&self, key: &str, rows: &[Value]) {
        let result = json!({"app_name": self.service, "instance_list": rows, "query_key": key});
        self.say("tablequery/result", &result).await;
    }

    /// Answers a query: there is nothing.
    pub async fn answer_unknown(&self, key: &str) {
        let result = json!({"app_name": null, "instance_list": [], "query_key": key});
        self.say("tablequery/result", &result).await;
    }

    /// Says something to the node.
    pub async fn say(&self, topic: &str, message: &Value) {
        self.say_bytes(
            &format!("nodes/{}/net/{topic}", self.node),
            message.to_string().as_bytes(),
        )
        .await;
    }

    /// Says to every interested node that the service changed.
    pub async fn say_to_all(&self, message: &Value) {
        let topic = format!("jobs/{}/updates_available", self.service);
        self.say_bytes(&topic, message.to_string().as_bytes()).await;
    }

    /// Says anything on any topic.
    pub async fn say_bytes(&self, topic: &str, payload: &[u8]) {
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .expect("said");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.events.abort();
    }
}
