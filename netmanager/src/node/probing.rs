//! Probes at work: they leave by the socket of the tunnel port, the programs note what comes back, and what follows
//! from it is written into the tables.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use dataplane_ebpf::probe::Probe;
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::paths::monotonic_nanoseconds;
use super::{Node, lock};
use crate::dataplane::DataplaneError;
use crate::directory::{KnownPath, NodeKey};
use crate::probes::{Event, Request, Target};

/// Another node, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Where its tunnel listens.
    pub address: Ipv4Addr,
    pub port: u16,
    /// In the tables.
    pub index: u32,
    /// Whether it takes new flows: not while it leaves probes unanswered.
    pub alive: bool,
    /// Smoothed round trip and its mean deviation, in microseconds; none before anything was measured.
    pub round_trip_us: Option<u64>,
    pub deviation_us: Option<u64>,
    /// The share of probes that are lost, 0 to 1.
    pub loss: f64,
    /// Largest tunnel datagram on the way, in bytes.
    pub mtu: u32,
    /// Name of the interface towards it; empty while there is no way.
    pub interface: String,
}

/// Numbers that nobody else can guess.
struct Chance {
    keys: RandomState,
    number: u64,
}

impl Chance {
    fn new() -> Self {
        Self {
            keys: RandomState::new(),
            number: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        // A keyed hash whose key the kernel's random numbers make.
        self.keys.hash_one(self.number)
    }
}

impl Node {
    /// Probes every node that is known, for as long as it is.
    pub(super) async fn serve_probes(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut chance = Chance::new();
        let mut followed = None;
        loop {
            let version = self.directory().nodes_version();
            if followed != Some(version) {
                match self.follow_nodes().await {
                    Ok(()) => followed = Some(version),
                    Err(error) => tracing::error!(%error, "cannot read which nodes to probe"),
                }
            }
            let next = lock(&self.probes).next();
            let pause = next.map(|next| Duration::from_nanos(next.saturating_sub(monotonic_nanoseconds())));
            tokio::select! {
                () = self.probes_due.notified() => continue,
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
            for request in self.look_after_nodes(&mut chance) {
                let (key, probe) = (request.key, Probe::request(request.index, request.nonce));
                let left_at = monotonic_nanoseconds();
                let target = SocketAddrV4::new(key.address, key.port);
                // One that cannot leave is one that is lost.
                if let Err(error) = socket.try_send_to(&probe.to_bytes(), target.into()) {
                    tracing::debug!(%error, node = %key.address, "a probe could not be sent");
                }
                lock(&self.probes).sent(&request, left_at);
            }
        }
    }

    async fn follow_nodes(&self) -> anyhow::Result<()> {
        let paths = self.directory().known_paths()?;
        let names = self.interface_names().await?;
        let metered = &self.config.probes.metered_interfaces;
        let is_metered = |path: &KnownPath| {
            names
                .get(&path.interface)
                .is_some_and(|name| metered.contains(name))
        };
        let targets: Vec<Target> = paths
            .iter()
            .map(|path| Target {
                key: path.key,
                index: path.index,
                metered: is_metered(path),
                has_answered: path.round_trip != 0,
            })
            .collect();
        lock(&self.probes).follow(&targets, monotonic_nanoseconds());
        Ok(())
    }

    /// Takes in what was answered, and acts on it; the probes that are to leave now, each noted in the table.
    fn look_after_nodes(&self, chance: &mut Chance) -> Vec<Request> {
        let mut probes = lock(&self.probes);
        let mut directory = self.directory();
        let now = monotonic_nanoseconds();
        let mut requests = Vec::new();
        for key in probes.due(now) {
            let mut events = Vec::new();
            for (index, nonce) in probes.under_way(key) {
                match directory.probe_received(index, nonce) {
                    Ok(Some(received_at)) => probes.answered(key, index, received_at, &mut events),
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "cannot read an answer"),
                }
            }
            if let Some(request) = probes.advance(key, now, chance.next(), &mut events) {
                if let Err(error) = directory.note_probe(request.index, request.nonce) {
                    tracing::error!(%error, "cannot note a probe");
                }
                requests.push(request);
            }
            for event in events {
                let outcome = match event {
                    Event::Silent(key) => {
                        tracing::warn!(node = %key.address, "a node does not answer: no new flows go there");
                        directory.set_silent(key, true)
                    }
                    Event::There(key) => {
                        tracing::info!(node = %key.address, "a node answers again");
                        directory.set_silent(key, false)
                    }
                    Event::Distance(key, round_trip) => {
                        tracing::debug!(node = %key.address, round_trip, "the distance of a node");
                        directory.set_round_trip(key, round_trip)
                    }
                };
                report(outcome, key);
            }
        }
        requests
    }

    /// The other nodes, in the order of addresses.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub async fn nodes(&self) -> anyhow::Result<Vec<NodeView>> {
        let paths = self.directory().known_paths()?;
        let names = self.interface_names().await?;
        let probes = lock(&self.probes);
        let view = |path: &KnownPath| {
            let opinion = probes.opinion(path.key);
            let round_trip = opinion.and_then(|opinion| opinion.round_trip);
            let microseconds = |duration: Duration| duration.as_micros() as u64;
            NodeView {
                address: path.key.address,
                port: path.key.port,
                index: path.index,
                alive: opinion.is_none_or(|opinion| opinion.alive),
                round_trip_us: round_trip.map(|(mean, _)| microseconds(mean)),
                deviation_us: round_trip.map(|(_, deviation)| microseconds(deviation)),
                loss: opinion.map_or(0.0, |opinion| opinion.loss),
                mtu: path.mtu,
                interface: names.get(&path.interface).cloned().unwrap_or_default(),
            }
        };
        Ok(paths.iter().map(view).collect())
    }

    async fn interface_names(&self) -> crate::host::Result<BTreeMap<u32, String>> {
        let links = self.netlink.links().await?;
        Ok(links.into_iter().map(|link| (link.index, link.name)).collect())
    }
}

/// What could not be written now is written with the next change of the service.
fn report(outcome: Result<(), DataplaneError>, key: NodeKey) {
    if let Err(error) = outcome {
        tracing::error!(%error, node = %key.address, "cannot write what a node's probes say");
    }
}
