//! What the cluster orders.

use std::sync::Arc;

use protocol::job::{InstanceKey, Placement};
use protocol::node::{DeleteCommand, ErrorMessage, topic};
use serde_json::Value;
use tracing::{error, warn};

use super::culprit::culprit;
use crate::engine::{Deployed, Engine};

/// What follows from a message for the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    RegisterAgain(String),
}

/// Takes one message. One that makes no sense is logged and answered where that is possible; nothing else comes of it.
pub(super) async fn take(engine: &Arc<Engine>, topic: &str, payload: &[u8]) -> Flow {
    match topic::node_of(topic).map(|(_node, command)| command) {
        Some("control/deploy") => deploy(engine, payload).await,
        Some("control/delete") => delete(engine, payload).await,
        Some("control/error") => return unknown_to_cluster(payload),
        Some(_) | None => warn!(topic, "a message on a topic that was not asked for"),
    }
    Flow::Continue
}

async fn deploy(engine: &Arc<Engine>, payload: &[u8]) {
    let placement = match serde_json::from_slice::<Placement>(payload) {
        Ok(placement) => placement,
        Err(error) => {
            let wrong = without_value(&error.to_string());
            let reason = match culprit::<Placement>(payload) {
                Some(field) => format!("deploy refused: {field}: {wrong}"),
                None => format!("deploy refused: {wrong}"),
            };
            // Not the order itself: its environment may hold secrets.
            warn!(bytes = payload.len(), "{reason}");
            if let Some((key, incarnation)) = instance(payload) {
                engine.board.refused(&key, incarnation, &reason);
            }
            return;
        }
    };
    let key = placement.key();
    match engine.deploy(placement).await {
        Ok(Deployed::Noted) => {}
        Ok(Deployed::Outdated { present }) => {
            warn!(service = %key.job_name, instance = key.instance_number, present,
                "an order that an earlier one has overtaken");
        }
        // Without an acknowledgement the cluster orders again.
        Err(error) => error!(service = %key.job_name, "order not noted: {error}"),
    }
}

async fn delete(engine: &Arc<Engine>, payload: &[u8]) {
    let command = match serde_json::from_slice::<DeleteCommand>(payload) {
        Ok(command) => command,
        Err(error) => {
            warn!(payload = excerpt(payload), "delete refused: {error}");
            return;
        }
    };
    if let Err(error) = engine.delete(&command).await {
        error!(service = %command.job_name, "order not noted: {error}");
    }
}

fn unknown_to_cluster(payload: &[u8]) -> Flow {
    match serde_json::from_slice::<ErrorMessage>(payload) {
        Ok(error) => Flow::RegisterAgain(format!("the cluster says: {}", error.message)),
        Err(error) => {
            warn!(
                payload = excerpt(payload),
                "an error message that cannot be read: {error}"
            );
            Flow::Continue
        }
    }
}

/// Which instance a message that cannot be read is about, where it says so.
fn instance(payload: &[u8]) -> Option<(InstanceKey, Option<u64>)> {
    let message: Value = serde_json::from_slice(payload).ok()?;
    let key = InstanceKey {
        job_name: message.get("job_name")?.as_str()?.parse().ok()?,
        instance_number: message.get("instance_number")?.as_u64()?.try_into().ok()?,
    };
    Some((key, message.get("incarnation").and_then(Value::as_u64)))
}

/// What was expected, without what stands there instead, which may be a secret.
fn without_value(error: &str) -> String {
    match error.rsplit_once(", expected ") {
        Some((_, expected)) if error.starts_with("invalid ") => format!("expected {expected}"),
        Some(_) | None => error.to_owned(),
    }
}

fn excerpt(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_an_order_does_not_stand_in_the_log() {
        let wrong = serde_json::from_str::<Vec<String>>("\"PASSWORD=secret, expected nowhere\"")
            .expect_err("not a list")
            .to_string();
        assert!(wrong.contains("secret"), "{wrong}");
        let told = without_value(&wrong);
        assert!(!told.contains("secret") && !told.contains("nowhere"), "{told}");
        assert!(told.contains("a sequence"), "{told}");
        assert_eq!(without_value("missing field `image`"), "missing field `image`");
    }
}
