//! Verbs that show something: a table for people, JSON for programs.

use std::path::Path;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use netmanager::api::ask;
use netmanager::dataplane::{CounterRow, verify as verify_object};
use netmanager::directory::ServiceView;
use netmanager::node::{EndpointView, Status};
use serde::Serialize;

use super::{Format, Output};

pub async fn status(socket: &Path, output: &Output) -> anyhow::Result<()> {
    let status: Status = ask(socket, "/status").await?;
    print(output, &status, || {
        let mut table = table(&[]);
        let local: Vec<String> = status.local_addresses.iter().map(ToString::to_string).collect();
        let instance = status
            .instance_address
            .map_or_else(|| "none".to_owned(), |address| address.to_string());
        let connection = if status.connected { "up" } else { "down" };
        let rows = [
            ("node", status.node_id.clone()),
            ("subnet", status.subnet.clone()),
            ("own namespace address", status.namespace_address.to_string()),
            ("own instance address", instance),
            ("addresses", local.join(", ")),
            (
                "tunnel",
                format!("UDP {}, not encrypted, not authenticated", status.tunnel_port),
            ),
            ("uplink mode", status.uplink_mode.clone()),
            ("programs attached by", status.attachment.clone()),
            ("MTU", status.mtu.to_string()),
            ("endpoints", status.endpoints.to_string()),
            ("services", status.services.to_string()),
            ("nodes", status.nodes.join(", ")),
            ("cluster", format!("{connection}: {}", status.connection)),
            (
                "packets that waited in vain",
                format!(
                    "{} no room, {} just asked, {} no answer",
                    status.parked_full, status.parked_refused, status.parked_unanswered
                ),
            ),
            (
                "unknown addresses",
                status.upcalls_broken.clone().map_or_else(
                    || "are asked for".to_owned(),
                    |reason| format!("stay unknown: {reason}"),
                ),
            ),
        ];
        for (name, value) in rows {
            table.add_row([name.to_owned(), value]);
        }
        table
    })
}

pub async fn endpoints(socket: &Path, output: &Output) -> anyhow::Result<()> {
    let endpoints: Vec<EndpointView> = ask(socket, "/endpoints").await?;
    print(output, &endpoints, || {
        let mut table = table(&[
            "SERVICE",
            "INSTANCE",
            "INSTANCE ADDRESS",
            "NAMESPACE ADDRESS",
            "INTERFACE",
            "PID",
            "PORTS",
        ]);
        for endpoint in &endpoints {
            table.add_row([
                endpoint.service.clone(),
                endpoint.instance.to_string(),
                endpoint.instance_address.to_string(),
                endpoint.namespace_address.to_string(),
                endpoint.interface.clone(),
                endpoint
                    .pid
                    .map_or_else(|| "of Docker".to_owned(), |pid| pid.to_string()),
                endpoint.ports.to_string(),
            ]);
        }
        table
    })
}

pub async fn services(socket: &Path, output: &Output) -> anyhow::Result<()> {
    let services: Vec<ServiceView> = ask(socket, "/services").await?;
    print(output, &services, || {
        let mut table = table(&[
            "ADDRESS",
            "POLICY",
            "SERVICE",
            "INSTANCE ADDRESS",
            "NAMESPACE ADDRESS",
            "NODE",
        ]);
        for service in &services {
            let head = [
                service.address.to_string(),
                service.policy.clone(),
                service.name.clone(),
            ];
            if service.instances.is_empty() {
                table.add_row(head.iter().cloned().chain(["none".to_owned()]));
            }
            for instance in &service.instances {
                let place = [
                    instance.address.to_string(),
                    instance.namespace_address.to_string(),
                    instance.node.clone().unwrap_or_else(|| "this node".to_owned()),
                ];
                table.add_row(head.iter().cloned().chain(place));
            }
        }
        table
    })
}

pub async fn drops(socket: &Path, output: &Output) -> anyhow::Result<()> {
    let rows: Vec<CounterRow> = ask(socket, "/drops").await?;
    print(output, &rows, || {
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

pub fn verify(output: &Output) -> anyhow::Result<()> {
    let report = verify_object()?;
    print(output, &report, || {
        let mut table = table(&["", "INSTRUCTIONS", "VERIFIED", "KIND", "ENTRIES", "KiB"]);
        for program in &report.programs {
            let verified = program.verified_instructions.to_string();
            table.add_row([
                program.name.to_owned(),
                program.instructions.to_string(),
                verified,
            ]);
        }
        for map in &report.maps {
            let kibibytes = map.memory_bytes.div_ceil(1024).to_string();
            let [none, nothing] = [String::new(), String::new()];
            table.add_row([
                map.name.to_owned(),
                none,
                nothing,
                map.kind.clone(),
                map.max_entries.to_string(),
                kibibytes,
            ]);
        }
        table
    })
}

fn print<T: Serialize>(output: &Output, value: &T, table: impl FnOnce() -> Table) -> anyhow::Result<()> {
    match output.output {
        Format::Table => println!("{}", table().trim_fmt()),
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if !header.is_empty() {
        table.set_header(header.to_vec());
    }
    table
}
