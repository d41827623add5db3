//! The figures that the cluster gets every few seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::job::InstanceKey;
use protocol::node::{NodeInformation, ResourcesReport, ServiceUsage, topic};
use rumqttc::{AsyncClient, ClientError, QoS};
use tokio::time::MissedTickBehavior;
use tracing::debug;

use super::ClusterSettings;
use super::mqtt::text;
use crate::board::Shown;
use crate::engine::Engine;
use crate::measure::host::{self, Memory, Processor};
use crate::runtime::{Runtime, Usage};

const INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of each instance's output.
const LOG_BYTES: usize = 1024;

/// Sends the figures while the broker is there.
pub(super) async fn run(engine: &Engine, client: &AsyncClient, node: &str, settings: &ClusterSettings) {
    let mut timer = tokio::time::interval(INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sampler = Sampler::new(settings);
    loop {
        timer.tick().await;
        if !engine.board.is_connected() {
            continue;
        }
        let instances = engine.board.instances();
        // An instance that is missing would be taken for gone.
        let is_complete = instances.len() >= engine.ordered().await;
        let runtime = Arc::clone(&engine.runtime);
        let sampled = tokio::task::spawn_blocking(move || {
            let sample = sampler.sample(&instances, &*runtime);
            (sampler, sample)
        })
        .await;
        let sample;
        (sampler, sample) = match sampled {
            Ok(sampled) => sampled,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let information = text(&sample.information).map(|text| (topic::information(node), text));
        let resources = text(&sample.resources)
            .filter(|_| is_complete)
            .map(|text| (topic::resources(node), text));
        for (topic, payload) in information.into_iter().chain(resources) {
            // A broker that cannot keep up gets the next figures.
            match client.try_publish(topic, QoS::AtLeastOnce, false, payload) {
                Ok(()) => {}
                Err(ClientError::Request(_) | ClientError::TryRequest(_)) => debug!("figures left out"),
            }
        }
    }
}

struct Sample {
    information: NodeInformation,
    resources: ResourcesReport,
}

/// Remembers what differences are taken from.
struct Sampler {
    cluster: String,
    port: u16,
    cores: u64,
    processor: Processor,
    /// By container, so that a new one begins anew.
    containers: BTreeMap<InstanceKey, (String, Usage, Instant)>,
}

impl Sampler {
    fn new(settings: &ClusterSettings) -> Self {
        Self {
            cluster: settings.address.clone(),
            port: settings.port,
            cores: host::cores(),
            processor: Processor::now(),
            containers: BTreeMap::new(),
        }
    }

    fn sample(&mut self, instances: &BTreeMap<InstanceKey, Shown>, runtime: &dyn Runtime) -> Sample {
        let memory = Memory::now();
        let processor = Processor::now();
        let percent = processor.percent_since(self.processor);
        self.processor = processor;
        // A name would be looked up each time; an address only in the routing table.
        let address = self
            .cluster
            .parse::<std::net::IpAddr>()
            .is_ok()
            .then(|| host::address(&self.cluster, self.port))
            .flatten();
        self.containers.retain(|key, _| instances.contains_key(key));
        let services = instances
            .iter()
            .map(|(key, shown)| self.service(key, shown, runtime, memory))
            .collect();
        Sample {
            information: NodeInformation {
                ip: address.map(|address| address.to_string()).unwrap_or_default(),
                cpu_percent: Some(percent),
                vcpus: Some(self.cores),
                memory_percent: Some(memory.percent()),
                memory: Some(memory.available / 1024),
                memory_total: Some(memory.total / 1024),
                ..NodeInformation::default()
            },
            resources: ResourcesReport { services },
        }
    }

    fn service(
        &mut self,
        key: &InstanceKey,
        shown: &Shown,
        runtime: &dyn Runtime,
        memory: Memory,
    ) -> ServiceUsage {
        let now = Instant::now();
        let container = shown.container.as_ref();
        let usage = container.and_then(|container| runtime.usage(container));
        let mut cpu_percent = 0.0;
        let mut memory_percent = 0.0;
        if let (Some(container), Some(usage)) = (container, usage) {
            let earlier = self
                .containers
                .insert(key.clone(), (container.id.clone(), usage, now));
            if let Some((id, earlier, then)) = earlier
                && id == container.id
            {
                let used = usage.cpu_nanoseconds.saturating_sub(earlier.cpu_nanoseconds);
                cpu_percent = share(used, now.duration_since(then).as_nanos());
            }
            let limit = match container.memory_limit {
                0 => memory.total * 1024,
                limit => limit,
            };
            memory_percent = share(usage.memory, limit.into());
        }
        ServiceUsage {
            cpu_percent: format!("{cpu_percent:.2}"),
            memory_percent: format!("{memory_percent:.2}"),
            // Measuring it means to walk through all of a container's files.
            disk: String::new(),
            logs: container
                .map(|container| runtime.logs(container, LOG_BYTES))
                .unwrap_or_default(),
            job_name: key.job_name.clone(),
            virtualization: shown.virtualization.clone(),
            instance: key.instance_number,
            incarnation: Some(shown.incarnation),
            status: Some(shown.status),
            status_detail: shown.detail.clone(),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage with two digits needs no more precision"
)]
fn share(part: u64, whole: u128) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / whole as f64
}
