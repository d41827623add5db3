//! The task of one instance. It compares what is wanted with what the runtime has, and does the next step.
//!
//! ```text
//!                         ┌───────────── no container ◄──── removed by hand ───┐
//!        image missing ──►│ CREATING ─► CREATED ─► RUNNING ────────────────────┤
//!             FAILED ◄────┤                ▲          │ ends                   │
//!      (again after a pause)               └── DEAD ◄─┤ (again after a pause)  │
//!                                                     └► COMPLETED (one-shot, exit code 0)
//!   not wanted any more, from anywhere: drain where the order says so, stop, remove, UNDEPLOYED
//! ```
//!
//! Nothing is remembered between the steps that Docker or the ledger would not tell again, but the pauses.

mod attempt;

use std::sync::Arc;
use std::time::Duration;

use protocol::instance::InstanceStatus;
use protocol::job::{InstanceKey, Placement};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::engine::{Engine, Overlay, Presence};
use crate::ledger::{Phase, Record};
use crate::runtime::{Container, ContainerEvent, ContainerEventKind, ContainerState, RuntimeError};

/// Pauses between attempts to get an instance running.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// A runtime that is away says when it is back; should that be missed, it is asked after so long.
const RUNTIME_PAUSE: Duration = Duration::from_secs(5);
/// A name stays taken for a moment after its container is gone.
const NAME_PAUSE: Duration = Duration::from_millis(50);
/// What has run for so long has not failed at once.
const STEADY: Duration = Duration::from_secs(60);

/// What a task is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The order has changed.
    Wish,
    /// Something has happened to a container.
    Event(ContainerEvent),
}

/// What a task knows of its container.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It has to look.
    Unknown,
    Nothing,
    Container(Container),
}

/// What a task waits for, besides messages and the return of the runtime.
enum Next {
    /// Nothing.
    Again,
    Message,
    Pause(Instant),
    Overlay,
}

pub(crate) struct Instance {
    engine: Arc<Engine>,
    key: InstanceKey,
    mailbox: mpsc::UnboundedReceiver<Message>,
    presence: watch::Receiver<Presence>,
    overlay: watch::Receiver<Overlay>,
    seen: Seen,
    pauses: Backoff,
    /// Not to be tried before.
    not_before: Option<Instant>,
    /// Whether the last attempt failed; its reason stays visible until one succeeds.
    has_failed: bool,
    running_since: Option<Instant>,
    /// Whether the present exit has been reported and its pause chosen.
    is_exit_handled: bool,
    /// The incarnation that all of this is about.
    incarnation: Option<u64>,
}

impl Instance {
    pub(crate) fn new(
        engine: Arc<Engine>,
        key: InstanceKey,
        mailbox: mpsc::UnboundedReceiver<Message>,
        seen: Seen,
    ) -> Self {
        Self {
            presence: engine.presence.subscribe(),
            overlay: engine.overlay.subscribe(),
            engine,
            key,
            mailbox,
            seen,
            pauses: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            not_before: None,
            has_failed: false,
            running_since: None,
            is_exit_handled: false,
            incarnation: None,
        }
    }

    /// Lives as long as the instance.
    pub(crate) async fn run(mut self) {
        loop {
            let next = match self.engine.record(&self.key).await {
                Some(Record {
                    phase: Phase::Wanted,
                    placement,
                    ..
                }) => self.keep_running(&placement).await,
                Some(Record {
                    phase: Phase::Completed,
                    placement,
                    ..
                }) => self.keep_completed(&placement).await,
                Some(Record {
                    phase: Phase::Unwanted { .. },
                    ..
                })
                | None => match self.end().await {
                    Some(next) => next,
                    None => return,
                },
            };
            self.wait(next).await;
        }
    }

    async fn wait(&mut self, next: Next) {
        match next {
            Next::Again => {}
            Next::Message | Next::Pause(_) | Next::Overlay => {
                let pause = async {
                    match next {
                        Next::Pause(until) => tokio::time::sleep_until(until).await,
                        Next::Again | Next::Message | Next::Overlay => std::future::pending().await,
                    }
                };
                let is_for_overlay = matches!(next, Next::Overlay);
                tokio::select! {
                    message = self.mailbox.recv() => self.take(message),
                    // The engine, which has the other end, is never gone before its tasks.
                    _changed = self.presence.changed() => self.seen = Seen::Unknown,
                    _changed = self.overlay.changed(), if is_for_overlay => {}
                    () = pause => {}
                }
            }
        }
        while let Ok(message) = self.mailbox.try_recv() {
            self.take(Some(message));
        }
    }

