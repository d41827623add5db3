//! How far away other nodes are, and whether they are there at all.
//!
//! Every node that the data plane knows is asked at intervals by a probe ([`dataplane_ebpf::probe`]), which its
//! program answers and of which this node's program notes the arrival. Here is what follows from departures and
//! arrivals; clock, chance, map and socket are the caller's. Times are nanoseconds of the monotonic clock.
//!
//! | what | when |
//! |---|---|
//! | the next probe | an interval after the last, ± a tenth; a new node is asked faster at first, one that has never answered more and more rarely |
//! | silent | no probe has been answered that left since [`Settings::silent_after`]; only a node that has answered before |
//! | there again | two probes in a row have been answered |
//! | another distance | the smoothed round trip has been off by more than a fifth and a millisecond for four probes in a row |
//!
//! With more nodes than [`Settings::per_second`] allows for, all intervals grow in proportion; and as four probes have
//! to be missed, so does the time after which a node is silent.

mod closest;
mod estimate;
mod peer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::directory::NodeKey;

pub use closest::{Distance, is_near};
pub use estimate::Estimate;
use peer::Peer;

/// A new node is asked at this part of the interval until its distance is known.
const EAGER_PART: u64 = 8;

/// How often to probe, and what to make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between two probes to a node.
    pub interval: Duration,
    /// The same, for nodes behind one of `metered_interfaces`.
    pub metered_interval: Duration,
    /// Names of the interfaces on which traffic costs money.
    pub metered_interfaces: Vec<String>,
    /// How long a node may leave probes unanswered before it takes no new flows; at least four intervals.
    pub silent_after: Duration,
    /// Probes sent in a second, to all nodes together.
    pub per_second: u32,
    /// Probes of others that each CPU answers in a second.
    pub answered_per_second: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(250),
            metered_interval: Duration::from_secs(5),
            metered_interfaces: Vec::new(),
            silent_after: Duration::from_secs(1),
            per_second: 500,
            answered_per_second: dataplane_ebpf::probe::ANSWERED_PER_SECOND,
        }
    }
}

/// A node to be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub key: NodeKey,
    /// Index in `NODES`.
    pub index: u32,
    /// Whether traffic to it costs money.
    pub metered: bool,
    /// Whether it has answered an earlier process: then its silence means something from the start.
    pub has_answered: bool,
}

/// A probe to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub key: NodeKey,
    /// Index in `PROBES`.
    pub index: u32,
    pub nonce: u64,
}

/// What became known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It does not answer any more.
    Silent(NodeKey),
    /// It answers again.
    There(NodeKey),
    /// It is this far away, in microseconds, and has been for a while.
    Distance(NodeKey, u32),
}

/// What is known of a node, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Opinion {
    pub alive: bool,
    /// Smoothed round trip and its mean deviation; `None` before anything was measured.
    pub round_trip: Option<(Duration, Duration)>,
    /// The share of probes that are lost, 0 to 1.
    pub loss: f64,
}

/// The pace at which a node is probed, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: u64,
    /// The interval for a new node.
    eager: u64,
    silent_after: u64,
}

/// All nodes that are probed.
#[derive(Debug)]
pub struct Probes {
    settings: Settings,
    peers: BTreeMap<NodeKey, Peer>,
    /// When to look at which node.
    due: BTreeSet<(u64, NodeKey)>,
}

impl Probes {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            peers: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// Probes these nodes from now on, and no others. The first probes to new ones are due at once, as fast as the rate
    /// allows.
    pub fn follow(&mut self, targets: &[Target], now: u64) {
        let wanted: BTreeMap<NodeKey, &Target> = targets.iter().map(|target| (target.key, target)).collect();
        let stays =
            |key: &NodeKey, peer: &Peer| wanted.get(key).is_some_and(|target| target.index == peer.index);
        self.due
            .retain(|(_, key)| self.peers.get(key).is_some_and(|peer| stays(key, peer)));
        self.peers.retain(|key, peer| stays(key, peer));
        let apart = self.apart();
        let mut first = now;
        for target in wanted.values() {
            let due = &mut self.due;
            let peer = self.peers.entry(target.key).or_insert_with(|| {
                let peer = Peer::new(target.index, first, target.has_answered);
                due.insert((first, target.key));
                first += apart;
                peer
            });
            peer.metered = target.metered;
        }
    }

