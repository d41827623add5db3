//! What has to be undone when something of many steps fails half-way.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;
type Action = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

/// A stack of things to undo, one per step that was done.
///
/// It ends in [`commit`](Self::commit) or [`roll_back`](Self::roll_back). When it is dropped without either,
/// because the future that held it was cancelled, it is rolled back on the tokio runtime.
///
/// ```
/// # use netmanager::endpoint::Undo;
/// # async fn wire(undo: &mut Undo) -> std::io::Result<u32> {
/// #     undo.push("remove the link", || async { std::io::Result::Ok(()) });
/// #     Ok(1)
/// # }
/// # async fn example() -> std::io::Result<u32> {
/// let mut undo = Undo::default();
/// let outcome = wire(&mut undo).await;
/// undo.finish(outcome).await
/// # }
/// ```
#[derive(Default)]
#[must_use = "dropped, it undoes everything"]
pub struct Undo {
    steps: Vec<(String, Action)>,
}

impl Undo {
    /// Notes how to undo what was just done. `what` names it in the log should it fail.
    pub fn push<A, F, E>(&mut self, what: impl Into<String>, action: A)
    where
        A: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let action = || -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
            Box::pin(async { action().await.map_err(Into::into) })
        };
        self.steps.push((what.into(), Box::new(action)));
    }

    /// Everything has succeeded: nothing is undone.
    pub fn commit(mut self) {
        self.steps.clear();
    }

    /// Undoes everything, the last step first. What cannot be undone is logged and does not stop the rest.
    pub async fn roll_back(mut self) {
        while let Some((what, action)) = self.steps.pop() {
            if let Err(error) = action().await {
                tracing::warn!(%error, step = what, "could not undo");
            }
        }
    }

    /// Commits when `outcome` is good, and rolls back when it is an error, which it returns.
    ///
    /// # Errors
    /// That of `outcome`.
    pub async fn finish<T, E>(self, outcome: Result<T, E>) -> Result<T, E> {
        if outcome.is_ok() {
            self.commit();
        } else {
            self.roll_back().await;
        }
        outcome
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.steps.is_empty() {
            return;
        }
        let rest = Self {
            steps: std::mem::take(&mut self.steps),
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(rest.roll_back())),
            Err(_no_runtime) => {
                tracing::error!(steps = ?rest, "nowhere to undo what was done");
                rest.commit();
            }
        }
    }
}

impl fmt::Debug for Undo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_list()
            .entries(self.steps.iter().map(|(what, _)| what))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    type Log = Arc<Mutex<Vec<u32>>>;

    #[tokio::test]
    async fn an_error_undoes_everything_in_reverse_and_survives() {
        let log = Log::default();
        let undo = noting(&log);
        let outcome = undo.finish(Err::<(), _>("the error")).await;
        assert_eq!(outcome, Err("the error"));
        assert_eq!(taken(&log), [3, 2, 1]);
    }

    #[tokio::test]
    async fn success_undoes_nothing() {
        let log = Log::default();
        assert_eq!(noting(&log).finish(Ok::<_, ()>(7)).await, Ok(7));
        assert!(taken(&log).is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_caller_is_undone_on_the_runtime() {
        let log = Log::default();
        let (sender, done) = tokio::sync::oneshot::channel();
        let mut undo = Undo::default();
        undo.push("last", || async {
            sender.send(()).map_err(|()| io::Error::other("nobody waits"))
        });
        note(&mut undo, &log, 1);
        drop(undo);
        done.await.expect("rolled back");
        assert_eq!(taken(&log), [1]);
    }

    #[test]
    fn without_a_runtime_it_is_told_and_given_up() {
        let log = Log::default();
        drop(noting(&log));
        assert!(taken(&log).is_empty());
    }

    /// Three steps, of which the second cannot be undone.
    fn noting(log: &Log) -> Undo {
        let mut undo = Undo::default();
        for number in [1, 2, 3] {
            note(&mut undo, log, number);
        }
        undo
    }

    fn note(undo: &mut Undo, log: &Log, number: u32) {
        let log = log.clone();
        undo.push(format!("step {number}"), move || async move {
            log.lock().expect("not poisoned").push(number);
            if number == 2 {
                Err(io::Error::other("stuck"))
            } else {
                Ok(())
            }
        });
    }

    fn taken(log: &Log) -> Vec<u32> {
        log.lock().expect("not poisoned").clone()
    }
}
