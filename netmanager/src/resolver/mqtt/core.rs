//! The resolver without its connection: what comes in changes the state and leaves [`Effect`]s to be carried
//! out. No socket, no clock and no task is in here.

mod messages;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use protocol::network::{
    AnnouncementStatus, InterestRemoval, PeersAcknowledgement, ServiceAnnouncement, ServiceName,
    SubnetMethod, SubnetRequest, TableQuery, topic,
};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::announcements::Announcements;
use super::interest::{Interests, Next};
use super::peers::PeerVersions;
use super::pending::{Pending, Ticket};
use crate::resolver::{Deployed, Lease, ResolveError, ServiceRecord, Update};

/// Topics in one SUBSCRIBE, so that thousands of services are neither one packet nor thousands.
const TOPICS_AT_ONCE: usize = 64;

/// By what a service is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum QueryKey {
    Address(Ipv4Addr),
    Name(ServiceName),
}

/// The answer to a query.
pub(super) type Answer = Result<Option<ServiceRecord>, ResolveError>;

/// Somebody who waits for an answer.
pub(super) struct Waiter {
    pub(super) answer: oneshot::Sender<Answer>,
    /// Whether to tell of the service from the answer on. Who only refreshes what is known does not bring
    /// back an interest that has ended meanwhile.
    pub(super) interested: bool,
}

/// What the connection has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    Publish { topic: String, payload: Vec<u8> },
    Subscribe(Vec<String>),
    Unsubscribe(String),
}

/// What has to be done after an event, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    Send(Outgoing),
    Tell(Update),
    /// Ask for a service by its name until there is an answer.
    Refresh(ServiceName),
    /// Wait until peers are installed and say so.
    AwaitPeers {
        epoch: Option<u64>,
        version: u64,
        acknowledged: oneshot::Receiver<()>,
    },
}

pub(super) struct Core {
    node: String,
    /// What this node always hears, and how it is heard.
    topics: [String; 3],
    /// Why nothing can be asked; `None` when it can.
    down: Option<ResolveError>,
    /// The first attempt to connect has not ended yet: whoever asks waits for its outcome.
    starting: bool,
    /// The subscription to `topics` is on its way.
    subscribing: bool,
    /// The broker has forgotten this node since it was last up.
    forgotten: bool,
    queries: Pending<QueryKey, Waiter>,
    leases: Pending<(), oneshot::Sender<Result<Lease, ResolveError>>>,
    /// A lease that came too late for whoever asked. It is this node's nevertheless, and asking again would
    /// take another one from a cluster that never takes one back.
    unclaimed: Option<Lease>,
    interests: Interests,
    /// Services whose interest ended while the cluster was away.
    removals: BTreeSet<ServiceName>,
    announcements: Announcements,
    peers: PeerVersions,
    effects: Vec<Effect>,
}

