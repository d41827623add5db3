//! From what the cluster says to what the data plane knows.
//!
//! What is said is kept in the ledger first, then entered from there: ways to nodes that are not known are looked for
//! while nothing is locked, everything is written while both the ledger and the directory are. So what is written is
//! always the newest that was said, whoever began to enter what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::ledger::{Asked, Ledger};
use super::paths::Confirm;
use super::{Node, lock};
use crate::dataplane::DataplaneError;
use crate::directory::{Directory, NodeKey, Path, Policy, RemoteInstance};
use crate::resolver::{InstanceRecord, ServiceRecord, Update};

/// Ways that were looked for; `None` where there is none.
type Ways = BTreeMap<NodeKey, Option<Path>>;

/// What became of entering.
enum Entered {
    Done,
    /// Nothing was written, because the ways to these nodes have to be looked for.
    Missing(BTreeSet<NodeKey>),
}

impl Node {
    /// Follows what becomes known unasked.
    pub(super) async fn serve_updates(self: Arc<Self>, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            match update {
                Update::Peers {
                    instances,
                    acknowledge,
                } => {
                    self.flows.renew_visitors(&instances);
                    lock(&self.ledger).announce(instances, acknowledge);
                    if let Err(error) = self.install_peers(&mut Ways::new()).await {
                        tracing::error!(%error, "cannot enter announced peers");
                    }
                }
                Update::Service(record) => {
                    let name = record.name.clone();
                    {
                        let mut ledger = lock(&self.ledger);
                        if !self.resolver.follows(&name) {
                            continue;
                        }
                        ledger.update(record);
                    }
                    if let Err(error) = self.install(&name, &mut Ways::new()).await {
                        tracing::error!(%error, service = name, "cannot enter a service");
                    }
                }
                Update::Gone { name } => {
                    let mut ledger = lock(&self.ledger);
                    ledger.gone(&name);
                    if let Err(error) = self.directory().remove_service(&name) {
                        tracing::error!(%error, service = name, "cannot take a service out");
                    }
                    drop(ledger);
                    self.upkeep_due.notify_one();
                }
                Update::Connection { up, detail } => {
                    tracing::info!(up, detail, "connection to the cluster");
                    *lock(&self.connection) = (up, detail);
                    self.names_due.notify_one();
                }
            }
        }
    }

    /// Enters an answer with its instances, unless something newer was said since the question; whether it was the
    /// newest. Afterwards the service's addresses lead to those of its instances whose nodes can be reached.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write; it is tried again later.
    pub(super) async fn install_answer(
        &self,
        record: ServiceRecord,
        asked: Asked,
    ) -> Result<bool, DataplaneError> {
        let name = record.name.clone();
        if !lock(&self.ledger).answer(record, asked) {
            tracing::debug!(service = name, "an answer that was outdated when it came");
            return Ok(false);
        }
        self.install(&name, &mut Ways::new()).await?;
        Ok(true)
    }

    /// Enters again what is known of a service, because one of its instances came to this node or left it. What
    /// needs a way that is not known follows in the next round of upkeep.
    pub(super) fn renew_service(&self, name: &str) -> Result<(), DataplaneError> {
        let mut ways = Ways::new();
        while let Entered::Missing(nodes) = self.enter_service(name, &ways)? {
            ways.extend(nodes.into_iter().map(|node| (node, None)));
            self.upkeep_due.notify_one();
        }
        Ok(())
    }

    /// Tries again to enter what could not be entered.
    pub(super) async fn install_rest(&self) {
        let names = lock(&self.ledger).incomplete();
        let mut ways = Ways::new();
        for name in names {
            if let Err(error) = self.install(&name, &mut ways).await {
                tracing::error!(%error, service = name, "cannot enter a service");
            }
        }
        if let Err(error) = self.install_peers(&mut ways).await {
            tracing::error!(%error, "cannot enter announced peers");
        }
    }

    /// Enters what the ledger says of a service.
    async fn install(&self, name: &str, ways: &mut Ways) -> Result<(), DataplaneError> {
        while let Entered::Missing(nodes) = self.enter_service(name, ways)? {
            self.look_for(nodes, ways).await;
        }
        Ok(())
    }

    async fn install_peers(&self, ways: &mut Ways) -> Result<(), DataplaneError> {
        while let Entered::Missing(nodes) = self.enter_peers(ways)? {
            self.look_for(nodes, ways).await;
        }
        Ok(())
    }

    async fn look_for(&self, nodes: BTreeSet<NodeKey>, ways: &mut Ways) {
        for node in nodes {
            let path = match self.path_to(node, Confirm::WhenNew).await {
                Ok(path) => Some(path),
                Err(error) => {
                    tracing::debug!(%error, node = %node.address, "no way to a node");
                    None
                }
            };
            ways.insert(node, path);
        }
    }

    fn enter_service(&self, name: &str, ways: &Ways) -> Result<Entered, DataplaneError> {
        let mut ledger = lock(&self.ledger);
        let Some(record) = ledger.service(name) else {
            return Ok(Entered::Done);
        };
        let mut directory = self.directory();
        let missing = self.missing(&directory, &record.instances, ways);
        if !missing.is_empty() {
            return Ok(Entered::Missing(missing));
        }
        let outcome = self.write_service(&mut directory, record, ways);
        let members = record.instances.iter().map(|instance| &instance.address);
        for address in record.addresses().chain(members) {
            if directory.knows(*address) {
                lock(&self.parking).forgive(*address);
            }
        }
        drop(directory);
        let was_complete = !ledger.is_incomplete(name);
        ledger.set_complete(name, matches!(outcome, Ok(true)));
        if was_complete && matches!(outcome, Ok(false)) {
            tracing::warn!(
                service = name,
                "some instances are left out until there is a way to their nodes"
            );
        }
        outcome.map(|_complete| Entered::Done)
    }

    fn enter_peers(&self, ways: &Ways) -> Result<Entered, DataplaneError> {
        let mut ledger = lock(&self.ledger);
        let mut directory = self.directory();
        let mut missing = BTreeSet::new();
        for peers in ledger.pending_peers() {
            missing.append(&mut self.missing(&directory, &peers.instances, ways));
        }
        if !missing.is_empty() {
            return Ok(Entered::Missing(missing));
        }
        for peers in ledger.pending_peers() {
            self.write_instances(&mut directory, &peers.instances, ways)?;
        }
        self.acknowledge(&mut ledger, &directory);
        Ok(Entered::Done)
    }

    fn acknowledge(&self, ledger: &mut Ledger, directory: &Directory) {
        ledger.acknowledge(|record| {
            let placed =
                || directory.index_of(record.address).is_some() && directory.knows_node(node_key(record));
            !self.is_elsewhere(directory, record) || placed()
        });
    }

    /// Nodes that neither are known nor were looked for.
    fn missing(&self, directory: &Directory, records: &[InstanceRecord], ways: &Ways) -> BTreeSet<NodeKey> {
        records
            .iter()
            .filter(|record| self.is_elsewhere(directory, record))
            .map(node_key)
            .filter(|key| !directory.knows_node(*key) && !ways.contains_key(key))
            .collect()
    }

    /// Writes a service and its instances; whether all of it.
    fn write_service(
        &self,
        directory: &mut Directory,
        record: &ServiceRecord,
        ways: &Ways,
    ) -> Result<bool, DataplaneError> {
        let complete = self.write_instances(directory, &record.instances, ways)?;
        // Where every instance is draining, they all go on taking flows: better a leaving one than none.
        let all_drain = !record.instances.iter().any(|instance| !instance.draining);
        let backends: Vec<u32> = record
            .instances
            .iter()
            .filter(|instance| all_drain || !instance.draining)
            .filter_map(|instance| directory.index_of(instance.address))
            .collect();
        let members: Vec<Ipv4Addr> = record.instances.iter().map(|instance| instance.address).collect();
        let round_robin = record
            .round_robin
            .iter()
            .map(|address| (*address, Policy::RoundRobin));
        let closest = record.closest.iter().map(|address| (*address, Policy::Closest));
        let addresses: Vec<(Ipv4Addr, Policy)> = round_robin.chain(closest).collect();
        directory.set_service(&record.name, &addresses, &backends, &members)?;
        Ok(complete)
    }

    /// Writes instances on other nodes, and the ways to those nodes; whether all of them. One whose node cannot be
    /// reached from here is left out.
    fn write_instances(
        &self,
        directory: &mut Directory,
        records: &[InstanceRecord],
        ways: &Ways,
    ) -> Result<bool, DataplaneError> {
        let (mut complete, mut new_nodes) = (true, false);
        for record in records {
            if !self.is_elsewhere(directory, record) {
                // Until it is attached it is nowhere, above all not where it was.
                directory.end_other_placement(record.address, record.incarnation)?;
                continue;
            }
            let node = node_key(record);
            if !directory.knows_node(node)
                && let Some(Some(path)) = ways.get(&node)
            {
                directory.set_node(node, path)?;
                new_nodes = true;
            }
            let entered = directory.add_remote(&RemoteInstance {
                address: record.address,
                namespace_address: record.namespace_address,
                node,
                incarnation: record.incarnation,
                application: record.application,
                draining: record.draining,
            })?;
            if entered.is_none() {
                complete = false;
                directory.end_other_placement(record.address, record.incarnation)?;
            }
        }
        if new_nodes {
            // The firewall is to guard their tunnels.
            self.upkeep_due.notify_one();
            self.probes_due.notify_one();
        }
        Ok(complete)
    }

    /// Whether an instance is to be entered as one on another node: what is attached here is here, whatever is said.
    fn is_elsewhere(&self, directory: &Directory, record: &InstanceRecord) -> bool {
        !self.is_here(record) && !directory.is_local(record.address)
    }

    /// Whether the record speaks of this node.
    fn is_here(&self, record: &InstanceRecord) -> bool {
        let same_id = record
            .node
            .id
            .as_deref()
            .map(|id| id == self.registration.node_id);
        same_id.unwrap_or_else(|| {
            let announced = *lock(&self.announced) == Some(record.node.address);
            record.node.port == self.config.announced_port
                && (announced || lock(&self.local_addresses).contains(&record.node.address))
        })
    }
}

fn node_key(record: &InstanceRecord) -> NodeKey {
    NodeKey {
        address: record.node.address,
        port: record.node.port,
    }
}
