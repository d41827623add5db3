//! What happens now, told to everybody who watches.
//!
//! The programs tell nothing while nobody does. Who watches is counted by who holds a [`Watcher`], so that it ends with
//! the connection of whoever asked, however that ends; a new process begins with nobody.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_ebpf::tables::{Event, event_kind};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use super::{Node, lock};
use crate::clock::monotonic_nanoseconds;
use crate::dataplane::{DataplaneError, EVENTS_PER_WINDOW, EventRing, EventSettings};

/// Events that wait for a watcher that is slow; what it misses then is counted for it.
const WAITING: usize = 4_096;
/// Events that are handed on at once.
const AT_ONCE: usize = 256;
/// How often a watcher is told how much was left out, when something was.
const SUMMARY: Duration = Duration::from_secs(1);

/// Something that happened, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    pub kind: EventKind,
    /// Name of the action or drop reason; empty for a new flow and for what was left out.
    pub reason: String,
    pub meaning: String,
    /// Where; empty for a new flow.
    pub hook: String,
    /// Name of the interface; its index where it is gone; empty for a new flow.
    pub interface: String,
    pub protocol: String,
    pub source: Ipv4Addr,
    pub source_port: u16,
    pub destination: Ipv4Addr,
    pub destination_port: u16,
    /// The node that sent the tunnel datagram, where it was one.
    pub peer: Option<Ipv4Addr>,
    /// The service at the destination, where its name is known.
    pub service: String,
    /// The instance that a new flow goes to.
    pub instance: Option<Ipv4Addr>,
    /// Bytes of the frame.
    pub length: u32,
    /// Events that were left out since the last time this was said.
    pub left_out: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A packet was dropped, or answered with a reset.
    Drop,
    /// A packet was handed up to NetManager, which did not know its destination or its sender.
    Miss,
    /// A flow began.
    Flow,
    /// Events were left out, because there were too many.
    LeftOut,
}

/// Hands events from the ring to the watchers.
pub struct Watch {
    watchers: Mutex<Watchers>,
    events: broadcast::Sender<Event>,
    /// Cancelled before the process ends, which would else wait for whoever watches.
    ended: CancellationToken,
}

struct Watchers {
    settings: EventSettings,
    number: usize,
}

/// Somebody who watches. Dropped, it does not any more.
pub struct Watcher {
    node: Arc<Node>,
    events: broadcast::Receiver<Event>,
    /// What the programs had left out when it was said last.
    left_out: u64,
    /// What this watcher was too slow for.
    missed: u64,
}

impl Watch {
    /// Nobody watches yet.
    ///
    /// # Errors
    /// When the kernel refuses to be told so.
    pub fn new(mut settings: EventSettings) -> Result<Self, DataplaneError> {
        // A process that was killed may have left it on.
        settings.tell(0)?;
        let (events, _) = broadcast::channel(WAITING);
        Ok(Self {
            watchers: Mutex::new(Watchers { settings, number: 0 }),
            events,
            ended: CancellationToken::new(),
        })
    }
}

impl Node {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(self: &Arc<Self>) -> Result<Watcher, DataplaneError> {
        let mut watchers = lock(&self.watch.watchers);
        let left_out = watchers.settings.left_out()?;
        if watchers.number == 0 {
            watchers.settings.tell(EVENTS_PER_WINDOW)?;
        }
        watchers.number += 1;
        Ok(Watcher {
            node: self.clone(),
            events: self.watch.events.subscribe(),
            left_out,
            missed: 0,
        })
    }

    /// Ends everybody's watching, for good.
    pub fn end_watching(&self) {
        self.watch.ended.cancel();
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        lock(&self.watch.watchers).number
    }

