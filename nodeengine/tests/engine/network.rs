//! The overlay, with the test in the place of NetManager and of its network driver.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::docker::Docker;
use crate::node::{Node, placement};
use crate::stage::{PATIENCE, eventually};

const NAME: &str = "app.ns.web.ns";

/// What was called, by its route.
#[derive(Clone)]
struct Calls {
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    /// Whether endpoints have to wait, to be refused then.
    holds: Arc<watch::Sender<bool>>,
}

/// Listens on a socket, keeps what it was asked, and agrees.
struct Agreeing {
    path: PathBuf,
    calls: Calls,
    tasks: JoinSet<()>,
}

impl Agreeing {
    fn new(path: &Path) -> Self {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        let calls = Calls {
            calls: Arc::default(),
            holds: Arc::new(watch::Sender::new(false)),
        };
        let listener = UnixListener::bind(path).expect("socket");
        let router = Router::new().fallback(agree).with_state(calls.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self {
            path: path.to_owned(),
            calls,
            tasks,
        }
    }

    fn called(&self, route: &str) -> Vec<Value> {
        let calls = self.calls.calls.lock().expect("lock");
        let of = calls.iter().filter(|(called, _)| called == route);
        of.map(|(_, body)| body.clone()).collect()
    }
}

impl Drop for Agreeing {
    fn drop(&mut self) {
        self.tasks.abort_all();
        drop(std::fs::remove_file(&self.path));
    }
}

async fn agree(State(Calls { calls, holds }): State<Calls>, uri: Uri, body: Bytes) -> (StatusCode, String) {
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let route = uri.path().to_owned();
    let answer = match route.as_str() {
        "/Plugin.Activate" => json!({"Implements": ["NetworkDriver"]}),
        "/NetworkDriver.GetCapabilities" => json!({"Scope": "local", "ConnectivityScope": "local"}),
        "/NetworkDriver.CreateEndpoint" => json!({"Interface": {"Address": "10.18.0.66/32"}}),
        // Else Docker makes a bridge of its own on this machine for the way out, and leaves it there.
        "/NetworkDriver.Join" => json!({"DisableGatewayService": true}),
        _ => json!({}),
    };
    let is_endpoint = route == "/NetworkDriver.CreateEndpoint";
    calls.lock().expect("lock").push((route, body));
    if is_endpoint && *holds.borrow() {
        holds
            .subscribe()
            .wait_for(|held| !held)
            .await
            .expect("the stage is there");
        let refusal = json!({"Err": "NetManager was started anew; start the container again"});
        return (StatusCode::OK, refusal.to_string());
    }
    (StatusCode::OK, answer.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_wait_for_the_network_and_tell_its_driver_who_they_are() {
    let cluster = Cluster::new().await;
    let docker = Docker::new().await;
    let mut node = Node::prepared(&cluster, &docker, &[]);
    node.start();
    node.is_connected().await;
    let order = placement(
        NAME,
        &json!({
            "instance_ip": "10.30.0.5", "instance_ip_v6": "fdff::5", "appId": 7, "port": "80:80",
            "service_ip": [{"IpType": "RR", "Address": "10.30.55.55", "Address_v6": ""}]
        }),
    );
    cluster.say(&node.id, "control/deploy", &order).await;
    let report = cluster
        .expect(&node.id, "job", "what it waits for", |report| {
            report["status_detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("NetManager"))
        })
        .await;
    assert_eq!(report["status"], "CREATING");
    assert!(docker.containers().is_empty());

    let driver = format!("oakestra-{}", node.id);
    let plugin = Agreeing::new(&Path::new("/run/docker/plugins").join(format!("{driver}.sock")));
    let socket = node.root().join("etc/netmanager/netmanager.sock");
    let netmanager = Agreeing::new(&socket);
    eventually("NetManager is told", || {
        !netmanager.called("/register").is_empty()
    })
    .await;
    assert_eq!(
        netmanager.called("/register")[0],
        json!({"client_id": node.id, "cluster_address": "127.0.0.1",
            "broker": {"port": cluster.broker.port, "user": node.id, "password": "secret"}})
    );
    eventually("the endpoint is asked for", || {
        !plugin.called("/NetworkDriver.CreateEndpoint").is_empty()
    })
    .await;
    let endpoint = &plugin.called("/NetworkDriver.CreateEndpoint")[0];
    let options = endpoint["Options"].as_object().expect("options");
    let expected = [
        ("oakestra.service", NAME),
        ("oakestra.instance", "0"),
        ("oakestra.incarnation", "65536"),
        ("oakestra.instance_ip", "10.30.0.5"),
        ("oakestra.instance_ip_v6", "fdff::5"),
        ("oakestra.app_id", "7"),
        ("oakestra.port_mappings", "80:80"),
        (
            "oakestra.service_ips",
            r#"[{"IpType":"RR","Address":"10.30.55.55","Address_v6":""}]"#,
        ),
    ];
    for (key, value) in expected {
        assert_eq!(options[key], value, "{key}");
    }
    cluster.expect_status(&node.id, NAME, 0, "RUNNING").await;
    let network: Value = serde_json::from_str(&docker.run(&["network", "inspect", &driver])).expect("json");
    assert_eq!(network[0]["Driver"], driver);
    assert_eq!(network[0]["IPAM"]["Driver"], "null");

    // A NetManager that has gone and come back is told again.
    drop(netmanager);
    let netmanager = Agreeing::new(&socket);
    eventually("NetManager is told again", || {
        !netmanager.called("/register").is_empty()
    })
    .await;

    // Nothing is left of a node that is given up, its network neither.
    node.kill().await;
    let purge = node.run(&["--docker", &docker.address(), "purge"]).await;
    assert!(purge.status.success(), "{purge:?}");
    assert!(docker.containers().is_empty());
    assert!(!docker.run(&["network", "ls"]).contains(&driver));
    assert!(!plugin.called("/NetworkDriver.DeleteNetwork").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_netmanager_broke_off_is_repeated_at_once_and_is_no_failure() {
    let cluster = Cluster::new().await;
    let docker = Docker::new().await;
    let mut node = Node::prepared(&cluster, &docker, &[]);
    let driver = format!("oakestra-{}", node.id);
    let plugin = Agreeing::new(&Path::new("/run/docker/plugins").join(format!("{driver}.sock")));
    let socket = node.root().join("etc/netmanager/netmanager.sock");
    let netmanager = Agreeing::new(&socket);
    node.start();
    node.is_connected().await;

    plugin.calls.holds.send_replace(true);
    cluster
        .say(&node.id, "control/deploy", &placement(NAME, &json!({})))
        .await;
    eventually("the endpoint is asked for", || {
        !plugin.called("/NetworkDriver.CreateEndpoint").is_empty()
    })
    .await;
    drop(netmanager);
    let deadline = Instant::now() + PATIENCE;
    while node
        .status()
        .await
        .is_none_or(|status| status.network["state"] != "waiting")
    {
        assert!(
            Instant::now() < deadline,
            "nobody notices that NetManager is gone"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    plugin.calls.holds.send_replace(false);
    cluster
        .expect(&node.id, "job", "what it waits for", |report| {
            report["status_detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("waiting for the network"))
        })
        .await;
    let _netmanager = Agreeing::new(&socket);
    cluster.expect_status(&node.id, NAME, 0, "RUNNING").await;
    let statuses = cluster.statuses(&node.id, NAME);
    assert!(!statuses.contains(&"FAILED".to_owned()), "{statuses:?}");
    node.kill().await;
    let purge = node.run(&["--docker", &docker.address(), "purge"]).await;
    assert!(purge.status.success(), "{purge:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_disconnected_by_hand_is_made_anew() {
    let cluster = Cluster::new().await;
    let docker = Docker::new().await;
    let mut node = Node::prepared(&cluster, &docker, &[]);
    let driver = format!("oakestra-{}", node.id);
    let _plugin = Agreeing::new(&Path::new("/run/docker/plugins").join(format!("{driver}.sock")));
    let _netmanager = Agreeing::new(&node.root().join("etc/netmanager/netmanager.sock"));
    node.start();
    node.is_connected().await;
    cluster
        .say(&node.id, "control/deploy", &placement(NAME, &json!({})))
        .await;
    cluster.expect_status(&node.id, NAME, 0, "RUNNING").await;
    let container = node.container(NAME, 0);
    let networks = |docker: &Docker| docker.inspect(&container)["NetworkSettings"]["Networks"].clone();
    assert!(networks(&docker)[&driver].is_object());
    let ids = || docker.run(&["ps", "--all", "--quiet", "--no-trunc"]);
    let before = ids();
    docker.run(&["network", "disconnect", &driver, &container]);
    eventually("another container is there", || {
        let now = ids();
        !now.is_empty() && !now.contains(&before)
    })
    .await;
    cluster.expect_status(&node.id, NAME, 0, "RUNNING").await;
    assert!(networks(&docker)[&driver].is_object());
    node.kill().await;
    let purge = node.run(&["--docker", &docker.address(), "purge"]).await;
    assert!(purge.status.success(), "{purge:?}");
}