impl Core {
    /// The resolver of `node`, not connected yet.
    pub(super) fn new(node: &str, query_deadline: Duration, lease_deadline: Duration) -> Self {
        Self {
            node: node.to_owned(),
            topics: [
                topic::subnet_result(node),
                topic::table_query_result(node),
                topic::peers(node),
            ],
            down: Some(ResolveError::Away("not connected yet".to_owned())),
            starting: true,
            subscribing: false,
            forgotten: false,
            queries: Pending::new(query_deadline),
            leases: Pending::new(lease_deadline),
            unclaimed: None,
            interests: Interests::default(),
            removals: BTreeSet::new(),
            announcements: Announcements::default(),
            peers: PeerVersions::default(),
            effects: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Why nothing can be asked at the moment; `None` when it can.
    pub(super) fn down(&self) -> Option<&ResolveError> {
        self.down.as_ref()
    }

    /// The broker accepted the connection; `session` is whether it remembers this node.
    pub(super) fn connected(&mut self, session: bool) {
        self.forgotten |= !session;
        self.subscribing = true;
        self.send(Outgoing::Subscribe(self.topics.to_vec()));
    }

    /// The broker answered a subscription, `granted` for each of its topics. False when the connection is of
    /// no use.
    pub(super) fn subscribed(&mut self, granted: &[bool]) -> bool {
        if !self.subscribing || granted.len() != self.topics.len() {
            if granted.contains(&false) {
                warn!("the broker refuses to tell of the updates of a service");
            }
            return true;
        }
        self.subscribing = false;
        if let Some((topic, _)) = self.topics.iter().zip(granted).find(|(_, granted)| !**granted) {
            let refused = ResolveError::Refused(format!("the broker does not let this node hear {topic}"));
            self.disconnected(refused);
            return false;
        }
        self.up();
        true
    }

    /// The connection is gone, or was not made.
    pub(super) fn disconnected(&mut self, reason: ResolveError) {
        self.starting = false;
        self.subscribing = false;
        for waiter in self.queries.take_all() {
            answer(waiter.answer, Err(reason.clone()));
        }
        if self.down.as_ref() != Some(&reason) {
            self.tell(Update::Connection {
                up: false,
                detail: reason.to_string(),
            });
        }
        self.down = Some(reason);
    }

    /// A message that was handed over may not have arrived. Whether it must not be sent again as it is:
    /// nobody waits for its answer any more, or what it says is said anew on the next connection.
    pub(super) fn take_back(&mut self, topic: &str, payload: &[u8]) -> bool {
        let node = &self.node;
        let announced = [topic::service_deployed(node), topic::service_undeployed(node)];
        if announced.iter().any(|announced| announced == topic) {
            match serde_json::from_slice(payload) {
                Ok(message) => self.announcements.take_back(message),
                Err(error) => error!(topic, %error, "message of this node cannot be read"),
            }
            return true;
        }
        topic == topic::table_query_request(node) || topic == topic::subnet_request(node)
    }

    /// Everything that the cluster, and the broker between, may have missed or forgotten is said again.
    fn up(&mut self) {
        self.down = None;
        self.starting = false;
        let forgotten = std::mem::take(&mut self.forgotten);
        if forgotten {
            self.peers.reset();
        }
        if self.leases.contains(&()) {
            self.ask_for_lease();
        }
        let waiting: Vec<QueryKey> = self.queries.keys().cloned().collect();
        for key in waiting {
            self.put(&key);
        }
        for announcement in self.announcements.due(forgotten) {
            self.announce(&announcement);
        }
        for name in std::mem::take(&mut self.removals) {
            self.remove_interest(&name);
        }
        let names = self.interests.names();
        for names in names.chunks(TOPICS_AT_ONCE) {
            self.send(Outgoing::Subscribe(
                names.iter().map(topic::updates_available).collect(),
            ));
        }
        for name in names {
            if self.interests.refresh(&name) {
                self.effects.push(Effect::Refresh(name));
            }
        }
        self.tell(Update::Connection {
            up: true,
            detail: "connected to the cluster".to_owned(),
        });
    }

    /// Puts a query, or joins it.
    pub(super) fn ask(
        &mut self,
        key: QueryKey,
        waiter: Waiter,
        now: Instant,
    ) -> Result<Ticket, ResolveError> {
        if let Some(reason) = &self.down
            && !self.starting
        {
            return Err(reason.clone());
        }
        let (ticket, ask) = self.queries.join(key.clone(), waiter, now);
        if ask && self.down.is_none() {
            self.put(&key);
        }
        Ok(ticket)
    }

    /// A waiter for a query does not wait any more.
    pub(super) fn leave(&mut self, key: &QueryKey, ticket: Ticket) {
        self.queries.leave(key, ticket);
    }

    /// The lease that nobody has claimed yet.
    pub(super) fn claim_lease(&mut self) -> Option<Lease> {
        self.unclaimed.take()
    }

    /// Asks for a lease, at once or as soon as there is a connection.
    pub(super) fn ask_lease(
        &mut self,
        waiter: oneshot::Sender<Result<Lease, ResolveError>>,
        now: Instant,
    ) -> Ticket {
        let (ticket, ask) = self.leases.join((), waiter, now);
        if ask && self.down.is_none() {
            self.ask_for_lease();
        }
        ticket
    }

    /// A waiter for a lease does not wait any more.
    pub(super) fn leave_lease(&mut self, ticket: Ticket) {
        self.leases.leave(&(), ticket);
    }

    /// Announces an instance of this node, at once or as soon as there is a connection.
    pub(super) fn set_announcement(&mut self, instance: &Deployed, status: AnnouncementStatus) {
        if let Some(message) = self.announcements.set(instance, status, self.down.is_none()) {
            self.announce(&message);
        }
    }

    /// Ends the interest in a service.
    pub(super) fn uninterested(&mut self, name: &ServiceName) {
        if !self.interests.remove(name) {
            return;
        }
        if self.down.is_none() {
            self.remove_interest(name);
        } else {
            self.removals.insert(name.clone());
        }
    }

    /// What whoever asks for a service does after an answer, or after giving up.
    pub(super) fn refreshed(&mut self, name: &ServiceName) -> Next {
        if self.down.is_some() {
            // Everything of interest is refreshed when the connection is back.
            self.interests.stop(name);
            return Next::Done;
        }
        self.interests.refreshed(name)
    }

    /// Whether there is interest in a service.
    pub(super) fn is_interested(&self, name: &ServiceName) -> bool {
        self.interests.contains(name)
    }

    /// Peers have been installed, or not.
    pub(super) fn peers_finished(&mut self, epoch: Option<u64>, version: u64, installed: bool) {
        if self.peers.finished(epoch, version, installed) {
            self.acknowledge(epoch, version);
        }
    }

    fn remove_interest(&mut self, name: &ServiceName) {
        self.send(Outgoing::Unsubscribe(topic::updates_available(name)));
        self.publish(
            topic::interest_remove(&self.node),
            &InterestRemoval {
                appname: name.to_string(),
            },
        );
    }

    fn put(&mut self, key: &QueryKey) {
        let query = match key {
            QueryKey::Address(address) => TableQuery::by_address(*address),
            QueryKey::Name(name) => TableQuery::by_name(name),
        };
        self.publish(topic::table_query_request(&self.node), &query);
    }

    fn ask_for_lease(&mut self) {
        self.publish(
            topic::subnet_request(&self.node),
            &SubnetRequest {
                method: SubnetMethod::Get,
            },
        );
    }

    fn announce(&mut self, message: &ServiceAnnouncement) {
        let topic = match message.status {
            AnnouncementStatus::Deployed => topic::service_deployed(&self.node),
            AnnouncementStatus::Undeployed => topic::service_undeployed(&self.node),
            AnnouncementStatus::Unchanged => topic::service_address_changed(&self.node),
        };
        self.publish(topic, message);
    }

    fn acknowledge(&mut self, epoch: Option<u64>, version: u64) {
        self.publish(
            topic::peers_acknowledgement(&self.node),
            &PeersAcknowledgement { version, epoch },
        );
    }

    fn publish(&mut self, topic: String, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            Ok(payload) => self.send(Outgoing::Publish { topic, payload }),
            Err(error) => error!(topic, %error, "message cannot be written"),
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        self.effects.push(Effect::Send(outgoing));
    }

    fn tell(&mut self, update: Update) {
        self.effects.push(Effect::Tell(update));
    }
}

/// Answers one waiter. One that has just given up hears nothing, which is what it wants.
fn answer<T>(waiter: oneshot::Sender<T>, value: T) {
    if waiter.send(value).is_err() {
        debug!("answer for somebody who does not wait any more");
    }
}

#[cfg(test)]
mod tests;
