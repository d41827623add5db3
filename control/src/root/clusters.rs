//! What the root does with its clusters.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use protocol::cluster::{FromCluster, FromRoot, HeldLease, Hello, InstanceReport, Lease};
use protocol::job::Placement;
use protocol::network::{InstanceRow, Lenient, ServiceName, TableQuery, TableResult};
use tracing::{info, warn};

use super::instances::Occasion;
use super::problem::Problem;
use super::records::{Cluster, Holder, Holding, Instance, InstanceId};
use super::state::Draft;
use super::table::Row;
use super::{Root, addresses, id, instances, placement};
use crate::session::server::Clusters;
use crate::session::{NotTaken, Outbox};

/// Most characters of a cluster's name and location.
const LONGEST_TEXT: usize = 128;
/// From how many services on whose changes one cluster is told those are looked for that exist no more.
const MOST_INTEREST: usize = 65_536;

/// Bytes of placements in one message; far below [`crate::session::LARGEST_FRAME`].
const LARGEST_PART: usize = 8 << 20;

#[async_trait]
impl Clusters for Root {
    async fn admit(&self, hello: &Hello, peer: Option<SocketAddr>) -> Result<String, String> {
        let hello = hello.clone();
        let admitted = self.change(move |draft| admit(draft, &hello, peer)).await;
        admitted.map_err(|problem| problem.message)
    }

    async fn begin(&self, cluster: &str, outbox: &Outbox<FromRoot>) {
        // While this is held, nothing changes, and nothing else is said to any cluster.
        let _writing = self.writing().await;
        let placements: Vec<Placement> = self.read(|state, _| {
            let here =
                |instance: &&Instance| instance.cluster.as_deref() == Some(cluster) && !instance.leaving;
            let placement = |instance: &Instance| {
                let service = state.services.get(&instance.service)?;
                Some(instance.placement(service))
            };
            state
                .instances
                .values()
                .filter(here)
                .filter_map(placement)
                .collect()
        });
        outbox.begin(desired(placements));
    }

    async fn message(&self, cluster: &str, message: FromCluster) -> Result<(), NotTaken> {
        let cluster = cluster.to_owned();
        let taken = self
            .change(move |draft| {
                take_in(draft, &cluster, message);
                Ok(())
            })
            .await;
        taken.map_err(|problem| NotTaken(problem.message))
    }

    async fn connected(&self, cluster: &str, connected: bool) {
        let key = cluster.to_owned();
        let noted = self
            .change(move |draft| {
                let live = draft.live.clusters.entry(key.clone()).or_default();
                live.connected = connected;
                live.seen_at = id::timestamp();
                if connected {
                    draft.live.forgive(&key);
                    placement::place_waiting(draft);
                }
                Ok(())
            })
            .await;
        if let Err(problem) = noted {
            warn!(cluster, connected, %problem, "not all of it is noted");
        }
    }
}

/// Says what is to run, in as many messages as it takes.
fn desired(placements: Vec<Placement>) -> Vec<FromRoot> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for placement in placements {
        let size = serde_json::to_vec(&placement).map_or(0, |text| text.len());
        if bytes + size > LARGEST_PART && bytes > 0 {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(placement);
        }
    }
    let last = parts.len() - 1;
    let message = |(index, placements)| FromRoot::Desired {
        placements,
        more: index < last,
    };
    parts.into_iter().enumerate().map(message).collect()
}

