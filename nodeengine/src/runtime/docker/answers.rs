//! What Docker's answers mean.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::{ContainerStateStatusEnum, EventMessage};
use protocol::job::InstanceKey;
use tracing::debug;

use super::{LABEL_INSTANCE, LABEL_SERVICE};
use crate::runtime::{ContainerEvent, ContainerEventKind, ContainerState, RuntimeError};

pub(super) fn state(state: bollard::models::ContainerState) -> ContainerState {
    match state.status {
        Some(ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY) | None => {
            ContainerState::Created
        }
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING) => {
            ContainerState::Running {
                pid: state.pid.and_then(|pid| pid.try_into().ok()).unwrap_or_default(),
            }
        }
        Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
        Some(ContainerStateStatusEnum::EXITED) => ContainerState::Exited {
            code: state.exit_code.unwrap_or_default(),
            out_of_memory: state.oom_killed.unwrap_or_default(),
            error: state.error.unwrap_or_default(),
        },
        Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD) => ContainerState::Removing,
    }
}

pub(super) fn key(labels: &HashMap<String, String>) -> Option<InstanceKey> {
    Some(InstanceKey {
        job_name: labels.get(LABEL_SERVICE)?.parse().ok()?,
        instance_number: labels.get(LABEL_INSTANCE)?.parse().ok()?,
    })
}

pub(super) fn event(message: EventMessage) -> Option<ContainerEvent> {
    let kind = match message.action?.as_str() {
        "create" | "start" | "rename" => ContainerEventKind::Appeared,
        "die" | "destroy" | "pause" => ContainerEventKind::Disappeared,
        _ => return None,
    };
    let actor = message.actor?;
    Some(ContainerEvent {
        key: key(&actor.attributes?)?,
        container: actor.id?,
        kind,
    })
}

/// What an error of the client means. Codes are those of Docker's API: 404 for what is not there, 409 for a name that
/// is taken and for what is under way already.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the client's errors are many, and all others are of the connection"
)]
pub(super) fn refused(error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError {
            status_code: 404,
            message,
        } => {
            debug!(message, "not there");
            RuntimeError::Gone
        }
        Error::DockerResponseServerError {
            status_code: 409,
            message,
        } => {
            debug!(message, "conflict");
            RuntimeError::NameTaken
        }
        Error::DockerResponseServerError { message, .. } => RuntimeError::Refused(message),
        Error::DockerStreamError { error } => RuntimeError::Refused(error),
        Error::RequestTimeoutError => RuntimeError::Refused("Docker did not answer in time".to_owned()),
        other => RuntimeError::Away(format!("Docker does not answer: {}", with_causes(&other))),
    }
}

/// The client's errors often say the least, and their causes the rest.
pub(super) fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text += ": ";
            text += &said;
        }
        cause = error.source();
    }
    text
}
