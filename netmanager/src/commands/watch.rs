//! The verb that shows what happens, as it happens.

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use clap::{Args, ValueEnum};
use netmanager::api::lines;
use netmanager::node::{EventKind, EventView};

use super::{Format, Output};

#[derive(Args)]
pub struct WatchOptions {
    /// Only events of this kind
    #[arg(long)]
    kind: Option<Kind>,

    /// Only this verdict or reason, such as NO_FLOW
    #[arg(long, value_name = "NAME")]
    reason: Option<String>,

    /// Only packets and flows from or to this address
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,

    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Drop,
    Miss,
    Flow,
}

pub async fn watch(socket: &Path, options: &WatchOptions) -> anyhow::Result<()> {
    let mut events = lines(socket, "/watch").await?;
    let as_json = options.output.output == Format::Json;
    let mut output = std::io::stdout();
    if output.is_terminal() {
        eprintln!("watching; Ctrl-C ends it");
    }
    while let Some(lines) = events.next().await? {
        let mut text = String::new();
        for line in lines.iter().filter(|line| !line.is_empty()) {
            let event: EventView = serde_json::from_str(line)?;
            if !options.wants(&event) {
                continue;
            }
            text.push_str(&if as_json { line.clone() } else { sentence(&event) });
            text.push('\n');
        }
        // A reader that has gone, such as `head`, has seen enough.
        if output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .is_err()
        {
            return Ok(());
        }
    }
    anyhow::bail!("NetManager has ended")
}

impl WatchOptions {
    fn wants(&self, event: &EventView) -> bool {
        if event.kind == EventKind::LeftOut {
            return true;
        }
        let kind = match event.kind {
            EventKind::Drop => Kind::Drop,
            EventKind::Miss => Kind::Miss,
            EventKind::Flow | EventKind::LeftOut => Kind::Flow,
        };
        let reason = &self.reason;
        self.kind.is_none_or(|wanted| wanted == kind)
            && reason
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(&event.reason))
            && self.address.is_none_or(|wanted| {
                [event.source, event.destination].contains(&wanted) || event.instance == Some(wanted)
            })
    }
}

/// An event in a line.
fn sentence(event: &EventView) -> String {
    let seconds = event.time_ms / 1_000 % 86_400;
    let time = format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        event.time_ms % 1_000
    );
    let packet = if event.protocol.is_empty() {
        "a frame without IPv4".to_owned()
    } else {
        format!(
            "{} {}:{} > {}:{}",
            event.protocol, event.source, event.source_port, event.destination, event.destination_port
        )
    };
    let service = if event.service.is_empty() {
        String::new()
    } else {
        format!(" ({})", event.service)
    };
    let peer = event
        .peer
        .map_or_else(String::new, |peer| format!(" from the node {peer}"));
    match event.kind {
        EventKind::LeftOut => format!("{time} ...   {} more events were left out", event.left_out),
        EventKind::Flow => {
            let instance = event.instance.map_or_else(
                || "an instance that is gone".to_owned(),
                |address| address.to_string(),
            );
            format!("{time} flow  {packet}{service} goes to {instance}")
        }
        EventKind::Drop | EventKind::Miss => {
            let kind = if event.kind == EventKind::Drop {
                "drop"
            } else {
                "miss"
            };
            format!(
                "{time} {kind}  {packet}{service}{peer}, {} B, {} at {}: {} ({})",
                event.length, event.hook, event.interface, event.reason, event.meaning
            )
        }
    }
}
