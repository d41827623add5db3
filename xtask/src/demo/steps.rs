//! Saying what has been done, and how long it took.

use std::time::{Duration, Instant};

/// Prints steps as they are done.
pub struct Steps {
    last: Instant,
}

impl Steps {
    pub fn new() -> Self {
        Self { last: Instant::now() }
    }

    /// Says that a step is done, with the time since the one before.
    pub fn done(&mut self, what: &str) {
        println!("{} {what}", shown(self.last.elapsed()));
        self.last = Instant::now();
    }
}

/// `  12.34 s`
fn shown(time: Duration) -> String {
    format!("{:>7.2} s ", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_in_one_column() {
        assert_eq!("   0.05 s ", shown(Duration::from_millis(50)));
        assert_eq!(" 123.46 s ", shown(Duration::from_millis(123_456)));
    }
}
