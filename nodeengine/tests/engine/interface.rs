//! The command line.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::docker::Docker;
use crate::node::Node;
use crate::stage::Stage;

fn said(output: &std::process::Output) -> String {
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_engine_with_the_same_root_is_refused() {
    let stage = Stage::set().await;
    let arguments = stage.node.arguments();
    for detach in [&[][..], &["-d"]] {
        let all: Vec<&str> = arguments.iter().copied().chain(detach.iter().copied()).collect();
        let second = stage.node.run(&all).await;
        let said = said(&second);
        assert!(!second.status.success());
        assert!(said.contains(&format!("(pid {})", stage.node.pid())), "{said}");
    }
    let purge = stage.node.run(&["purge"]).await;
    assert!(!purge.status.success() && said(&purge).contains("NodeEngine stop"));
    assert!(stage.node.status().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_in_the_background_tells_how_it_fares_and_ends() {
    let cluster = Cluster::new().await;
    let docker = Docker::new().await;
    let node = Node::prepared(&cluster, &docker, &["-n", "-1"]);
    let mut arguments = node.arguments();
    arguments.extend(["-d", "--hostname-override", "w1"]);
    let started = node.run(&arguments).await;
    assert!(started.status.success(), "{}", said(&started));
    assert!(said(&started).contains(&node.id), "{}", said(&started));
    assert_eq!(cluster.registrations()[0]["host"], "w1");

    let order = crate::node::placement("app.ns.web.ns", &serde_json::json!({}));
    node.is_connected().await;
    cluster.say(&node.id, "control/deploy", &order).await;
    cluster
        .expect_status(&node.id, "app.ns.web.ns", 0, "RUNNING")
        .await;
    let status = node.run(&["status", "-o", "json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).expect("json");
    assert_eq!(
        (&status["node"], &status["connected"]),
        (&node.id.as_str().into(), &true.into())
    );
    assert_eq!(status["instances"][0]["status"], "RUNNING");
    let table = said(&node.run(&["status"]).await);
    assert!(
        table.contains("app.ns.web.ns.instance.0") && table.contains("RUNNING"),
        "{table}"
    );
    let logs = said(&node.run(&["logs", "--no-follow"]).await);
    assert!(logs.contains("registered"), "{logs}");

    // What the command line said is remembered.
    let config = node.root().join("etc/oakestra/conf.json");
    let config: Value = serde_json::from_slice(&std::fs::read(config).expect("file")).expect("json");
    assert_eq!(config["cluster_port"], cluster.port);
    assert_eq!(config["stop_grace_seconds"], 2);

    let stopped = node.run(&["stop"]).await;
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(node.status().await.is_none());
    assert!(said(&node.run(&["stop"]).await).contains("not running"));
    assert!(!node.run(&["status"]).await.status.success());
    assert_eq!(docker.containers().len(), 1, "containers go on running");

    for expected in ["nothing of it is left", "there is no node"] {
        let purge = node.run(&["--docker", &docker.address(), "purge"]).await;
        assert!(
            purge.status.success() && said(&purge).contains(expected),
            "{}",
            said(&purge)
        );
    }
    assert!(docker.containers().is_empty() && docker.volumes().is_empty());
    assert!(!node.root().join("var/lib/oakestra/nodeengine").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_said() {
    let cluster = Cluster::new().await;
    let docker = Docker::new().await;
    let node = Node::prepared(&cluster, &docker, &["-n", "-1"]);
    let config = node.root().join("etc/oakestra/conf.json");
    let arguments = node.arguments();
    for (text, expected) in [("{", "left as it is"), (r#"{"cluster_ssl": true}"#, "HTTPS")] {
        std::fs::write(&config, text).expect("write");
        let refused = node.run(&arguments).await;
        assert_eq!(refused.status.code(), Some(64), "{}", said(&refused));
        assert!(said(&refused).contains(expected), "{}", said(&refused));
        assert_eq!(std::fs::read_to_string(&config).expect("read"), text);
    }
    std::fs::write(&config, "{}").expect("write");
    for (network, expected) in [("70000", "at most 65535"), ("nonsense", "neither a port")] {
        let refused = node.run(&["-n", network, "-a", "127.0.0.1"]).await;
        assert!(!refused.status.success() && said(&refused).contains(expected));
    }
    let help = said(&node.run(&["--help"]).await);
    for word in [
        "NodeEngine -a 192.0.2.1",
        "purge",
        "--hostname-override",
        "-1 for no overlay",
    ] {
        assert!(help.contains(word), "{help}");
    }
}
