//! A NetManager on a host, fed through its ordinary API and, in the place of a cluster, with answers from a file.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::http::{Request, send};
use crate::{Daemon, Endpoint, Host, Lab, wait_for};

/// How long a daemon may take to be ready; loading the programs takes a second on a slow machine.
const READY: Duration = Duration::from_secs(20);

/// An instance, as the answers name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `application.namespace.service.namespace`
    pub service: String,
    pub number: u32,
    /// The address that it shows to others.
    pub address: Ipv4Addr,
    /// Its address in the subnet of its node.
    pub namespace_address: Ipv4Addr,
    /// The tunnel address of its node.
    pub host: Ipv4Addr,
    pub incarnation: u64,
}

impl Instance {
    fn row(&self) -> Value {
        json!({
            "app_name": self.service,
            "instance_number": self.number,
            "instance_ip": self.address,
            "namespace_ip": self.namespace_address,
            "host_ip": self.host,
            "host_port": 50103,
            "incarnation": self.incarnation,
        })
    }
}

/// What a worker is told in the place of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// First address of the worker's /26.
    pub subnet: Option<Ipv4Addr>,
    /// The address by which the worker itself is reached.
    pub address: Option<Ipv4Addr>,
    /// Instances that are announced before anybody asks.
    pub peers: Vec<Instance>,
    pub services: Vec<Service>,
}

/// A service, as the answers name it.
#[derive(Clone, Debug, Default)]
pub struct Service {
    pub name: String,
    /// Its round-robin addresses.
    pub addresses: Vec<Ipv4Addr>,
    pub instances: Vec<Instance>,
    /// How long its answers take.
    pub delay: Duration,
}

impl Answers {
    fn document(&self) -> Value {
        let services = self.services.iter().map(|service| {
            json!({
                "name": service.name,
                "rr": service.addresses,
                "delayMilliseconds": service.delay.as_millis() as u64,
                "instances": service.instances.iter().map(Instance::row).collect::<Vec<_>>(),
            })
        });
        let mut document = json!({
            "subnet": self.subnet,
            "peers": self.peers.iter().map(Instance::row).collect::<Vec<_>>(),
            "services": services.collect::<Vec<_>>(),
        });
        if let Some(address) = self.address {
            document["instanceIp"] = json!(address);
        }
        document
    }
}

/// A running NetManager.
#[derive(Debug)]
pub struct Worker {
    host: Host,
    program: PathBuf,
    root: PathBuf,
    node_id: String,
    daemon: Daemon,
}

impl Worker {
    /// Starts the NetManager `program` on a host, and registers it.
    pub fn start(lab: &Lab, host: &Host, program: &Path, answers: &Answers) -> Result<Self> {
        Self::start_with(lab, host, program, answers, &[])
    }

    /// As [`Self::start`], with more arguments for the daemon.
    pub fn start_with(
        lab: &Lab,
        host: &Host,
        program: &Path,
        answers: &Answers,
        arguments: &[&str],
    ) -> Result<Self> {
        let root = lab.directory().join(format!("root-{}", host.name()));
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let file = root.join("answers.json");
        write_whole(&file, &answers.document())?;
        let mut command = host.command(&program.display().to_string())?;
        command
            .arg("--root")
            .arg(&root)
            .arg("--static-answers")
            .arg(&file)
            .args(arguments);
        // Docker is none of the lab's hosts: only who wants to be found by it says where.
        if !arguments.contains(&"--docker-plugins") {
            command.args(["--docker-plugins", "off"]);
        }
        let daemon = host.daemon("netmanager", command)?;
        let node_id = host.name().to_owned();
        let program = program.to_owned();
        let mut worker = Self {
            host: host.clone(),
            program,
            root,
            node_id,
            daemon,
        };
        worker.wait_until_ready()?;
        worker.post(
            "/register",
            &json!({"client_id": worker.node_id, "cluster_address": ""}),
        )?;
        Ok(worker)
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The folder under which its configuration, state and socket lie.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node id it is registered with; names of its pins and tables contain it.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Its process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// As [`Self::answer`], with addresses that lead to the closest instance of each service that is named here.
    pub fn answer_with_closest(&self, answers: &Answers, closest: &[(&str, Ipv4Addr)]) -> Result<()> {
        let mut document = answers.document();
        for service in document["services"].as_array_mut().into_iter().flatten() {
            let own = closest.iter().filter(|(name, _)| service["name"] == *name);
            service["closest"] = own.map(|(_, address)| json!(address)).collect();
        }
        write_whole(&self.root.join("answers.json"), &document)
    }

    /// Exchanges what it is told in the place of a cluster.
    pub fn answer(&self, answers: &Answers) -> Result<()> {
        write_whole(&self.root.join("answers.json"), &answers.document())
    }

    /// Attaches an endpoint as an instance. Its namespace address.
    pub fn deploy(&self, endpoint: &Endpoint, instance: &Instance) -> Result<Ipv4Addr> {
        self.publish(endpoint, instance, "")
    }

    /// As [`Self::deploy`], with ports of the worker that lead to it.
    pub fn publish(&self, endpoint: &Endpoint, instance: &Instance, ports: &str) -> Result<Ipv4Addr> {
        let answer = self.post("/container/deploy", &deployment(endpoint, instance, ports))?;
        let address = answer["nsAddress"]
            .as_str()
            .context("the answer has no nsAddress")?;
        address
            .parse()
            .with_context(|| format!("{address} is no address"))
    }

    /// Detaches an instance.
    pub fn undeploy(&self, service: &str, number: u32) -> Result<()> {
        self.post(
            "/container/undeploy",
            &json!({"serviceName": service, "instanceNumber": number}),
        )?;
        Ok(())
    }

    /// Kills it and starts it again; when this returns, it has taken over what its predecessor left.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(&[])
    }