    fn take(&mut self, message: Option<Message>) {
        let Some(Message::Event(event)) = message else {
            return;
        };
        let is_news = match &self.seen {
            Seen::Unknown => false,
            Seen::Nothing => event.kind == ContainerEventKind::Appeared,
            Seen::Container(container) if container.id == event.container => match event.kind {
                ContainerEventKind::Disappeared => true,
                ContainerEventKind::Appeared => {
                    matches!(
                        container.state,
                        ContainerState::Exited { .. } | ContainerState::Paused
                    )
                }
            },
            Seen::Container(_) => event.kind == ContainerEventKind::Appeared,
        };
        if is_news {
            debug!(?event, "looking at the container");
            self.seen = Seen::Unknown;
        }
    }

    /// The next step towards a running container.
    async fn keep_running(&mut self, placement: &Placement) -> Next {
        self.begin_incarnation(placement);
        if let Some(reason) = unfit(placement) {
            self.report(placement, InstanceStatus::Failed, &reason);
            return match self.remove_container().await {
                Ok(()) => Next::Message,
                Err(error) => self.failed(placement, error),
            };
        }
        if let Err(error) = self.look().await {
            return self.failed(placement, error);
        }
        let container = match &self.seen {
            Seen::Unknown => return Next::Again,
            Seen::Nothing => return self.create(placement).await,
            Seen::Container(container) => container.clone(),
        };
        match container.incarnation {
            Some(incarnation) if incarnation == placement.incarnation && container.is_connected => {}
            Some(incarnation) => {
                if incarnation == placement.incarnation {
                    warn!(container = container.id, "was disconnected by somebody");
                    self.forgive_if_steady();
                    self.not_before = Some(Instant::now() + self.pauses.next());
                    self.creating(placement, "was disconnected from the network; made anew");
                }
                return match self.remove_container().await {
                    Ok(()) => Next::Again,
                    Err(error) => self.failed(placement, error),
                };
            }
            None => {
                let reason = "a container that is not this node's has the name";
                return self.failed(placement, RuntimeError::Refused(reason.to_owned()));
            }
        }
        self.engine.board.set_container(&self.key, &container);
        match &container.state {
            ContainerState::Created => self.start(placement, container).await,
            ContainerState::Running { .. } => {
                self.is_exit_handled = false;
                self.has_failed = false;
                self.running_since.get_or_insert_with(Instant::now);
                self.report(placement, InstanceStatus::Running, "");
                self.engine.board.set_container(&self.key, &container);
                Next::Message
            }
            ContainerState::Paused => {
                warn!(container = container.id, "was paused by somebody; goes on");
                let resumed = self.engine.runtime.resume(&container.id).await;
                self.seen = Seen::Unknown;
                match resumed {
                    Ok(()) | Err(RuntimeError::Gone | RuntimeError::NameTaken) => Next::Again,
                    Err(error) => self.failed(placement, error),
                }
            }
            ContainerState::Exited { .. } => self.after_exit(placement, container).await,
            ContainerState::Removing => match self.remove_container().await {
                Ok(()) => Next::Again,
                Err(error) => self.failed(placement, error),
            },
        }
    }

    /// A one-shot instance that has done its work stays as it is.
    async fn keep_completed(&mut self, placement: &Placement) -> Next {
        self.begin_incarnation(placement);
        self.report(placement, InstanceStatus::Completed, "exit code 0");
        // Its output is still read. Where it cannot be looked at, nothing is lost but that.
        match self.look().await {
            Ok(()) => {}
            Err(error) => debug!("not looked at: {error}"),
        }
        if let Seen::Container(container) = &self.seen {
            self.engine.board.set_container(&self.key, container);
        }
        Next::Message
    }