/// Registers a cluster by its name, or knows it again by its key.
fn admit(draft: &mut Draft<'_>, hello: &Hello, peer: Option<SocketAddr>) -> Result<String, Problem> {
    let printable = |text: &str| text.chars().count() <= LONGEST_TEXT && !text.chars().any(char::is_control);
    if hello.cluster_name.trim().is_empty() || !printable(&hello.cluster_name) {
        return Err(Problem::bad_request(format!(
            "the cluster's name has 1 to {LONGEST_TEXT} printable characters"
        )));
    }
    if !printable(&hello.cluster_location) {
        return Err(Problem::bad_request(format!(
            "the cluster's location has up to {LONGEST_TEXT} printable characters"
        )));
    }
    if hello.cluster_key.is_empty() {
        return Err(Problem::bad_request("the cluster shows no key"));
    }
    let known = draft
        .clusters
        .iter()
        .find(|cluster| cluster.name == hello.cluster_name)
        .cloned();
    if known.as_ref().is_some_and(|known| known.key != hello.cluster_key) {
        return Err(Problem::conflict(format!(
            "the name {:?} belongs to another cluster",
            hello.cluster_name
        )));
    }
    let ip = match peer.map(|peer| peer.ip().to_canonical()) {
        Some(ip) => ip.to_string(),
        None => known.as_ref().map(|known| known.ip.clone()).unwrap_or_default(),
    };
    let location = if hello.cluster_location.is_empty() {
        "location-unknown".to_owned()
    } else {
        hello.cluster_location.clone()
    };
    let cluster = Cluster {
        id: known.as_ref().map_or_else(id::new, |known| known.id.clone()),
        name: hello.cluster_name.clone(),
        location,
        key: hello.cluster_key.clone(),
        ip,
        port: hello.port,
    };
    let id = cluster.id.clone();
    let changed = known.is_none_or(|known| {
        (known.location, known.ip, known.port) != (cluster.location.clone(), cluster.ip.clone(), cluster.port)
    });
    if changed {
        info!(name = cluster.name, id, "cluster registered");
        draft.clusters.put(cluster);
    }
    Ok(id)
}

/// Forgets a cluster that is away. What it had is placed elsewhere, what was to leave it is gone, and its name is free.
/// When it comes back after all, it is a new cluster in which nothing is wanted.
pub fn forget(draft: &mut Draft<'_>, id: &str) -> Result<(), Problem> {
    let Some(cluster) = draft.clusters.get(&id.to_owned()) else {
        return Err(Problem::unknown("cluster", id));
    };
    let name = cluster.name.clone();
    if draft.live.clusters.get(id).is_some_and(|live| live.connected) {
        return Err(Problem::conflict(format!(
            "cluster {name:?} is connected; end it first, or it would register again at once"
        ))
        .at(id));
    }
    draft.clusters.remove(&id.to_owned());
    draft.live.clusters.remove(id);
    let there = |instance: &&Instance| instance.cluster.as_deref() == Some(id);
    let there: Vec<InstanceId> = draft.instances.iter().filter(there).map(Row::key).collect();
    info!(name, id, instances = there.len(), "cluster forgotten");
    for key in &there {
        instances::lost(draft, id, key);
    }
    draft.live.forgive(id);
    Ok(())
}

fn take_in(draft: &mut Draft<'_>, cluster: &str, message: FromCluster) {
    draft.live.clusters.entry(cluster.to_owned()).or_default().seen_at = id::timestamp();
    match message {
        FromCluster::State {
            capacity,
            instances: reports,
            leases,
        } => {
            draft.live.note_capacity(cluster, capacity);
            take_in_leases(draft, cluster, leases);
            take_in_state(draft, cluster, &reports);
            placement::place_waiting(draft);
        }
        FromCluster::Capacity { capacity } => {
            if draft.live.note_capacity(cluster, capacity) {
                placement::place_waiting(draft);
            }
        }
        FromCluster::Instance { report } => instances::report(draft, cluster, &report, Occasion::Change),
        FromCluster::Refusal {
            key,
            incarnation,
            status,
            detail,
        } => {
            let service = draft
                .service_named(&key.job_name)
                .map(|service| service.id().to_owned());
            let Some(id) = service.map(|service| (service, key.instance_number)) else {
                return;
            };
            let meant = draft.instances.get(&id).is_some_and(|instance| {
                instance.cluster.as_deref() == Some(cluster) && instance.is_of(incarnation)
            });
            if meant {
                info!(cluster, instance = ?key, %status, detail, "a placement is refused");
                instances::refused(draft, cluster, &id, status, &detail);
            }
        }
        FromCluster::LeaseRequest { node_id, key } => {
            let answer = match lease(draft, &node_id, key.as_deref(), None) {
                Ok(lease) => FromRoot::Lease { node_id, lease },
                Err(problem) => FromRoot::LeaseRefused {
                    node_id,
                    message: problem.message,
                },
            };
            draft.tell(cluster, answer);
        }
        FromCluster::Lookup { query } => {
            let result = look_up(draft, cluster, &query);
            draft.tell(cluster, FromRoot::Table { query, result });
        }
    }
}

