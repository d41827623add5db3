//! How long an instance takes to run, beside what Docker alone takes for the same container.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lab::system::System;
use lab::system::client::id_of;
use lab::{images, wait_for};
use rand::Rng;
use serde_json::{Value, json};

use super::connection::Connection;
use crate::interrupt;
use crate::statistics::Pair;

/// The user's descriptor; its server is what is started.
const DESCRIPTOR: &str = include_str!("../../../xtask/demo/client-server.json");
const SERVICE: &str = "nginx";
/// By which containers of the service are found.
const LABEL: &str = "oakestra.service=clientsrvr.test.nginx.test";
/// Between two looks at the root's API, which is what the second figure is exact to.
pub const LOOK: Duration = Duration::from_millis(4);
/// Longer than any start takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before each start, for what the end of the one before has left to be done in the background.
const SETTLE: Duration = Duration::from_millis(700);
/// Parts of a container's host settings that limit it or keep its output: all that the system sets besides the network.
const LIMITS: [&str; 5] = ["Memory", "MemorySwap", "NanoCpus", "PidsLimit", "LogConfig"];
const DAY: f64 = 86_400.0;

/// Starts of both kinds, pairs of one round each; in milliseconds.
#[derive(Debug, Default)]
pub struct Starts {
    /// Until the process runs, as the runtime notes it (`State.StartedAt`): baseline from the request to create, measured
    /// from the POST.
    pub process: Vec<Pair>,
    /// Until it is told: baseline until Docker has answered the start, measured until the root says RUNNING.
    pub told: Vec<Pair>,
}

/// The service that is started, and the two ways to it.
pub struct Stage<'a> {
    system: &'a System,
    service: String,
    docker: Connection,
    /// Host settings of the system's own container, for Docker's.
    limits: Value,
}

/// Two figures of one start, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Start {
    process: f64,
    told: f64,
}

impl<'a> Stage<'a> {
    /// Creates the service, and starts it once each way: the first start makes the network and reads the image.
    pub fn set(system: &'a System) -> Result<Self> {
        let mut descriptor: Value = serde_json::from_str(DESCRIPTOR).context("the descriptor is no JSON")?;
        let services = &mut descriptor["applications"][0]["microservices"];
        if let Some(list) = services.as_array_mut() {
            list.retain(|service| service["microservice_name"] == SERVICE);
        }
        let client = system.client();
        let applications = client.create_applications(&descriptor)?;
        let application = id_of(applications.first().context("the root made no application")?)?;
        let services = client.services(&application)?;
        let service = id_of(services.first().context("the root made no service")?)?;
        let mut stage = Self {
            system,
            service,
            docker: Connection::unix(system.docker().socket())?,
            limits: Value::Null,
        };
        stage.deploy()?;
        let settings = stage.inspect(&stage.container()?)?["HostConfig"].clone();
        stage.limits = LIMITS
            .iter()
            .map(|name| ((*name).to_owned(), settings[*name].clone()))
            .collect();
        stage.limits["NetworkMode"] = json!("none");
        stage.undeploy()?;
        stage.by_docker()?;
        Ok(stage)
    }

    /// Measures this many rounds: in each both ways, in random order.
    pub fn measure(&mut self, rounds: u32, random: &mut impl Rng) -> Result<Starts> {
        let mut starts = Starts::default();
        for round in 1..=rounds {
            interrupt::check()?;
            let ours_first: bool = random.random();
            let (ours, dockers) = if ours_first {
                let ours = self.by_system()?;
                (ours, self.by_docker()?)
            } else {
                let dockers = self.by_docker()?;
                (self.by_system()?, dockers)
            };
            eprintln!(
                "round {round}: POST to process {:.0} ms, to RUNNING {:.0} ms; Docker alone {:.0} and {:.0} ms",
                ours.process, ours.told, dockers.process, dockers.told
            );
            starts.process.push(Pair {
                baseline: dockers.process,
                measured: ours.process,
            });
            starts.told.push(Pair {
                baseline: dockers.told,
                measured: ours.told,
            });
        }
        Ok(starts)
    }

    /// Leaves one instance running.
    pub fn deploy(&mut self) -> Result<()> {
        self.start_instance().map(drop)
    }

    fn by_system(&mut self) -> Result<Start> {
        sleep(SETTLE);
        let start = self.start_instance()?;
        self.undeploy()?;
        Ok(start)
    }

