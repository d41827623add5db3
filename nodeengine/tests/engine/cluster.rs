//! The test in the place of the cluster.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::stage::PATIENCE;

/// What nodes have said, and what they are answered.
#[derive(Default)]
struct Heard {
    registrations: Mutex<Vec<Value>>,
    /// Messages: node, rest of the topic, content.
    messages: Mutex<VecDeque<(String, String, Value)>>,
    changed: Notify,
    is_refusing: Mutex<bool>,
    broker_port: Mutex<u16>,
}

/// Registration over HTTP, and a client at a broker.
pub struct Cluster {
    heard: Arc<Heard>,
    pub port: u16,
    pub broker: Broker,
    client: AsyncClient,
    _tasks: JoinSet<()>,
}

impl Cluster {
    pub async fn new() -> Self {
        let broker = Broker::new().await;
        let heard = Arc::new(Heard::default());
        *heard.broker_port.lock().expect("lock") = broker.port;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
        let port = listener.local_addr().expect("address").port();
        let router = Router::new()
            .route("/api/node/register", post(register))
            .with_state(Arc::clone(&heard));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.expect("serving") });

        let mut options = MqttOptions::new("cluster", "127.0.0.1", broker.port);
        options
            .set_clean_session(false)
            .set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, 100);
        let subscriber = client.clone();
        let (connected, is_connected) = tokio::sync::oneshot::channel();
        let mut connected = Some(connected);
        let listening = Arc::clone(&heard);
        tasks.spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for topic in ["information", "job", "jobs/resources", "control/ack"] {
                            let topic = format!("nodes/+/{topic}");
                            subscriber.try_subscribe(topic, QoS::AtLeastOnce).expect("room");
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        if let Some(connected) = connected.take() {
                            connected.send(()).expect("somebody waits");
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        let (node, rest) =
                            protocol::node::topic::node_of(&message.topic).expect("a topic of a node");
                        let content = serde_json::from_slice(&message.payload).expect("json");
                        let message = (node.to_owned(), rest.to_owned(), content);
                        listening.messages.lock().expect("lock").push_back(message);
                        listening.changed.notify_waiters();
                    }
                    Ok(_) => {}
                    Err(_away) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        is_connected.await.expect("subscribed");
        Self {
            heard,
            port,
            broker,
            client,
            _tasks: tasks,
        }
    }

    /// Whether registrations are answered with an error.
    pub fn refuse(&self, is_refusing: bool) {
        *self.heard.is_refusing.lock().expect("lock") = is_refusing;
    }

    pub fn registrations(&self) -> Vec<Value> {
        self.heard.registrations.lock().expect("lock").clone()
    }

    /// Waits until the nodes have registered so often.
    pub async fn registered(&self, times: usize) {
        self.until(&format!("{times} registrations"), |heard| {
            (heard.registrations.lock().expect("lock").len() >= times).then_some(())
        })
        .await;
    }

    /// Says something to a node.
    pub async fn say(&self, node: &str, topic: &str, content: &Value) {
        self.say_text(node, topic, &content.to_string()).await;
    }

    pub async fn say_text(&self, node: &str, topic: &str, text: &str) {
        self.client
            .publish(format!("nodes/{node}/{topic}"), QoS::AtLeastOnce, false, text)
            .await
            .expect("said");
    }

    /// Waits for a message on a topic of the node that `is_it`, and takes it away with everything before it about
    /// the same instance.
    pub async fn expect(&self, node: &str, topic: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("{what} on {topic}"), |heard| {
            let mut messages = heard.messages.lock().expect("lock");
            let position = messages
                .iter()
                .position(|(of, on, content)| of == node && on == topic && is_it(content))?;
            let found = messages[position].2.clone();
            let mut index = 0;
            messages.retain(|(of, on, content)| {
                index += 1;
                !(index <= position + 1 && of == node && on == topic && about(content) == about(&found))
            });
            Some(found)
        })
        .await
    }

    /// Waits for the report of a status.
    pub async fn expect_status(&self, node: &str, name: &str, instance: u32, status: &str) -> Value {
        self.expect(node, "job", &format!("{name}/{instance} {status}"), |report| {
            report["sname"] == name && report["instance"] == instance && report["status"] == status
        })
        .await
    }

    /// Waits for the figures of an instance that `is_it`.
    pub async fn expect_usage(&self, node: &str, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let find = |report: &Value| -> Option<Value> {
            let services = report["services"].as_array().expect("services");
            services
                .iter()
                .find(|service| service["job_name"] == name && is_it(service))
                .cloned()
        };
        let report = self
            .expect(node, "jobs/resources", name, |report| find(report).is_some())
            .await;
        find(&report).expect("found before")
    }

    /// Forgets what was heard so far.
    pub fn forget(&self) {
        self.heard.messages.lock().expect("lock").clear();
    }

    /// The statuses that were reported of an instance and not waited for.
    pub fn statuses(&self, node: &str, name: &str) -> Vec<String> {
        let messages = self.heard.messages.lock().expect("lock");
        messages
            .iter()
            .filter(|(of, on, content)| of == node && on == "job" && content["sname"] == name)
            .map(|(_, _, content)| content["status"].as_str().expect("status").to_owned())
            .collect()
    }

    async fn until<T>(&self, what: &str, look: impl Fn(&Heard) -> Option<T>) -> T {
        let looking = async {
            loop {
                let changed = self.heard.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = look(&self.heard) {
                    return found;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(found) => found,
            Err(_elapsed) => {
                let messages = self.heard.messages.lock().expect("lock");
                let said: Vec<String> = messages
                    .iter()
                    .filter(|(_, on, _)| on == "job" || on == "control/ack")
                    .map(|(of, on, content)| format!("{of} {on} {content}"))
                    .collect();
                panic!("waited in vain for {what}; heard:\n{}", said.join("\n"));
            }
        }
    }
}

/// Which instance a message is about.
fn about(message: &Value) -> [&Value; 4] {
    ["sname", "instance", "job_name", "instance_number"].map(|key| &message[key])
}

async fn register(State(heard): State<Arc<Heard>>, Json(node): Json<Value>) -> (StatusCode, Json<Value>) {
    if *heard.is_refusing.lock().expect("lock") {
        let error =
            json!({"code": 503, "status": "Service Unavailable", "message": "no root yet", "path": ""});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(error));
    }
    let port = heard.broker_port.lock().expect("lock").to_string();
    let answer = json!({
        "id": node["id"], "MQTT_BROKER_PORT": port, "mqtt_user": node["id"], "mqtt_password": "secret",
        "subnet": "10.18.0.64", "instance_ip": "10.30.0.1"
    });
    heard.registrations.lock().expect("lock").push(node);
    heard.changed.notify_waiters();
    (StatusCode::OK, Json(answer))
}
