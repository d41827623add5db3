//! Since when things have not been used. No clock, no kernel.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// When each of many things was used last, or was first seen where it was never used.
#[derive(Debug)]
pub(super) struct Idleness<K>(HashMap<K, Instant>);

impl<K> Default for Idleness<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Idleness<K> {
    /// Something is wanted, whether it is used or not.
    pub fn renew(&mut self, key: K, now: Instant) {
        self.0.insert(key, now);
    }

    /// Nobody can say what was used: everything is as good as just seen.
    pub fn begin_anew(&mut self) {
        self.0.clear();
    }

    /// Takes in all there is and when each was used last, as far as that is known. Those that have not been used for
    /// `patience` are returned, and forgotten.
    pub fn review(
        &mut self,
        now: Instant,
        patience: Duration,
        all: impl IntoIterator<Item = (K, Option<Instant>)>,
    ) -> Vec<K> {
        let mut before = std::mem::take(&mut self.0);
        let mut idle = Vec::new();
        for (key, used) in all {
            let since = before.remove(&key).max(used).unwrap_or(now);
            if now.saturating_duration_since(since) >= patience {
                idle.push(key);
            } else {
                self.0.insert(key, since);
            }
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);
    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn what_was_never_used_is_idle_a_while_after_it_was_first_seen() {
        let start = Instant::now();
        let mut idleness = Idleness::default();
        let mut review = |now| idleness.review(now, PATIENCE, [("a", None)]);
        assert!(review(start).is_empty());
        assert!(review(start + PATIENCE - MOMENT).is_empty());
        assert_eq!(review(start + PATIENCE), ["a"]);
        assert!(
            review(start + PATIENCE).is_empty(),
            "seen for the first time again"
        );
    }

    #[test]
    fn use_and_renewal_count_the_later_one() {
        let start = Instant::now();
        let mut idleness = Idleness::default();
        let all = |used| [("a", used)];
        assert!(idleness.review(start, PATIENCE, all(None)).is_empty());
        let used = start + PATIENCE / 2;
        assert!(
            idleness
                .review(start + PATIENCE, PATIENCE, all(Some(used)))
                .is_empty()
        );
        let renewed = used + PATIENCE / 4;
        idleness.renew("a", renewed);
        assert!(
            idleness
                .review(used + PATIENCE, PATIENCE, all(Some(used)))
                .is_empty()
        );
        assert_eq!(
            idleness.review(renewed + PATIENCE, PATIENCE, all(Some(used))),
            ["a"]
        );
    }

    #[test]
    fn n64_nothing_is_idle_while_nobody_can_say_so() {
        let start = Instant::now();
        let mut idleness = Idleness::default();
        assert!(idleness.review(start, PATIENCE, [("a", None)]).is_empty());
        idleness.begin_anew();
        let back = start + 10 * PATIENCE;
        assert!(idleness.review(back, PATIENCE, [("a", None)]).is_empty());
        assert_eq!(idleness.review(back + PATIENCE, PATIENCE, [("a", None)]), ["a"]);
    }

    #[test]
    fn what_is_gone_is_not_remembered() {
        let start = Instant::now();
        let mut idleness = Idleness::default();
        assert!(idleness.review(start, PATIENCE, [("a", None)]).is_empty());
        assert!(idleness.review(start, PATIENCE, []).is_empty());
        assert!(
            idleness
                .review(start + PATIENCE, PATIENCE, [("a", None)])
                .is_empty()
        );
    }
}
