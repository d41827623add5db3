//! One attempt to get an instance's container to run, and what follows from its failure or its end.

use std::sync::Arc;
use std::time::Duration;

use protocol::instance::InstanceStatus;
use protocol::job::Placement;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Instance, NAME_PAUSE, Next, RUNTIME_PAUSE, STEADY, Seen};
use crate::ledger::Phase;
use crate::runtime::{Container, ContainerState, RuntimeError};

impl Instance {
    pub(super) async fn create(&mut self, placement: &Placement) -> Next {
        if let Some(pause) = self.pause() {
            return pause;
        }
        self.creating(placement, "");
        if let Some(next) = self.wait_for_overlay(placement) {
            return next;
        }
        let mut created = self.engine.runtime.create(placement).await;
        if matches!(created, Err(RuntimeError::ImageMissing)) {
            match self.pull(placement).await {
                None => return Next::Again,
                Some(Err(error)) => return self.failed(placement, error),
                Some(Ok(())) => created = self.engine.runtime.create(placement).await,
            }
        }
        match created {
            Ok(id) => {
                let container = Container {
                    id,
                    incarnation: Some(placement.incarnation),
                    state: ContainerState::Created,
                    is_connected: true,
                    log_path: String::new(),
                    memory_limit: 0,
                };
                self.start(placement, container).await
            }
            Err(RuntimeError::NameTaken) => {
                // By a container of an earlier process or incarnation.
                self.seen = Seen::Unknown;
                Next::Pause(Instant::now() + NAME_PAUSE)
            }
            Err(error) => self.failed(placement, error),
        }
    }

    /// Gets the image; `None` when the instance is not wanted any more.
    async fn pull(&mut self, placement: &Placement) -> Option<Result<(), RuntimeError>> {
        let engine = Arc::clone(&self.engine);
        let has_failed = self.has_failed;
        let progress = |said: String| {
            if !has_failed {
                engine.board.report(placement, InstanceStatus::Creating, &said);
            }
        };
        progress("pulling the image".to_owned());
        let pull = engine.runtime.pull(&placement.job.image, &progress);
        tokio::select! {
            result = pull => Some(result),
            () = self.superseded(placement) => None,
        }
    }

    /// Returns when the order has changed.
    async fn superseded(&mut self, placement: &Placement) {
        loop {
            let message = self.mailbox.recv().await;
            self.take(message);
            let is_wanted = self.engine.record(&self.key).await.is_some_and(|record| {
                record.phase == Phase::Wanted && record.placement.incarnation == placement.incarnation
            });
            if !is_wanted {
                return;
            }
        }
    }

    pub(super) async fn start(&mut self, placement: &Placement, container: Container) -> Next {
        if let Some(pause) = self.pause() {
            self.seen = Seen::Container(container);
            return pause;
        }
        if let Some(next) = self.wait_for_overlay(placement) {
            self.seen = Seen::Container(container);
            return next;
        }
        if !self.has_failed {
            self.report(placement, InstanceStatus::Created, "");
        }
        self.seen = Seen::Unknown;
        match self.engine.runtime.start(&container.id).await {
            Ok(()) => {
                self.is_exit_handled = false;
                self.has_failed = false;
                self.running_since = Some(Instant::now());
                self.report(placement, InstanceStatus::Running, "");
                // And now look for its process, to measure it, or for how it has ended already.
                Next::Again
            }
            Err(RuntimeError::Gone) => Next::Again,
            Err(error) => {
                if is_stuck(&error) {
                    warn!(
                        container = container.id,
                        "cannot ever be started; made anew: {error}"
                    );
                    self.seen = Seen::Container(container);
                    if let Err(error) = self.remove_container().await {
                        warn!("not removed: {error}");
                    }
                }
                self.failed(placement, error)
            }
        }
    }

