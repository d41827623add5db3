//! From what the cluster says to what the data plane knows.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Node, lock};
use crate::dataplane::DataplaneError;
use crate::directory::{NodeKey, RemoteInstance};
use crate::resolver::{InstanceRecord, ServiceRecord, Update};

impl Node {
    /// Follows what becomes known unasked.
    pub(super) async fn serve_updates(self: Arc<Self>, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            match update {
                Update::Peers {
                    instances,
                    acknowledge,
                } => match self.install_instances(&instances).await {
                    // The sender may have given up waiting.
                    Ok(()) => drop(acknowledge.send(())),
                    Err(error) => tracing::error!(%error, "cannot enter announced peers"),
                },
                Update::Service(record) => {
                    if let Err(error) = self.install_service(record).await {
                        tracing::error!(%error, "cannot enter a service");
                    }
                }
                Update::Gone { name } => {
                    lock(&self.records).remove(&name);
                    if let Err(error) = self.directory().remove_service(&name) {
                        tracing::error!(%error, service = name, "cannot take a service out");
                    }
                    self.upkeep_due.notify_one();
                }
                Update::Connection { up, detail } => {
                    tracing::info!(up, detail, "connection to the cluster");
                    *lock(&self.connection) = (up, detail);
                    if up {
                        self.learn_names();
                    }
                }
            }
        }
    }

    /// Enters a service with its instances; afterwards its addresses lead to them.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a write.
    pub(super) async fn install_service(&self, record: ServiceRecord) -> Result<(), DataplaneError> {
        self.install_instances(&record.instances).await?;
        self.install_backends(&record)?;
        lock(&self.records).insert(record.name.clone(), record);
        Ok(())
    }

    /// Enters again what is known of a service, because one of its instances came to this node or left it.
    pub(super) fn renew_service(&self, name: &str) -> Result<(), DataplaneError> {
        let record = lock(&self.records).get(name).cloned();
        record.map_or(Ok(()), |record| self.install_backends(&record))
    }

    fn install_backends(&self, record: &ServiceRecord) -> Result<(), DataplaneError> {
        let mut directory = self.directory();
        let takes_flows = |instance: &&InstanceRecord| !instance.draining;
        // Where every instance is draining, they all go on taking flows: better a leaving one than none.
        let all_drain = !record.instances.iter().any(|instance| !instance.draining);
        let backends: Vec<u32> = record
            .instances
            .iter()
            .filter(|instance| all_drain || takes_flows(instance))
            .filter_map(|instance| directory.index_of(instance.address))
            .collect();
        let members: Vec<Ipv4Addr> = record.instances.iter().map(|instance| instance.address).collect();
        directory.set_service(&record.name, &record.round_robin, &backends, &members)?;
        drop(directory);
        for address in record.round_robin.iter().chain(&members) {
            lock(&self.parking).forgive(*address);
        }
        Ok(())
    }

    /// Enters instances on other nodes, and the ways to those nodes. One whose node cannot be reached from here
    /// is left out, and is tried again when routes change.
    pub(super) async fn install_instances(&self, records: &[InstanceRecord]) -> Result<(), DataplaneError> {
        let remote: Vec<&InstanceRecord> = records.iter().filter(|record| !self.is_here(record)).collect();
        let keys: BTreeSet<NodeKey> = remote.iter().map(|record| node_key(record)).collect();
        let known: BTreeSet<NodeKey> = self.directory().node_keys().into_iter().collect();
        let mut paths = Vec::new();
        for key in keys.difference(&known) {
            match self.path_to(*key).await {
                Ok(path) => paths.push((*key, path)),
                Err(error) => tracing::warn!(%error, node = %key.address, "no way to a node"),
            }
        }
        if !paths.is_empty() {
            self.upkeep_due.notify_one();
        }
        // Nodes and instances under one lock: a node without instances would be taken out again.
        let mut directory = self.directory();
        for (key, path) in paths {
            directory.set_node(key, &path)?;
        }
        for record in remote {
            directory.add_remote(&RemoteInstance {
                address: record.address,
                namespace_address: record.namespace_address,
                node: node_key(record),
                incarnation: record.incarnation,
                application: record.application,
                draining: record.draining,
            })?;
        }
        Ok(())
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

    /// Asks for the services that the maps know and this process does not, because the one that knew their names is
    /// gone. What the cluster does not answer is asked for again when the connection is back.
    fn learn_names(self: &Arc<Self>) {
        let services = self.directory().services();
        let unnamed: Vec<_> = services
            .into_iter()
            .filter(|service| service.name.is_empty())
            .map(|service| service.address)
            .collect();
        self.spawn(|node| async move {
            for address in unnamed {
                match node.resolver.resolve(address).await {
                    Ok(Some(record)) => {
                        if let Err(error) = node.install_service(record).await {
                            tracing::error!(%error, %address, "cannot enter a service");
                        }
                    }
                    // What is known stays until the cluster says that it is gone.
                    Ok(None) => tracing::info!(%address, "the cluster does not know a service of the tables"),
                    Err(error) => {
                        tracing::debug!(%error, %address, "no answer about a service of the tables")
                    }
                }
            }
        });
    }
}

fn node_key(record: &InstanceRecord) -> NodeKey {
    NodeKey {
        address: record.node.address,
        port: record.node.port,
    }
}
