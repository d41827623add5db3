//! The flows of the node, for people.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_ebpf::tables::{Flow, FlowKey, state};
use serde::{Deserialize, Serialize};

use super::Node;
use super::watch::protocol_name;
use crate::clock::monotonic_nanoseconds;
use crate::flows::{FlowStore as _, Table, rested};
use crate::trace::Protocol;

/// Flows that are shown unless more are asked for.
const LIMIT: usize = 100;

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
        for (table, is_settled) in [(Table::Flows, true), (Table::Unanswered, false)] {
            self.flow_maps.for_each(table, &mut |key, flow| {
                if flow.state & state::REVERSE != 0 || !matches(filter, services, key) {
                    return;
                }
                // Looked up only where it is needed: there may be hundreds of thousands.
                if filter.destination.is_none() && flows.len() >= limit {
                    more += 1;
                    return;
                }
                let view = self.flow_view(key, flow, is_settled);
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
            idle_seconds: rested(monotonic_nanoseconds(), flow.last_seen).as_secs(),
        }
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
