//! Verbs that look inside: flows, nodes, drops, what would happen, and what is missing.

use std::net::Ipv4Addr;
use std::path::Path;

use clap::{Args, ValueEnum};
use comfy_table::CellAlignment;
use netmanager::api::{DropFilter, ask};
use netmanager::dataplane::CounterRow;
use netmanager::directory::NodeView;
use netmanager::doctor::{Check, State, examine};
use netmanager::node::{FlowFilter, FlowsView};
use netmanager::trace::{Protocol, Question, Trace};
use serde::Serialize;

use super::Output;
use super::show::{print, table};

#[derive(Clone, Copy, ValueEnum)]
pub enum ProtocolName {
    Tcp,
    Udp,
    Icmp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
            ProtocolName::Icmp => Self::Icmp,
        }
    }
}

#[derive(Args)]
pub struct FlowsOptions {
    /// Only flows of the client with this address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<Ipv4Addr>,

    /// Only flows to this address, of a service or of an instance
    #[arg(long, value_name = "ADDRESS")]
    destination: Option<Ipv4Addr>,

    /// Only flows of this protocol
    #[arg(long)]
    protocol: Option<ProtocolName>,

    /// Only flows to this service, by name or address
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// How many to show at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct DropsOptions {
    /// Only what happened at this hook, such as from_endpoint
    #[arg(long, value_name = "HOOK")]
    hook: Option<String>,

    /// Only this verdict or reason, such as NO_FLOW
    #[arg(long, value_name = "NAME")]
    reason: Option<String>,

    /// Only what was dropped, not what was done
    #[arg(long)]
    dropped: bool,

    /// Also what never happened
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct TraceOptions {
    /// Who sends: an endpoint's namespace or instance address, an address of this node, or one elsewhere
    source: Ipv4Addr,

    /// Who is to receive it
    destination: Ipv4Addr,

    /// The destination port; of an echo reply the identifier
    #[arg(long, value_name = "NUMBER", default_value_t = 80)]
    port: u16,

    /// The source port, of an echo request the identifier; one that is not in use where it is not given
    #[arg(long, value_name = "NUMBER")]
    source_port: Option<u16>,

    #[arg(long, default_value = "tcp")]
    protocol: ProtocolName,

    /// Not the first packet of a conversation but one that goes on: TCP with ACK, an echo reply
    #[arg(long)]
    reply: bool,

    #[command(flatten)]
    output: Output,
}

pub async fn flows(socket: &Path, options: &FlowsOptions) -> anyhow::Result<()> {
    let filter = FlowFilter {
        source: options.source,
        destination: options.destination,
        protocol: options.protocol.map(Into::into),
        service: options.service.clone(),
        limit: Some(options.limit),
    };
    let view: FlowsView = ask(socket, &with_query("/flows", &filter)?).await?;
    print(&options.output, &view, || {
        let mut table = table(&[
            "PROTOCOL", "CLIENT", "TO", "SERVICE", "INSTANCE", "NODE", "STATE", "IDLE",
        ]);
        for flow in &view.flows {
            let instance = flow
                .instance
                .map_or_else(|| "gone".to_owned(), |address| address.to_string());
            table.add_row([
                flow.protocol.clone(),
                format!("{}:{}", flow.source, flow.source_port),
                format!("{}:{}", flow.destination, flow.destination_port),
                flow.service.clone(),
                instance,
                flow.node.clone().unwrap_or_else(|| "this node".to_owned()),
                flow.state.join(", "),
                format!("{} s", flow.idle_seconds),
            ]);
        }
        if view.more > 0 {
            table.add_row([format!("and {} more", view.more)]);
        }
        table
    })
}

pub async fn nodes(socket: &Path, output: &Output) -> anyhow::Result<()> {
    let nodes: Vec<NodeView> = ask(socket, "/nodes").await?;
    print(output, &nodes, || {
        let mut table = table(&[
            "NODE",
            "ALIVE",
            "ROUND TRIP",
            "INTERFACE",
            "FROM",
            "NEXT HOP",
            "MTU",
            "INSTANCES",
        ]);
        for node in &nodes {
            let next_hop = match (&node.next_hop, node.next_hop_valid) {
                (Some(address), true) => address.clone(),
                (Some(address), false) => format!("{address} (not confirmed)"),
                (None, _) => "asked of the kernel".to_owned(),
            };
            let round_trip = node.round_trip_us.map_or_else(
                || "not measured".to_owned(),
                |microseconds| format!("{microseconds} µs"),
            );
            table.add_row([
                format!("{}:{}", node.address, node.port),
                if node.alive { "yes" } else { "no" }.to_owned(),
                round_trip,
                node.interface.clone(),
                node.local.to_string(),
                next_hop,
                node.mtu.to_string(),
                node.instances.to_string(),
            ]);
        }
        table
    })
}

pub async fn drops(socket: &Path, options: &DropsOptions) -> anyhow::Result<()> {
    let filter = DropFilter {
        hook: options.hook.clone(),
        reason: options.reason.clone(),
        all: options.all,
        dropped: options.dropped,
    };
    let rows: Vec<CounterRow> = ask(socket, &with_query("/drops", &filter)?).await?;
    print(&options.output, &rows, || {
        let mut table = table(&["WHERE", "WHAT", "", "PACKETS", "BYTES", "MEANING"]);
        for row in &rows {
            let dropped = if row.dropped { "dropped" } else { "" };
            table.add_row([
                row.hook.clone(),
                row.name.clone(),
                dropped.to_owned(),
                row.packets.to_string(),
                row.bytes.to_string(),
                row.meaning.clone(),
            ]);
        }
        for column in [3, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    })
}

pub async fn trace(socket: &Path, options: &TraceOptions) -> anyhow::Result<()> {
    let question = Question {
        source: options.source,
        destination: options.destination,
        protocol: options.protocol.into(),
        port: options.port,
        source_port: options.source_port,
        reply: options.reply,
    };
    let trace: Trace = ask(socket, &with_query("/trace", &question)?).await?;
    print(&options.output, &trace, || {
        let mut table = table(&[]);
        table.add_row(["hook", &trace.hook]);
        for step in &trace.steps {
            table.add_row([&step.what, &step.finding]);
        }
        let dropped = if trace.dropped { "dropped, " } else { "" };
        table.add_row([&trace.verdict, &format!("{dropped}{}", trace.meaning)]);
        table
    })
}

pub async fn doctor(output: &Output) -> anyhow::Result<()> {
    let checks: Vec<Check> = examine().await;
    print(output, &checks, || {
        let mut table = table(&["WHAT", "STATE", "SEEN", "INSTEAD", "WHAT TO DO"]);
        for check in &checks {
            let state = match (check.state, check.needed) {
                (State::Open, _) => "open",
                (State::Missing, true) => "MISSING",
                (State::Missing, false) => "missing",
                (State::Unknown, _) => "unknown",
            };
            table.add_row([
                check.name.as_str(),
                state,
                &check.detail,
                check.instead.as_deref().unwrap_or_default(),
                &check.advice,
            ]);
        }
        table
    })?;
    let fatal: Vec<&str> = checks
        .iter()
        .filter(|check| check.is_fatal())
        .map(|check| check.name.as_str())
        .collect();
    anyhow::ensure!(
        fatal.is_empty(),
        "NetManager cannot work on this machine: missing are {}",
        fatal.join(", ")
    );
    Ok(())
}

/// The path with the values that are given as its query.
fn with_query(path: &str, values: &impl Serialize) -> anyhow::Result<String> {
    let query = serde_urlencoded::to_string(values)?;
    Ok(if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    })
}
