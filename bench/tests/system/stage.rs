//! What the tests of the system have in common.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::system::client::{InstanceReport, id_of};
use lab::system::{PROGRAMS_VARIABLE, System};
use lab::{Lab, Namespace, images, wait_for};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The address that the descriptor gives nginx.
pub const SERVICE_ADDRESS: &str = "10.30.55.55";

/// A system in a lab.
pub struct Stage {
    pub system: System,
    // After the system, which lives in it.
    pub lab: Lab,
}

/// An application that was created.
pub struct Application {
    pub id: String,
    /// Ids of its services.
    pub nginx: String,
    pub curl: String,
}

pub fn programs() -> Result<PathBuf> {
    folder(PROGRAMS_VARIABLE)
}

pub fn image_archive() -> Result<PathBuf> {
    folder(images::FOLDER_VARIABLE)
}

fn folder(variable: &str) -> Result<PathBuf> {
    let folder = env::var_os(variable).with_context(|| {
        format!("{variable} is not set: `cargo xtask test` builds what is needed and sets it")
    })?;
    Ok(folder.into())
}

impl Stage {
    /// A system with this many workers, ready.
    pub fn set(label: &str, workers: usize) -> Result<Self> {
        let lab = Lab::new(label)?;
        let system = System::start(&lab, &programs()?, &image_archive()?, workers)?;
        Ok(Self { system, lab })
    }

    /// Creates the application of the descriptor.
    pub fn create(&self) -> Result<Application> {
        let client = self.system.client();
        let applications = client.create_applications(&descriptor())?;
        let application = applications
            .iter()
            .find(|application| application["application_name"] == "clientsrvr")
            .context("the application is not in the list")?;
        let id = id_of(application)?;
        let services = client.services(&id)?;
        let service = |name: &str| {
            services
                .iter()
                .find(|service| service["microservice_name"] == name)
                .with_context(|| format!("no service {name}"))
                .and_then(id_of)
        };
        Ok(Application {
            nginx: service("nginx")?,
            curl: service("curl")?,
            id,
        })
    }

    /// One more instance of a service; waits until it runs.
    pub fn run(&self, service: &str) -> Result<InstanceReport> {
        let client = self.system.client();
        let before: Vec<u64> = client
            .instances(service)?
            .iter()
            .map(|instance| instance.number)
            .collect();
        client.deploy(service)?;
        let mut last = Vec::new();
        wait_for("a new instance to run", PATIENCE, || {
            last = client.instances(service)?;
            let new = last
                .iter()
                .find(|instance| !before.contains(&instance.number) && instance.status == "RUNNING");
            Ok(new.cloned())
        })
        .with_context(|| format!("the instances are {last:?}"))
    }

    /// The only container of a service.
    pub fn container(&self, service: &str) -> Result<String> {
        let label = format!("oakestra.service=clientsrvr.test.{service}.test");
        let containers = self.system.docker().containers(&[&label])?;
        let [container] = containers.as_slice() else {
            anyhow::bail!("{} containers of {service}", containers.len());
        };
        Ok(container.clone())
    }

    /// Puts a page into nginx that nobody else serves.
    pub fn put_page(&self, page: &str) -> Result<()> {
        let container = self.container("nginx")?;
        let write = format!("echo {page} > {}", images::PAGE);
        self.system
            .docker()
            .run(&["exec", &container, "sh", "-c", &write])?;
        Ok(())
    }

    /// What a host gets from an address.
    pub fn fetch(&self, from: &Namespace, address: &str) -> Result<String> {
        let output = from.run("curl", &["--silent", "--show-error", "--max-time", "2", address])?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Waits until curl's own output has the text.
    pub fn wait_for_output(&self, text: &str) -> Result<String> {
        let mut last = String::new();
        wait_for(&format!("{text} in the output of curl"), PATIENCE, || {
            last = self.system.docker().logs(&self.container("curl")?)?;
            Ok(last.contains(text).then(|| last.clone()))
        })
        .with_context(|| format!("it wrote: {last}"))
    }

    /// Everything that deployments leave traces in: containers, links of the workers, rows of their NetManagers.
    pub fn traces(&self) -> Result<Vec<String>> {
        let mut traces = Vec::new();
        for container in self.system.docker().containers(&["oakestra.service"])? {
            traces.push(format!("container {container}"));
        }
        for seat in &self.system.plan().workers {
            let links = seat.namespace.ip("-brief link")?;
            for link in String::from_utf8(links.stdout)?.lines() {
                let name = link.split([' ', '@']).next().unwrap_or_default();
                if !["lo", "oak0", lab::UPLINK].contains(&name) {
                    traces.push(format!("link {name} on {}", seat.name));
                }
            }
            let node = self
                .system
                .worker_at(&seat.address.to_string())
                .context("no such worker")?;
            for endpoint in node.ask("/endpoints")?.as_array().context("no endpoints")? {
                traces.push(format!("endpoint {endpoint} on {}", seat.name));
            }
        }
        Ok(traces)
    }

    /// Waits until nothing is left of any deployment.
    pub fn wait_until_bare(&self) -> Result<()> {
        let mut traces = Vec::new();
        wait_for("nothing to be left", PATIENCE, || {
            traces = self.traces()?;
            Ok(traces.is_empty())
        })
        .with_context(|| format!("left: {traces:?}"))
    }
}

/// The user's descriptor, unchanged.
pub fn descriptor() -> Value {
    serde_json::from_str(include_str!("../../../xtask/demo/client-server.json"))
        .expect("the descriptor is JSON")
}

/// A descriptor of one more nginx, with other names and another port.
pub fn another(name: &str, port: &str) -> Value {
    let mut descriptor = descriptor();
    let application = &mut descriptor["applications"][0];
    application["application_name"] = json!(name);
    let mut server = application["microservices"][1].clone();
    server["port"] = json!(port);
    server["addresses"] = json!({});
    application["microservices"] = json!([server]);
    descriptor
}

/// Fails unless the node's network took the way that it should.
pub fn ensure_different_nodes(one: &InstanceReport, other: &InstanceReport) -> Result<()> {
    ensure!(
        !one.worker_id.is_empty() && one.worker_id != other.worker_id,
        "both are on one node: {one:?} and {other:?}"
    );
    Ok(())
}
