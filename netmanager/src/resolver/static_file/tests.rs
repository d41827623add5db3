use std::future::Future;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn questions_are_answered_by_service_address_instance_address_and_name() {
    let file = File::with(&document());
    let (resolver, _updates) = StaticFile::open(&file.path).expect("valid file");
    let lease = resolver.lease().await.expect("lease");
    assert_eq!(lease.subnet, Ipv4Addr::new(10, 18, 0, 0));
    assert_eq!(lease.instance_address, Some(Ipv4Addr::new(10, 30, 0, 1)));

    let by_service = resolver
        .resolve(Ipv4Addr::new(10, 30, 55, 55))
        .await
        .expect("answer")
        .expect("service");
    assert_eq!(by_service.name, "app.ns.server.ns");
    assert_eq!(by_service.round_robin, [Ipv4Addr::new(10, 30, 55, 55)]);
    assert_eq!(by_service.instances.len(), 1, "a pending instance is not one");
    let by_instance = resolver
        .resolve(Ipv4Addr::new(10, 30, 0, 3))
        .await
        .expect("answer");
    assert_eq!(by_instance.as_ref(), Some(&by_service));
    assert_eq!(
        resolver.resolve_name("app.ns.server.ns").await.expect("answer"),
        Some(by_service)
    );

    assert_eq!(
        resolver
            .resolve(Ipv4Addr::new(10, 30, 9, 9))
            .await
            .expect("answer"),
        None
    );
    assert_eq!(
        resolver.resolve_name("app.ns.other.ns").await.expect("answer"),
        None
    );
    let refused = resolver.resolve_name("not a name").await;
    assert!(matches!(refused, Err(ResolveError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn peers_are_told_at_the_start_and_when_they_change() {
    let file = File::with(&document());
    let (_resolver, mut updates) = StaticFile::open(&file.path).expect("valid file");
    let up = next(&mut updates).await;
    assert!(matches!(up, Update::Connection { up: true, .. }), "{up:?}");
    let first = acknowledged_peers(&mut updates).await;
    assert_eq!(first[0].service, "app.ns.client.ns");

    let mut changed = document();
    changed["peers"][0]["incarnation"] = json!(2);
    file.write(&changed);
    assert_eq!(acknowledged_peers(&mut updates).await[0].incarnation, 2);
}

#[tokio::test]
async fn changes_of_services_that_were_asked_for_are_told() {
    let mut content = document();
    content["peers"] = json!([]);
    let file = File::with(&content);
    let (resolver, mut updates) = StaticFile::open(&file.path).expect("valid file");
    let up = next(&mut updates).await;
    assert!(matches!(up, Update::Connection { up: true, .. }), "{up:?}");
    resolver
        .resolve_name("app.ns.server.ns")
        .await
        .expect("answer")
        .expect("service");

    // Not asked for, so not told; invalid, so not taken.
    content["services"][1]["rr"] = json!(["10.30.55.57"]);
    file.write(&content);
    std::fs::write(&file.path, "{").expect("half a file");
    content["services"][0]["instances"][0]["namespace_ip"] = json!("10.18.0.68");
    file.replace(&content);
    let Update::Service(record) = next(&mut updates).await else {
        panic!("a changed service")
    };
    assert_eq!(
        record.instances[0].namespace_address,
        Ipv4Addr::new(10, 18, 0, 68)
    );

    content["services"].as_array_mut().expect("services").remove(0);
    file.replace(&content);
    let Update::Gone { name } = next(&mut updates).await else {
        panic!("a service that is gone")
    };
    assert_eq!(name, "app.ns.server.ns");
}

#[tokio::test]
async fn nothing_is_told_of_a_service_that_is_not_of_interest_any_more() {
    let mut content = document();
    content["peers"] = json!([]);
    let file = File::with(&content);
    let (resolver, mut updates) = StaticFile::open(&file.path).expect("valid file");
    let up = next(&mut updates).await;
    assert!(matches!(up, Update::Connection { up: true, .. }), "{up:?}");
    for name in ["app.ns.server.ns", "app.ns.slow.ns"] {
        within(resolver.resolve_name(name))
            .await
            .expect("answer")
            .expect("service");
    }
    resolver.uninterested("app.ns.server.ns").await.expect("heard");

    content["services"] = json!([]);
    file.replace(&content);
    let Update::Gone { name } = next(&mut updates).await else {
        panic!("a service that is gone")
    };
    assert_eq!(name, "app.ns.slow.ns");
}

#[tokio::test]
async fn answers_come_after_their_delay_and_beyond_the_deadline_not_at_all() {
    let mut content = document();
    content["services"][1]["delayMilliseconds"] = json!(50);
    let file = File::with(&content);
    let (resolver, _updates) = StaticFile::open(&file.path).expect("valid file");
    let begin = Instant::now();
    within(resolver.resolve_name("app.ns.slow.ns"))
        .await
        .expect("in time")
        .expect("service");
    assert!(begin.elapsed() >= Duration::from_millis(50));

    let deadline = Duration::from_millis(40);
    let (resolver, _updates) = StaticFile::open_with(&file.path, deadline).expect("valid file");
    let late = within(resolver.resolve_name("app.ns.slow.ns")).await;
    assert_eq!(
        late,
        Err(ResolveError::Late {
            about: "app.ns.slow.ns".to_owned(),
            deadline
        })
    );
    within(resolver.resolve_name("app.ns.server.ns"))
        .await
        .expect("another service")
        .expect("service");
}

#[tokio::test]
async fn a_file_that_does_not_do_is_refused_with_the_reason() {
    let change = |path: &[&str], value: Value| {
        let mut content = document();
        let mut place = &mut content;
        for key in path {
            place = match key.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[*key],
            };
        }
        *place = value;
        content
    };
    let cases = [
        (json!({}), "missing field `subnet`"),
        (
            change(&["subnet"], json!("10.18.0.1")),
            "not the first address of a /26",
        ),
        (
            change(&["subnet"], json!("10.30.0.0")),
            "not in the part of 10.16.0.0/12",
        ),
        (change(&["instanceIp"], json!("10.18.0.1")), "not in 10.30.0.0/16"),
        (change(&["speling"], json!(1)), "unknown field `speling`"),
        (
            change(&["services", "0", "rr", "0"], json!("192.0.2.1")),
            "rr 192.0.2.1 is not in 10.30.0.0/16",
        ),
        (
            change(&["services", "0", "name"], json!("a.b.c")),
            "3 dot-separated parts",
        ),
        (
            change(&["services", "1", "name"], json!("app.ns.server.ns")),
            "is there twice",
        ),
        (
            change(&["services", "0", "instances", "0", "host_ip"], json!("0.0.0.0")),
            "service app.ns.server.ns, instance 0: host_ip",
        ),
        (
            change(&["peers", "0", "instance_ip"], json!("8.8.8.8")),
            "service app.ns.client.ns, instance 0",
        ),
    ];
    for (content, expected) in cases {
        let file = File::with(&content);
        let error = match StaticFile::open(&file.path) {
            Ok(_) => panic!("{content} is taken"),
            Err(error) => error.to_string(),
        };
        assert!(
            error.contains(expected) && error.contains("answers.json"),
            "{error}"
        );
    }
    let missing = match StaticFile::open(Path::new("/nonexistent/answers.json")) {
        Ok(_) => panic!("a missing file is taken"),
        Err(error) => error.to_string(),
    };
    assert!(
        missing.contains("/nonexistent/answers.json: cannot be watched"),
        "{missing}"
    );
}

fn document() -> Value {
    json!({
        "subnet": "10.18.0.0", "instanceIp": "10.30.0.1",
        "peers": [
            {"app_name": "app.ns.client.ns", "instance_number": 0, "instance_ip": "10.30.0.2",
             "namespace_ip": "10.18.0.66", "host_ip": "192.0.2.11", "host_port": 50103, "node_id": "b"}
        ],
        "services": [
            {"name": "app.ns.server.ns", "rr": ["10.30.55.55"], "instances": [
                {"instance_number": 0, "instance_ip": "10.30.0.3", "namespace_ip": "10.18.0.67",
                 "host_ip": "192.0.2.11", "host_port": 50103, "incarnation": 1},
                {"instance_number": 1, "instance_ip": "10.30.0.4"}
            ]},
            {"name": "app.ns.slow.ns", "rr": ["10.30.55.56"], "delayMilliseconds": 5}
        ]
    })
}

async fn acknowledged_peers(updates: &mut mpsc::Receiver<Update>) -> Vec<InstanceRecord> {
    let Update::Peers {
        instances,
        acknowledge,
    } = next(updates).await
    else {
        panic!("peers")
    };
    acknowledge.send(()).expect("somebody waits for it");
    instances
}

async fn next(updates: &mut mpsc::Receiver<Update>) -> Update {
    within(updates.recv()).await.expect("an update")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

/// A file with answers in a folder of its own.
struct File {
    folder: TempDir,
    path: PathBuf,
}

impl File {
    fn with(content: &Value) -> Self {
        let folder = TempDir::new().expect("temporary folder");
        let file = Self {
            path: folder.path().join("answers.json"),
            folder,
        };
        file.write(content);
        file
    }

    fn write(&self, content: &Value) {
        std::fs::write(&self.path, content.to_string()).expect("the file is written");
    }

    /// As editors do it: a new file takes the place of the old one.
    fn replace(&self, content: &Value) {
        let new = self.folder.path().join("answers.json.new");
        std::fs::write(&new, content.to_string()).expect("the new file is written");
        std::fs::rename(&new, &self.path).expect("the new file takes the place of the old one");
    }
}
