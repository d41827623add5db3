//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Short against what it waits for (processes, sockets, the kernel's work queues), long against a look.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a look yields: `bool`, or `Option` where the waiting is for a value.
pub trait Condition {
    type Value;

    /// The value, once it holds.
    fn met(self) -> Option<Self::Value>;
}

impl Condition for bool {
    type Value = ();

    fn met(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Value = T;

    fn met(self) -> Self {
        self
    }
}

/// Looks again and again until the condition holds, at most until the deadline. The error says what was waited
/// for. A look that fails counts as "not yet", since what is waited for is often that it stops failing; the
/// last failure is then the cause of the error.
pub fn wait_for<C: Condition>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<C>,
) -> Result<C::Value> {
    let end = Instant::now() + deadline;
    loop {
        // The clock is read before the look: a machine that stands still between the two gets its last look.
        let late = Instant::now() >= end;
        let failure = match look() {
            Ok(outcome) => match outcome.met() {
                Some(value) => return Ok(value),
                None => None,
            },
            Err(error) => Some(error),
        };
        if late {
            let message = format!("waited {deadline:?} in vain for {what}");
            match failure {
                Some(error) => return Err(error).context(message),
                None => bail!(message),
            }
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_until_a_condition_holds() {
        let mut looks = 0;
        let value = wait_for("the third look", Duration::from_secs(5), || {
            looks += 1;
            match looks {
                1 => bail!("not yet"),
                2 => Ok(None),
                _ => Ok(Some("here")),
            }
        });
        assert_eq!("here", value.expect("the third look succeeds"));
    }

    #[test]
    fn its_error_says_what_it_waited_for_and_why_in_vain() {
        let error = wait_for("the moon", Duration::ZERO, || -> Result<bool> { bail!("clouds") })
            .expect_err("it can't come");
        assert_eq!("waited 0ns in vain for the moon: clouds", format!("{error:#}"));
        let error = wait_for("the sun", Duration::ZERO, || Ok(false)).expect_err("it can't come");
        assert_eq!("waited 0ns in vain for the sun", format!("{error:#}"));
    }
}
