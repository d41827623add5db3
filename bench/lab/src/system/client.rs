//! A person who uses the root's API.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::http::{Answer, Request, send};
use crate::{Namespace, wait_for};

/// Who a fresh root lets in.
pub const USER: &str = "Admin";
pub const PASSWORD: &str = "Admin";

const UNAUTHORIZED: u16 = 401;

/// Speaks to a root's REST API from inside a namespace, and logs in by itself, again when the token has expired.
#[derive(Debug)]
pub struct Client {
    namespace: Namespace,
    base: String,
    token: Mutex<Option<String>>,
}

/// An instance as the root describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceReport {
    pub number: u64,
    pub status: String,
    pub status_detail: String,
    /// Id of its node.
    pub worker_id: String,
    /// Address of its node.
    pub host_ip: String,
    pub instance_ip: String,
    /// The end of what it wrote.
    pub logs: String,
}

impl InstanceReport {
    fn parse(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Self {
            number: value["instance_number"].as_u64().unwrap_or_default(),
            status: text("status"),
            status_detail: text("status_detail"),
            worker_id: text("worker_id"),
            host_ip: text("host_ip"),
            instance_ip: text("instance_ip"),
            logs: text("logs"),
        }
    }
}

impl Client {
    /// Speaks to `base` (`http://192.0.2.1:10000`) from a namespace.
    #[must_use]
    pub fn new(namespace: &Namespace, base: &str) -> Self {
        Self {
            namespace: namespace.clone(),
            base: base.to_owned(),
            token: Mutex::default(),
        }
    }

    /// Where the API is, without a slash at the end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request without logging in, whatever comes of it.
    pub fn send(&self, method: &str, path: &str, bearer: Option<&str>, body: Option<&str>) -> Result<Answer> {
        let url = format!("{}{path}", self.base);
        let request = Request {
            method,
            url: &url,
            body,
            bearer,
            socket: None,
        };
        send(&self.namespace, request)
    }

    /// Logs in, and keeps the token.
    pub fn login(&self) -> Result<String> {
        let body = json!({"username": USER, "password": PASSWORD}).to_string();
        let answer = self.send("POST", "/api/auth/login", None, Some(&body))?;
        let answer = successful("POST", "/api/auth/login", &answer)?;
        let token = answer["token"].as_str().context("the root gave no token")?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
        Ok(token.to_owned())
    }

    /// Sends a request as a person who is logged in; it must succeed.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        successful(method, path, &self.attempt(method, path, body)?)
    }

    /// As [`Self::request`], whatever comes of it.
    pub fn attempt(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(Value::to_string);
        let kept = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = kept.is_none();
        let token = kept.map_or_else(|| self.login(), Ok)?;
        let answer = self.send(method, path, Some(&token), body.as_deref())?;
        if answer.code == UNAUTHORIZED && !fresh {
            let token = self.login()?;
            return self.send(method, path, Some(&token), body.as_deref());
        }
        Ok(answer)
    }

    /// Hands a descriptor in; its applications as the root made them.
    pub fn create_applications(&self, descriptor: &Value) -> Result<Vec<Value>> {
        list(self.request("POST", "/api/application", Some(descriptor))?)
    }

    /// All applications.
    pub fn applications(&self) -> Result<Vec<Value>> {
        list(self.request("GET", "/api/applications", None)?)
    }

    /// The services of an application.
    pub fn services(&self, application: &str) -> Result<Vec<Value>> {
        list(self.request("GET", &format!("/api/services/{application}"), None)?)
    }

    /// One service.
    pub fn service(&self, service: &str) -> Result<Value> {
        self.request("GET", &format!("/api/service/{service}"), None)
    }

    /// The clusters that are connected.
    pub fn active_clusters(&self) -> Result<Vec<Value>> {
        list(self.request("GET", "/api/clusters/active", None)?)
    }

    /// Asks for one more instance of a service.
    pub fn deploy(&self, service: &str) -> Result<()> {
        self.request("POST", &format!("/api/service/{service}/instance"), None)?;
        Ok(())
    }

    /// Takes one instance of a service away.
    pub fn undeploy(&self, service: &str, number: u64) -> Result<()> {
        self.request(
            "DELETE",
            &format!("/api/service/{service}/instance/{number}"),
            None,
        )?;
        Ok(())
    }

    /// Deletes a service with its instances.
    pub fn delete_service(&self, service: &str) -> Result<()> {
        self.request("DELETE", &format!("/api/service/{service}"), None)?;
        Ok(())
    }

    /// Deletes an application with its services.
    pub fn delete_application(&self, application: &str) -> Result<()> {
        self.request("DELETE", &format!("/api/application/{application}"), None)?;
        Ok(())
    }

    /// The instances of a service.
    pub fn instances(&self, service: &str) -> Result<Vec<InstanceReport>> {
        let document = self.service(service)?;
        let list = document["instance_list"].as_array();
        Ok(list.into_iter().flatten().map(InstanceReport::parse).collect())
    }

    /// Waits until the only instance of a service has one of the statuses; it may be another by then.
    pub fn wait_for_status(
        &self,
        service: &str,
        statuses: &[&str],
        deadline: Duration,
    ) -> Result<InstanceReport> {
        let mut last = Vec::new();
        let outcome = wait_for(
            &format!("an instance to be {}", statuses.join(" or ")),
            deadline,
            || {
                last = self.instances(service)?;
                let found = last
                    .iter()
                    .find(|instance| statuses.contains(&instance.status.as_str()));
                Ok(found.cloned())
            },
        );
        outcome.with_context(|| format!("the instances are: {last:?}"))
    }
}

/// The id of an application, a service or a cluster.
pub fn id_of(document: &Value) -> Result<String> {
    let id = &document["_id"];
    let candidates = [
        id["$oid"].as_str(),
        id.as_str(),
        document["microserviceID"].as_str(),
        document["applicationID"].as_str(),
    ];
    let found = candidates.into_iter().flatten().find(|id| !id.is_empty());
    Ok(found.with_context(|| format!("no id in {document}"))?.to_owned())
}

fn successful(method: &str, path: &str, answer: &Answer) -> Result<Value> {
    if !(200..300).contains(&answer.code) {
        bail!("{method} {path}: {} {}", answer.code, answer.body.trim());
    }
    answer.json()
}

fn list(answer: Value) -> Result<Vec<Value>> {
    match answer {
        Value::Array(list) => Ok(list),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            bail!("no list: {other}")
        }
    }
}
