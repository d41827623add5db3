//! The task of one instance. It compares what is wanted with what the runtime has, and does the next step.
//!
//! ```text
//!                         ┌───────────── no container ◄──── removed by hand ───┐
//!        image missing ──►│ CREATING ─► CREATED ─► RUNNING ────────────────────┤
//!             FAILED ◄────┤                ▲          │ ends                   │
//!      (again after a pause)               └── DEAD ◄─┤ (again after a pause)  │
//!                                                     └► COMPLETED (one-shot, exit code 0)
//!   not wanted any more, from anywhere: stop, remove, UNDEPLOYED
//! ```
//!
//! Nothing is remembered between the steps that Docker or the ledger would not tell again, but the pauses.

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
            Ok(()) => self.remove_container().await,
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

    async fn create(&mut self, placement: &Placement) -> Next {
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

    async fn start(&mut self, placement: &Placement, container: Container) -> Next {
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
    async fn after_exit(&mut self, placement: &Placement, container: Container) -> Next {
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
    fn forgive_if_steady(&mut self) {
        let since = self.running_since.take();
        if since.is_some_and(|since| since.elapsed() >= STEADY) {
            self.pauses.reset();
        }
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

    /// What an error of the runtime means for an instance that is wanted.
    fn failed(&mut self, placement: &Placement, error: RuntimeError) -> Next {
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

/// Whether no further attempt to start this very container can succeed: a Docker that was killed in the middle of
/// starting it has left a task of its id in containerd, and knows nothing of it.
fn is_stuck(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Refused(reason) if reason.starts_with("task ") && reason.ends_with(": already exists"))
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