    /// Its process has ended: done, or again after a pause.
    pub(super) async fn after_exit(&mut self, placement: &Placement, container: Container) -> Next {
        let ContainerState::Exited {
            code,
            out_of_memory,
            error,
        } = &container.state
        else {
            return Next::Again;
        };
        if !self.is_exit_handled {
            if placement.job.one_shot && *code == 0 {
                return match self.engine.complete(&self.key, placement.incarnation).await {
                    Ok(()) => Next::Again,
                    Err(error) => {
                        warn!("completion not noted: {error}");
                        Next::Pause(Instant::now() + self.pauses.next())
                    }
                };
            }
            self.forgive_if_steady();
            self.is_exit_handled = true;
            let pause = self.pauses.next();
            self.not_before = Some(Instant::now() + pause);
            let detail = exit_detail(*code, *out_of_memory, error, pause);
            self.report(placement, InstanceStatus::Dead, &detail);
            self.engine.board.set_container(&self.key, &container);
        }
        if let Some(pause) = self.pause() {
            return pause;
        }
        self.creating(placement, "starting again");
        self.start(placement, container).await
    }

    /// What has run for a while begins with short pauses again.
    pub(super) fn forgive_if_steady(&mut self) {
        let since = self.running_since.take();
        if since.is_some_and(|since| since.elapsed() >= STEADY) {
            self.pauses.reset();
        }
    }

    /// What an error of the runtime means for an instance that is wanted.
    pub(super) fn failed(&mut self, placement: &Placement, error: RuntimeError) -> Next {
        self.seen = Seen::Unknown;
        match error {
            RuntimeError::Away(reason) => {
                // What runs goes on running without Docker; what does not yet, has to wait.
                let is_new = self.engine.board.instances().get(&self.key).is_none_or(|shown| {
                    shown.incarnation != placement.incarnation || shown.status == InstanceStatus::Creating
                });
                if is_new {
                    self.report(placement, InstanceStatus::Creating, &reason);
                }
                Next::Pause(Instant::now() + RUNTIME_PAUSE)
            }
            error @ (RuntimeError::ImageMissing
            | RuntimeError::NameTaken
            | RuntimeError::Gone
            | RuntimeError::Refused(_)) => {
                if self.overlay.has_changed().unwrap_or_default() {
                    // NetManager went away, or came back, while Docker waited for it: what Docker says is about that.
                    // The next step waits for NetManager where need be.
                    self.overlay.mark_unchanged();
                    debug!(service = %self.key.job_name, "once more, since the network has changed: {error}");
                    return Next::Again;
                }
                self.has_failed = true;
                self.report(placement, InstanceStatus::Failed, &error.to_string());
                let until = Instant::now() + self.pauses.next();
                self.not_before = Some(until);
                Next::Pause(until)
            }
        }
    }
}

/// Whether no further attempt to start this very container can succeed: a Docker that was killed in the middle of
/// starting it has left a task of its id in containerd, and knows nothing of it.
fn is_stuck(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Refused(reason) if reason.starts_with("task ") && reason.ends_with(": already exists"))
}

fn exit_detail(code: i64, out_of_memory: bool, error: &str, pause: Duration) -> String {
    let mut detail = format!("exit code {code}");
    if out_of_memory {
        detail += ", out of memory";
    }
    if !error.is_empty() {
        detail += ", ";
        detail += error;
    }
    detail + &format!("; again in {} s", pause.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_left_half_started_is_not_tried_again() {
        let refused = |reason: &str| is_stuck(&RuntimeError::Refused(reason.to_owned()));
        assert!(refused("task ce4dc9839555abdc: already exists"));
        assert!(!refused("network oakestra: already exists"));
        assert!(!is_stuck(&RuntimeError::Gone));
    }

    #[test]
    fn an_exit_is_told_with_its_code_and_cause() {
        let pause = Duration::from_secs(2);
        assert_eq!(exit_detail(3, false, "", pause), "exit code 3; again in 2 s");
        assert_eq!(
            exit_detail(137, true, "", pause),
            "exit code 137, out of memory; again in 2 s"
        );
    }
}