    /// When to call [`Self::due`] next.
    pub fn next(&self) -> Option<u64> {
        self.due.first().map(|(time, _)| *time)
    }

    /// The nodes that are to be looked at now, each by [`Self::under_way`], [`Self::answered`] and [`Self::advance`]. It
    /// is due again at a time that `advance` chooses.
    pub fn due(&mut self, now: u64) -> Vec<NodeKey> {
        let mut due = Vec::new();
        while let Some((time, key)) = self.due.first().copied()
            && time <= now
        {
            self.due.remove(&(time, key));
            due.push(key);
        }
        due
    }

    /// The probes to a node that have not been answered as far as is known: index in `PROBES`, and nonce.
    pub fn under_way(&self, key: NodeKey) -> Vec<(u32, u64)> {
        self.peers.get(&key).map(Peer::under_way).unwrap_or_default()
    }

    /// The probe at this index of `PROBES` was answered.
    pub fn answered(&mut self, key: NodeKey, index: u32, received_at: u64, events: &mut Vec<Event>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let answer = peer.answered(index, received_at);
        if answer.is_there_again {
            events.push(Event::There(key));
        }
        if let Some(distance) = answer.distance {
            events.push(Event::Distance(key, distance));
        }
    }

    /// Draws the conclusions that are due; the next probe, where it is time for one. `chance` is any number, of which
    /// the next nonce is made: nobody may guess it.
    pub fn advance(
        &mut self,
        key: NodeKey,
        now: u64,
        chance: u64,
        events: &mut Vec<Event>,
    ) -> Option<Request> {
        let pace = self.pace(self.peers.get(&key)?.metered);
        let peer = self.peers.get_mut(&key)?;
        if peer.fell_silent(now, &pace) {
            events.push(Event::Silent(key));
        }
        let request = (peer.due <= now).then(|| {
            let (index, nonce) = peer.next(now, &pace, chance);
            Request { key, index, nonce }
        });
        self.schedule(key, &pace);
        request
    }

    /// The probe left at this time, or could not.
    pub fn sent(&mut self, request: &Request, at: u64) {
        let Some(peer) = self.peers.get_mut(&request.key) else {
            return;
        };
        peer.left(request.index, at);
        let metered = peer.metered;
        // Its silence, if this goes unanswered too, may be due before the next probe is.
        let pace = self.pace(metered);
        self.schedule(request.key, &pace);
    }

    /// What is known of a node.
    pub fn opinion(&self, key: NodeKey) -> Option<Opinion> {
        self.peers.get(&key).map(Peer::opinion)
    }

    fn schedule(&mut self, key: NodeKey, pace: &Pace) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.due.remove(&(peer.wake_at, key));
            peer.wake_at = peer.wake(pace);
            self.due.insert((peer.wake_at, key));
        }
    }

    /// The least time between two probes, to whichever nodes.
    fn apart(&self) -> u64 {
        1_000_000_000 / u64::from(self.settings.per_second.max(1))
    }

    fn pace(&self, metered: bool) -> Pace {
        let Settings {
            interval,
            metered_interval,
            silent_after,
            ..
        } = &self.settings;
        let nanoseconds = |duration: &Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let wanted = nanoseconds(if metered { metered_interval } else { interval });
        let least = self.apart().saturating_mul(self.peers.len() as u64);
        let interval = wanted.max(least);
        Pace {
            interval,
            eager: least.max(wanted / EAGER_PART),
            silent_after: nanoseconds(silent_after).max(interval.saturating_mul(4)),
        }
    }
}
