//! A registered node: everything that runs from registration on.
//!
//! ```text
//!   containers ──/container/deploy, Docker──► attach ──► endpoint, directory, program
//!   oak0 ──────────first packets────► upcalls ──► resolver ──► records ──► directory ──► packets back to oak0
//!   cluster ───────peers, changes───► records
//!   tunnel port ◄──probes──────────► probing ──► directory
//!   kernel ────────links, routes────► upkeep ──► paths, uplinks, local addresses
//! ```
//!
//! Each arrow ends in idempotent writes; nothing waits for anything of another arrow.

mod announced;
mod attach;
mod detach;
mod docker;
mod flow_views;
mod flows;
mod idleness;
mod ledger;
mod metrics;
mod names;
mod path_mtu;
mod paths;
mod probing;
mod published;
mod reassembled;
mod reconcile;
mod records;
mod restore;
mod status;
mod strangers;
mod tell;
mod upcalls;
mod upkeep;
mod watch;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use dataplane_ebpf::tables::{LOOPBACK, delivery};
use protocol::ports::TransportProtocol;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::dataplane::{Attachment, Dataplane, Globals, Pins, Program};
use crate::directory::{Directory, LocalEndpoint};
use crate::driver;
use crate::endpoint::Fault;
use crate::flows::FlowMaps;
use crate::host::changes::Changes;
use crate::host::docker_user::{self, DockerUserOptions};
use crate::host::oak0::{self, Oak0, Oak0Options};
use crate::host::path_mtu::PathMtuSocket;
use crate::host::ruleset::RulesetChanges;
use crate::host::{Netlink, firewall};
use crate::parking::Parking;
use crate::probes::Probes;
use crate::resolver::{MqttSettings, Resolver, Update};
use crate::state::{Registration, State, Store};

use announced::ClusterAddresses;
use flows::Flows;
use ledger::Ledger;
use metrics::Metrics;
use path_mtu::PathMtus;
use paths::Hops;
use upkeep::Round;
use watch::Watch;

pub use attach::{AttachError, Deploy, Place};
pub use docker::{DockerPlace, DockerWish};
pub use flow_views::{FlowFilter, FlowView, FlowsView};
pub use flows::FlowFigures;
pub use metrics::CONTENT_TYPE as METRICS_CONTENT_TYPE;
pub(crate) use restore::remove_from_kernel;
pub use restore::reset;
pub use status::{EndpointView, Status};
pub use watch::{EventKind, EventView, Watcher, interface_name, protocol_name};

/// The state and the folder that keeps it. Whoever changes an endpoint holds it, so that attaching and detaching
/// happen one after the other.
pub struct Kept {
    pub store: Store,
    pub state: State,
}

impl Kept {
    /// Saves the state; what is not saved must not be relied on.
    pub fn save(&self) -> Result<(), crate::state::StateError> {
        self.store.save(&self.state)
    }
}

/// A registered node.
pub struct Node {
    pub registration: Registration,
    config: Config,
    netlink: Netlink,
    oak0: Oak0,
    resolver: Arc<dyn Resolver>,
    dataplane: Mutex<Dataplane>,
    directory: Mutex<Directory>,
    parking: Mutex<Parking>,
    kept: Arc<tokio::sync::Mutex<Kept>>,
    /// What the cluster said last, to be entered anew when an endpoint or a way comes or goes. Locked before the
    /// directory where both are.
    ledger: Mutex<Ledger>,
    /// Which nodes are behind which next hop.
    hops: Mutex<Hops>,
    /// What fits on the way to nodes, as routers say.
    path_mtus: Mutex<PathMtus>,
    cluster: Mutex<ClusterAddresses>,
    /// Own addresses, as last seen.
    local_addresses: Mutex<Vec<Ipv4Addr>>,
    /// The address that peers are told to send to.
    announced: Mutex<Option<Ipv4Addr>>,
    /// The tunnels that the firewall guards.
    tunnels: Mutex<BTreeSet<SocketAddrV4>>,
    /// The ports that the firewall and the kernel's own choice leave alone.
    published: Mutex<BTreeSet<(TransportProtocol, u16)>>,
    /// When everything of the firewall was looked through last.
    firewall_applied: Mutex<Option<tokio::time::Instant>>,
    /// Interfaces whose offloads were set.
    tended: Mutex<BTreeSet<u32>>,
    connection: Mutex<(bool, String)>,
    /// What the probes say of other nodes. Locked before the directory where both are.
    probes: Mutex<Probes>,
    /// Nodes have come or gone.
    probes_due: Notify,
    /// Why first packets do not get here; `None` when they do.
    upcalls_broken: Mutex<Option<String>>,
    /// Something was learnt that the firewall and the paths should follow.
    upkeep_due: Notify,
    /// The connection to the cluster came or went.
    names_due: Notify,
    flows: Flows,
    watch: Watch,
    flow_maps: Arc<FlowMaps>,
    metrics: Metrics,
    faults: Faults,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What a node is started with.
pub struct Start {
    pub registration: Registration,
    pub config: Config,
    pub resolver: Arc<dyn Resolver>,
    pub updates: mpsc::Receiver<Update>,
    pub kept: Arc<tokio::sync::Mutex<Kept>>,
    pub faults: Faults,
    /// How programs are attached; the better way that the kernel has, where nothing is given.
    pub attachment: Option<Attachment>,
}

/// Steps that are to fail, in tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub attach: Fault,
    pub detach: Fault,
}

