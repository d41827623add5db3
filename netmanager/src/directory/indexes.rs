//! Allocation of array indexes: fresh ones first, freed ones late and oldest first.

use std::collections::{BTreeSet, VecDeque};

/// Hands out indexes from a range.
#[derive(Clone, Debug)]
pub struct Indexes {
    next: u32,
    end: u32,
    freed: VecDeque<u32>,
    quarantine: usize,
}

impl Indexes {
    /// Indexes from `start` up to, but not including, `end`. A freed index is handed out again when more than
    /// `quarantine` are waiting, or when nothing else is left.
    pub fn new(start: u32, end: u32, quarantine: usize) -> Self {
        Self {
            next: start,
            end,
            freed: VecDeque::new(),
            quarantine,
        }
    }

    /// As [`Self::new`], with the indexes `used` handed out already.
    pub fn with_used(start: u32, end: u32, quarantine: usize, used: &BTreeSet<u32>) -> Self {
        let next = used
            .last()
            .map_or(start, |last| last.saturating_add(1))
            .clamp(start, end);
        let freed = (start..next).filter(|index| !used.contains(index)).collect();
        Self {
            next,
            end,
            freed,
            quarantine,
        }
    }

    /// An index that nobody has.
    pub fn take(&mut self) -> Option<u32> {
        if self.freed.len() <= self.quarantine && self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.freed.pop_front()
    }

    /// Gives an index back.
    pub fn free(&mut self, index: u32) {
        self.freed.push_back(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_indexes_wait_while_there_are_fresh_ones() {
        let mut indexes = Indexes::new(1, 5, 1);
        assert_eq!((indexes.take(), indexes.take()), (Some(1), Some(2)));
        indexes.free(1);
        assert_eq!(indexes.take(), Some(3));
        indexes.free(2);
        assert_eq!(indexes.take(), Some(1), "two are waiting, one may go");
        assert_eq!(
            (indexes.take(), indexes.take(), indexes.take()),
            (Some(4), Some(2), None)
        );
    }

    #[test]
    fn used_indexes_are_not_handed_out() {
        let mut indexes = Indexes::with_used(1, 6, 0, &BTreeSet::from([1, 4]));
        let taken: Vec<_> = std::iter::from_fn(|| indexes.take()).collect();
        assert_eq!(taken, [2, 3, 5]);
    }
}
