//! `kill -9` at any moment: nothing that was accepted is lost, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rand::Rng as _;
use serde_json::{Value, json};

use crate::fake::Cluster;
use crate::fixture::{Root, descriptor, service};

/// Kills the root and starts it again on what it left.
fn again(root: &mut Root, folder: &Path) {
    root.kill();
    *root = Root::start(folder);
}

#[tokio::test]
async fn whatever_was_answered_is_there_after_a_kill() {
    let folder = tempfile::tempdir().expect("folder");
    let mut root = Root::start(folder.path());
    let document = descriptor(
        "app",
        &[service("one", json!({"addresses": {"rr_ip": "10.30.55.55"}}))],
    );
    let id = root.admin().await.create(&document).await.remove(0);
    again(&mut root, folder.path());
    let admin = root.admin().await;
    assert_eq!(
        admin.read(&format!("/api/service/{id}")).await["RR_ip"],
        "10.30.55.55"
    );
    assert_eq!(admin.deploy(&id).await, 0);
    again(&mut root, folder.path());
    let admin = root.admin().await;
    let wished = admin.read(&format!("/api/service/{id}")).await["instance_list"].clone();
    assert_eq!(wished.as_array().expect("a list").len(), 1);
    assert_eq!(admin.deploy(&id).await, 1);
    assert_eq!(
        admin
            .delete(&format!("/api/service/{id}/instance/0"))
            .await
            .status,
        200
    );
    again(&mut root, folder.path());
    let admin = root.admin().await;
    let left = admin.read(&format!("/api/service/{id}")).await["instance_list"].clone();
    assert_eq!(
        (
            left.as_array().expect("a list").len(),
            &left[0]["instance_number"]
        ),
        (1, &json!(1))
    );
    // The wish that survived reaches the first cluster that comes.
    let (mut cluster, _) = Cluster::ready(root.address, "c1").await;
    assert_eq!(cluster.next_deploy().await.instance_number, 1);
    again(&mut root, folder.path());
    let (_cluster, desired) = Cluster::ready(root.address, "c1").await;
    assert_eq!(desired.len(), 1);
    let admin = root.admin().await;
    let application = admin.read("/api/applications").await[0]["applicationID"]
        .as_str()
        .expect("id")
        .to_owned();
    assert_eq!(
        admin
            .delete(&format!("/api/application/{application}"))
            .await
            .status,
        200
    );
    again(&mut root, folder.path());
    assert_eq!(root.admin().await.read("/api/applications").await, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_lose_no_accepted_wish_and_double_no_address() {
    let folder = tempfile::tempdir().expect("folder");
    let mut root = Root::start(folder.path());
    let id = root
        .admin()
        .await
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let mut accepted: BTreeSet<u64> = BTreeSet::new();
    let mut addresses: BTreeMap<u64, Value> = BTreeMap::new();
    for _round in 0..8 {
        let admin = root.admin().await;
        let path = format!("/api/service/{id}/instance");
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (admin, path) = (admin.clone(), path.clone());
            clients.spawn(async move {
                let mut answered = Vec::new();
                // Until the root is no more.
                while let Ok(answer) = admin.try_send("POST", &path, &[], Vec::new()).await {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answered.push(answer.body["instance_number"].as_u64().expect("a number"));
                }
                answered
            });
        }
        let moment = rand::rng().random_range(5..150);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        root.kill();
        for number in clients.join_all().await.into_iter().flatten() {
            assert!(accepted.insert(number), "number {number} was given twice");
        }
        root = Root::start(folder.path());
        let document = root.admin().await.read(&format!("/api/service/{id}")).await;
        let list = document["instance_list"].as_array().expect("a list");
        let mut seen = BTreeSet::new();
        for instance in list {
            let number = instance["instance_number"].as_u64().expect("a number");
            assert!(
                seen.insert(instance["instance_ip"].to_string()),
                "an address is held twice"
            );
            assert!(
                seen.insert(instance["instance_ip_v6"].to_string()),
                "an address is held twice"
            );
            let before = addresses.insert(number, instance["instance_ip"].clone());
            assert!(
                before.is_none_or(|before| before == instance["instance_ip"]),
                "{number} has another address"
            );
        }
        let numbers: BTreeSet<u64> = addresses.keys().copied().collect();
        assert!(
            accepted.is_subset(&numbers),
            "lost: {:?}",
            accepted.difference(&numbers)
        );
    }
    assert!(!accepted.is_empty());
    // All addresses are those of the service and of the instances; without them there is none.
    let instances = addresses.len();
    drop(root);
    let count = || async {
        let store =
            control::store::Embedded::open(&folder.path().join("var/lib/oakestra/root")).expect("store");
        control::store::Store::range(&store, "address/")
            .await
            .expect("range")
            .len()
    };
    assert_eq!(count().await, 2 * (instances + 1));
    let root = Root::start(folder.path());
    let gone = root.admin().await.delete(&format!("/api/service/{id}")).await;
    assert_eq!(gone.status, 200);
    drop(root);
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn two_roots_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let _root = Root::start(folder.path());
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_RootOrchestrator"))
        .args(["--listen", "127.0.0.1:0", "--root"])
        .arg(folder.path())
        .output()
        .expect("run");
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("in use by another process"), "{text}");
}