    /// The same, with further arguments from now on.
    pub fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.daemon.restart_with(arguments)?;
        self.wait_until_ready()?;
        // It answers once it has resumed.
        self.get("/status")?;
        Ok(())
    }

    /// Waits until it takes requests.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        wait_for("NetManager to take requests", READY, || {
            if let Some(status) = self.daemon.ended()? {
                anyhow::bail!("it has ended ({status}):\n{}", self.daemon.log()?);
            }
            // Any answer will do, but only an answer: a child that a killed predecessor was about to start holds the
            // old socket for a moment, so that connecting says nothing.
            self.request("/status", None)?;
            Ok(true)
        })
    }

    /// Sends a request, which must succeed.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let (code, answer) = self.request(path, Some(&body.to_string()))?;
        ensure!(code == 200, "POST {path} {body}: {code} {answer}");
        Ok(answer)
    }

    /// Asks, which must succeed.
    pub fn get(&self, path: &str) -> Result<Value> {
        let (code, answer) = self.request(path, None)?;
        ensure!(code == 200, "GET {path}: {code} {answer}");
        Ok(answer)
    }

    /// Sends a request with curl, whatever comes of it: status code and body, `null` where that is empty.
    pub fn request(&self, path: &str, body: Option<&str>) -> Result<(u16, Value)> {
        let socket = self.socket().display().to_string();
        let request = Request {
            url: &format!("http://netmanager{path}"),
            body,
            socket: Some(&socket),
            ..Request::default()
        };
        let answer = send(&self.host, request)?;
        Ok((answer.code, answer.json()?))
    }

    /// The counter of an action or drop reason at a hook; zero when it was never counted.
    pub fn counter(&self, hook: &str, name: &str) -> Result<u64> {
        let rows = self.get("/drops")?;
        let found = rows
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["hook"] == hook && row["name"] == name);
        Ok(found.and_then(|row| row["packets"].as_u64()).unwrap_or_default())
    }

    /// Runs the NetManager's command line on this worker.
    pub fn command_line(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = self.host.command(&self.program.display().to_string())?;
        command.arg("--root").arg(&self.root).args(arguments);
        command.output().context("cannot run NetManager's command line")
    }

    fn socket(&self) -> PathBuf {
        self.root.join("etc/netmanager/netmanager.sock")
    }
}

/// The body of the request that attaches an endpoint as an instance, with ports of the worker that lead to it.
#[must_use]
pub fn deployment(endpoint: &Endpoint, instance: &Instance, ports: &str) -> Value {
    json!({
        "pid": endpoint.pid(),
        "serviceName": instance.service,
        "instanceNumber": instance.number,
        "portMappings": ports,
        "instanceIp": instance.address,
        "incarnation": instance.incarnation,
    })
}

/// Replaces a file in one step, so that its reader sees the old or the new.
fn write_whole(path: &Path, document: &Value) -> Result<()> {
    let beside = path.with_extension("new");
    let context = || format!("cannot write {}", path.display());
    fs::write(&beside, document.to_string()).with_context(context)?;
    fs::rename(&beside, path).with_context(context)
}
