//! Everything the root knows durably, and how it changes: one change at a time, written before it is seen.

use std::collections::{BTreeMap, BTreeSet};

use protocol::cluster::FromRoot;
use protocol::job::{INCARNATION_STEP, InstanceKey};
use protocol::network::ServiceName;

use super::live::Live;
use super::records::{Application, Cluster, Counters, Holding, Instance, InstanceId, Node, Service, User};
use super::table::{self, Changes, Row, Table, View};
use crate::store::{Condition, Store, StoreError, Transaction};

/// What is stored, in memory.
#[derive(Default)]
pub struct State {
    pub users: Table<User>,
    pub applications: Table<Application>,
    pub services: Table<Service>,
    pub instances: Table<Instance>,
    pub clusters: Table<Cluster>,
    pub nodes: Table<Node>,
    pub holdings: Table<Holding>,
    pub counters: Counters,
    /// Id of the service by its name.
    names: BTreeMap<ServiceName, String>,
}

impl State {
    /// Reads everything.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let services: Table<Service> = table::load(store).await?;
        let name = |service: &Service| (service.job.job_name.clone(), service.job.id.clone());
        Ok(Self {
            users: table::load(store).await?,
            applications: table::load(store).await?,
            names: services.values().map(name).collect(),
            services,
            instances: table::load(store).await?,
            clusters: table::load(store).await?,
            nodes: table::load(store).await?,
            holdings: table::load(store).await?,
            counters: table::load::<Counters>(store)
                .await?
                .remove(&())
                .unwrap_or_default(),
        })
    }

    /// The instances of a service, by number.
    pub fn instances_of(&self, service: &str) -> impl Iterator<Item = &Instance> {
        let range = (service.to_owned(), 0)..=(service.to_owned(), u32::MAX);
        self.instances.range(range).map(|(_, instance)| instance)
    }

    /// Carries out what has been written.
    pub fn apply(&mut self, batch: Batch) {
        for (id, change) in &batch.services {
            if let Some(before) = self.services.get(id) {
                self.names.remove(&before.job.job_name);
            }
            if let Some(after) = change {
                self.names.insert(after.job.job_name.clone(), id.clone());
            }
        }
        table::apply(&mut self.users, batch.users);
        table::apply(&mut self.applications, batch.applications);
        table::apply(&mut self.services, batch.services);
        table::apply(&mut self.instances, batch.instances);
        table::apply(&mut self.clusters, batch.clusters);
        table::apply(&mut self.nodes, batch.nodes);
        table::apply(&mut self.holdings, batch.holdings);
        self.counters = batch.counters;
    }
}

/// A change that is being made: the state as it will be, and what clusters are told when it is.
pub struct Draft<'state> {
    pub users: View<'state, User>,
    pub applications: View<'state, Application>,
    pub services: View<'state, Service>,
    pub instances: View<'state, Instance>,
    pub clusters: View<'state, Cluster>,
    pub nodes: View<'state, Node>,
    pub holdings: View<'state, Holding>,
    pub counters: Counters,
    pub live: &'state mut Live,
    state: &'state State,
    messages: Vec<(String, FromRoot)>,
    /// Services whose rows change, and the cluster that knows already.
    changed: BTreeSet<(ServiceName, Option<String>)>,
}

/// The rows that a change writes.
pub struct Batch {
    users: Changes<User>,
    applications: Changes<Application>,
    services: Changes<Service>,
    instances: Changes<Instance>,
    clusters: Changes<Cluster>,
    nodes: Changes<Node>,
    holdings: Changes<Holding>,
    counters: Counters,
}

/// A finished change.
pub struct Finished {
    pub transaction: Transaction,
    pub batch: Batch,
    /// To be sent, in this order, once the transaction is written.
    pub messages: Vec<(String, FromRoot)>,
}

impl<'state> Draft<'state> {
    /// No change yet.
    pub fn new(state: &'state State, live: &'state mut Live) -> Self {
        Self {
            users: View::new(&state.users),
            applications: View::new(&state.applications),
            services: View::new(&state.services),
            instances: View::new(&state.instances),
            clusters: View::new(&state.clusters),
            nodes: View::new(&state.nodes),
            holdings: View::new(&state.holdings),
            counters: state.counters.clone(),
            live,
            state,
            messages: Vec::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Tells a cluster something once the change is written.
    pub fn tell(&mut self, cluster: &str, message: FromRoot) {
        self.messages.push((cluster.to_owned(), message));
    }

    /// Tells a cluster to end a placement.
    pub fn tell_undeploy(&mut self, cluster: &str, key: InstanceKey, incarnation: u64) {
        self.tell(cluster, FromRoot::Undeploy { key, incarnation });
    }

    /// Notes that the rows of a service change, for all clusters that looked it up but the one that knows.
    pub fn note_changed(&mut self, service: &ServiceName, knows: Option<&str>) {
        self.changed.insert((service.clone(), knows.map(str::to_owned)));
    }

    /// A number for a placement that no other placement has.
    pub fn next_incarnation(&mut self) -> u64 {
        self.counters.last_placement += 1;
        self.counters.last_placement * INCARNATION_STEP
    }

    /// The service of that name.
    pub fn service_named(&self, name: &ServiceName) -> Option<&Service> {
        if let Some(id) = self.state.names.get(name)
            && let Some(service) = self.services.get(id)
        {
            return Some(service);
        }
        None
    }

    /// Ids of the instances of a service.
    pub fn instances_of(&self, service: &str) -> Vec<InstanceId> {
        let range = (service.to_owned(), 0)..=(service.to_owned(), u32::MAX);
        let mut ids: Vec<InstanceId> = self.instances.range(range).map(Row::key).collect();
        ids.sort();
        ids
    }

    /// Ends the change.
    pub fn finish(mut self) -> Result<Finished, StoreError> {
        let mut transaction = Transaction::new();
        self.users.write(&mut transaction)?;
        self.applications.write(&mut transaction)?;
        self.services.write(&mut transaction)?;
        self.instances.write(&mut transaction)?;
        self.clusters.write(&mut transaction)?;
        self.nodes.write(&mut transaction)?;
        self.holdings.write(&mut transaction)?;
        if self.counters != self.state.counters {
            transaction.put(Counters::PREFIX, Condition::Any, &self.counters)?;
        }
        for (job_name, knows) in std::mem::take(&mut self.changed) {
            for (cluster, live) in &self.live.clusters {
                if live.interest.contains(&job_name) && knows.as_ref() != Some(cluster) {
                    let job_name = job_name.clone();
                    self.messages
                        .push((cluster.clone(), FromRoot::ServiceChanged { job_name }));
                }
            }
        }
        Ok(Finished {
            transaction,
            messages: self.messages,
            batch: Batch {
                users: self.users.into_changes(),
                applications: self.applications.into_changes(),
                services: self.services.into_changes(),
                instances: self.instances.into_changes(),
                clusters: self.clusters.into_changes(),
                nodes: self.nodes.into_changes(),
                holdings: self.holdings.into_changes(),
                counters: self.counters,
            },
        })
    }
}