/// Each report says how it fares. What is to leave and is not listed is either gone or about to go: the cluster is told
/// once more, and its answer says when.
fn take_in_state(draft: &mut Draft<'_>, cluster: &str, reports: &[InstanceReport]) {
    let mut listed: BTreeSet<InstanceId> = BTreeSet::new();
    for report in reports {
        if let Some(service) = draft.service_named(&report.key.job_name) {
            listed.insert((service.id().to_owned(), report.key.instance_number));
        }
        instances::report(draft, cluster, report, Occasion::State);
    }
    let unlisted = |instance: &&Instance| {
        instance.leaving && instance.cluster.as_deref() == Some(cluster) && !listed.contains(&instance.key())
    };
    let unlisted: Vec<InstanceId> = draft.instances.iter().filter(unlisted).map(Row::key).collect();
    for key in unlisted {
        instances::undeploy(draft, &key);
    }
}

/// What nodes have stays theirs, also where this root has never heard of it: the one that gave it has lost its state.
fn take_in_leases(draft: &mut Draft<'_>, cluster: &str, leases: Vec<HeldLease>) {
    for held in leases {
        match lease(draft, &held.node_id, held.key.as_deref(), Some(&held.lease)) {
            Ok(lease) if lease == held.lease => {}
            Ok(lease) => {
                warn!(
                    cluster,
                    node = held.node_id,
                    "the addresses of a node are not free: it gets others"
                );
                let node_id = held.node_id;
                draft.tell(cluster, FromRoot::Lease { node_id, lease });
            }
            Err(problem) => warn!(cluster, node = held.node_id, %problem, "a lease is not taken over"),
        }
    }
}

fn lease(
    draft: &mut Draft<'_>,
    node: &str,
    key: Option<&str>,
    held: Option<&Lease>,
) -> Result<Lease, Problem> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if node.is_empty() || node.len() > 64 || !node.bytes().all(allowed) {
        return Err(Problem::bad_request(format!(
            "{node:?} is not the id of a node: it has 1 to 64 letters, digits, - and _"
        )));
    }
    addresses::lease(draft, node, key, held)
}

/// Notes that a cluster is to hear of changes of a service.
fn note_interest(draft: &mut Draft<'_>, cluster: &str, name: &ServiceName) {
    let live = draft
        .live
        .clusters
        .get_mut(cluster)
        .map(|live| &mut live.interest);
    let mut interest = live.map(std::mem::take).unwrap_or_default();
    if interest.len() >= MOST_INTEREST {
        interest.retain(|name| draft.service_named(name).is_some());
    }
    interest.insert(name.clone());
    draft
        .live
        .clusters
        .entry(cluster.to_owned())
        .or_default()
        .interest = interest;
}

/// Answers where a service is. The cluster hears of changes from then on.
fn look_up(draft: &mut Draft<'_>, cluster: &str, query: &TableQuery) -> TableResult {
    let (query_key, name) = if query.sip.is_empty() {
        (query.sname.clone(), query.sname.parse::<ServiceName>().ok())
    } else {
        let address = query.sip.parse::<IpAddr>().ok();
        let holding = address.and_then(|address| draft.holdings.get(&address));
        let service = match holding {
            Some(Holding {
                holder: Holder::Service { id, .. } | Holder::Instance { service: id, .. },
                ..
            }) => draft.services.get(id),
            Some(Holding {
                holder: Holder::Node { .. },
                ..
            })
            | None => None,
        };
        (
            query.sip.clone(),
            service.map(|service| service.job.job_name.clone()),
        )
    };
    let service = name.as_ref().and_then(|name| draft.service_named(name)).cloned();
    // Nobody waits for news of what does not exist: whoever asked asks again.
    let Some(service) = service else {
        return TableResult {
            query_key,
            ..TableResult::default()
        };
    };
    note_interest(draft, cluster, &service.job.job_name);
    let instances = draft.instances_of(service.id());
    let rows = instances
        .iter()
        .filter_map(|key| draft.instances.get(key))
        .map(|instance| {
            Lenient::Read(InstanceRow {
                instance_number: instance.number,
                instance_ip: Some(instance.instance_ip),
                instance_ip_v6: Some(instance.instance_ip_v6),
                cluster_id: instance.cluster.clone(),
                service_ip: service.addresses(),
                incarnation: Some(instance.incarnation),
                app_id: Some(service.app_id),
                draining: instance.leaving,
                ..instance.row.clone().unwrap_or_default()
            })
        });
    TableResult {
        instance_list: rows.collect(),
        query_key,
        service_ip: service.addresses(),
        app_name: Some(service.job.job_name),
    }
}
