//! Instances: wished for, reported, taken away.

use protocol::cluster::InstanceReport;
use protocol::instance::InstanceStatus;
use tracing::{info, warn};

use super::live::Usage;
use super::problem::Problem;
use super::records::{Holder, Instance, InstanceId};
use super::state::Draft;
use super::{addresses, applications, id, placement};

/// One more instance of a service. The answer is its number.
pub fn deploy(draft: &mut Draft<'_>, service: &str) -> Result<u32, Problem> {
    let Some(mut service) = draft.services.get(&service.to_owned()).cloned() else {
        return Err(Problem::unknown("service", service));
    };
    let number = service.next_instance;
    let holder = Holder::Instance {
        service: service.id().to_owned(),
        number,
        name: service.job.job_name.to_string(),
    };
    let (instance_ip, instance_ip_v6) = addresses::take(draft, &holder)?;
    service.next_instance += 1;
    let instance = Instance {
        service: service.id().to_owned(),
        number,
        incarnation: draft.next_incarnation(),
        instance_ip,
        instance_ip_v6,
        status: InstanceStatus::Requested,
        status_detail: String::new(),
        cluster: None,
        leaving: false,
        worker_id: String::new(),
        host: String::new(),
        host_ip: None,
        publicip: String::new(),
        row: None,
        changed_at: id::timestamp(),
    };
    let key = (service.id().to_owned(), number);
    draft.note_changed(&service.job.job_name, None);
    draft.services.put(service);
    draft.instances.put(instance);
    placement::place_one(draft, &key);
    Ok(number)
}

/// Takes an instance away: at once where no cluster has it, else when its cluster says that it is gone.
pub fn undeploy(draft: &mut Draft<'_>, key: &InstanceId) {
    let (Some(instance), Some(service)) = (draft.instances.get(key), draft.services.get(&key.0)) else {
        return;
    };
    let (mut instance, wire_key) = (instance.clone(), instance.wire_key(service));
    let name = service.job.job_name.clone();
    let Some(cluster) = instance.cluster.clone() else {
        forget(draft, key);
        return;
    };
    draft.tell_undeploy(&cluster, wire_key, instance.last_incarnation());
    if !instance.leaving {
        instance.leaving = true;
        instance.changed_at = id::timestamp();
        draft.instances.put(instance);
        // Other clusters begin nothing new with it either.
        draft.note_changed(&name, Some(&cluster));
    }
}

/// Removes an instance that is nowhere any more, and gives its addresses back.
pub fn forget(draft: &mut Draft<'_>, key: &InstanceId) {
    let Some(instance) = draft.instances.get(key).cloned() else {
        return;
    };
    addresses::give_back(draft, instance.instance_ip, instance.instance_ip_v6);
    draft.instances.remove(key);
    draft.live.forget(key);
    if let Some(service) = draft.services.get(&key.0) {
        let name = service.job.job_name.clone();
        draft.note_changed(&name, instance.cluster.as_deref());
    }
    applications::forget_empty_service(draft, &key.0);
}

/// What a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Something has just happened: it has to follow from what was before.
    Change,
    /// All there is, when a session begins. What happened in between was not heard.
    State,
}

/// Takes in how a placement fares.
pub fn report(draft: &mut Draft<'_>, cluster: &str, report: &InstanceReport, occasion: Occasion) {
    let key = draft
        .service_named(&report.key.job_name)
        .map(|service| (service.id().to_owned(), report.key.instance_number));
    let current = key
        .as_ref()
        .and_then(|key| draft.instances.get(key))
        .filter(|instance| {
            instance.cluster.as_deref() == Some(cluster)
                && instance.is_of(report.incarnation)
                && report.incarnation >= instance.incarnation
        });
    let (Some(key), Some(instance)) = (key, current.cloned()) else {
        // Nobody wants it, or not there, or not this one any more.
        if report.status != InstanceStatus::Undeployed {
            info!(cluster, instance = ?report.key, report.incarnation, "an unwanted placement is ended");
            draft.tell_undeploy(cluster, report.key.clone(), report.incarnation);
        }
        return;
    };
    if report.status == InstanceStatus::Undeployed {
        if instance.leaving {
            forget(draft, &key);
        } else {
            let detail = "the cluster has taken it away by itself";
            refused(draft, cluster, &key, InstanceStatus::NoNodeFound, detail);
        }
        return;
    }
    let follows = match occasion {
        Occasion::Change => instance.status.allows(report.status),
        Occasion::State => !instance.status.is_final() || instance.status == report.status,
    };
    let anew = report.incarnation > instance.incarnation;
    if !anew && !follows {
        warn!(
            cluster, instance = ?report.key, from = %instance.status, to = %report.status,
            "a report that cannot follow is ignored"
        );
        return;
    }
    draft.live.usage.insert(key.clone(), Usage::of(report));
    let before = instance;
    let after = Instance {
        incarnation: report.incarnation,
        status: report.status,
        status_detail: report.status_detail.clone(),
        worker_id: report.worker_id.clone(),
        host: report.host.clone(),
        host_ip: report.host_ip,
        publicip: report.publicip.clone(),
        row: report.row.clone(),
        ..before.clone()
    };
    let moved = before.row != after.row || before.incarnation != after.incarnation;
    let same = !moved
        && (before.status, &before.status_detail, &before.worker_id)
            == (after.status, &after.status_detail, &after.worker_id)
        && (&before.host, before.host_ip, &before.publicip) == (&after.host, after.host_ip, &after.publicip);
    if same {
        return;
    }
    if moved {
        draft.note_changed(&report.key.job_name, Some(cluster));
    }
    draft.instances.put(Instance {
        changed_at: id::timestamp(),
        ..after
    });
}

/// The cluster of an instance does not exist any more.
pub fn lost(draft: &mut Draft<'_>, cluster: &str, key: &InstanceId) {
    let Some(mut instance) = draft.instances.get(key).cloned() else {
        return;
    };
    // What has done its work is not done again.
    if instance.status.is_final() && !instance.leaving {
        instance.displace();
        draft.instances.put(instance);
        return;
    }
    let detail = "its cluster was given up";
    refused(draft, cluster, key, InstanceStatus::Requested, detail);
}

/// A cluster does not take a placement: the next one is tried, and this one again when its capacity changes.
pub fn refused(draft: &mut Draft<'_>, cluster: &str, key: &InstanceId, status: InstanceStatus, detail: &str) {
    let Some(mut instance) = draft.instances.get(key).cloned() else {
        return;
    };
    if instance.leaving {
        forget(draft, key);
        return;
    }
    let had_row = instance.row.is_some();
    instance.displace();
    instance.status = if status.is_waiting() {
        status
    } else {
        InstanceStatus::Requested
    };
    detail.clone_into(&mut instance.status_detail);
    instance.incarnation = draft.next_incarnation();
    instance.changed_at = id::timestamp();
    draft.instances.put(instance);
    if had_row && let Some(service) = draft.services.get(&key.0) {
        let name = service.job.job_name.clone();
        draft.note_changed(&name, Some(cluster));
    }
    let reasons = draft.live.refused.entry(key.clone()).or_default();
    reasons.insert(cluster.to_owned(), (status, detail.to_owned()));
    placement::place_one(draft, key);
}
