//! Root and cluster, both as they are, with nodes that the test plays.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::node::Registered;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::node::{Client, Engine};
use crate::stage::{free_port, request, within};

/// The user's own example.
const DESCRIPTOR: &str = include_str!("../../protocol/tests/descriptors/seed-client-server.json");
const STEP: std::time::Duration = std::time::Duration::from_millis(20);

/// Two processes with state in one folder.
struct Both {
    folder: TempDir,
    root: SocketAddr,
    http: SocketAddr,
    mqtt: SocketAddr,
    processes: BTreeMap<&'static str, Child>,
    token: String,
    registered: AtomicUsize,
}

impl Both {
    async fn set() -> Self {
        let mut both = Self {
            folder: TempDir::new().expect("a folder"),
            root: free_port(),
            http: free_port(),
            mqtt: free_port(),
            processes: BTreeMap::new(),
            token: String::new(),
            registered: AtomicUsize::new(0),
        };
        both.start("root").await;
        both.start("cluster").await;
        let login = json!({"username": "Admin", "password": "Admin"}).to_string();
        let (code, answer) = request(both.root, "POST", "/api/auth/login", &login, "").await;
        assert_eq!(code, 200, "{answer}");
        both.token = answer["token"].as_str().expect("a token").to_owned();
        both.connected().await;
        both
    }

    async fn start(&mut self, which: &'static str) {
        let log = std::fs::File::create(self.folder.path().join(which)).expect("log");
        let (binary, address) = match which {
            "root" => (env!("CARGO_BIN_EXE_RootOrchestrator"), self.root),
            _ => (env!("CARGO_BIN_EXE_ClusterOrchestrator"), self.http),
        };
        let mut command = Command::new(binary);
        command
            .arg("--root")
            .arg(self.folder.path())
            .args(["--listen", &address.to_string()]);
        if which == "cluster" {
            // The constraint of the descriptor names this one.
            command
                .args(["--broker-listen", &self.mqtt.to_string(), "--name", "cluster1"])
                .args(["--node-silence", "2", "--node-grace", "1", "--resend", "0.5"])
                .env("SYSTEM_MANAGER_URL", self.root.to_string());
        }
        let child = command
            .stderr(Stdio::from(log))
            .spawn()
            .expect("the binary starts");
        self.processes.insert(which, child);
        within(which, async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                sleep(STEP).await;
            }
        })
        .await;
    }

    fn kill(&mut self, which: &'static str) {
        let mut child = self.processes.remove(which).expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    async fn connected(&self) {
        within("they are connected", async {
            while request(self.http, "GET", "/api/cluster/status", "", "").await.1["connected_to_root"]
                != true
            {
                sleep(STEP).await;
            }
        })
        .await;
    }

    async fn node(&self) -> (Registered, Engine) {
        let number = self.registered.fetch_add(1, Ordering::SeqCst);
        let body = json!({"id": format!("0123456789abcdef0000000{number}"), "node_key": "k", "host": format!("h{number}"),
            "ip": format!("192.0.2.1{number}"), "vcpus": 2, "memory_total": 1000, "virtualization": ["docker"]});
        let (code, answer) = request(self.http, "POST", "/api/node/register", &body.to_string(), "").await;
        assert_eq!(code, 200, "{answer}");
        let registered: Registered = serde_json::from_value(answer).expect("registered");
        let engine = Engine::start(self.mqtt, &registered).await;
        (registered, engine)
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let (code, answer) = request(self.root, method, path, body, &self.token).await;
        assert!((200..300).contains(&code), "{method} {path}: {code} {answer}");
        answer
    }

    async fn until_running(&self, services: &[String]) {
        within("all run", async {
            for service in services {
                let path = format!("/api/service/{service}");
                while self.ask("GET", &path, "").await["instance_list"][0]["status"] != "RUNNING" {
                    sleep(STEP).await;
                }
            }
        })
        .await;
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        for which in ["root", "cluster"] {
            if self.processes.contains_key(which) {
                self.kill(which);
            }
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.folder.path().join(which)).unwrap_or_default();
                eprintln!("--- log of the {which}\n{log}");
            }
        }
    }
}

#[tokio::test]
async fn the_users_example_runs_moves_survives_and_goes() {
    let mut both = Both::set().await;
    let (near, one) = both.node().await;
    let (far, two) = both.node().await;
    assert_ne!(near.subnet, far.subnet);
    both.ask("POST", "/api/application", DESCRIPTOR).await;
    let services = both.ask("GET", "/api/services", "").await;
    let services: Vec<String> = services
        .as_array()
        .expect("services")
        .iter()
        .map(|service| service["microserviceID"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(services.len(), 2);
    for service in &services {
        both.ask("POST", &format!("/api/service/{service}/instance"), "")
            .await;
    }
    both.until_running(&services).await;
    assert_eq!((one.runs().len(), two.runs().len()), (1, 1), "one on each");

    // The server is attached and asked for by its service address.
    let (server, at) = if one.runs()[0].0.job_name.as_str().contains("nginx") {
        (&one, &near)
    } else {
        (&two, &far)
    };
    let asking = if at.id == near.id { &far } else { &near };
    let (key, incarnation) = server.runs().remove(0);
    let manager = Client::connect(both.mqtt, at, "", &["net/tablequery/result"]).await;
    let subnet = at.subnet.expect("a subnet").to_bits();
    let nsip = std::net::Ipv4Addr::from_bits(subnet + 2).to_string();
    let announcement = json!({"appname": key.job_name, "status": "DEPLOYED", "instance_number": 0, "nsip": nsip,
        "nsipv6": "", "host_port": "50103", "host_ip": "192.0.2.11", "incarnation": incarnation});
    manager.say("net/service/deployed", &announcement).await;
    manager.query("", "nonsense").await;
    let client = Client::connect(both.mqtt, asking, "", &["net/tablequery/result"]).await;
    let result = client.query("", "10.30.55.55").await;
    assert_eq!(result["app_name"], json!(key.job_name));
    assert_eq!(result["instance_list"][0]["namespace_ip"], json!(nsip));

    // Each of them is killed, and nothing of it is noticed.
    for which in ["cluster", "root"] {
        both.kill(which);
        both.start(which).await;
        both.connected().await;
        both.until_running(&services).await;
        assert_eq!(
            (one.runs().len(), two.runs().len()),
            (1, 1),
            "after the {which} was killed"
        );
    }

    // A node is lost.
    drop(two);
    one.until_runs("both run here", |runs| runs.len() == 2).await;
    both.until_running(&services).await;

    for service in &services {
        both.ask("DELETE", &format!("/api/service/{service}/instance/0"), "")
            .await;
    }
    one.until_runs("all is gone", <[_]>::is_empty).await;
    within("the root knows", async {
        for service in &services {
            let path = format!("/api/service/{service}");
            while both.ask("GET", &path, "").await["instance_list"] != json!([]) {
                sleep(STEP).await;
            }
        }
    })
    .await;
}
