//! How full the tables of flows are, and when to say so.

use serde::{Deserialize, Serialize};

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Entries in it, two for each flow.
    pub used: u32,
    /// Entries that fit.
    pub capacity: u32,
}

impl Fill {
    /// In percent, rounded down.
    pub fn percent(self) -> u32 {
        let percent = u64::from(self.used) * 100 / u64::from(self.capacity.max(1));
        u32::try_from(percent).unwrap_or(u32::MAX)
    }

    /// How urgent that is.
    pub fn level(self) -> Level {
        match self.percent() {
            95.. => Level::Critical,
            80..95 => Level::High,
            0..80 => Level::Ample,
        }
    }
}

/// How urgent the fill of a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Ample,
    /// From 80 percent on.
    High,
    /// From 95 percent on.
    Critical,
}

/// A change of level that is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    Rose(Level),
    Fell(Level),
}

/// Remembers the level, so that each crossing is told once. A level is left when the fill is five percent below it.
#[derive(Debug, Default)]
pub struct Watermark(Level);

impl Watermark {
    /// Takes a new figure in.
    pub fn note(&mut self, fill: Fill) -> Option<Crossing> {
        let level = fill.level();
        if level > self.0 {
            self.0 = level;
            return Some(Crossing::Rose(level));
        }
        let with_margin = Fill {
            used: fill.used.saturating_add(fill.capacity / 20),
            ..fill
        };
        let level = with_margin.level();
        if level < self.0 {
            self.0 = level;
            return Some(Crossing::Fell(level));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crossing_is_told_once() {
        let mut watermark = Watermark::default();
        let mut note = |percent: u32| {
            watermark.note(Fill {
                used: percent * 10,
                capacity: 1_000,
            })
        };
        assert_eq!(note(79), None);
        assert_eq!(note(80), Some(Crossing::Rose(Level::High)));
        assert_eq!(note(94), None);
        assert_eq!(note(79), None, "still close to it");
        assert_eq!(note(81), None);
        assert_eq!(note(95), Some(Crossing::Rose(Level::Critical)));
        assert_eq!(note(91), None);
        assert_eq!(note(89), Some(Crossing::Fell(Level::High)));
        assert_eq!(note(100), Some(Crossing::Rose(Level::Critical)));
        assert_eq!(note(10), Some(Crossing::Fell(Level::Ample)));
        assert_eq!(note(10), None);
    }

    #[test]
    fn a_table_without_entries_has_a_fill() {
        assert_eq!(Fill::default().percent(), 0);
    }
}
