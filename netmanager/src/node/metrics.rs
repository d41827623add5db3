//! The node in figures, as Prometheus reads them.
//!
//! Most figures are kept elsewhere and written out when they are asked for. What has one row per service or node is
//! bounded, so that nobody's monitoring is flooded.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Node, lock};

/// What the text is, for who asks over HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Services, and nodes, that have rows of their own.
const ROWS: usize = 1_000;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// Figures that are kept here, because nobody else keeps them.
pub struct Metrics {
    resolutions: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to 16 seconds.
        let new: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            resolutions: Family::new_with_constructor(new),
        }
    }
}

impl Metrics {
    /// An unknown address was asked for, and took this long to be entered or given up.
    pub fn note_resolution(&self, took: Duration, is_known: bool) {
        let outcome = if is_known { "installed" } else { "refused" };
        self.resolutions
            .get_or_create(&vec![("outcome", outcome.to_owned())])
            .observe(took.as_secs_f64());
    }
}

impl Node {
    /// All figures, in the text format of OpenMetrics.
    ///
    /// # Errors
    /// When the kernel refuses to show a table.
    pub async fn metrics(self: &Arc<Self>) -> anyhow::Result<String> {
        let mut registry = Registry::with_prefix("oakestra");
        self.register_verdicts(&mut registry).await?;
        self.register_services(&mut registry)?;
        self.register_tables(&mut registry).await?;
        self.register_nodes(&mut registry)?;
        registry.register(
            "resolution_seconds",
            "From the first packet to an unknown address until its service is entered, or given up",
            self.metrics.resolutions.clone(),
        );
        let parked = counters(
            &mut registry,
            "parked_dropped_packets",
            "Packets that waited for their destination in vain",
        );
        let (dropped, (destinations, bytes)) = {
            let parking = lock(&self.parking);
            (parking.dropped(), parking.waiting())
        };
        single(
            &mut registry,
            "parked_destinations",
            "Addresses that packets wait for",
            destinations as f64,
        );
        single(
            &mut registry,
            "parked_bytes",
            "Bytes of packets that wait",
            bytes as f64,
        );
        for (reason, packets) in [
            ("no_room", dropped.full),
            ("just_asked", dropped.refused),
            ("unanswered", dropped.unanswered),
        ] {
            add(&parked, vec![("reason", reason.to_owned())], packets);
        }
        let mut text = String::new();
        encode(&mut text, &registry).context("writing the figures down")?;
        Ok(text)
    }

    async fn register_verdicts(&self, registry: &mut Registry) -> anyhow::Result<()> {
        let packets = counters(
            registry,
            "packets",
            "Packets by where they met the data plane and what was done",
        );
        let bytes = counters(registry, "bytes", "The same in bytes of frames");
        let dropped = counters(registry, "dropped_packets", "Dropped packets by where and why");
        let dropped_bytes = counters(registry, "dropped_bytes", "The same in bytes of frames");
        for row in self.counters().await? {
            let hook = ("hook", row.hook);
            if row.dropped {
                let labels = vec![hook, ("reason", row.name)];
                add(&dropped, labels.clone(), row.packets);
                add(&dropped_bytes, labels, row.bytes);
            } else {
                let labels = vec![hook, ("verdict", row.name)];
                add(&packets, labels.clone(), row.packets);
                add(&bytes, labels, row.bytes);
            }
        }
        Ok(())
    }

    fn register_services(&self, registry: &mut Registry) -> anyhow::Result<()> {
        let packets = counters(
            registry,
            "service_packets",
            "Packets between clients on this node and services: sent to them, received from them",
        );
        let bytes = counters(registry, "service_bytes", "The same in bytes of frames");
        for row in self.directory().service_traffic(ROWS)? {
            for (direction, counter) in [("sent", row.sent), ("received", row.received)] {
                let labels = vec![
                    ("service", row.name.clone()),
                    ("address", row.address.to_string()),
                    ("direction", direction.to_owned()),
                ];
                add(&packets, labels.clone(), counter.packets);
                add(&bytes, labels, counter.bytes);
            }
        }
        Ok(())
    }

    async fn register_tables(self: &Arc<Self>, registry: &mut Registry) -> anyhow::Result<()> {
        use dataplane_ebpf::tables::capacity::{FLOWS, UNANSWERED};
        let used = gauges(
            registry,
            "map_entries",
            "Entries in use in a map of the data plane",
        );
        let room = gauges(registry, "map_capacity", "Entries that the map has room for");
        let flow_figures = self.flows.figures();
        let (settled, unanswered) = (flow_figures.answered.used, flow_figures.unanswered.used);
        let flows = [
            ("FLOWS", settled.into(), FLOWS),
            ("UNANSWERED", unanswered.into(), UNANSWERED),
        ];
        let fill = self.directory().fill();
        let others = fill.into_iter().map(|fill| (fill.map, fill.used, fill.entries));
        for (map, entries, capacity) in flows.into_iter().chain(others) {
            let labels = vec![("map", map.to_owned())];
            set(&used, labels.clone(), entries as f64);
            set(&room, labels, f64::from(capacity));
        }
        let gauge = gauges(
            registry,
            "flows",
            "Flows: settled ones, in which both sides have spoken, and others",
        );
        // Each flow has an entry for each direction.
        for (state, entries) in [("settled", settled), ("unanswered", unanswered)] {
            let flows = entries.div_ceil(2);
            set(&gauge, vec![("state", state.to_owned())], f64::from(flows));
        }
        let watchers = self.watchers() as f64;
        single(registry, "watchers", "Who watches what happens", watchers);
        let left_out = Counter::<u64>::default();
        left_out.inc_by(self.events_left_out()?);
        registry.register(
            "events_left_out",
            "Events that were not told to who watches, because there were too many",
            left_out,
        );
        Ok(())
    }

    fn register_nodes(&self, registry: &mut Registry) -> anyhow::Result<()> {
        let alive = gauges(
            registry,
            "node_alive",
            "Whether there is a way to a node and it answers",
        );
        let round_trip = gauges(
            registry,
            "node_round_trip_seconds",
            "Round-trip time to a node, where it is measured",
        );
        for node in self.nodes()?.into_iter().take(ROWS) {
            let labels = vec![("node", format!("{}:{}", node.address, node.port))];
            set(&alive, labels.clone(), f64::from(u8::from(node.alive)));
            if let Some(microseconds) = node.round_trip_us {
                set(&round_trip, labels, microseconds as f64 / 1e6);
            }
        }
        let (is_connected, _) = lock(&self.connection).clone();
        single(
            registry,
            "cluster_connected",
            "Whether the cluster can be asked",
            f64::from(u8::from(is_connected)),
        );
        Ok(())
    }
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

/// A figure without labels.
fn single(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn add(family: &Counters, labels: Labels, value: u64) {
    family.get_or_create(&labels).inc_by(value);
}

fn set(family: &Gauges, labels: Labels, value: f64) {
    family.get_or_create(&labels).set(value);
}
