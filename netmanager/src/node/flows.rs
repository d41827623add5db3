//! What is not used any more goes: flows that have ended, services that nobody here uses, instances that do not talk to
//! this node any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane_ebpf::tables::capacity;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::idleness::Idleness;
use super::{Node, lock};
use crate::clock::monotonic_nanoseconds;
use crate::directory::ServiceUse;
use crate::flows::{Crossing, Fill, Level, Scope, Sweep, Watermark, reminder, rested, sweep};
use crate::resolver::InstanceRecord;

/// How often flows are looked at at most while instances end all the time.
const PACE: Duration = Duration::from_millis(100);
/// How many times longer than a service an instance is kept that only talks to this node: its node forgets this one
/// first, and has it announced again before it talks again.
const VISITORS: u32 = 2;

/// The tables of flows, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFigures {
    /// Entries of flows that both sides have spoken in.
    pub answered: Fill,
    /// Entries of all others; the least recently used make room.
    pub unanswered: Fill,
    /// Entries that this process has removed because their flows had ended.
    pub removed: u64,
}

/// What is known of what is used.
#[derive(Default)]
pub(super) struct Flows {
    /// The cluster has confirmed or corrected all that a previous process had entered.
    is_synced: AtomicBool,
    figures: Mutex<FlowFigures>,
    services: Mutex<Idleness<String>>,
    visitors: Mutex<Idleness<std::net::Ipv4Addr>>,
}

impl Flows {
    pub fn figures(&self) -> FlowFigures {
        *lock(&self.figures)
    }

    pub fn note_synced(&self) {
        self.is_synced.store(true, Ordering::Relaxed);
    }

    fn is_synced(&self) -> bool {
        self.is_synced.load(Ordering::Relaxed)
    }

    /// The cluster says that these are about to talk to this node.
    pub fn renew_visitors(&self, instances: &[InstanceRecord]) {
        let now = Instant::now();
        let mut visitors = lock(&self.visitors);
        for instance in instances {
            visitors.renew(instance.address, now);
        }
    }

    fn note(&self, swept: &Sweep) -> FlowFigures {
        let fill = |used, capacity| Fill { used, capacity };
        let mut figures = lock(&self.figures);
        *figures = FlowFigures {
            answered: fill(swept.flows, capacity::FLOWS),
            unanswered: fill(swept.unanswered, capacity::UNANSWERED),
            removed: figures.removed + u64::from(swept.removed),
        };
        *figures
    }
}

impl Node {
    /// Looks at all flows every few seconds, and at once when an instance has ended.
    pub(super) async fn serve_flows(self: Arc<Self>) {
        let endings = self.directory().endings();
        let mut due = tokio::time::interval(self.config.sweep_every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watermark = Watermark::default();
        loop {
            let is_review = tokio::select! {
                _ = due.tick() => true,
                () = endings.notified() => false,
            };
            if let Some(swept) = self.sweep_flows().await {
                let figures = self.flows.note(&swept);
                tell_crossing(watermark.note(figures.answered), figures.answered);
                self.remind(&swept).await;
                if is_review {
                    self.forget_unused(&swept).await;
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn sweep_flows(&self) -> Option<Sweep> {
        // A table that is about to be full would refuse new flows, which is worse than what an early look could do.
        let is_nearly_full = self.flows.figures().answered.level() > Level::Ample;
        let scope = if self.flows.is_synced() || is_nearly_full {
            Scope::All
        } else {
            Scope::OfGoneInstances
        };
        let (maps, lifetimes) = (self.flow_maps.clone(), self.config.lifetimes);
        let swept =
            tokio::task::spawn_blocking(move || sweep(&*maps, monotonic_nanoseconds(), &lifetimes, scope));
        match swept.await {
            Ok(Ok(swept)) => {
                if swept.removed > 0 {
                    tracing::debug!(removed = swept.removed, "entries of flows that have ended");
                }
                Some(swept)
            }
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot look at the flows"
                );
                None
            }
            Err(error) => {
                tracing::error!(%error, "the look at the flows has failed");
                None
            }
        }
    }

    /// Lets clients learn that their connections are over with the instances at the other end.
    async fn remind(&self, swept: &Sweep) {
        for forward in &swept.unaware {
            for frame in reminder::frames(forward) {
                self.write_back(&frame).await;
            }
        }
    }

    /// Forgets what nobody here has used for long. While the cluster is away nothing is: it could not be asked again.
    async fn forget_unused(&self, swept: &Sweep) {
        let is_connected = lock(&self.connection).0;
        if !is_connected || !self.flows.is_synced() {
            lock(&self.flows.services).begin_anew();
            lock(&self.flows.visitors).begin_anew();
            return;
        }
        let services = match self.unused_services(swept) {
            Ok(services) => services,
            Err(error) => return tracing::error!(%error, "cannot see which services are used"),
        };
        for name in services {
            self.forget_service(&name).await;
        }
        self.forget_visitors(swept);
    }

    fn unused_services(&self, swept: &Sweep) -> Result<Vec<String>, crate::dataplane::DataplaneError> {
        let services = self.directory().service_uses()?;
        let (now, clock) = (Instant::now(), monotonic_nanoseconds());
        let last_use = |service: &ServiceUse| {
            let leads_there = service.instances.iter().any(|index| swept.leads_to(*index))
                || service.addresses.iter().any(|address| swept.chose(*address));
            if leads_there {
                return Some(now);
            }
            let is_known = service.last_used != 0;
            is_known.then(|| now.checked_sub(rested(clock, service.last_used)))?
        };
        let uses = services
            .iter()
            .map(|service| (service.name.clone(), last_use(service)));
        Ok(lock(&self.flows.services).review(now, self.config.interest, uses))
    }

    /// What comes of it after that is asked for again by the first packet to it.
    async fn forget_service(&self, name: &str) {
        tracing::info!(service = name, "nobody here uses it any more: forgotten");
        // First, so that no update of it is entered afterwards.
        if let Err(error) = self.resolver.uninterested(name).await {
            tracing::warn!(%error, service = name, "the cluster goes on telling of a service");
        }
        let mut ledger = lock(&self.ledger);
        ledger.gone(name);
        if let Err(error) = self.directory().remove_service(name) {
            tracing::error!(%error, service = name, "cannot take a service out");
        }
        drop(ledger);
        self.upkeep_due.notify_one();
    }

    fn forget_visitors(&self, swept: &Sweep) {
        // Locked as always: who announces instances enters them under the ledger's lock.
        let _ledger = lock(&self.ledger);
        let mut directory = self.directory();
        let now = Instant::now();
        let uses = directory
            .visitors()
            .into_iter()
            .map(|(address, index)| (address, swept.leads_to(index).then_some(now)));
        let idle = lock(&self.flows.visitors).review(now, self.config.interest * VISITORS, uses);
        if idle.is_empty() {
            return;
        }
        tracing::info!(
            instances = idle.len(),
            "of other nodes do not talk to this one any more: forgotten"
        );
        for address in idle {
            if let Err(error) = directory.forget_visitor(address) {
                tracing::error!(%error, %address, "cannot take an instance out");
            }
        }
        self.upkeep_due.notify_one();
    }
}

fn tell_crossing(crossing: Option<Crossing>, fill: Fill) {
    let Fill { used, capacity } = fill;
    match crossing {
        None => {}
        Some(Crossing::Rose(level)) => {
            tracing::warn!(
                used,
                capacity,
                ?level,
                "the table of flows fills; when it is full, connections may be forgotten"
            );
        }
        Some(Crossing::Fell(level)) => {
            tracing::info!(used, capacity, ?level, "the table of flows has room again")
        }
    }
}
