//! Probes at work: they leave by the socket of the tunnel port, the programs note what comes back, and what follows
//! from it is written into the tables.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use dataplane_ebpf::probe::Probe;
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::{Node, lock};
use crate::clock::monotonic_nanoseconds;
use crate::dataplane::DataplaneError;
use crate::directory::{KnownPath, NodeKey, NodeView};
use crate::probes::{Event, Request, Target};

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

    /// The other nodes, with what their probes say, in the order of addresses.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn nodes(&self) -> anyhow::Result<Vec<NodeView>> {
        let mut nodes = self.directory().nodes()?;
        let probes = lock(&self.probes);
        for node in &mut nodes {
            let (address, port) = (node.address, node.port);
            let Some(opinion) = probes.opinion(NodeKey { address, port }) else {
                continue;
            };
            let microseconds = |duration: Duration| duration.as_micros() as u64;
            node.alive &= opinion.alive;
            node.round_trip_us = opinion.round_trip.map(|(mean, _)| microseconds(mean));
            node.deviation_us = opinion.round_trip.map(|(_, deviation)| microseconds(deviation));
            node.loss = opinion.loss;
        }
        Ok(nodes)
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
