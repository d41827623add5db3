//! The real binary, between a root and nodes that the test plays.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control::session::server::{Clusters, Server};
use control::session::{NotTaken, Outbox, Timing};
use protocol::cluster::{FromCluster, FromRoot, Hello, InstanceReport, Lease};
use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Placement};
use protocol::network::{TableQuery, TableResult};
use protocol::node::Registered;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long something is watched that must not happen.
pub const QUIET: Duration = Duration::from_millis(600);
pub const CLUSTER_ID: &str = "00000000000000000000c1a5";

/// A cluster with a root.
pub struct Stage {
    folder: TempDir,
    pub root: Arc<Root>,
    pub http: SocketAddr,
    pub mqtt: SocketAddr,
    child: Option<Child>,
}

impl Stage {
    /// Everything is up and the cluster is connected.
    pub async fn set() -> Self {
        let stage = Self::without_connection().await;
        stage.until_connected().await;
        stage
    }

    /// The cluster listens; whether it is connected is another matter.
    pub async fn without_connection() -> Self {
        let mut stage = Self {
            folder: TempDir::new().expect("a folder"),
            root: Root::start().await,
            http: free_port(),
            mqtt: free_port(),
            child: None,
        };
        stage.start().await;
        stage
    }

    /// Both sides know that they are connected.
    pub async fn until_connected(&self) {
        self.root
            .until("the cluster is connected", |root| root.connected)
            .await;
        within("the cluster knows it", async {
            while self.get("/api/cluster/status").await.1["connected_to_root"] != true {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    pub async fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_ClusterOrchestrator"))
            .arg("--root")
            .arg(self.folder.path())
            .args([
                "--listen",
                &self.http.to_string(),
                "--broker-listen",
                &self.mqtt.to_string(),
            ])
            .args([
                "--system-manager-url",
                &self.root.address.to_string(),
                "--name",
                "c1",
            ])
            .args([
                "--node-silence",
                "2",
                "--node-grace",
                "1",
                "--resend",
                "0.5",
                "--root-silence",
                "1",
            ])
            .env("RUST_LOG", "debug,rmqtt=warn")
            .stderr(Stdio::from(log))
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
        let (http, mqtt) = (self.http, self.mqtt);
        within("the ports are open", async {
            while TcpStream::connect(http).await.is_err() || TcpStream::connect(mqtt).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Ends it as an administrator does; its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        assert!(sent.success());
        within("it ends", async {
            loop {
                if let Some(status) = child.try_wait().expect("status") {
                    return status.code();
                }
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        request(self.http, "GET", path, "", "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        request(self.http, "POST", path, body, "").await
    }

    /// Registers a node with two cores.
    pub async fn register(&self, id: &str, host: &str) -> Registered {
        let body = json!({
            "id": id, "node_key": format!("key of {id}"), "host": host, "ip": "192.0.2.11", "vcpus": 2,
            "memory": 900, "memory_total": 1000, "architecture": "amd64", "virtualization": ["docker"]
        });
        let (code, answer) = self.post("/api/node/register", &body.to_string()).await;
        assert_eq!(code, 200, "{answer}");
        serde_json::from_value(answer).expect("registered")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- log of the cluster\n{log}");
        }
    }
}

/// A free port of the loopback interface.
pub fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address")
}

pub async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, happens).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("in time: {what}"),
    }
}

/// One request; `token` may be empty.
pub async fn request(to: SocketAddr, method: &str, path: &str, body: &str, token: &str) -> (u16, Value) {
    within(path, async {
        let mut stream = TcpStream::connect(to).await.expect("connection");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-type: application/json\r\n\
             authorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.expect("request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answer");
        let code = answer
            .split(' ')
            .nth(1)
            .expect("a status line")
            .parse()
            .expect("a code");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        (code, serde_json::from_str(body).expect("JSON"))
    })
    .await
}

/// What the root has heard, and what it wants.
#[derive(Default)]
pub struct Known {
    pub connected: bool,
    pub sessions: usize,
    pub heard: Vec<FromCluster>,
    /// The last report of each instance.
    pub reports: BTreeMap<InstanceKey, InstanceReport>,
    pub desired: BTreeMap<InstanceKey, Placement>,
    pub leases: BTreeMap<String, Lease>,
    pub tables: Vec<(TableQuery, TableResult)>,
    /// Whether it gives addresses to nodes.
    pub withholds_leases: bool,
    /// Whether it answers questions.
    pub withholds_tables: bool,
}

impl Known {
    pub fn status(&self, key: &InstanceKey) -> Option<InstanceStatus> {
        self.reports.get(key).map(|report| report.status)
    }
}

pub struct Root {
    pub address: SocketAddr,
    pub server: Mutex<Server>,
    pub known: Mutex<Known>,
    changed: Notify,
    stop: Mutex<CancellationToken>,
}

impl Root {
    async fn start() -> Arc<Self> {
        let root = Arc::new(Self {
            address: free_port(),
            server: Mutex::new(server()),
            known: Mutex::default(),
            changed: Notify::new(),
            stop: Mutex::default(),
        });
        root.come_back().await;
        root
    }

    /// The root ends, and forgets the session.
    pub async fn leave(&self) {
        self.stop.lock().expect("token").cancel();
        self.until("the connection is gone", |known| !known.connected)
            .await;
        *self.server.lock().expect("server") = server();
    }

    pub async fn come_back(self: &Arc<Self>) {
        let stop = CancellationToken::new();
        *self.stop.lock().expect("token") = stop.clone();
        let routes = self
            .server
            .lock()
            .expect("server")
            .router(Arc::clone(self) as _, stop.clone());
        let listener = within("the root's port", async {
            loop {
                match TcpListener::bind(self.address).await {
                    Ok(listener) => return listener,
                    Err(_in_use) => sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await;
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            axum::serve(listener, routes)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .expect("the root serves");
        });
    }

    pub fn send(&self, message: FromRoot) {
        self.server.lock().expect("server").send(CLUSTER_ID, message);
    }

    pub fn deploy(&self, placement: Placement) {
        let mut known = self.known.lock().expect("known");
        known.desired.insert(placement.key(), placement.clone());
        self.send(FromRoot::Deploy {
            placement: Box::new(placement),
        });
    }

    pub fn undeploy(&self, key: &InstanceKey) {
        let mut known = self.known.lock().expect("known");
        let placement = known.desired.remove(key).expect("it is desired");
        self.send(FromRoot::Undeploy {
            key: key.clone(),
            incarnation: placement.incarnation,
        });
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Known) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.known.lock().expect("known")) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            let known = self.known.lock().expect("known");
            panic!("{what}; the root has heard {:#?}", known.heard);
        }
    }

    fn note<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let value = change(&mut self.known.lock().expect("known"));
        self.changed.notify_waiters();
        value
    }
}

fn server() -> Server {
    Server::new(Timing {
        keep_alive: Duration::from_millis(200),
        dead_after: Duration::from_secs(2),
        ..Timing::default()
    })
}

#[async_trait]
impl Clusters for Root {
    async fn admit(&self, hello: &Hello, _peer: Option<SocketAddr>) -> Result<String, String> {
        assert_eq!(hello.cluster_name, "c1");
        Ok(CLUSTER_ID.to_owned())
    }

    async fn begin(&self, _cluster: &str, outbox: &Outbox<FromRoot>) {
        self.note(|known| {
            known.sessions += 1;
            outbox.begin([FromRoot::Desired {
                placements: known.desired.values().cloned().collect(),
                more: false,
            }]);
        });
    }

    async fn message(&self, _cluster: &str, message: FromCluster) -> Result<(), NotTaken> {
        let answer = self.note(|known| {
            known.heard.push(message.clone());
            match message {
                FromCluster::State { instances, .. } => {
                    known.reports = instances
                        .into_iter()
                        .map(|report| (report.key.clone(), report))
                        .collect();
                    None
                }
                FromCluster::Instance { report } => {
                    known.reports.insert(report.key.clone(), *report);
                    None
                }
                FromCluster::LeaseRequest { node_id, .. } if !known.withholds_leases => {
                    let number = u32::try_from(known.leases.len()).expect("few");
                    let lease = known
                        .leases
                        .entry(node_id.clone())
                        .or_insert_with(|| lease(number))
                        .clone();
                    Some(FromRoot::Lease { node_id, lease })
                }
                FromCluster::Lookup { .. } if known.withholds_tables => None,
                FromCluster::Lookup { query } => {
                    let found = known.tables.iter().find(|(known, _)| *known == query);
                    let result = found.map(|(_, table)| table.clone()).unwrap_or_default();
                    Some(FromRoot::Table { query, result })
                }
                FromCluster::LeaseRequest { .. }
                | FromCluster::Capacity { .. }
                | FromCluster::Refusal { .. } => None,
            }
        });
        if let Some(answer) = answer {
            self.send(answer);
        }
        Ok(())
    }

    async fn connected(&self, _cluster: &str, connected: bool) {
        self.note(|known| known.connected = connected);
    }
}

fn lease(number: u32) -> Lease {
    Lease {
        subnet: (Ipv4Addr::new(10, 18, 0, 0).to_bits() + number * 64).into(),
        subnet_v6: None,
        instance_ip: (Ipv4Addr::new(10, 30, 0, 1).to_bits() + number).into(),
        instance_ip_v6: None,
    }
}

/// A placement of `app.ns.<service>.ns` with one core and 100 MiB.
pub fn placement(service: &str, instance: u32, incarnation: u64) -> Placement {
    let last = service.bytes().map(u32::from).sum::<u32>() % 200;
    serde_json::from_value(json!({
        "microserviceID": "65f0", "job_name": format!("app.ns.{service}.ns"), "image": "nginx",
        "virtualization": "docker", "vcpus": 1, "memory": 100, "instance_number": instance,
        "incarnation": incarnation, "instance_ip": format!("10.30.7.{}", 10 * (last % 20) + instance), "appId": 7,
        "service_ip": [{"IpType": "RR", "Address": format!("10.30.55.{last}"), "Address_v6": ""}]
    }))
    .expect("placement")
}