    /// How many events were left out, by all processes that have served this node.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn events_left_out(&self) -> Result<u64, DataplaneError> {
        lock(&self.watch.watchers).settings.left_out()
    }

    /// Takes events out of the ring as they come. What nobody waits for, such as what a killed process has left
    /// there, is gone.
    pub(super) async fn serve_events(self: Arc<Self>, ring: EventRing) {
        // SAFETY: the ring keeps one and the same descriptor open for as long as it lives.
        let mut ring = match unsafe { AsyncFd::register(ring) } {
            Ok(ring) => ring,
            Err(error) => return tracing::error!(%error, "nobody can watch what happens"),
        };
        loop {
            let mut ready = match ring.readable_mut().await {
                Ok(ready) => ready,
                Err(error) => return tracing::error!(%error, "nobody can watch what happens any more"),
            };
            ready.clear_ready();
            for event in ready.get_inner_mut() {
                // Fails where nobody watches.
                if self.watch.events.send(event).is_err() {
                    tracing::trace!("an event that nobody has asked for");
                }
            }
        }
    }

    fn show(&self, events: &[Event]) -> Vec<EventView> {
        let now = now_ms();
        let monotonic = monotonic_nanoseconds() / 1_000_000;
        let mut interfaces = HashMap::new();
        let directory = self.directory();
        let view = |event: &Event| {
            let event = as_sent(event);
            let destination = Ipv4Addr::from(event.destination);
            let (kind, reason, meaning, hook) = ending(&event);
            EventView {
                time_ms: now.saturating_sub(monotonic.saturating_sub(event.time / 1_000_000)),
                kind,
                reason: reason.to_owned(),
                meaning: meaning.to_owned(),
                hook: hook.to_owned(),
                interface: interfaces
                    .entry(event.interface)
                    .or_insert_with(|| interface_name(event.interface))
                    .clone(),
                protocol: protocol_name(event.protocol),
                source: event.source.into(),
                source_port: u16::from_be_bytes(event.source_port),
                destination,
                destination_port: u16::from_be_bytes(event.destination_port),
                peer: (event.peer != [0; 4]).then(|| event.peer.into()),
                service: directory.service_name(destination).unwrap_or_default().to_owned(),
                instance: (event.kind == event_kind::FLOW && event.instance_address != [0; 4])
                    .then(|| event.instance_address.into()),
                length: event.length,
                left_out: 0,
            }
        };
        events.iter().map(view).collect()
    }
}

