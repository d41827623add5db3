//! Whatever goes wrong is answered with the one body, and stops nothing.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Answer, Root, descriptor, service};

/// Checks that the answer is an error of this status whose message holds `text`.
#[track_caller]
fn expect(answer: &Answer, status: u16, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.body["code"], status, "{answer:?}");
    assert!(
        answer.body["status"]
            .as_str()
            .is_some_and(|status| !status.is_empty()),
        "{answer:?}"
    );
    let message = answer.body["message"].as_str().expect("a message");
    assert!(message.contains(text), "{answer:?}");
    assert!(answer.body["path"].is_string(), "{answer:?}");
    assert_eq!(answer.headers["access-control-allow-origin"], "*", "{answer:?}");
}

#[tokio::test]
async fn every_error_has_the_one_body() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    expect(&admin.get("/").await, 404, "nothing at this path");
    expect(&admin.get("/api/nothing").await, 404, "nothing at this path");
    expect(&admin.get("/api/service/%ff").await, 404, "");
    expect(&admin.get("/api/application").await, 405, "GET is not possible");
    expect(&admin.send("PATCH", "/api/clusters/", None).await, 405, "PATCH");
    expect(&admin.get("/api/organization/").await, 501, "no organizations");
    expect(&admin.get("/api/clusters/connect").await, 400, "");

    let path = "/api/application/";
    let json = ("Content-Type", "application/json");
    let send = |headers: Vec<(&'static str, &'static str)>, body: Vec<u8>| {
        let admin = admin.clone();
        async move {
            admin
                .try_send("POST", path, &headers, body)
                .await
                .expect("an answer")
        }
    };
    expect(&send(vec![], b"{}".to_vec()).await, 415, "is missing");
    expect(
        &send(vec![("Content-Type", "text/plain")], b"{}".to_vec()).await,
        415,
        "text/plain",
    );
    expect(&send(vec![json], b"{\"a\":".to_vec()).await, 400, "not JSON");
    expect(&send(vec![json], Vec::new()).await, 400, "not JSON");
    expect(&send(vec![json], vec![0xff, 0xfe]).await, 400, "not JSON");
    let deep = "[".repeat(100_000).into_bytes();
    expect(&send(vec![json], deep).await, 400, "not JSON");
    let utf8 = vec![("Content-Type", "application/json; charset=utf-8")];
    expect(&send(utf8, b"[]".to_vec()).await, 422, "an object belongs here");

    for id in ["65f0", "000000000000000000000000", "..", "%20", "x\u{e4}"] {
        let id = id.replace('\u{e4}', "%C3%A4");
        for path in [
            "/api/application/",
            "/api/service/",
            "/api/services/",
            "/api/applications/",
        ] {
            expect(&admin.get(&format!("{path}{id}")).await, 404, "");
        }
        expect(&admin.delete(&format!("/api/application/{id}")).await, 404, "");
        expect(&admin.delete(&format!("/api/service/{id}")).await, 404, "");
        expect(
            &admin
                .send("POST", &format!("/api/service/{id}/instance"), None)
                .await,
            404,
            "",
        );
        expect(
            &admin.delete(&format!("/api/service/{id}/instance/0")).await,
            404,
            "",
        );
    }
    let service = &admin
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await[0];
    for number in ["0", "x", "-2", "99999999999999999999"] {
        expect(
            &admin
                .delete(&format!("/api/service/{service}/instance/{number}"))
                .await,
            404,
            "instance",
        );
    }
    assert_eq!(
        admin
            .delete(&format!("/api/service/{service}/instance/-1"))
            .await
            .status,
        200
    );
    expect(
        &admin.send("PUT", &format!("/api/service/{service}"), None).await,
        501,
        "make it again",
    );
    assert_eq!(admin.read("/status").await, json!({"status": "ok"}));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    // By its announced length.
    let mut stream = TcpStream::connect(root.address).await.expect("connect");
    let head = format!(
        "POST /api/application HTTP/1.1\r\nHost: root\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n",
        admin.token
    );
    stream.write_all(head.as_bytes()).await.expect("send");
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("1048576 bytes"),
        "{answer}"
    );
    // By what comes.
    let mut stream = TcpStream::connect(root.address).await.expect("connect");
    let head = format!(
        "POST /api/application HTTP/1.1\r\nHost: root\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        admin.token
    );
    stream.write_all(head.as_bytes()).await.expect("send");
    let chunk = format!("{:x}\r\n{}\r\n", 600_000, " ".repeat(600_000));
    stream.write_all(chunk.as_bytes()).await.expect("send");
    stream.write_all(chunk.as_bytes()).await.expect("send");
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(admin.get("/api/applications").await.status, 200);
}

#[tokio::test]
async fn pages_of_other_origins_may_use_it() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let preflight = root.anonymous().send("OPTIONS", "/api/application", None).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
    let methods = preflight.headers["access-control-allow-methods"]
        .to_str()
        .expect("text");
    assert!(methods.contains("DELETE") && methods.contains("PUT"), "{methods}");
    let headers = preflight.headers["access-control-allow-headers"]
        .to_str()
        .expect("text");
    assert!(headers.contains("Authorization"), "{headers}");
    let answer = root.anonymous().get("/api/clusters/").await;
    assert_eq!((answer.status, &answer.body), (200, &json!([])));
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
}
