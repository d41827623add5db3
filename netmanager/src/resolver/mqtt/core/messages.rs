//! What the cluster says, and what follows from it.

use protocol::network::{Peers, ServiceName, SubnetResult, TableResult, topic};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::super::interest::{Absence, Learned};
use super::super::peers::Push;
use super::{Core, Effect, Outgoing, QueryKey, answer};
use crate::resolver::{Lease, ResolveError, Update, rows};

impl Core {
    /// A message came. One that cannot be read is reported, and nothing else.
    pub(in crate::resolver::mqtt) fn message(&mut self, topic: &str, payload: &[u8]) {
        let [subnet, table, peers] = &self.topics;
        if topic == table {
            if let Some(result) = read(topic, payload) {
                self.table_result(result);
            }
        } else if topic == peers {
            if let Some(message) = read(topic, payload) {
                self.peers_pushed(message);
            }
        } else if topic == subnet {
            if let Some(result) = read(topic, payload) {
                self.subnet_result(&result);
            }
        } else if let Some(name) = topic::service_of_updates(topic) {
            // Whatever the payload says: that there is one is the message.
            self.updates_available(name);
        } else {
            warn!(topic, "message on a topic that nobody asked for");
        }
    }

    fn subnet_result(&mut self, result: &SubnetResult) {
        let lease = lease(result);
        let waiters = self.leases.take(&());
        match &lease {
            Err(problem) => warn!(%problem, "lease refused"),
            Ok(lease) if waiters.is_empty() => self.unclaimed = Some(lease.clone()),
            Ok(_) => {}
        }
        for waiter in waiters {
            answer(waiter, lease.clone());
        }
    }

    fn updates_available(&mut self, name: ServiceName) {
        if !self.interests.contains(&name) {
            // Left over from before a restart: the broker kept the subscription, the cluster the interest.
            debug!(service = %name, "update of a service of no interest");
            self.remove_interest(&name);
            return;
        }
        let begin = self.interests.notice(&name);
        if self.queries.contains(&QueryKey::Name(name.clone())) {
            // The answer that is on its way may have been made before the change.
            self.interests.ask_again(&name);
        }
        if begin {
            self.effects.push(Effect::Refresh(name));
        }
    }

    fn peers_pushed(&mut self, message: Peers) {
        let Peers { version, epoch, rows } = message;
        match self.peers.offer(epoch, version) {
            Push::Ignore => {}
            Push::Acknowledge => self.acknowledge(epoch, version),
            Push::Install => {
                let (acknowledge, acknowledged) = oneshot::channel();
                self.tell(Update::Peers {
                    instances: rows::peers(rows),
                    acknowledge,
                });
                self.effects.push(Effect::AwaitPeers {
                    epoch,
                    version,
                    acknowledged,
                });
            }
        }
    }

    fn table_result(&mut self, result: TableResult) {
        let TableResult {
            app_name,
            instance_list,
            query_key,
            service_ip,
        } = result;
        let key = key_of(&query_key);
        let Some(name) = app_name else {
            if instance_list.is_empty() {
                self.nothing_known(key);
            } else {
                self.contradicted(key, format!("instances of no service under {query_key:?}"));
            }
            return;
        };

        let mut table = rows::table(&name, instance_list, &service_ip);
        match &key {
            Some(QueryKey::Name(asked)) if *asked != name => {
                self.contradicted(key, format!("asked for {query_key}, told of {name}"));
            }
            Some(QueryKey::Address(asked)) if !table.addresses.contains(asked) => {
                if table.addresses.is_empty() {
                    // A service without instances, in the words of a cluster that names addresses only in
                    // the rows of instances.
                    table.record.round_robin.push(*asked);
                    table.addresses.insert(*asked);
                } else {
                    let unusable = table.malformed;
                    let told = format!("told of {name} without it, {unusable} rows could not be used");
                    self.contradicted(key, format!("asked for {query_key}, {told}"));
                }
            }
            Some(QueryKey::Name(_) | QueryKey::Address(_)) | None => {}
        }
        if table.addresses.is_empty()
            && let Some(known) = self.interests.record(&name)
        {
            table.record.round_robin.clone_from(&known.round_robin);
            table.record.closest.clone_from(&known.closest);
        }
        self.learn(name, table);
    }

    /// Answers everyone whom a table answers, and tells of it if it is news.
    fn learn(&mut self, name: ServiceName, table: rows::Table) {
        let mut waiters = self.queries.take(&QueryKey::Name(name.clone()));
        for address in table.addresses {
            waiters.extend(self.queries.take(&QueryKey::Address(address)));
        }
        if !self.interests.contains(&name) && !waiters.iter().any(|waiter| waiter.interested) {
            debug!(service = %name, "answer that nobody waits for");
            return;
        }

        match self.interests.learn(&name, &table.record) {
            Learned::Unchanged => {}
            Learned::Changed => self.tell(Update::Service(table.record.clone())),
            Learned::New => {
                self.removals.remove(&name);
                self.send(Outgoing::Subscribe(vec![topic::updates_available(&name)]));
                // What changed before the subscription and after the answer was made would never be heard of.
                if self.interests.refresh(&name) {
                    self.effects.push(Effect::Refresh(name));
                }
            }
        }
        for waiter in waiters {
            answer(waiter.answer, Ok(Some(table.record.clone())));
        }
    }

    fn nothing_known(&mut self, key: Option<QueryKey>) {
        let Some(key) = key else {
            warn!("answer without a question");
            return;
        };
        for waiter in self.queries.take(&key) {
            answer(waiter.answer, Ok(None));
        }
        let QueryKey::Name(name) = key else { return };
        match self.interests.absent(&name) {
            Absence::Unknown => {}
            Absence::Doubted => {
                debug!(service = %name, "unannounced absence, asked for once more");
                if self.interests.refresh(&name) {
                    self.effects.push(Effect::Refresh(name));
                }
            }
            Absence::Believed => {
                self.send(Outgoing::Unsubscribe(topic::updates_available(&name)));
                self.tell(Update::Gone {
                    name: name.into_string(),
                });
            }
        }
    }

    fn contradicted(&mut self, key: Option<QueryKey>, problem: String) {
        warn!(%problem, "contradictory answer");
        for waiter in key.map(|key| self.queries.take(&key)).unwrap_or_default() {
            answer(waiter.answer, Err(ResolveError::Contradictory(problem.clone())));
        }
    }
}

/// Reads a message; one that cannot be read is reported and skipped.
fn read<T: DeserializeOwned>(topic: &str, payload: &[u8]) -> Option<T> {
    match serde_json::from_slice(payload) {
        Ok(message) => Some(message),
        Err(error) => {
            warn!(topic, %error, "message skipped");
            None
        }
    }
}

pub(super) fn key_of(text: &str) -> Option<QueryKey> {
    let address = text.parse().map(QueryKey::Address);
    address.ok().or_else(|| text.parse().map(QueryKey::Name).ok())
}

fn lease(result: &SubnetResult) -> Result<Lease, ResolveError> {
    let subnet = rows::subnet(result.address).map_err(ResolveError::Contradictory)?;
    let instance_address = result.instance_ip.map(rows::node_instance_address).transpose();
    Ok(Lease {
        subnet,
        subnet_v6: result.addressv6,
        instance_address: instance_address.map_err(ResolveError::Contradictory)?,
        instance_address_v6: result.instance_ip_v6,
        application: result.app_id.unwrap_or(0),
    })
}
