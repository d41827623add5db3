//! The flows of the node, read from the kernel's tables.
//!
//! Through handles of their own: a walk over a large table holds up nothing else.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::maps::{HashMap, Map, MapData, MapError};
use dataplane_ebpf::tables::{Flow, FlowKey, capacity, state};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::watch::protocol_name;
use super::{Node, lock};
use crate::dataplane::Pins;
use crate::trace::Protocol;

/// Flows that are shown unless more are asked for.
const LIMIT: usize = 100;
/// How long a count of the flows is good enough for metrics.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// Which flows to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// The client's address.
    pub source: Option<Ipv4Addr>,
    /// The address that the client has sent to, or that of the instance it reached.
    pub destination: Option<Ipv4Addr>,
    pub protocol: Option<Protocol>,
    /// Name or address of a service.
    pub service: Option<String>,
    pub limit: Option<usize>,
}

/// Flows, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsView {
    pub flows: Vec<FlowView>,
    /// Flows that match and are not shown.
    pub more: u64,
}

/// A flow, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    pub protocol: String,
    pub source: Ipv4Addr,
    pub source_port: u16,
    /// The address that the client has sent to.
    pub destination: Ipv4Addr,
    pub destination_port: u16,
    /// Name of the service at the destination, where it is known.
    pub service: String,
    /// The instance that the flow goes to; `None` when it is gone.
    pub instance: Option<Ipv4Addr>,
    pub namespace_address: Option<Ipv4Addr>,
    /// The instance's node; `None` when it is this one.
    pub node: Option<String>,
    /// The source port that the instance sees.
    pub seen_port: u16,
    /// How the flow stands, in words.
    pub state: Vec<String>,
    /// Since when nothing has been seen of it, about.
    pub idle_seconds: u64,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Entries in `FLOWS`: two for each flow in which both sides have spoken.
    pub settled: u64,
    /// Entries in `UNANSWERED`: two for each of the others.
    pub unanswered: u64,
}

/// A count, and when it was made.
pub(super) type Counted = Option<(Instant, FlowCount)>;

impl Node {
    /// The flows that match, at most as many as asked for.
    ///
    /// # Errors
    /// When the kernel refuses to show a table.
    pub async fn flows(self: &Arc<Self>, filter: FlowFilter) -> anyhow::Result<FlowsView> {
        let services = filter
            .service
            .as_ref()
            .map(|service| self.directory().addresses_of_service(service));
        let node = self.clone();
        tokio::task::spawn_blocking(move || node.read_flows(&filter, services.as_deref())).await?
    }

    fn read_flows(&self, filter: &FlowFilter, services: Option<&[Ipv4Addr]>) -> anyhow::Result<FlowsView> {
        let limit = filter.limit.unwrap_or(LIMIT);
        let mut flows = Vec::new();
        let mut more = 0;
        for (name, is_settled) in [("FLOWS", true), ("UNANSWERED", false)] {
            each(&self.registration.node_id, name, |key, flow| {
                if flow.state & state::REVERSE != 0 || !matches(filter, services, &key) {
                    return;
                }
                // Looked up only where it is needed: there may be hundreds of thousands.
                if filter.destination.is_none() && flows.len() >= limit {
                    more += 1;
                    return;
                }
                let view = self.flow_view(&key, &flow, is_settled);
                let leads_to = |wanted: Ipv4Addr| {
                    wanted == view.destination
                        || view.instance == Some(wanted)
                        || view.namespace_address == Some(wanted)
                };
                match filter.destination {
                    Some(wanted) if !leads_to(wanted) => {}
                    _ if flows.len() >= limit => more += 1,
                    _ => flows.push(view),
                }
            })?;
        }
        flows.sort_by_key(|flow| {
            (
                flow.source,
                flow.source_port,
                flow.destination,
                flow.destination_port,
            )
        });
        Ok(FlowsView { flows, more })
    }

