//! A node that the test plays: what one of its daemons has over the broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::job::{InstanceKey, Placement};
use protocol::node::Registered;
use rumqttc::{AsyncClient, ConnectionError, Event, LastWill, MqttOptions, Packet, QoS, SubscribeReasonCode};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::stage::{PATIENCE, QUIET, within};

/// A connection to the broker, kept up.
pub struct Client {
    pub id: String,
    pub mqtt: AsyncClient,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    messages: Mutex<Vec<(String, Value)>>,
    granted: Mutex<Vec<bool>>,
    connections: Mutex<usize>,
    changed: Notify,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn options(broker: SocketAddr, client: &str, user: &str, password: &str) -> MqttOptions {
    let mut options = MqttOptions::new(client, broker.ip().to_string(), broker.port());
    options
        .set_keep_alive(Duration::from_secs(5))
        .set_clean_session(false);
    if !user.is_empty() {
        options.set_credentials(user, password);
    }
    options
}

/// What the broker says to somebody who connects.
pub async fn login(options: MqttOptions) -> Result<(), String> {
    let (_client, mut events) = AsyncClient::new(options, 8);
    within("the broker's answer", async {
        match events.poll().await {
            Ok(_connected) => Ok(()),
            Err(ConnectionError::ConnectionRefused(code)) => Err(format!("{code:?}")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

pub fn with_will(mut options: MqttOptions, topic: &str) -> MqttOptions {
    options.set_last_will(LastWill::new(topic, "{}", QoS::AtLeastOnce, false));
    options
}

impl Client {
    /// The daemon called `suffix` of a node, with subscriptions to what the node is told.
    pub async fn connect(
        broker: SocketAddr,
        registered: &Registered,
        suffix: &str,
        filters: &[&str],
    ) -> Self {
        let id = registered.id.clone();
        let options = options(
            broker,
            &format!("{id}{suffix}"),
            &registered.mqtt_user,
            &registered.mqtt_password,
        );
        let (mqtt, mut events) = AsyncClient::new(options, 256);
        let seen = Arc::<Seen>::default();
        let filters: Vec<String> = filters
            .iter()
            .map(|filter| format!("nodes/{id}/{filter}"))
            .collect();
        let task = tokio::spawn({
            let (seen, mqtt, filters) = (Arc::clone(&seen), mqtt.clone(), filters.clone());
            async move {
                loop {
                    match events.poll().await {
                        Ok(Event::Incoming(Packet::ConnAck(_))) => {
                            *seen.connections.lock().expect("connections") += 1;
                            for filter in &filters {
                                mqtt.subscribe(filter, QoS::AtLeastOnce).await.expect("subscribe");
                            }
                        }
                        Ok(Event::Incoming(Packet::SubAck(answer))) => {
                            let granted = answer.return_codes.iter();
                            let granted = granted.map(|code| matches!(code, SubscribeReasonCode::Success(_)));
                            seen.granted.lock().expect("granted").extend(granted);
                        }
                        Ok(Event::Incoming(Packet::Publish(message))) => {
                            let value =
                                serde_json::from_slice(&message.payload).expect("JSON of the cluster");
                            seen.messages
                                .lock()
                                .expect("messages")
                                .push((message.topic.clone(), value));
                        }
                        Ok(_) => continue,
                        Err(_gone) => sleep(Duration::from_millis(50)).await,
                    }
                    seen.changed.notify_waiters();
                }
            }
        });
        let client = Self { id, mqtt, seen, task };
        let wanted = filters.len();
        client
            .wait("all is subscribed", |seen| {
                let granted = seen.granted.lock().expect("granted");
                (granted.iter().filter(|granted| **granted).count() >= wanted).then_some(())
            })
            .await;
        client
    }

    async fn wait<T>(&self, what: &str, found: impl Fn(&Seen) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let changed = self.seen.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(value) = found(&self.seen) {
                    return value;
                }
                changed.await;
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(value) => value,
            Err(_elapsed) => panic!(
                "{what}; {} has seen {:#?}",
                self.id,
                self.seen.messages.lock().expect("messages")
            ),
        }
    }

    /// Publishes below the node's own topics.
    pub async fn say(&self, rest: &str, message: &Value) {
        self.say_raw(rest, message.to_string()).await;
    }

    pub async fn say_raw(&self, rest: &str, payload: impl Into<Vec<u8>>) {
        let topic = format!("nodes/{}/{rest}", self.id);
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .expect("publish");
    }

    /// The next message whose topic ends so and which fits; it is taken, and what came before it stays.
    pub async fn expect(&self, topic: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait(topic, |seen| {
            let mut messages = seen.messages.lock().expect("messages");
            let index = messages
                .iter()
                .position(|(of, value)| of.ends_with(topic) && fits(value))?;
            Some(messages.remove(index).1)
        })
        .await
    }

    /// All messages so far whose topic ends so, in their order.
    pub fn seen(&self, topic: &str) -> Vec<Value> {
        let messages = self.seen.messages.lock().expect("messages");
        messages
            .iter()
            .filter(|(of, _)| of.ends_with(topic))
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub fn order(&self) -> Vec<String> {
        let messages = self.seen.messages.lock().expect("messages");
        messages.iter().map(|(topic, _)| topic.clone()).collect()
    }

    /// Nothing comes on that topic for a while.
    pub async fn expect_nothing(&self, topic: &str) {
        sleep(QUIET).await;
        let seen = self.seen(topic);
        assert!(seen.is_empty(), "{topic}: {seen:?}");
    }

    pub async fn subscribe(&self, filter: &str) -> bool {
        let before = self.seen.granted.lock().expect("granted").len();
        self.mqtt
            .subscribe(filter, QoS::AtLeastOnce)
            .await
            .expect("subscribe");
        self.wait(filter, |seen| {
            seen.granted.lock().expect("granted").get(before).copied()
        })
        .await
    }

    /// Asks where something is; the answer.
    pub async fn query(&self, sname: &str, sip: &str) -> Value {
        self.say("net/tablequery/request", &json!({"sname": sname, "sip": sip}))
            .await;
        let key = if sip.is_empty() { sname } else { sip }.to_owned();
        self.expect("net/tablequery/result", |result| result["query_key"] == *key)
            .await
    }
}

/// The engine of a node as it should be: notes what is ordered and reports it every 100 ms.
pub struct Engine {
    pub client: Arc<Client>,
    pub running: Arc<Mutex<BTreeMap<(InstanceKey, u64), &'static str>>>,
    task: JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    pub async fn start(broker: SocketAddr, registered: &Registered) -> Self {
        let client = Client::connect(
            broker,
            registered,
            "-ne",
            &["control/deploy", "control/delete", "control/error"],
        );
        Self::with(client.await, BTreeMap::new())
    }

    /// With instances that were there before.
    pub fn with(client: Client, running: BTreeMap<(InstanceKey, u64), &'static str>) -> Self {
        let client = Arc::new(client);
        let running = Arc::new(Mutex::new(running));
        let task = tokio::spawn({
            let (client, running) = (Arc::clone(&client), Arc::clone(&running));
            async move {
                let mut handled = 0;
                loop {
                    let orders: Vec<_> = client.seen.messages.lock().expect("messages")[handled..].to_vec();
                    handled += orders.len();
                    for (topic, order) in orders {
                        let acknowledgement = carry_out(&topic, &order, &running);
                        client.say("control/ack", &acknowledgement).await;
                    }
                    let services: Vec<Value> = running
                        .lock()
                        .expect("running")
                        .iter()
                        .map(|((key, incarnation), status)| {
                            json!({"job_name": key.job_name, "instance": key.instance_number,
                                "incarnation": incarnation, "status": status, "cpu_percent": "1.0",
                                "memory_percent": "2.0", "disk": "3", "logs": "x", "virtualization": "docker"})
                        })
                        .collect();
                    client.say("jobs/resources", &json!({"services": services})).await;
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
        Self {
            client,
            running,
            task,
        }
    }

    pub fn id(&self) -> &str {
        &self.client.id
    }

    pub fn runs(&self) -> Vec<(InstanceKey, u64)> {
        self.running.lock().expect("running").keys().cloned().collect()
    }

    pub async fn until_runs(&self, what: &str, holds: impl Fn(&[(InstanceKey, u64)]) -> bool) {
        let waiting = async {
            while !holds(&self.runs()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: {} runs {:?}", self.id(), self.runs());
        }
    }
}

type Running = Mutex<BTreeMap<(InstanceKey, u64), &'static str>>;

fn carry_out(topic: &str, order: &Value, running: &Running) -> Value {
    let mut running = running.lock().expect("running");
    let (command, key, incarnation) = if topic.ends_with("control/deploy") {
        let placement: Placement = serde_json::from_value(order.clone()).expect("a placement");
        running.insert((placement.key(), placement.incarnation), "RUNNING");
        ("deploy", placement.key(), Some(placement.incarnation))
    } else {
        let key: InstanceKey = serde_json::from_value(order.clone()).expect("a key");
        let incarnation = order["incarnation"].as_u64();
        running.retain(|(of, number), _| *of != key || incarnation.is_some_and(|stopped| stopped != *number));
        ("delete", key, incarnation)
    };
    json!({"command": command, "job_name": key.job_name, "instance_number": key.instance_number,
        "incarnation": incarnation})
}
