//! The way of updates to whoever installs them.
//!
//! The side that hears of changes must never wait for the side that installs them: answers come over the same
//! connection, and the installer may be waiting for one. So updates queue here, and a task of its own moves
//! them into the channel that the installer reads. The queue stays short because a newer state of the same
//! thing replaces the older one that nobody has read yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::Update;

/// Updates that the installer may leave unread before they queue.
const CHANNEL_CAPACITY: usize = 16;

/// The sending side.
#[derive(Clone, Default)]
pub(super) struct Updates {
    queue: Arc<Mutex<VecDeque<Update>>>,
    changed: Arc<Notify>,
}

impl Updates {
    /// Queues `update`, at once.
    pub(super) fn tell(&self, update: Update) {
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            // The newer one goes to the end, not into the place of the older one: updates about the same
            // instance may stand between them.
            queue.retain(|queued| !replaces(&update, queued));
            queue.push_back(update);
        }
        self.changed.notify_one();
    }

    /// The receiving side, and what has to run for it to receive anything.
    pub(super) fn channel(&self) -> (mpsc::Receiver<Update>, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
        (receiver, self.clone().forward(sender))
    }

    async fn forward(self, sender: mpsc::Sender<Update>) {
        loop {
            // The place in the channel comes first: what waits for it can still be replaced.
            let Ok(place) = sender.reserve().await else { return };
            let update = loop {
                let changed = self.changed.notified();
                if let Some(update) = self.next() {
                    break update;
                }
                tokio::select! {
                    () = changed => {}
                    () = sender.closed() => return,
                }
            };
            place.send(update);
        }
    }

    fn next(&self) -> Option<Update> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// Whether `new` says everything that `old` says.
fn replaces(new: &Update, old: &Update) -> bool {
    match (subject(new), subject(old)) {
        (Some(new), Some(old)) => new == old,
        (None, _) | (_, None) => false,
    }
}

/// What an update is the whole state of; `None` when it only adds to a state.
fn subject(update: &Update) -> Option<&str> {
    match update {
        Update::Peers { .. } => None,
        Update::Service(record) => Some(&record.name),
        Update::Gone { name } => Some(name),
        // No service has an empty name.
        Update::Connection { .. } => Some(""),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::sync::oneshot;

    use super::*;
    use crate::resolver::ServiceRecord;

    #[tokio::test]
    async fn only_the_newest_state_of_a_thing_is_delivered() {
        let updates = Updates::default();
        updates.tell(service("a.a.a.a", 1));
        updates.tell(connection(false));
        updates.tell(service("b.b.b.b", 1));
        updates.tell(peers());
        updates.tell(service("a.a.a.a", 2));
        updates.tell(peers());
        updates.tell(Update::Gone {
            name: "b.b.b.b".to_owned(),
        });
        updates.tell(connection(true));

        let (mut receiver, forward) = updates.channel();
        let forward = tokio::spawn(forward);
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(describe(&receiver.recv().await.expect("an update")));
        }
        assert_eq!(seen, ["peers", "a.a.a.a 2", "peers", "b.b.b.b gone", "up true"]);
        drop(receiver);
        forward.await.expect("the task ends with its reader");
    }

    #[tokio::test]
    async fn telling_never_waits_for_the_reader() {
        let updates = Updates::default();
        let (mut receiver, forward) = updates.channel();
        tokio::spawn(forward);
        for octet in 0..=255 {
            for service_number in 0..100 {
                updates.tell(service(&format!("a.a.a.{service_number}"), octet));
            }
        }
        let mut newest = 0;
        while newest < 100 {
            if describe(&receiver.recv().await.expect("an update")).ends_with(" 255") {
                newest += 1;
            }
        }
    }

    fn service(name: &str, octet: u8) -> Update {
        Update::Service(ServiceRecord {
            name: name.to_owned(),
            round_robin: vec![Ipv4Addr::new(10, 30, 0, octet)],
            closest: Vec::new(),
            instances: Vec::new(),
        })
    }

    fn connection(up: bool) -> Update {
        Update::Connection {
            up,
            detail: String::new(),
        }
    }

    fn peers() -> Update {
        Update::Peers {
            instances: Vec::new(),
            acknowledge: oneshot::channel().0,
        }
    }

    fn describe(update: &Update) -> String {
        match update {
            Update::Peers { .. } => "peers".to_owned(),
            Update::Service(record) => format!("{} {}", record.name, record.round_robin[0].octets()[3]),
            Update::Gone { name } => format!("{name} gone"),
            Update::Connection { up, .. } => format!("up {up}"),
        }
    }
}