    fn start_instance(&mut self) -> Result<Start> {
        let client = self.system.client();
        let token = client.login()?;
        let seat = &self.system.plan().root;
        let address = SocketAddr::from((seat.address, lab::system::ROOT_PORT));
        let mut root = Connection::tcp(&seat.namespace, address, token)?;
        let path = format!("/api/service/{}", self.service);

        let (clock, began) = (seconds_of_day()?, Instant::now());
        root.request(Method::POST, &format!("{path}/instance"), None)?;
        let told = loop {
            let service = root.request(Method::GET, &path, None)?;
            let elapsed = began.elapsed();
            if service["instance_list"][0]["status"] == "RUNNING" {
                break elapsed;
            }
            ensure!(elapsed < PATIENCE, "no instance runs: {service}");
            sleep(LOOK);
        };
        let container = self.container()?;
        Ok(Start {
            process: self.milliseconds_to_start(&container, clock)?,
            told: told.as_secs_f64() * 1e3,
        })
    }

    fn by_docker(&mut self) -> Result<Start> {
        sleep(SETTLE);
        let body = json!({"Image": images::NGINX.name, "HostConfig": self.limits});
        let (clock, began) = (seconds_of_day()?, Instant::now());
        let created = self
            .docker
            .request(Method::POST, "/containers/create", Some(&body))?;
        let container = created["Id"].as_str().context("Docker gave no id")?;
        self.docker
            .request(Method::POST, &format!("/containers/{container}/start"), None)?;
        let told = began.elapsed();
        let process = self.milliseconds_to_start(container, clock)?;
        let remove = format!("/containers/{container}?force=true");
        self.docker.request(Method::DELETE, &remove, None)?;
        Ok(Start {
            process,
            told: told.as_secs_f64() * 1e3,
        })
    }

    fn undeploy(&self) -> Result<()> {
        let client = self.system.client();
        for instance in client.instances(&self.service)? {
            client.undeploy(&self.service, instance.number)?;
        }
        wait_for("the instance to be gone", PATIENCE, || {
            Ok(client.instances(&self.service)?.is_empty()
                && self.system.docker().containers(&[LABEL])?.is_empty())
        })
    }

    /// The service's only container.
    fn container(&self) -> Result<String> {
        let containers = self.system.docker().containers(&[LABEL])?;
        ensure!(containers.len() == 1, "the service has {containers:?}");
        containers.into_iter().next().context("no container")
    }

    fn inspect(&mut self, container: &str) -> Result<Value> {
        self.docker
            .request(Method::GET, &format!("/containers/{container}/json"), None)
    }

    fn milliseconds_to_start(&mut self, container: &str, began: f64) -> Result<f64> {
        let state = self.inspect(container)?["State"].clone();
        ensure!(state["Running"] == true, "the container does not run: {state}");
        let started = state["StartedAt"].as_str().and_then(time_of_day);
        let started = started.with_context(|| format!("when did it start: {state}"))?;
        // Midnight may lie in between.
        Ok((started - began).rem_euclid(DAY) * 1e3)
    }
}

/// The machine's clock, as seconds since midnight UTC.
fn seconds_of_day() -> Result<f64> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok((since.as_secs() % 86_400) as f64 + f64::from(since.subsec_nanos()) / 1e9)
}

/// Seconds since midnight of `2026-01-02T03:04:05.678901234Z`.
fn time_of_day(text: &str) -> Option<f64> {
    let (_date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_time_is_read() {
        let read = time_of_day("2026-01-02T03:04:05.678901234Z").expect("a time");
        assert!((read - 11_045.678_901_234).abs() < 1e-6, "{read}");
        assert_eq!(time_of_day("0001-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(time_of_day("2026-01-02 03:04:05Z"), None);
        assert_eq!(time_of_day("2026-01-02T03:04:05+01:00"), None, "not UTC");
    }

    #[test]
    fn the_descriptor_has_the_service() {
        let descriptor: Value = serde_json::from_str(DESCRIPTOR).expect("JSON");
        let services = descriptor["applications"][0]["microservices"].as_array();
        let found = services.into_iter().flatten();
        assert_eq!(
            found
                .filter(|service| service["microservice_name"] == SERVICE)
                .count(),
            1
        );
    }
}
