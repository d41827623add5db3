//! What the cluster said last, and what of it could not be entered yet. No clock, no kernel.
//!
//! Answers and updates come by different ways, so an old answer can arrive after a newer update. Everything that is
//! said has a number for that: an answer that of its question, an update that of its arrival. The higher one stays.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use tokio::sync::oneshot;

use crate::resolver::{InstanceRecord, ServiceRecord};

/// Names of which the number is kept at most, those of services that are gone among them. A question is answered
/// long before half as many updates have arrived.
const NUMBERS: usize = 65_536;
/// Announced instances that are kept at most while they cannot be entered.
const PENDING_PEERS: usize = 4_096;

/// When something was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked(u64);

/// Instances that were announced and are not all entered.
pub(super) struct PendingPeers {
    pub instances: Vec<InstanceRecord>,
    acknowledge: oneshot::Sender<()>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    last: u64,
    services: HashMap<String, ServiceRecord>,
    /// The number of what was said last of each service, also of one that is gone.
    numbers: HashMap<String, u64>,
    /// Services of which not everything is entered.
    incomplete: BTreeSet<String>,
    pending_peers: Vec<PendingPeers>,
}

impl Ledger {
    /// To be taken before the question is sent.
    pub fn ask(&mut self) -> Asked {
        self.last += 1;
        Asked(self.last)
    }

    /// Takes an answer in, unless something newer was said; whether it was taken in.
    pub fn answer(&mut self, record: ServiceRecord, asked: Asked) -> bool {
        if self
            .numbers
            .get(&record.name)
            .is_some_and(|newest| *newest > asked.0)
        {
            return false;
        }
        self.note(&record.name, asked.0);
        self.keep(record);
        true
    }

    /// Takes in what was said unasked.
    pub fn update(&mut self, record: ServiceRecord) {
        let Asked(number) = self.ask();
        self.note(&record.name, number);
        self.keep(record);
    }

    /// A service does not exist any more.
    pub fn gone(&mut self, name: &str) {
        let Asked(number) = self.ask();
        self.note(name, number);
        self.services.remove(name);
        self.incomplete.remove(name);
    }

    /// Takes announced instances in, to be entered and acknowledged; they are newer than everything said before.
    pub fn announce(&mut self, instances: Vec<InstanceRecord>, acknowledge: oneshot::Sender<()>) {
        for instance in &instances {
            if let Some(service) = self.services.get_mut(&instance.service)
                && let Some(old) = service
                    .instances
                    .iter_mut()
                    .find(|old| old.address == instance.address)
            {
                *old = instance.clone();
            }
        }
        self.supersede(&instances);
        self.pending_peers.push(PendingPeers {
            instances,
            acknowledge,
        });
        let count =
            |pending: &[PendingPeers]| pending.iter().map(|peers| peers.instances.len()).sum::<usize>();
        while self.pending_peers.len() > 1 && count(&self.pending_peers) > PENDING_PEERS {
            // Dropping it says that it is not entered, and whoever sent it may send it again.
            self.pending_peers.remove(0);
        }
    }

    pub fn service(&self, name: &str) -> Option<&ServiceRecord> {
        self.services.get(name)
    }

    /// Notes whether everything that is known of a service is entered.
    pub fn set_complete(&mut self, name: &str, complete: bool) {
        if complete {
            self.incomplete.remove(name);
        } else if self.services.contains_key(name) {
            self.incomplete.insert(name.to_owned());
        }
    }

    pub fn is_incomplete(&self, name: &str) -> bool {
        self.incomplete.contains(name)
    }

    /// Names of the services of which not everything is entered.
    pub fn incomplete(&self) -> Vec<String> {
        self.incomplete.iter().cloned().collect()
    }

    pub fn pending_peers(&self) -> &[PendingPeers] {
        &self.pending_peers
    }

    /// Acknowledges what was announced and is entered now.
    pub fn acknowledge(&mut self, is_entered: impl Fn(&InstanceRecord) -> bool) {
        let pending = std::mem::take(&mut self.pending_peers);
        for peers in pending {
            if peers.instances.iter().all(&is_entered) {
                if peers.acknowledge.send(()).is_err() {
                    tracing::debug!("whoever announced peers has given up waiting");
                }
            } else {
                self.pending_peers.push(peers);
            }
        }
    }

    fn keep(&mut self, record: ServiceRecord) {
        self.supersede(&record.instances);
        self.services.insert(record.name.clone(), record);
    }

