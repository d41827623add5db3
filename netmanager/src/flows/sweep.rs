//! One look at every flow: which have ended, and what those that go on need.

use std::time::Duration;

use dataplane_ebpf::header::PROTOCOL_TCP;
use dataplane_ebpf::tables::{Flow, FlowKey, Instance, capacity, state};

use super::lifetimes::{Lifetimes, rested};
use super::maps::FlowError;

/// Addresses of services and instances: 10.30.0.0/16.
const SHOWN_ADDRESSES: usize = 1 << 16;

/// Which of the two tables of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Flows that both sides have spoken in.
    Flows,
    /// All others.
    Unanswered,
}

impl Table {
    /// In the order in which entries move, so that none of a flow that goes on is missed.
    const ALL: [Self; 2] = [Self::Unanswered, Self::Flows];
}

/// Where flows are.
pub trait FlowStore {
    /// Shows all entries of a table.
    fn for_each(&self, table: Table, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), FlowError>;
    fn get(&self, table: Table, key: &FlowKey) -> Result<Option<Flow>, FlowError>;
    /// Whether the key was there.
    fn remove(&self, table: Table, key: &FlowKey) -> Result<bool, FlowError>;
    /// The instance with this index; vacant when there is none.
    fn instance(&self, index: u32) -> Result<Instance, FlowError>;
}

/// What may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Flows that have rested long enough, and flows whose instance is gone.
    All,
    /// Only the latter.
    OfGoneInstances,
}

/// What a sweep has seen and done.
pub struct Sweep {
    /// Entries in `FLOWS` and in `UNANSWERED` before it.
    pub flows: u32,
    pub unanswered: u32,
    /// Entries that it has removed.
    pub removed: u32,
    /// Connections that are over with their instance while their client may not know it: keys of forward entries.
    pub unaware: Vec<FlowKey>,
    instances: Vec<bool>,
    shown: Vec<bool>,
}

impl Sweep {
    fn new() -> Self {
        Self {
            flows: 0,
            unanswered: 0,
            removed: 0,
            unaware: Vec::new(),
            instances: vec![false; capacity::INSTANCES as usize],
            shown: vec![false; SHOWN_ADDRESSES],
        }
    }

    /// Whether a flow leads to the instance with this index.
    pub fn leads_to(&self, instance: u32) -> bool {
        self.instances.get(instance as usize).copied().unwrap_or_default()
    }

    /// Whether a client has chosen this service or instance address.
    pub fn chose(&self, address: std::net::Ipv4Addr) -> bool {
        let [.., third, fourth] = address.octets();
        let index = usize::from(u16::from_be_bytes([third, fourth]));
        dataplane_ebpf::address::is_service_or_instance(address.octets())
            && self.shown.get(index).copied().unwrap_or_default()
    }

    fn note(&mut self, key: &FlowKey, flow: &Flow) {
        if let Some(seen) = self.instances.get_mut(flow.instance as usize) {
            *seen = true;
        }
        let [.., third, fourth] = key.destination;
        if flow.state & state::PUBLISHED == 0
            && let Some(seen) = self
                .shown
                .get_mut(usize::from(u16::from_be_bytes([third, fourth])))
        {
            *seen = true;
        }
    }
}

