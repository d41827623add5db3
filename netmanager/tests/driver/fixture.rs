//! Workers whose driver Docker finds, and what is to be seen of them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use dataplane_ebpf::tables::{Published, PublishedKey};
use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Host, Lab, Namespace};
use netmanager::driver;
use netmanager::endpoint::name;

/// How long anything in these tests may take that should take milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Where every Docker looks for drivers.
pub const PLUGINS: &str = "/run/docker/plugins";

/// Leads to the server on the far host.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);
pub const SERVER: &str = "shop.test.server.test";
pub const CLIENT: &str = "shop.test.client.test";

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_NetManager"))
}

/// Host `near`, where the client will be, and host `far`, where the server will be.
pub struct Site {
    pub near: Worker,
    pub far: Worker,
    pub client: Instance,
    pub server: Instance,
    answers: [Answers; 2],
    /// Where their drivers are.
    pub plugins: PathBuf,
    pub lab: Lab,
}

impl Site {
    /// Two workers, nothing attached. Their drivers are in `plugins`, below the lab's folder where that is relative.
    pub fn new(label: &str, plugins: &str) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let plugins = lab.directory().join(plugins);
        let [near, far] = ["near", "far"].map(|role| lab.host(role).expect("a host"));
        let ip = Ipv4Addr::new;
        let instance = |service: &str, address, namespace_address, host: &Host| Instance {
            service: service.to_owned(),
            number: 0,
            address,
            namespace_address,
            host: host.address(),
            incarnation: 1,
        };
        let client = instance(CLIENT, ip(10, 30, 1, 1), ip(10, 18, 0, 2), &near);
        let server = instance(SERVER, ip(10, 30, 2, 1), ip(10, 18, 0, 66), &far);
        let services = vec![Service {
            name: SERVER.to_owned(),
            addresses: vec![SERVICE],
            instances: vec![server.clone()],
            delay: Duration::from_millis(50),
        }];
        let answers = |subnet, address, peers: &[&Instance]| Answers {
            subnet: Some(subnet),
            address: Some(address),
            peers: peers.iter().map(|peer| (*peer).clone()).collect(),
            services: services.clone(),
        };
        let answers = [
            answers(ip(10, 18, 0, 0), ip(10, 30, 0, 1), &[]),
            answers(ip(10, 18, 0, 64), ip(10, 30, 0, 2), &[&client]),
        ];
        let start = |host: &Host, answers: &Answers| {
            let folder = plugins.display().to_string();
            let arguments = ["--docker-plugins", folder.as_str()];
            Worker::start_with(&lab, host, program(), answers, &arguments).expect("a NetManager")
        };
        Self {
            near: start(&near, &answers[0]),
            far: start(&far, &answers[1]),
            client,
            server,
            answers,
            plugins,
            lab,
        }
    }

    /// Ends the near worker without warning and starts it with more arguments.
    pub fn restart_near_with(&mut self, arguments: &[&str]) {
        self.near.daemon().kill().expect("killed");
        let plugins = self.plugins.display().to_string();
        let host = self.near.host().clone();
        let all = [&["--docker-plugins", plugins.as_str()], arguments].concat();
        self.near =
            Worker::start_with(&self.lab, &host, program(), &self.answers[0], &all).expect("a NetManager");
    }
}

impl Drop for Site {
    /// Its NetManagers are killed, and leave what a purge would remove.
    fn drop(&mut self) {
        for worker in [&self.near, &self.far] {
            driver::remove(&driver::socket(&self.plugins, worker.node_id()));
        }
    }
}

/// Name of a worker's driver, and of its network.
pub fn driver_of(worker: &Worker) -> String {
    driver::name(worker.node_id())
}

/// The options of an endpoint that is to be this instance.
pub fn options_of(instance: &Instance) -> Vec<(&'static str, String)> {
    vec![
        ("oakestra.service", instance.service.clone()),
        ("oakestra.instance", instance.number.to_string()),
        ("oakestra.instance_ip", instance.address.to_string()),
        ("oakestra.incarnation", instance.incarnation.to_string()),
    ]
}

/// What a worker has of containers: links on its host and in Docker's namespace, addresses that are taken or promised,
/// endpoints, attachments, ports.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    links: Vec<String>,
    waiting: Vec<String>,
    routes: Vec<String>,
    endpoints: String,
    /// Ids of Docker's endpoints, with the addresses that they are promised.
    noted: Vec<String>,
    taken: usize,
    attachments: Vec<String>,
    /// Ports that lead somewhere, and those that the kernel may not choose.
    published: Vec<u16>,
    reserved: String,
}

/// See [`Left`]; `links` lists the links in Docker's namespace, as `ip -br link` does.
pub fn left(worker: &Worker, links: &str) -> Left {
    let digits = name::host_link(worker.node_id(), Ipv4Addr::UNSPECIFIED)[3..7].to_owned();
    let state = worker.root().join("var/lib/oakestra/netmanager/state.json");
    let state = std::fs::read(state).expect("a state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    let pins = netmanager::dataplane::Pins::of(worker.node_id()).map("FLOWS");
    let folder = pins
        .ancestors()
        .nth(2)
        .map(|layout| layout.join("links"))
        .expect("two folders deep");
    let mut attachments: Vec<String> = std::fs::read_dir(&folder)
        .expect("pins")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("endpoint"))
        .collect();
    attachments.sort();
    let noted = state["docker"].as_object().into_iter().flatten();
    let noted = noted.map(|(id, endpoint)| format!("{id} {}", endpoint["namespace_address"]));
    Left {
        links: named(&output(worker.host(), &["-br", "link"]), &format!("oak{digits}")),
        waiting: named(links, &format!("oac{digits}")),
        routes: named(&output(worker.host(), &["route"]), "10.18."),
        endpoints: worker.get("/endpoints").expect("listed").to_string(),
        noted: noted.collect(),
        taken: state["addresses"]["used"].as_array().map_or(0, Vec::len),
        attachments,
        published: published(worker),
        reserved: reserved(worker),
    }
}

/// The ports of the node that the data plane leads somewhere.
pub fn published(worker: &Worker) -> Vec<u16> {
    let pin = netmanager::dataplane::Pins::of(worker.node_id()).map("PUBLISHED");
    let map = Map::HashMap(MapData::from_pin(pin).expect("pinned"));
    let table: HashMap<_, PublishedKey, Published> = HashMap::try_from(map).expect("a table");
    let ports = table
        .keys()
        .map(|key| u16::from_be_bytes(key.expect("read").port));
    ports.collect()
}

fn reserved(worker: &Worker) -> String {
    let arguments = ["-n", "net.ipv4.ip_local_reserved_ports"];
    let output = worker.host().run("sysctl", &arguments).expect("read");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// That a worker has nothing of any container, after a while.
#[track_caller]
pub fn assert_nothing_left(worker: &Worker, links: impl Fn() -> String) {
    let mut last = None;
    let nothing = lab::wait_for("everything to be gone", DEADLINE, || {
        let now = left(worker, &links());
        let clean = now.links.is_empty()
            && now.waiting.is_empty()
            && now.routes.is_empty()
            && now.endpoints == "[]"
            && now.noted.is_empty()
            && now.taken == 0
            && now.attachments.is_empty()
            && now.published.is_empty()
            && now.reserved.is_empty();
        last = Some(now);
        Ok(clean)
    });
    assert!(nothing.is_ok(), "{last:#?}");
}

pub fn output(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.run("ip", arguments).expect("run");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn named(listed: &str, prefix: &str) -> Vec<String> {
    listed
        .lines()
        .filter(|line| line.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}
