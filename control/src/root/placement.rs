//! Finding a cluster for what waits.

use std::collections::HashMap;

use protocol::cluster::FromRoot;
use protocol::instance::InstanceStatus;
use protocol::job::Job;

use super::id;
use super::records::{Instance, InstanceId};
use super::state::Draft;
use super::table::Row;
use crate::scheduler::{Candidate, MostUnreserved, choose};

/// Looks for a cluster for everything that waits for one.
pub fn place_waiting(draft: &mut Draft<'_>) {
    let waiting = |instance: &&Instance| {
        instance.cluster.is_none() && !instance.leaving && instance.status.is_waiting()
    };
    let mut ids: Vec<InstanceId> = draft.instances.iter().filter(waiting).map(Row::key).collect();
    if ids.is_empty() {
        return;
    }
    // Who waits longest comes first.
    ids.sort_by_key(|id| draft.instances.get(id).map_or(0, |instance| instance.incarnation));
    let mut counts = instances_per_cluster(draft);
    for id in ids {
        place(draft, &id, &mut counts);
    }
}

/// Looks for a cluster for one instance that waits.
pub fn place_one(draft: &mut Draft<'_>, id: &InstanceId) {
    let mut counts = instances_per_cluster(draft);
    place(draft, id, &mut counts);
}

fn instances_per_cluster(draft: &Draft<'_>) -> HashMap<String, u32> {
    let mut counts = HashMap::new();
    for cluster in draft
        .instances
        .iter()
        .filter_map(|instance| instance.cluster.as_ref())
    {
        *counts.entry(cluster.clone()).or_insert(0) += 1;
    }
    counts
}

fn place(draft: &mut Draft<'_>, id: &InstanceId, counts: &mut HashMap<String, u32>) {
    let (Some(instance), Some(service)) = (draft.instances.get(id), draft.services.get(&id.0)) else {
        return;
    };
    let (mut instance, service) = (instance.clone(), service.clone());
    let refused = draft.live.refused.get(id).cloned().unwrap_or_default();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    for cluster in draft.clusters.iter() {
        let live = draft.live.clusters.get(&cluster.id).filter(|live| live.connected);
        if let Some((status, detail)) = refused.get(&cluster.id) {
            reasons.push(format!("{}: {status}: {detail}", cluster.name));
        } else if let Some(live) = live.filter(|live| live.capacity.active_nodes > 0) {
            let count = counts.get(&cluster.id).copied().unwrap_or(0);
            candidates.push(Candidate::cluster(
                &cluster.id,
                &cluster.name,
                true,
                &live.room(),
                count,
            ));
        } else if live.is_some() {
            reasons.push(format!("{}: it has no active node", cluster.name));
        } else {
            reasons.push(format!("{}: it is not connected", cluster.name));
        }
    }
    let before = (instance.status, instance.status_detail.clone());
    match choose(&MostUnreserved, &service.job, &candidates) {
        Ok(chosen) => {
            instance.status = InstanceStatus::ClusterScheduled;
            instance.status_detail = format!("cluster {} is choosing a node", chosen.name);
            instance.cluster = Some(chosen.id.clone());
            instance.changed_at = id::timestamp();
            *counts.entry(chosen.id.clone()).or_insert(0) += 1;
            draft
                .live
                .reserve(&chosen.id, service.job.vcpus, service.job.memory);
            let placement = Box::new(instance.placement(&service));
            draft.tell(&chosen.id, FromRoot::Deploy { placement });
            draft.instances.put(instance);
        }
        Err(nowhere) => {
            if !nowhere.refusals.is_empty() {
                reasons.push(nowhere.to_string());
            }
            instance.status = status_nowhere(draft, &service.job);
            instance.status_detail = if reasons.is_empty() {
                "no cluster has connected to the root yet".to_owned()
            } else {
                reasons.join("; ")
            };
            if before != (instance.status, instance.status_detail.clone()) {
                instance.changed_at = id::timestamp();
                draft.instances.put(instance);
            }
        }
    }
}

/// What it means that no cluster takes a job.
fn status_nowhere(draft: &Draft<'_>, job: &Job) -> InstanceStatus {
    let mut named: Vec<&str> = Vec::new();
    for constraint in &job.constraints {
        match constraint.kind.as_str() {
            "direct" if !constraint.cluster.is_empty() => named.push(&constraint.cluster),
            "clusters" => named.extend(constraint.allowed.iter().map(String::as_str)),
            _ => {}
        }
    }
    let meant = |name: &str| named.is_empty() || named.contains(&name);
    let known: Vec<_> = draft
        .clusters
        .iter()
        .filter(|cluster| meant(&cluster.name))
        .collect();
    let connected = |id: &str| draft.live.clusters.get(id).is_some_and(|live| live.connected);
    if known.is_empty() && !named.is_empty() {
        InstanceStatus::TargetClusterNotFound
    } else if !known.iter().any(|cluster| connected(&cluster.id)) {
        InstanceStatus::TargetClusterNotActive
    } else if named.is_empty() {
        InstanceStatus::NoActiveClusterWithCapacity
    } else {
        InstanceStatus::TargetClusterNoCapacity
    }
}