    /// The next step towards nothing; `None` when that is reached.
    async fn end(&mut self) -> Option<Next> {
        let result = match self.look().await {
            Ok(()) => {
                if let Some(until) = self.drains_until().await {
                    return Some(Next::Pause(until));
                }
                self.remove_container().await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {}
            Err(RuntimeError::Away(_)) => {
                self.seen = Seen::Unknown;
                return Some(Next::Pause(Instant::now() + RUNTIME_PAUSE));
            }
            Err(error) => {
                warn!(service = %self.key.job_name, instance = self.key.instance_number, "not removed: {error}");
                self.seen = Seen::Unknown;
                return Some(Next::Pause(Instant::now() + self.pauses.next()));
            }
        }
        match self.engine.forget(&self.key).await {
            Ok(true) => None,
            Ok(false) => Some(Next::Again),
            Err(error) => {
                warn!("not struck out: {error}");
                Some(Next::Pause(Instant::now() + self.pauses.next()))
            }
        }
    }

    /// Until when it may go on with what it has begun to serve, if it runs.
    async fn drains_until(&self) -> Option<Instant> {
        let Seen::Container(container) = &self.seen else {
            return None;
        };
        match container.state {
            ContainerState::Running { .. } => self.engine.drains_until(&self.key).await,
            ContainerState::Created
            | ContainerState::Paused
            | ContainerState::Exited { .. }
            | ContainerState::Removing => None,
        }
    }

    /// Another incarnation begins anew.
    fn begin_incarnation(&mut self, placement: &Placement) {
        if self.incarnation == Some(placement.incarnation) {
            return;
        }
        self.incarnation = Some(placement.incarnation);
        self.pauses.reset();
        self.not_before = None;
        self.has_failed = false;
        self.running_since = None;
        self.is_exit_handled = false;
    }

    async fn look(&mut self) -> Result<(), RuntimeError> {
        if matches!(self.seen, Seen::Unknown) {
            self.seen = match self.engine.runtime.find(&self.key).await? {
                None => Seen::Nothing,
                Some(container) => Seen::Container(container),
            };
        }
        Ok(())
    }

    /// Stops and removes the container, if there is one of this node.
    async fn remove_container(&mut self) -> Result<(), RuntimeError> {
        let Seen::Container(container) = &self.seen else {
            return Ok(());
        };
        if container.incarnation.is_none() {
            self.seen = Seen::Nothing;
            return Ok(());
        }
        let id = container.id.clone();
        let state = container.state.clone();
        self.seen = Seen::Unknown;
        let runtime = Arc::clone(&self.engine.runtime);
        let stopped = match state {
            ContainerState::Running { .. } => runtime.stop(&id).await,
            ContainerState::Paused => match runtime.resume(&id).await {
                Ok(()) => runtime.stop(&id).await,
                Err(error) => Err(error),
            },
            ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Removing => Ok(()),
        };
        match stopped {
            Ok(()) | Err(RuntimeError::Gone | RuntimeError::NameTaken) => {}
            Err(RuntimeError::Away(reason)) => return Err(RuntimeError::Away(reason)),
            Err(error) => warn!(container = id, "not stopped, killed instead: {error}"),
        }
        runtime.remove(&id).await?;
        self.seen = Seen::Nothing;
        Ok(())
    }

    /// The pause that is not over yet.
    fn pause(&self) -> Option<Next> {
        let until = self.not_before?;
        (until > Instant::now()).then_some(Next::Pause(until))
    }

    fn wait_for_overlay(&mut self, placement: &Placement) -> Option<Next> {
        let overlay = self.overlay.borrow_and_update().clone();
        match overlay {
            Overlay::Off | Overlay::Ready => None,
            Overlay::Waiting(reason) => {
                self.creating(placement, &format!("waiting for the network: {reason}"));
                Some(Next::Overlay)
            }
        }
    }

    /// A failure's reason stays until it is overcome.
    fn creating(&self, placement: &Placement, detail: &str) {
        if !self.has_failed {
            self.report(placement, InstanceStatus::Creating, detail);
        }
    }

    fn report(&self, placement: &Placement, status: InstanceStatus, detail: &str) {
        self.engine.board.report(placement, status, detail);
    }
}

/// Why this node never can run a placement.
fn unfit(placement: &Placement) -> Option<String> {
    let job = &placement.job;
    if !matches!(job.virtualization.as_str(), "docker" | "container") {
        return Some(format!(
            "virtualization {:?} is not on this node, which has docker",
            job.virtualization
        ));
    }
    job.image.trim().is_empty().then(|| "image: is empty".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_this_node_cannot_run_is_said() {
        let placement = |virtualization: &str, image: &str| -> Placement {
            serde_json::from_value(json!({
                "microserviceID": "65f0", "job_name": "a.b.c.d", "image": image, "virtualization": virtualization,
                "instance_number": 0
            }))
            .expect("placement")
        };
        assert_eq!(unfit(&placement("docker", "x")), None);
        assert_eq!(unfit(&placement("container", "x")), None);
        let reason = unfit(&placement("wasm", "x")).expect("reason");
        assert!(reason.contains("wasm"), "{reason}");
        assert!(unfit(&placement("docker", " ")).is_some());
    }
}
