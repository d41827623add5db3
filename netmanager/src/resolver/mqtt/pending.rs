//! Questions that wait for their answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Says which waiter of a key is meant.
pub(super) type Ticket = u64;

/// Waiters `W` by what they asked, `K`. Whoever asks what is already asked joins those who wait, so that each
/// question is on the wire once; a question that nobody waits for any more, or that is older than the
/// deadline, is asked anew by the next one.
pub(super) struct Pending<K, W> {
    deadline: Duration,
    questions: HashMap<K, Question<W>>,
    next_ticket: Ticket,
}

struct Question<W> {
    asked: Instant,
    waiters: Vec<(Ticket, W)>,
}

impl<K: Eq + Hash, W> Pending<K, W> {
    /// No questions yet; each is given `deadline` for its answer.
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            questions: HashMap::new(),
            next_ticket: 0,
        }
    }

    /// Adds a waiter. The second value is whether the question has to be put on the wire.
    pub(super) fn join(&mut self, key: K, waiter: W, now: Instant) -> (Ticket, bool) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let mut ask = false;
        let question = self.questions.entry(key).or_insert_with(|| {
            ask = true;
            Question {
                asked: now,
                waiters: Vec::new(),
            }
        });
        // A question whose answer got lost must not live for as long as somebody new keeps joining it.
        if now.saturating_duration_since(question.asked) >= self.deadline {
            question.asked = now;
            ask = true;
        }
        question.waiters.push((ticket, waiter));
        (ticket, ask)
    }

    /// Removes a waiter that does not wait any more; one that was answered is not there, which is fine.
    pub(super) fn leave(&mut self, key: &K, ticket: Ticket) {
        let Some(question) = self.questions.get_mut(key) else {
            return;
        };
        question.waiters.retain(|(other, _)| *other != ticket);
        if question.waiters.is_empty() {
            self.questions.remove(key);
        }
    }

    /// Takes everyone who waits for `key`.
    pub(super) fn take(&mut self, key: &K) -> Vec<W> {
        let question = self.questions.remove(key);
        question
            .into_iter()
            .flat_map(|question| question.waiters)
            .map(|(_, waiter)| waiter)
            .collect()
    }

    /// Takes everyone.
    pub(super) fn take_all(&mut self) -> Vec<W> {
        let questions = self.questions.drain();
        questions
            .flat_map(|(_, question)| question.waiters)
            .map(|(_, waiter)| waiter)
            .collect()
    }

    /// Everything that somebody waits for.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.questions.keys()
    }

    /// Whether somebody waits for `key`.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.questions.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[test]
    fn whoever_asks_the_same_joins() {
        let mut pending = Pending::new(DEADLINE);
        let now = Instant::now();
        assert!(pending.join("a", 1, now).1);
        assert!(!pending.join("a", 2, now).1);
        assert!(pending.join("b", 3, now).1);
        assert_eq!(pending.take(&"a"), [1, 2]);
        assert!(!pending.contains(&"a"));
        assert!(pending.join("a", 4, now).1, "an answered question is asked anew");
        let mut all = pending.take_all();
        all.sort_unstable();
        assert_eq!(all, [3, 4]);
    }

    #[test]
    fn a_question_without_waiters_is_forgotten() {
        let mut pending = Pending::new(DEADLINE);
        let now = Instant::now();
        let (first, _) = pending.join("a", 1, now);
        let (second, _) = pending.join("a", 2, now);
        pending.leave(&"a", first);
        assert!(pending.contains(&"a"));
        pending.leave(&"a", second);
        pending.leave(&"a", second);
        assert!(!pending.contains(&"a"));
        assert!(pending.join("a", 3, now).1);
    }

    #[test]
    fn a_lost_answer_does_not_poison_its_key() {
        let mut pending = Pending::new(DEADLINE);
        let begin = Instant::now();
        let mut asked = 0;
        // Somebody is always waiting: a new one joins each time before the one before leaves.
        let mut last = None;
        for second in 0..20 {
            let (ticket, ask) = pending.join("a", second, begin + Duration::from_secs(second));
            asked += u64::from(ask);
            if let Some(last) = last.replace(ticket) {
                pending.leave(&"a", last);
            }
        }
        assert_eq!(asked, 4);
    }
}