/// Looks at every flow at monotonic time `now`, in ns, and removes what has ended.
///
/// # Errors
/// When the kernel refuses; what was removed stays removed, and the next sweep goes on.
pub fn sweep(
    store: &impl FlowStore,
    now: u64,
    lifetimes: &Lifetimes,
    scope: Scope,
) -> Result<Sweep, FlowError> {
    let mut sweeper = Sweeper {
        store,
        now,
        lifetimes,
        scope,
        incarnations: vec![None; capacity::INSTANCES as usize],
    };
    let mut sweep = Sweep::new();
    let (mut forward, mut reverse) = (Vec::new(), Vec::new());
    let mut failure = None;
    for table in Table::ALL {
        let mut count = 0;
        store.for_each(table, &mut |key, flow| {
            count += 1;
            let is_forward = flow.state & state::REVERSE == 0;
            if is_forward {
                sweep.note(key, flow);
            }
            let is_gone = match sweeper.is_gone(flow) {
                Ok(is_gone) => is_gone,
                Err(error) => {
                    failure.get_or_insert(error);
                    return;
                }
            };
            if is_forward && is_gone && may_be_unaware(key, flow) {
                sweep.unaware.push(*key);
            }
            if sweeper.is_over(key.protocol, flow, is_gone) {
                if is_forward {
                    forward.push(*key);
                } else {
                    reverse.push(*key);
                }
            }
        })?;
        match table {
            Table::Flows => sweep.flows = count,
            Table::Unanswered => sweep.unanswered = count,
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    for key in &forward {
        sweep.removed += sweeper.end_flow(key)?;
    }
    for key in &reverse {
        sweep.removed += sweeper.end_remainder(key)?;
    }
    Ok(sweep)
}

struct Sweeper<'a, S> {
    store: &'a S,
    now: u64,
    lifetimes: &'a Lifetimes,
    scope: Scope,
    /// By index of the instance, as far as they were read.
    incarnations: Vec<Option<u64>>,
}

impl<S: FlowStore> Sweeper<'_, S> {
    /// Whether the instance of a flow is not there any more.
    fn is_gone(&mut self, flow: &Flow) -> Result<bool, FlowError> {
        let known = self.incarnations.get(flow.instance as usize).copied().flatten();
        if known == Some(flow.incarnation) {
            return Ok(false);
        }
        // What was read before may be older than the flow.
        let instance = self.store.instance(flow.instance)?;
        if let Some(known) = self.incarnations.get_mut(flow.instance as usize) {
            *known = Some(instance.incarnation);
        }
        Ok(instance.incarnation != flow.incarnation)
    }

    /// Whether an entry has to go, as far as it knows itself.
    fn is_over(&self, protocol: u8, flow: &Flow, is_gone: bool) -> bool {
        if is_gone && protocol != PROTOCOL_TCP {
            return true;
        }
        let lifetime = self.lifetime(protocol, flow, is_gone);
        (is_gone || self.scope == Scope::All) && rested(self.now, flow.last_seen) >= lifetime
    }

    fn lifetime(&self, protocol: u8, flow: &Flow, is_gone: bool) -> Duration {
        let lifetime = self.lifetimes.of(protocol, flow);
        if is_gone {
            lifetime.min(self.lifetimes.tcp_reset)
        } else {
            lifetime
        }
    }

    /// Removes both entries of a flow that is over, unless it was used meanwhile or an answer was; how many.
    fn end_flow(&mut self, key: &FlowKey) -> Result<u32, FlowError> {
        let Some(flow) = self.find(key)? else { return Ok(0) };
        let is_gone = self.is_gone(&flow)?;
        if !self.is_over(key.protocol, &flow, is_gone) {
            return Ok(0);
        }
        let mut removed = 0;
        if !is_gone {
            let answers = answers(key, &flow, &self.store.instance(flow.instance)?);
            if let Some(reverse) = self.find(&answers)?
                && forward_key(&answers, &reverse) == *key
            {
                let lifetime = self.lifetime(key.protocol, &flow, is_gone);
                if rested(self.now, reverse.last_seen) < lifetime {
                    return Ok(0);
                }
                // First: a client that goes on right now uses a flow that is about to go, and then begins anew, rather
                // than one whose answers are not translated.
                removed += self.remove(&answers)?;
            }
        }
        Ok(removed + self.remove(key)?)
    }

    /// Removes a reverse entry that is over and without a forward one; how many.
    fn end_remainder(&mut self, key: &FlowKey) -> Result<u32, FlowError> {
        let Some(reverse) = self.find(key)? else {
            return Ok(0);
        };
        let is_gone = self.is_gone(&reverse)?;
        if !self.is_over(key.protocol, &reverse, is_gone) {
            return Ok(0);
        }
        let forward = self.find(&forward_key(key, &reverse))?;
        let belongs = |forward: Flow| {
            forward.state & state::REVERSE == 0
                && (forward.instance, forward.incarnation) == (reverse.instance, reverse.incarnation)
        };
        if forward.is_some_and(belongs) {
            return Ok(0);
        }
        self.remove(key)
    }

    fn find(&self, key: &FlowKey) -> Result<Option<Flow>, FlowError> {
        for table in Table::ALL {
            if let Some(flow) = self.store.get(table, key)? {
                return Ok(Some(flow));
            }
        }
        Ok(None)
    }

    fn remove(&self, key: &FlowKey) -> Result<u32, FlowError> {
        let mut removed = 0;
        for table in Table::ALL {
            removed += u32::from(self.store.remove(table, key)?);
        }
        Ok(removed)
    }
}

/// Whether the client of a forward entry may wait for an instance that is gone. Clients of published ports are out of
/// reach; they learn it when they speak.
fn may_be_unaware(key: &FlowKey, flow: &Flow) -> bool {
    let has_ended = flow.state & state::RESET != 0
        || flow.state & (state::FIN_FORWARD | state::FIN_REVERSE) == state::FIN_FORWARD | state::FIN_REVERSE;
    key.protocol == PROTOCOL_TCP
        && flow.state & state::ANSWERED != 0
        && flow.state & state::PUBLISHED == 0
        && !has_ended
}

/// The key of the reverse entry, from the forward one.
fn answers(key: &FlowKey, flow: &Flow, instance: &Instance) -> FlowKey {
    let is_published = flow.state & state::PUBLISHED != 0;
    let (source, source_port, destination) = if is_published {
        (instance.place.address(), flow.other_port, flow.address)
    } else {
        (instance.address, key.destination_port, key.source)
    };
    FlowKey {
        source,
        destination,
        source_port,
        destination_port: flow.port,
        protocol: key.protocol,
        zero: [0; 3],
    }
}

/// The key of the forward entry, from the reverse one.
fn forward_key(key: &FlowKey, flow: &Flow) -> FlowKey {
    let is_published = flow.state & state::PUBLISHED != 0;
    let (source, destination_port) = if is_published {
        (flow.address, flow.other_port)
    } else {
        (key.destination, key.source_port)
    };
    FlowKey {
        source,
        destination: flow.shown,
        source_port: flow.port,
        destination_port,
        protocol: key.protocol,
        zero: [0; 3],
    }
}

#[cfg(test)]
mod tests;