    /// What was announced of these instances is not what is to be entered any more.
    fn supersede(&mut self, instances: &[InstanceRecord]) {
        if self.pending_peers.is_empty() {
            return;
        }
        let addresses: HashSet<Ipv4Addr> = instances.iter().map(|instance| instance.address).collect();
        for peers in &mut self.pending_peers {
            peers
                .instances
                .retain(|instance| !addresses.contains(&instance.address));
        }
    }

    fn note(&mut self, name: &str, number: u64) {
        self.numbers.insert(name.to_owned(), number);
        if self.numbers.len() > NUMBERS {
            let oldest = self.last - NUMBERS as u64 / 2;
            self.numbers.retain(|_, number| *number > oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::NodeAddress;

    const NAME: &str = "a.b.c.d";

    #[test]
    fn an_answer_to_an_older_question_is_dropped() {
        let mut ledger = Ledger::default();
        let (first, second) = (ledger.ask(), ledger.ask());
        assert!(ledger.answer(service(2), second));
        assert!(!ledger.answer(service(1), first));
        assert_eq!(ledger.service(NAME), Some(&service(2)));
    }

    #[test]
    fn an_answer_does_not_replace_an_update_that_came_after_the_question() {
        let mut ledger = Ledger::default();
        let asked = ledger.ask();
        ledger.update(service(2));
        assert!(!ledger.answer(service(1), asked));
        assert_eq!(ledger.service(NAME), Some(&service(2)));
        let asked = ledger.ask();
        assert!(ledger.answer(service(3), asked));

        let asked = ledger.ask();
        ledger.gone(NAME);
        assert!(!ledger.answer(service(3), asked));
        assert_eq!(ledger.service(NAME), None);
    }

    #[test]
    fn announced_instances_are_acknowledged_when_all_are_entered() {
        let mut ledger = Ledger::default();
        let (acknowledge, mut acknowledged) = oneshot::channel();
        ledger.announce(vec![instance(1, 1), instance(2, 1)], acknowledge);
        ledger.acknowledge(|instance| instance.address == address(1));
        assert_eq!(acknowledged.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(ledger.pending_peers().len(), 1);
        ledger.acknowledge(|_| true);
        assert_eq!(acknowledged.try_recv(), Ok(()));
        assert!(ledger.pending_peers().is_empty());
    }

    #[test]
    fn what_is_said_later_of_an_instance_takes_the_place_of_what_was_announced() {
        let mut ledger = Ledger::default();
        let (acknowledge, mut acknowledged) = oneshot::channel();
        ledger.announce(vec![instance(1, 1)], acknowledge);
        ledger.update(service(2));
        assert!(ledger.pending_peers()[0].instances.is_empty());
        ledger.acknowledge(|_| false);
        assert_eq!(acknowledged.try_recv(), Ok(()));

        let (acknowledge, _acknowledged) = oneshot::channel();
        ledger.announce(vec![instance(1, 3)], acknowledge);
        assert_eq!(ledger.service(NAME), Some(&service(3)), "and the other way round");
    }

    #[test]
    fn only_services_that_exist_are_incomplete() {
        let mut ledger = Ledger::default();
        ledger.set_complete(NAME, false);
        assert!(ledger.incomplete().is_empty());
        ledger.update(service(1));
        ledger.set_complete(NAME, false);
        assert_eq!(ledger.incomplete(), [NAME]);
        ledger.gone(NAME);
        assert!(ledger.incomplete().is_empty());
    }

    #[test]
    fn numbers_of_services_that_are_gone_do_not_pile_up() {
        let mut ledger = Ledger::default();
        for index in 0..NUMBERS * 2 {
            ledger.gone(&index.to_string());
        }
        assert!(ledger.numbers.len() <= NUMBERS);
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 30, 0, last)
    }

    fn instance(last: u8, incarnation: u64) -> InstanceRecord {
        InstanceRecord {
            service: NAME.to_owned(),
            number: last.into(),
            address: address(last),
            namespace_address: Ipv4Addr::new(10, 18, 0, last),
            node: NodeAddress {
                id: None,
                address: Ipv4Addr::new(192, 0, 2, 1),
                port: 50_103,
            },
            incarnation,
            application: 0,
            draining: false,
        }
    }

    fn service(incarnation: u64) -> ServiceRecord {
        ServiceRecord {
            name: NAME.to_owned(),
            round_robin: vec![Ipv4Addr::new(10, 30, 55, 55)],
            closest: Vec::new(),
            instances: vec![instance(1, incarnation)],
        }
    }
}
