//! The hosts and endpoints that are measured.
//!
//! ```text
//!     near (NetManager)  far (NetManager)        plain-near          plain-far
//!     client, server0-1  server0-1               client, server0-1   server0-1
//!            └──────────────────┴──────── wire ───────┴──────────────────┘
//! ```
//!
//! The baselines have hosts of their own, built alike: on a host with a NetManager the data plane looks at every
//! packet that comes from the wire, and plain routing would be charged for that.

use std::net::Ipv4Addr;
use std::path::Path as FilePath;

use anyhow::{Context as _, Result, ensure};
use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Endpoint, Host, HostOptions, Lab, Namespace, Offloads};

use super::comparison::Route;
use super::crowd;
use crate::load::{Path, Servers};
use crate::machine::Processors;

const NEAR_NODE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);
const FAR_NODE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 2);
/// Leads to the two replicas on the client's own host in turn.
const NEAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 44, 44);
/// Leads to the two replicas on the other host in turn.
pub const FAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);

const CLIENT_NAME: &str = "bench.test.client.test";
const NEAR_NAME: &str = "bench.test.near.test";
const FAR_NAME: &str = "bench.test.far.test";

/// Everything that is measured, until it is dropped. Fields in the order in which they have to go.
pub struct Topology {
    routing: Path,
    overlay: Path,
    one_host: Path,
    overlay_one_host: Path,
    nodes: Path,
    pub mtu: u32,
    _crowd: crowd::Receivers,
    _workers: Overlay,
    _lab: Lab,
}

impl Topology {
    pub fn build(program: &FilePath, offloads: Offloads, processors: &Processors) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let options = HostOptions {
            offloads,
            ..HostOptions::default()
        };
        let overlay = Overlay::build(&lab, options, program).context("cannot build the overlay")?;
        let plain =
            Plain::build(&lab, options, overlay.mtu).context("cannot build the hosts of the baselines")?;
        let hosts: [&Namespace; 2] = [&plain.near, &plain.far];
        let endpoints = overlay.endpoints().chain(plain.endpoints());
        for namespace in endpoints.map(|endpoint| &**endpoint).chain(hosts) {
            // A connection would begin with the window at which an earlier one on its path met a loss.
            namespace.sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        }

        let serve = |endpoints: &[Endpoint]| {
            let namespaces: Vec<&Namespace> = endpoints.iter().map(|endpoint| &**endpoint).collect();
            Servers::start(&namespaces, processors.server)
        };
        let path = |client: &Endpoint, servers: &[Endpoint], targets: &[Ipv4Addr]| -> Result<Path> {
            Ok(Path {
                client: (**client).clone(),
                servers: serve(servers)?,
                targets: targets.to_vec(),
            })
        };
        let nodes = Path {
            client: (*plain.near).clone(),
            servers: Servers::start(&[&plain.far], processors.server)?,
            targets: vec![plain.far.address()],
        };
        let receivers = crowd::gather(&overlay.near, &overlay.client, &overlay.far_servers)?;
        Ok(Self {
            routing: path(&plain.client, &plain.far_servers, &FAR_PLAIN)?,
            overlay: path(&overlay.client, &overlay.far_servers, &[FAR_SERVICE])?,
            one_host: path(&plain.client, &plain.near_servers, &NEAR_PLAIN)?,
            overlay_one_host: path(&overlay.client, &overlay.near_servers, &[NEAR_SERVICE])?,
            nodes,
            mtu: overlay.mtu,
            _crowd: receivers,
            _workers: overlay,
            _lab: lab,
        })
    }

    pub fn path(&self, route: Route) -> &Path {
        match route {
            Route::Routing => &self.routing,
            Route::Overlay => &self.overlay,
            Route::OneHost => &self.one_host,
            Route::OverlayOneHost => &self.overlay_one_host,
            Route::Nodes => &self.nodes,
        }
    }
}

/// Two hosts with a NetManager each.
struct Overlay {
    near: Worker,
    _far: Worker,
    mtu: u32,
    client: Endpoint,
    near_servers: [Endpoint; 2],
    far_servers: [Endpoint; 2],
}