impl Watcher {
    /// What happened since, at least one event; `None` when the node ends.
    pub async fn next(&mut self) -> Option<Vec<EventView>> {
        loop {
            let received = tokio::select! {
                () = self.node.watch.ended.cancelled() => return None,
                received = self.events.recv() => Some(received),
                () = tokio::time::sleep(SUMMARY) => None,
            };
            let mut events = Vec::new();
            match received {
                Some(Ok(event)) => events.push(event),
                Some(Err(RecvError::Lagged(missed))) => self.missed += missed,
                Some(Err(RecvError::Closed)) => return None,
                None => {}
            }
            while !events.is_empty() && events.len() < AT_ONCE {
                match self.events.try_recv() {
                    Ok(event) => events.push(event),
                    Err(TryRecvError::Lagged(missed)) => self.missed += missed,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            let mut views = self.node.show(&events);
            views.extend(self.left_out());
            if !views.is_empty() {
                return Some(views);
            }
        }
    }

    /// Says how much was left out since the last time, if anything was.
    fn left_out(&mut self) -> Option<EventView> {
        let total = match lock(&self.node.watch.watchers).settings.left_out() {
            Ok(total) => total,
            Err(error) => {
                tracing::warn!(%error, "how many events were left out is not known");
                self.left_out
            }
        };
        let left_out = total.saturating_sub(self.left_out) + std::mem::take(&mut self.missed);
        self.left_out = total;
        (left_out > 0).then(|| EventView {
            time_ms: now_ms(),
            kind: EventKind::LeftOut,
            reason: String::new(),
            meaning: "more happened than is told".to_owned(),
            hook: String::new(),
            interface: String::new(),
            protocol: String::new(),
            source: Ipv4Addr::UNSPECIFIED,
            source_port: 0,
            destination: Ipv4Addr::UNSPECIFIED,
            destination_port: 0,
            peer: None,
            service: String::new(),
            instance: None,
            length: 0,
            left_out,
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watchers = lock(&self.node.watch.watchers);
        watchers.number -= 1;
        if watchers.number == 0
            && let Err(error) = watchers.settings.tell(0)
        {
            tracing::error!(%error, "the data plane goes on telling what happens, though nobody watches");
        }
    }
}

/// The event with the packet as it was sent: a reset is written over the segment that it answers.
fn as_sent(event: &Event) -> Event {
    let answers = [Action::Reset, Action::IcmpTooBig, Action::IcmpUnreachable];
    let is_answer = answers.iter().any(|action| action.row() == u32::from(event.row));
    let was_answered = event.kind == event_kind::END && is_answer;
    if !was_answered {
        return *event;
    }
    Event {
        source: event.destination,
        destination: event.source,
        source_port: event.destination_port,
        destination_port: event.source_port,
        ..*event
    }
}

/// Kind, reason, meaning and hook of an event.
fn ending(event: &Event) -> (EventKind, &'static str, &'static str, &'static str) {
    if event.kind == event_kind::FLOW {
        return (EventKind::Flow, "", "", "");
    }
    let hook = Hook::ALL.into_iter().find(|hook| *hook as u8 == event.hook);
    let hook = hook.map_or("", Hook::as_str);
    let row = u32::from(event.row);
    if let Some(reason) = DropReason::ALL.iter().find(|reason| reason.row() == row) {
        return (EventKind::Drop, reason.as_str(), reason.meaning(), hook);
    }
    let action = Action::ALL.iter().find(|action| action.row() == row);
    let kind = match action {
        Some(Action::Park | Action::Stranger) => EventKind::Miss,
        Some(_) | None => EventKind::Drop,
    };
    let (reason, meaning) = action.map_or(("", ""), |action| (action.as_str(), action.meaning()));
    (kind, reason, meaning, hook)
}

/// Name of an IP protocol, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        0 => String::new(),
        dataplane_ebpf::header::PROTOCOL_TCP => "tcp".to_owned(),
        dataplane_ebpf::header::PROTOCOL_UDP => "udp".to_owned(),
        dataplane_ebpf::header::PROTOCOL_ICMP => "icmp".to_owned(),
        other => other.to_string(),
    }
}

/// Name of the interface with this index, or the index where it is gone; empty for none.
pub fn interface_name(index: u32) -> String {
    if index == 0 {
        return String::new();
    }
    let name = nix::net::if_::if_indextoname(index).ok();
    name.and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| index.to_string())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_a_kind_and_the_name_under_which_the_packet_was_counted() {
        let end = |row: u32| Event {
            kind: event_kind::END,
            hook: Hook::FromUplink as u8,
            row: u8::try_from(row).expect("few rows"),
            ..Event::default()
        };
        for (row, kind, name) in [
            (Action::Park.row(), EventKind::Miss, "PARK"),
            (Action::Stranger.row(), EventKind::Miss, "STRANGER"),
            (Action::Reset.row(), EventKind::Drop, "RESET"),
            (DropReason::Spoofed.row(), EventKind::Drop, "SPOOFED"),
            (
                DropReason::DestinationNotLocal.row(),
                EventKind::Drop,
                "DESTINATION_NOT_LOCAL",
            ),
        ] {
            let (found, reason, meaning, hook) = ending(&end(row));
            assert_eq!((found, reason, hook), (kind, name, "from_uplink"));
            assert!(!meaning.is_empty(), "{name}");
        }
        let flow = Event {
            kind: event_kind::FLOW,
            ..Event::default()
        };
        assert_eq!(ending(&flow), (EventKind::Flow, "", "", ""));
    }

    #[test]
    fn a_refused_segment_is_shown_as_it_was_sent() {
        let reset = Event {
            kind: event_kind::END,
            row: u8::try_from(Action::Reset.row()).expect("few rows"),
            source: [10, 30, 55, 55],
            source_port: 80u16.to_be_bytes(),
            destination: [10, 18, 0, 2],
            destination_port: 5000u16.to_be_bytes(),
            ..Event::default()
        };
        let sent = as_sent(&reset);
        assert_eq!(
            (sent.source, sent.destination),
            ([10, 18, 0, 2], [10, 30, 55, 55])
        );
        assert_eq!(
            (sent.source_port, sent.destination_port),
            (5000u16.to_be_bytes(), 80u16.to_be_bytes())
        );
        let dropped = Event {
            row: u8::try_from(DropReason::NoFlow.row()).expect("few rows"),
            ..reset
        };
        assert_eq!(as_sent(&dropped), dropped);
    }
}
