//! A root in a folder of its own, and a client of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How long anything may take. Far more than it does, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running root. It is killed when it is dropped.
pub struct Root {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Root {
    /// Starts a root on the state in `folder`, and waits until it serves.
    pub fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_RootOrchestrator"))
            .args(["--listen", "127.0.0.1:0", "--log", "debug", "--root"])
            .arg(folder)
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the root");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.expect("a line");
            if let Some((_, found)) = line.split_once("the root is ready address=") {
                address = Some(found.trim().parse().expect("an address"));
            }
            log.lock().expect("log").push(line);
            if address.is_some() {
                break;
            }
        }
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                keep.lock().expect("log").push(line);
            }
        });
        let Some(address) = address else {
            panic!("the root does not start: {:?}", log.lock().expect("log"));
        };
        Self { child, address, log }
    }

    /// Ends it in the way that leaves it no moment to do anything.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(mut self) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        assert!(sent.success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the root does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether a line of the log so far holds this text.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log
            .lock()
            .expect("log")
            .iter()
            .any(|line| line.contains(text))
    }

    /// A client that is logged in as Admin.
    pub async fn admin(&self) -> Client {
        self.login("Admin", "Admin").await
    }

    pub async fn login(&self, name: &str, password: &str) -> Client {
        let mut client = self.anonymous();
        let answer = client
            .post(
                "/api/auth/login",
                &json!({ "username": name, "password": password }),
            )
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        client.token = answer.body["token"].as_str().expect("token").to_owned();
        client
    }

    pub fn anonymous(&self) -> Client {
        Client {
            address: self.address,
            token: String::new(),
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // It may be dead already.
        if self.child.kill().is_ok() {
            self.child.wait().expect("wait");
        }
    }
}

/// Somebody who sends requests.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    pub token: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Value,
}

impl Client {
    /// Sends one request on a connection of its own; an error when the connection breaks.
    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("Host", "root");
        if !self.token.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(Bytes::from(body)))?)
            .await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        driving.abort();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .map_err(|error| format!("{error}: {:?}", String::from_utf8_lossy(&bytes)))?
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let sent = match body {
            Some(body) => {
                let headers = [("Content-Type", "application/json")];
                self.try_send(method, path, &headers, body.to_string().into_bytes())
                    .await
            }
            None => self.try_send(method, path, &[], Vec::new()).await,
        };
        sent.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None).await
    }

    /// The body of a GET that has to succeed.
    pub async fn read(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    }

    /// Makes the applications of a descriptor; the ids of the services of the last one.
    pub async fn create(&self, descriptor: &Value) -> Vec<String> {
        let answer = self.post("/api/application", descriptor).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let applications = answer.body.as_array().expect("a list").clone();
        let name = &descriptor["applications"][0]["application_name"];
        let application = applications
            .iter()
            .find(|application| application["application_name"] == *name)
            .expect("the application");
        texts(&application["microservices"])
    }

    /// Wishes for one more instance; its number.
    pub async fn deploy(&self, service: &str) -> u64 {
        let answer = self
            .send("POST", &format!("/api/service/{service}/instance"), None)
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["message"], "ok");
        answer.body["instance_number"].as_u64().expect("a number")
    }

    /// Reads a service until its document is as it should be.
    pub async fn until(&self, service: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let document = self.read(&format!("/api/service/{service}")).await;
            if holds(&document) {
                return document;
            }
            assert!(Instant::now() < deadline, "{what} does not come: {document:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A list of texts.
pub fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|text| text.as_str().expect("a text").to_owned())
        .collect()
}

/// A descriptor with one application of these services.
pub fn descriptor(application: &str, services: &[Value]) -> Value {
    json!({
        "sla_version": "v2.0",
        "customerID": "Admin",
        "applications": [{
            "applicationID": "", "application_name": application, "application_namespace": "test",
            "application_desc": "for a test", "microservices": services
        }]
    })
}

/// A service of a descriptor; `more` is added to it.
pub fn service(name: &str, more: Value) -> Value {
    let mut service = json!({
        "microserviceID": "", "microservice_name": name, "microservice_namespace": "test",
        "virtualization": "container", "memory": 100, "vcpus": 1, "code": "docker.io/library/nginx:latest"
    });
    let more = more.as_object().expect("an object").clone();
    service.as_object_mut().expect("an object").extend(more);
    service
}