impl Overlay {
    fn build(lab: &Lab, options: HostOptions, program: &FilePath) -> Result<Self> {
        let near_host = lab.host_with("near", options)?;
        let far_host = lab.host_with("far", options)?;
        let instance = |service: &str, number, address, namespace_address, host: &Host| Instance {
            service: service.to_owned(),
            number,
            address,
            namespace_address,
            host: host.address(),
            incarnation: 1,
        };
        let ip = Ipv4Addr::new;
        let client_instance = instance(CLIENT_NAME, 0, ip(10, 30, 1, 1), ip(10, 18, 0, 2), &near_host);
        let near_instances = [
            instance(NEAR_NAME, 0, ip(10, 30, 1, 2), ip(10, 18, 0, 3), &near_host),
            instance(NEAR_NAME, 1, ip(10, 30, 1, 3), ip(10, 18, 0, 4), &near_host),
        ];
        let far_instances = [
            instance(FAR_NAME, 0, ip(10, 30, 2, 1), ip(10, 18, 0, 66), &far_host),
            instance(FAR_NAME, 1, ip(10, 30, 2, 2), ip(10, 18, 0, 67), &far_host),
        ];
        let service = |name: &str, address, instances: &[Instance]| Service {
            name: name.to_owned(),
            addresses: vec![address],
            instances: instances.to_vec(),
            ..Service::default()
        };
        let mut services = vec![
            service(NEAR_NAME, NEAR_SERVICE, &near_instances),
            service(FAR_NAME, FAR_SERVICE, &far_instances),
        ];
        services.extend(crowd::services(far_host.address()));
        let near_answers = Answers {
            subnet: Some(ip(10, 18, 0, 0)),
            address: Some(NEAR_NODE),
            peers: Vec::new(),
            services,
        };
        let far_answers = Answers {
            subnet: Some(ip(10, 18, 0, 64)),
            address: Some(FAR_NODE),
            // What a cluster announces before it answers the near host's question.
            peers: vec![client_instance.clone()],
            services: Vec::new(),
        };
        let near = Worker::start(lab, &near_host, program, &near_answers)?;
        let far = Worker::start(lab, &far_host, program, &far_answers)?;

        let client = near_host.endpoint("client")?;
        let near_servers = [near_host.endpoint("server0")?, near_host.endpoint("server1")?];
        let far_servers = [far_host.endpoint("server0")?, far_host.endpoint("server1")?];
        let deploy = |worker: &Worker, endpoint, instance: &Instance| {
            let address = worker.deploy(endpoint, instance)?;
            let expected = instance.namespace_address;
            ensure!(
                address == expected,
                "{} was given {address}, not {expected} as announced",
                instance.service
            );
            Ok(())
        };
        deploy(&near, &client, &client_instance)?;
        for (endpoint, instance) in near_servers.iter().zip(&near_instances) {
            deploy(&near, endpoint, instance)?;
        }
        for (endpoint, instance) in far_servers.iter().zip(&far_instances) {
            deploy(&far, endpoint, instance)?;
        }

        let mtu = near.get("/status")?["mtu"].as_u64();
        Ok(Self {
            near,
            _far: far,
            mtu: u32::try_from(mtu.context("NetManager does not tell the MTU")?)?,
            client,
            near_servers,
            far_servers,
        })
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.client)
            .chain(&self.near_servers)
            .chain(&self.far_servers)
    }
}

const CLIENT_PLAIN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR_PLAIN: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 1, 3), Ipv4Addr::new(10, 0, 1, 4)];
const FAR_PLAIN: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 3)];

/// Two hosts that route, with endpoints of the MTU that those of the overlay have.
struct Plain {
    near: Host,
    far: Host,
    client: Endpoint,
    near_servers: [Endpoint; 2],
    far_servers: [Endpoint; 2],
}

impl Plain {
    fn build(lab: &Lab, options: HostOptions, mtu: u32) -> Result<Self> {
        let near = lab.host_with("plain-near", options)?;
        let far = lab.host_with("plain-far", options)?;
        near.route("10.0.2.0/24", far.address())?;
        far.route("10.0.1.0/24", near.address())?;
        // Between the nodes themselves the wire's MTU would make packets longer, and fewer.
        for host in [&near, &far] {
            host.ip(&format!(
                "route replace 192.0.2.0/24 dev {} src {} mtu {mtu} proto kernel scope link",
                lab::UPLINK,
                host.address()
            ))?;
        }
        let endpoint = |host: &Host, role, address| host.routed_endpoint(role, address, mtu);
        Ok(Self {
            client: endpoint(&near, "client", CLIENT_PLAIN)?,
            near_servers: [
                endpoint(&near, "server0", NEAR_PLAIN[0])?,
                endpoint(&near, "server1", NEAR_PLAIN[1])?,
            ],
            far_servers: [
                endpoint(&far, "server0", FAR_PLAIN[0])?,
                endpoint(&far, "server1", FAR_PLAIN[1])?,
            ],
            near,
            far,
        })
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.client)
            .chain(&self.near_servers)
            .chain(&self.far_servers)
    }
}
