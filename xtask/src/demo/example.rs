//! The user's client and server: deployed, watched, proven.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::capture::{Capture, Datagram};
use lab::http::{Request, send};
use lab::images::PAGE;
use lab::system::client::{InstanceReport, id_of};
use lab::system::{Node, System};
use lab::{DockerClient, Lab, wait_for};
use serde_json::Value;

use super::steps::Steps;
use crate::command::short;
use crate::table::print_table;
use crate::workspace::root;

/// The user's document, as it is.
const DESCRIPTOR: &str = "xtask/demo/client-server.json";
/// UDP port of the tunnel.
const TUNNEL_PORT: u16 = 50103;
/// How an IPv4 packet without options begins.
const PLAIN_IPV4: u8 = 0x45;
/// The port that the descriptor publishes.
const PUBLISHED_PORT: u16 = 80;

/// How long an instance may take to run, with its image there.
const RUNS: Duration = Duration::from_secs(30);
/// How long curl may take to get its answer. Its container is started anew each time it ends, later and later.
const ANSWERS: Duration = Duration::from_secs(60);
/// How long counters may lag behind the wire.
const COUNTED: Duration = Duration::from_secs(4);

/// Deploys the descriptor and shows that it does what it says. Fails where it does not.
pub fn show(system: &System, lab: &Lab, steps: &mut Steps) -> Result<()> {
    let path = root().join(DESCRIPTOR);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let descriptor: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))?;

    let client = system.client();
    client.login()?;
    let applications = client.create_applications(&descriptor)?;
    let application = applications.first().context("the root made no application")?;
    let services = client.services(&id_of(application)?)?;
    let service = |name: &str| {
        let found = services
            .iter()
            .find(|service| service["microservice_name"] == name);
        found.with_context(|| format!("the root made no service {name} of {}", short(&path)))
    };
    let (nginx, curl) = (
        Service::parse(service("nginx")?)?,
        Service::parse(service("curl")?)?,
    );
    steps.done(&format!("{DESCRIPTOR} is handed in at {}", client.base()));

    client.deploy(&nginx.id)?;
    let nginx_at = client.wait_for_status(&nginx.id, &["RUNNING"], RUNS)?;
    steps.done("nginx runs");
    let token = random_token()?;
    let docker = system.docker().clone();
    write_page(&docker, &nginx, &token)?;
    steps.done(&format!("the token {token} stands in its page"));

    let before = counters(system)?;
    let capture = Capture::start(lab.wire(), TUNNEL_PORT)?;
    client.deploy(&curl.id)?;
    let curl_at = client.wait_for_status(&curl.id, &["RUNNING", "DEAD", "COMPLETED"], RUNS)?;
    steps.done("curl runs");
    let answer = what_it_got(&docker, &curl, &token)?;
    steps.done("curl has its answer from 10.30.55.55");
    ensure!(
        nginx_at.host_ip != curl_at.host_ip,
        "both instances are on the node {}: nothing went through the tunnel",
        nginx_at.host_ip
    );
    let near = worker(system, &curl_at)?;
    let far = worker(system, &nginx_at)?;
    let seen = through_the_tunnel(&capture, &before, near, far)?;
    let after = counters(system)?;
    drop(capture);

    println!();
    print_instances(near, far, &curl_at, &nginx_at);
    println!("\nwhat curl wrote to its log:\n");
    for line in answer.lines() {
        println!("    {line}");
    }
    println!(
        "\nUDP {TUNNEL_PORT} on the wire meanwhile, each datagram with a packet that begins with 0x45:\n"
    );
    print_table(&["from", "to", "datagrams"], &seen);
    println!("\nwhat the programs of the data plane did with these packets:\n");
    print_table(
        &["node", "program", "action", "packets"],
        &difference(&before, &after),
    );
    println!();

    let url = format!("http://{}:{PUBLISHED_PORT}/", nginx_at.host_ip);
    let outside = &system.plan().root.namespace;
    let request = Request {
        url: &url,
        ..Request::default()
    };
    let page = send(outside, request).with_context(|| format!("cannot fetch {url}"))?;
    ensure!(
        page.code == 200 && page.body.contains(&token),
        "{url} has not the page with the token: {} {}",
        page.code,
        page.body
    );
    steps.done(&format!(
        "{url}, the published port, has the same page for another host"
    ));
    Ok(())
}

/// A service of the application.
struct Service {
    id: String,
    /// `application.namespace.service.namespace`, which its containers are labelled with.
    job: String,
}

impl Service {
    fn parse(document: &Value) -> Result<Self> {
        let job = document["job_name"].as_str();
        Ok(Self {
            id: id_of(document)?,
            job: job.context("a service has no job_name")?.to_owned(),
        })
    }

    fn containers(&self, docker: &DockerClient) -> Result<Vec<String>> {
        docker.containers(&[&format!("oakestra.service={}", self.job)])
    }
}

/// 32 hexadecimal digits that nobody can have known.
fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Replaces nginx's page in its container.
fn write_page(docker: &DockerClient, nginx: &Service, token: &str) -> Result<()> {
    let containers = nginx.containers(docker)?;
    let [container] = containers.as_slice() else {
        bail!(
            "there is not one container of {} but {}",
            nginx.job,
            containers.len()
        );
    };
    let mut command = docker.command(&["exec", "--interactive", container, "sh", "-c"]);
    command.arg(format!("cat > {PAGE}")).stdin(Stdio::piped());
    let mut child = command.spawn().context("cannot run docker")?;
    let page = format!("<h1>nginx of the demonstration</h1>\n<p>{token}</p>\n");
    // Dropped at the end of the statement, which ends the input.
    child
        .stdin
        .take()
        .context("its input is piped")?
        .write_all(page.as_bytes())
        .context("cannot hand the page over")?;
    let status = child.wait().context("cannot wait for docker")?;
    ensure!(
        status.success(),
        "cannot write the page in nginx's container ({status})"
    );
    Ok(())
}