    fn flow_view(&self, key: &FlowKey, flow: &Flow, is_settled: bool) -> FlowView {
        let directory = self.directory();
        let destination = Ipv4Addr::from(key.destination);
        let place = directory.instance_of_flow(flow.instance, flow.incarnation);
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
            now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
        });
        let idle = now.saturating_sub(u64::from(flow.last_seen) << 30) / 1_000_000_000;
        FlowView {
            protocol: protocol_name(key.protocol),
            source: key.source.into(),
            source_port: u16::from_be_bytes(key.source_port),
            destination,
            destination_port: u16::from_be_bytes(key.destination_port),
            service: directory.service_name(destination).unwrap_or_default().to_owned(),
            instance: place.as_ref().map(|place| place.0),
            namespace_address: place.as_ref().map(|place| place.1),
            state: words(flow.state, is_settled, place.is_some()),
            node: place.and_then(|place| place.2),
            seen_port: u16::from_be_bytes(flow.port),
            idle_seconds: idle,
        }
    }

    /// How many flows there are, counted within the last ten seconds.
    ///
    /// # Errors
    /// When the kernel refuses to show a table.
    pub async fn flow_count(self: &Arc<Self>) -> anyhow::Result<FlowCount> {
        let counted = *lock(&self.flows_counted);
        if let Some((when, count)) = counted
            && when.elapsed() < COUNT_AGAIN
        {
            return Ok(count);
        }
        let node_id = self.registration.node_id.clone();
        let count = tokio::task::spawn_blocking(move || {
            anyhow::Ok(FlowCount {
                settled: count(&node_id, "FLOWS")?,
                unanswered: count(&node_id, "UNANSWERED")?,
            })
        })
        .await??;
        *lock(&self.flows_counted) = Some((Instant::now(), count));
        Ok(count)
    }
}

fn matches(filter: &FlowFilter, services: Option<&[Ipv4Addr]>, key: &FlowKey) -> bool {
    filter.source.is_none_or(|source| source.octets() == key.source)
        && filter
            .protocol
            .is_none_or(|protocol| protocol.number() == key.protocol)
        && services.is_none_or(|services| services.contains(&key.destination.into()))
}

/// How a flow stands.
fn words(bits: u8, is_settled: bool, has_instance: bool) -> Vec<String> {
    let stands = match (is_settled, bits & state::ANSWERED != 0) {
        (true, _) => "settled",
        (false, true) => "answered",
        (false, false) => "unanswered",
    };
    let closing = match (bits & state::FIN_FORWARD != 0, bits & state::FIN_REVERSE != 0) {
        (true, true) => Some("closed"),
        (true, false) => Some("closing by the client"),
        (false, true) => Some("closing by the server"),
        (false, false) => None,
    };
    let flag = |bit: u8, word| (bits & bit != 0).then_some(word);
    let words = [
        Some(stands),
        closing,
        flag(state::RESET, "reset"),
        flag(state::PUBLISHED, "published port"),
        flag(state::FROM_NODE, "from this node"),
        (!has_instance).then_some("instance gone"),
    ];
    words.into_iter().flatten().map(str::to_owned).collect()
}

fn open(node_id: &str, name: &str) -> anyhow::Result<HashMap<MapData, FlowKey, Flow>> {
    let path = Pins::of(node_id).map(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data);
    map.and_then(HashMap::try_from)
        .with_context(|| format!("opening {}", path.display()))
}

/// Hands each entry of a table of flows on, once. A table that changes meanwhile is seen in part.
fn each(node_id: &str, name: &str, mut visit: impl FnMut(FlowKey, Flow)) -> anyhow::Result<()> {
    let map = open(node_id, name)?;
    let mut seen = HashSet::new();
    // When an entry is removed while the walk is at it, the kernel begins anew.
    for entry in map.iter().take(2 * capacity::FLOWS as usize) {
        match entry {
            Ok((key, flow)) => {
                if seen.insert(key) {
                    visit(key, flow);
                }
            }
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => {}
            Err(error) => return Err(error).with_context(|| format!("reading {name}")),
        }
    }
    Ok(())
}

fn count(node_id: &str, name: &str) -> anyhow::Result<u64> {
    let keys = open(node_id, name)?;
    let number = keys
        .keys()
        .take(2 * capacity::FLOWS as usize)
        .filter(Result::is_ok)
        .count();
    Ok(number as u64)
}
