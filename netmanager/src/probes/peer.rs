//! One node that is probed.

use dataplane_ebpf::probe::SLOTS;

use super::{Estimate, Opinion, Pace};

/// How many probes have to be missed for a silence, however long it has lasted: a process that was held up has sent
/// none.
const MISSED: u32 = 3;
/// Answers in a row after which a silent node is there again.
const AGAIN: u32 = 2;
/// A new node is asked this many times at a faster pace, unless its distance is known before.
const EAGER: u32 = 8;
/// A node that never answers is asked half as often after every so many probes, down to this part.
const PATIENCE: u32 = 4;
const LONGEST: u64 = 16;

/// A probe that left and was not answered, as far as is known.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    nonce: u64,
    /// Zero until it has left.
    left_at: u64,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub is_there_again: bool,
    pub distance: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Peer {
    /// Index in `NODES`.
    pub index: u32,
    pub metered: bool,
    /// When the next probe is to leave.
    pub due: u64,
    /// When it is looked at next.
    pub wake_at: u64,
    under_way: [Option<UnderWay>; SLOTS as usize],
    sent: u32,
    estimate: Estimate,
    /// It has answered once: from then on its silence means something.
    has_answered: bool,
    silent: bool,
    /// Departure of the first probe since the last one that was answered, and how many have left since.
    unanswered_since: Option<u64>,
    missed: u32,
    /// Answers in a row, departure of the last probe that was answered, and whether one that left after it is lost.
    in_a_row: u32,
    answered_until: u64,
    lost_since: bool,
}

impl Peer {
    pub fn new(index: u32, now: u64, has_answered: bool) -> Self {
        Self {
            index,
            metered: false,
            due: now,
            wake_at: now,
            under_way: [None; SLOTS as usize],
            sent: 0,
            estimate: Estimate::default(),
            has_answered,
            silent: false,
            unanswered_since: None,
            missed: 0,
            in_a_row: 0,
            answered_until: 0,
            lost_since: false,
        }
    }

    pub fn under_way(&self) -> Vec<(u32, u64)> {
        let slots = (0..).zip(&self.under_way);
        slots
            .filter_map(|(slot, probe)| Some((self.index * SLOTS + slot, probe.as_ref()?.nonce)))
            .collect()
    }

    /// The probe at this index of `PROBES` was answered at this time.
    pub fn answered(&mut self, index: u32, received_at: u64) -> Answer {
        let slot = self.under_way.get_mut((index % SLOTS) as usize);
        let Some(UnderWay { left_at, .. }) = slot.and_then(Option::take) else {
            return Answer::default();
        };
        if left_at == 0 || received_at < left_at {
            return Answer::default();
        }
        self.estimate.note(false);
        // The first carries what finding each other in the network took.
        let distance = if self.has_answered {
            self.estimate.measure(received_at - left_at)
        } else {
            None
        };
        self.has_answered = true;
        let between = |probe: &UnderWay| (self.answered_until + 1..left_at).contains(&probe.left_at);
        let gap = self.lost_since || self.under_way.iter().flatten().any(between);
        self.in_a_row = if gap { 1 } else { self.in_a_row.saturating_add(1) };
        self.lost_since = false;
        self.answered_until = self.answered_until.max(left_at);
        let later = || {
            self.under_way
                .iter()
                .flatten()
                .filter(|probe| probe.left_at > left_at)
        };
        let (since, missed) = (later().map(|probe| probe.left_at).min(), later().count());
        // An answer that overtook another tells nothing about what left after that.
        if self.unanswered_since.is_some_and(|since| since <= left_at) {
            (self.unanswered_since, self.missed) = (since, missed as u32);
        }
        let is_there_again = self.silent && self.in_a_row >= AGAIN;
        if is_there_again {
            self.silent = false;
        }
        Answer {
            is_there_again,
            distance,
        }
    }

    /// Whether it falls silent now.
    pub fn fell_silent(&mut self, now: u64, pace: &Pace) -> bool {
        let falls = self.silence_due(pace).is_some_and(|time| time <= now);
        if falls {
            (self.silent, self.in_a_row) = (true, 0);
        }
        falls
    }

    /// The next probe, which is to leave now: index in `PROBES`, and nonce. The one whose place it takes is lost.
    pub fn next(&mut self, now: u64, pace: &Pace, chance: u64) -> (u32, u64) {
        let slot = self.sent % SLOTS;
        self.sent = self.sent.wrapping_add(1);
        let nonce = chance.max(1);
        let place = self.under_way.get_mut(slot as usize);
        if let Some(lost) = place.and_then(|place| place.replace(UnderWay { nonce, left_at: 0 })) {
            self.estimate.note(true);
            self.lost_since |= lost.left_at > self.answered_until;
        }
        let pause = self.pause(pace);
        // A tenth more or less, so that nodes that began together do not go on together.
        let jitter = (chance >> 32) % (pause / 5).max(1);
        self.due = now + pause - pause / 10 + jitter;
        (self.index * SLOTS + slot, nonce)
    }

    /// The probe at this index of `PROBES` left.
    pub fn left(&mut self, index: u32, at: u64) {
        if let Some(Some(probe)) = self.under_way.get_mut((index % SLOTS) as usize) {
            probe.left_at = at;
        }
        self.unanswered_since.get_or_insert(at);
        self.missed = self.missed.saturating_add(1);
    }

    /// When to look at it next.
    pub fn wake(&self, pace: &Pace) -> u64 {
        let silence = self.silence_due(pace);
        silence.map_or(self.due, |silence| silence.min(self.due))
    }

    pub fn opinion(&self) -> Opinion {
        Opinion {
            alive: !self.silent,
            round_trip: self.estimate.round_trip(),
            loss: self.estimate.loss(),
        }
    }

    fn silence_due(&self, pace: &Pace) -> Option<u64> {
        if !self.has_answered || self.silent || self.missed < MISSED {
            return None;
        }
        self.unanswered_since
            .map(|since| since.saturating_add(pace.silent_after))
    }

    fn pause(&self, pace: &Pace) -> u64 {
        if self.sent <= EAGER && !self.estimate.is_settled() {
            return pace.eager;
        }
        if self.has_answered {
            return pace.interval;
        }
        let patience = (self.sent - EAGER.min(self.sent)) / PATIENCE;
        pace.interval
            .saturating_mul(1_u64.checked_shl(patience).unwrap_or(LONGEST).min(LONGEST))
    }
}