/// What any run of curl's container wrote, once the token is in it. A container that ended is started again, or
/// replaced by another; whichever there is may have it.
fn what_it_got(docker: &DockerClient, curl: &Service, token: &str) -> Result<String> {
    let mut last = String::new();
    let outcome = wait_for("the token in curl's log", ANSWERS, || {
        for container in curl.containers(docker)? {
            last = docker.text(&["logs", &container])?;
            if last.contains(token) {
                return Ok(true);
            }
        }
        Ok(false)
    });
    outcome.with_context(|| format!("curl's log is: {last:?}"))?;
    Ok(last)
}

fn worker<'a>(system: &'a System, instance: &InstanceReport) -> Result<&'a Node> {
    system
        .worker_at(&instance.host_ip)
        .with_context(|| format!("no worker has the address {}", instance.host_ip))
}

/// The counters of a worker.
struct Counted {
    node: String,
    rows: Vec<(String, String, u64)>,
}

impl Counted {
    fn of(node: &Node) -> Result<Self> {
        Ok(Self {
            node: node.seat().name.clone(),
            rows: node.counters()?,
        })
    }

    fn get(&self, hook: &str, name: &str) -> u64 {
        self.sum(name, |other| other == hook)
    }

    fn sum(&self, name: &str, at: impl Fn(&str) -> bool) -> u64 {
        let matching = self.rows.iter().filter(|row| row.1 == name && at(&row.0));
        matching.map(|row| row.2).sum()
    }
}

fn counters(system: &System) -> Result<Vec<Counted>> {
    system.workers().iter().map(Counted::of).collect()
}

/// Waits until the wire has carried packets in both directions, and each is counted by the program that put it into
/// the tunnel and by the one that took it out. What went: from, to, how many.
fn through_the_tunnel(
    capture: &Capture,
    before: &[Counted],
    near: &Node,
    far: &Node,
) -> Result<Vec<Vec<String>>> {
    let mut state = String::new();
    let outcome = wait_for("packets in the tunnel, counted at both ends", COUNTED, || {
        let seen = capture.seen();
        let mut rows = Vec::new();
        for (from, to) in [(near, far), (far, near)] {
            let carried = carried(&seen, from, to);
            // The first packet to an address that is not known yet waits in NetManager, and goes by another program.
            let sent = risen(before, from, "TUNNEL", |_any| true)?;
            let received = risen(before, to, "DELIVER", |hook| hook == "from_uplink")?;
            let (source, target) = (from.seat(), to.seat());
            state = format!(
                "{source} to {target}: {carried} datagrams on the wire, {sent} sent, {received} received",
                source = source.name,
                target = target.name,
            );
            if carried == 0 || carried != sent || carried != received {
                return Ok(None);
            }
            let shown = |seat: &lab::system::Seat| format!("{} ({})", seat.name, seat.address);
            rows.push(vec![shown(source), shown(target), carried.to_string()]);
        }
        Ok(Some(rows))
    });
    outcome.context(state)
}

/// How many datagrams between two nodes carry a packet.
fn carried(seen: &[Datagram], from: &Node, to: &Node) -> u64 {
    let matching = seen.iter().filter(|datagram| {
        *datagram.source.ip() == from.seat().address
            && *datagram.destination.ip() == to.seat().address
            && datagram.payload.first() == Some(&PLAIN_IPV4)
    });
    matching.count() as u64
}

/// By how much an action's counters at some hooks of a node have risen.
fn risen(before: &[Counted], node: &Node, name: &str, at: impl Fn(&str) -> bool) -> Result<u64> {
    let earlier = before
        .iter()
        .find(|counted| counted.node == node.seat().name)
        .map_or(0, |counted| counted.sum(name, &at));
    Ok(Counted::of(node)?.sum(name, &at).saturating_sub(earlier))
}

/// What the data plane does with packets between instances on two nodes: into the tunnel, out of it to the instance,
/// and up to NetManager while an address is asked for. All else on these nodes is not about them.
const ACTIONS: [&str; 3] = ["TUNNEL", "DELIVER", "PARK"];

/// What has risen between two looks: node, program, action, packets.
fn difference(before: &[Counted], after: &[Counted]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (earlier, later) in before.iter().zip(after) {
        for (hook, name, packets) in &later.rows {
            let risen = packets.saturating_sub(earlier.get(hook, name));
            if risen > 0 && ACTIONS.contains(&name.as_str()) {
                rows.push(vec![
                    later.node.clone(),
                    hook.clone(),
                    name.clone(),
                    risen.to_string(),
                ]);
            }
        }
    }
    rows
}

fn print_instances(near: &Node, far: &Node, curl: &InstanceReport, nginx: &InstanceReport) {
    let row = |name: &str, node: &Node, instance: &InstanceReport| {
        vec![
            name.to_owned(),
            node.seat().name.clone(),
            instance.host_ip.clone(),
            instance.instance_ip.clone(),
        ]
    };
    print_table(
        &[
            "instance",
            "node",
            "address of the node",
            "address of the instance",
        ],
        &[row("curl", near, curl), row("nginx", far, nginx)],
    );
}