impl Node {
    /// From now on the cluster is where these settings say.
    pub fn follow(&self, settings: MqttSettings) {
        self.resolver.follow(settings);
    }

    /// Puts the data plane in place, or takes over the one that is there, and begins to serve it.
    ///
    /// # Errors
    /// When the kernel refuses something that the node cannot do without; what a previous process had in place
    /// still works then.
    pub async fn start(start: Start) -> anyhow::Result<Arc<Self>> {
        let Start {
            registration,
            config,
            resolver,
            updates,
            kept,
            faults,
            attachment,
        } = start;
        let attachment = attachment.unwrap_or_else(Attachment::detect);
        let netlink = Netlink::open().context("opening a routing socket")?;
        let changes = Changes::open().context("subscribing to the kernel's changes")?;
        let ruleset = RulesetChanges::open().context("subscribing to the firewall's changes")?;
        let host_address = host_address(&registration);
        let options = Oak0Options {
            address: host_address,
            mtu: u32::from(config.mtu),
        };
        let oak0 = Oak0::open(&netlink, &options).await.context("opening oak0")?;
        let tunnel_socket = Arc::new(strangers::listen(config.listen_port)?);
        let probe_settings = config.probes.clone();
        let path_mtus = PathMtuSocket::open().context("listening to routers")?;

        let globals = Globals {
            oak0_interface: oak0.index(),
            tunnel_port: config.listen_port,
            host_address,
            probes_answered: config.probes.answered_per_second,
            trace_walks: false,
        };
        let pins = Pins::of(&registration.node_id);
        let (mut dataplane, mut tables) =
            Dataplane::open(pins, globals, attachment).context("loading the data plane")?;
        let events = tables.events.take().context("the ring of events is missing")?;
        let watch = Watch::new(events.settings).context("ending what a previous process has watched")?;
        let mut directory =
            Directory::adopt(tables, &registration.node_id).context("taking over the tables")?;
        let flow_maps = directory.flow_maps().context("opening the tables of flows")?;
        if let Some(address) = registration.instance_address {
            directory.add_endpoint(&LocalEndpoint {
                address,
                namespace_address: host_address,
                incarnation: 1,
                application: registration.application,
                interface: oak0.index(),
                mac: [0; 6],
                delivery: delivery::HOST,
                publishes: false,
            })?;
        }
        for program in [Program::FromOak0, Program::FromHost] {
            dataplane.attach(program, oak0::NAME, oak0.index())?;
        }
        dataplane.attach(Program::FromLoopback, "lo", LOOPBACK)?;
        {
            let mut kept = kept.lock().await;
            // Noted before anything is changed: a process that is killed in between can be cleaned up after.
            kept.state
                .sysctls
                .note_required()
                .context("reading what the kernel needs")?;
            kept.save()?;
            kept.state
                .sysctls
                .set_required()
                .context("setting what the kernel needs")?;
        }

        let node = Arc::new(Self {
            registration,
            config,
            netlink,
            oak0,
            resolver,
            dataplane: Mutex::new(dataplane),
            directory: Mutex::new(directory),
            parking: Mutex::default(),
            kept,
            ledger: Mutex::default(),
            hops: Mutex::default(),
            path_mtus: Mutex::default(),
            cluster: Mutex::default(),
            local_addresses: Mutex::default(),
            announced: Mutex::default(),
            tunnels: Mutex::default(),
            published: Mutex::default(),
            firewall_applied: Mutex::default(),
            tended: Mutex::default(),
            probes: Mutex::new(Probes::new(probe_settings)),
            probes_due: Notify::new(),
            connection: Mutex::new((false, "connecting".to_owned())),
            upcalls_broken: Mutex::default(),
            upkeep_due: Notify::new(),
            names_due: Notify::new(),
            flows: Flows::default(),
            watch,
            flow_maps: Arc::new(flow_maps),
            metrics: Metrics::default(),
            faults,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        node.restore_endpoints()
            .await
            .context("taking over the endpoints")?;
        node.apply_firewall().await.context("setting the firewall up")?;
        node.open_docker().await;
        node.upkeep(&Round::first())
            .await
            .context("attaching to the uplinks")?;
        lock(&node.dataplane)
            .remove_other_layouts()
            .context("removing what another version has left")?;

        node.spawn(|node| node.serve_upcalls());
        node.spawn(|node| node.serve_updates(updates));
        node.spawn(|node| node.serve_names());
        node.spawn(|node| node.serve_changes(changes));
        node.spawn(|node| node.serve_ruleset(ruleset));
        node.spawn(|node| node.serve_strangers(tunnel_socket.clone()));
        node.spawn(|node| node.serve_probes(tunnel_socket));
        node.spawn(|node| node.serve_path_mtus(path_mtus));
        node.spawn(|node| node.serve_flows());
        node.spawn(|node| node.serve_events(events.ring));
        tracing::info!(node = node.registration.node_id, subnet = %node.registration.subnet, "the data plane is in place");
        Ok(node)
    }

    /// Ends the tasks. Everything in the kernel stays and goes on.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn spawn<F>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let task = task(self.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Answers Docker at this socket until the node stops, and removes it then.
    pub(crate) fn serve_docker(self: &Arc<Self>, listener: UnixListener, socket: PathBuf) {
        let (node, stop) = (self.clone(), self.stop.clone());
        // Not cut off like other tasks: what has begun is finished.
        self.tasks.spawn(async move {
            if let Err(error) = driver::serve(node, listener, stop).await {
                tracing::error!(%error, "Docker is not answered any more");
            }
            driver::remove(&socket);
        });
    }

    async fn apply_firewall(&self) -> anyhow::Result<()> {
        let tunnels = self.wanted_tunnels();
        let options = firewall::FirewallOptions {
            node_id: self.registration.node_id.clone(),
            subnets: vec![ipnetwork::Ipv4Network::new(self.registration.subnet, 26)?],
            listen_port: self.config.listen_port,
            tunnels: tunnels.clone(),
            published: lock(&self.published).clone(),
        };
        firewall::apply(&options).await?;
        *lock(&self.tunnels) = tunnels;
        Ok(())
    }

    /// Lets what containers exchange with the world past Docker, where Docker forwards nothing by itself. Without it
    /// only that is missing, so a failure is told and does no further harm.
    async fn open_docker(&self) {
        let subnet = ipnetwork::Ipv4Network::new(self.registration.subnet, 26);
        let Ok(subnet) = subnet else { return };
        let options = DockerUserOptions {
            node_id: self.registration.node_id.clone(),
            subnets: vec![subnet],
        };
        match docker_user::apply(&options).await {
            Ok(true) => tracing::info!("let containers past Docker's firewall"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "Docker's firewall may keep containers from the world"),
        }
    }

    /// The tunnels of all peers, and this node's own: nobody on this machine speaks to any of them.
    fn wanted_tunnels(&self) -> BTreeSet<SocketAddrV4> {
        let keys = self.directory().node_keys();
        let peers = keys
            .into_iter()
            .map(|key| SocketAddrV4::new(key.address, key.port));
        let local = lock(&self.local_addresses).clone();
        let own = local
            .into_iter()
            .map(|address| SocketAddrV4::new(address, self.config.listen_port));
        peers.chain(own).collect()
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        lock(&self.directory)
    }
}

/// Address of the node itself in the overlay: the first of its subnet.
fn host_address(registration: &Registration) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(registration.subnet) + 1)
}

/// A lock whose holder panicked holds data that is whole all the same: every change to it is a single map write
/// with its bookkeeping, or is repaired by the next reconciliation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
