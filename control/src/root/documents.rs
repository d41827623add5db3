//! What clients are shown.

use protocol::instance::InstanceStatus;
use serde_json::{Map, Value, json};

use super::live::Live;
use super::records::{Application, Cluster, Instance, Service, User};
use super::state::State;
use super::table::Row;

/// The roles there are.
pub const ALL_ROLES: [&str; 4] = [
    "Admin",
    "Organization_Admin",
    "Application_Provider",
    "Infrastructure_Provider",
];

/// Where a cluster listens to nodes, as instance documents say it: the port of the node engines of other makes.
const NODE_PORT: u16 = 50011;

fn object_id(id: &str) -> Value {
    json!({ "$oid": id })
}

pub fn user(user: &User) -> Value {
    json!({
        "_id": object_id(&user.id),
        "name": user.name,
        "email": user.email,
        "created_at": user.created_at,
        "roles": user.roles,
    })
}

pub fn application(state: &State, application: &Application) -> Value {
    let shown = |id: &&String| state.services.get(*id).is_some_and(|service| !service.deleting);
    let services: Vec<&String> = application.services.iter().filter(shown).collect();
    let mut document = application.rest.clone();
    let fields = json!({
        "_id": object_id(&application.id),
        "applicationID": application.id,
        "application_name": application.name,
        "application_namespace": application.namespace,
        "application_desc": application.description,
        "microservices": services,
        "userId": application.owner,
    });
    merge(&mut document, fields);
    Value::Object(document)
}

pub fn service(state: &State, live: &Live, started_at: f64, service: &Service) -> Value {
    let instances: Vec<&Instance> = state.instances_of(service.id()).collect();
    let mut document = match serde_json::to_value(&service.job) {
        Ok(Value::Object(document)) => document,
        Ok(_) | Err(_) => Map::new(),
    };
    let list: Vec<Value> = instances
        .iter()
        .map(|one| instance(state, live, started_at, one))
        .collect();
    let fields = json!({
        "_id": object_id(service.id()),
        "RR_ip": service.rr_ip,
        "RR_ip_v6": service.rr_ip_v6,
        "appId": service.app_id,
        "next_instance_progressive_number": service.next_instance,
        "warnings": service.warnings,
        "userId": service.owner,
    });
    merge(&mut document, fields);
    if let Some(address) = service.closest_ip {
        document.insert("closest_ip".to_owned(), json!(address));
    }
    // Absent until the first instance is wished for.
    if let Some(status) = overall(&instances) {
        document.insert("status".to_owned(), json!(status));
    }
    if let Some(detail) = detail(service, list.last()) {
        document.insert("status_detail".to_owned(), json!(detail));
    }
    document.insert("instance_list".to_owned(), Value::Array(list));
    Value::Object(document)
}

/// The status of a service is that of its newest instance.
fn overall(instances: &[&Instance]) -> Option<InstanceStatus> {
    instances.last().map(|instance| instance.status)
}

/// What the newest instance says, and what of the descriptor is not acted on.
fn detail(service: &Service, newest: Option<&Value>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if let Some(detail) = newest.and_then(|newest| newest["status_detail"].as_str()) {
        parts.push(detail.to_owned());
    }
    if !service.warnings.is_empty() {
        let warnings = service.warnings.iter().map(|warning| warning.message.clone());
        let warnings: Vec<String> = warnings.collect();
        parts.push(format!("accepted, but: {}", warnings.join("; ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn instance(state: &State, live: &Live, started_at: f64, instance: &Instance) -> Value {
    let usage = live.usage.get(&instance.key()).cloned().unwrap_or_default();
    let cluster = instance.cluster.as_ref().and_then(|id| state.clusters.get(id));
    let mut detail = instance.status_detail.clone();
    let mut note = |text: String| {
        if !detail.is_empty() {
            detail.push_str("; ");
        }
        detail.push_str(&text);
    };
    if instance.leaving {
        note("is being undeployed".to_owned());
    }
    if let Some(cluster) = cluster {
        let known = live.clusters.get(&cluster.id);
        if !known.is_some_and(|known| known.connected) {
            let since = known.map_or(started_at, |known| known.seen_at);
            note(format!(
                "cluster {} is not connected since {}",
                cluster.name,
                time(since)
            ));
        }
    }
    if detail.is_empty() {
        "No extra information".clone_into(&mut detail);
    }
    json!({
        "instance_number": instance.number,
        "cluster_id": instance.cluster.clone().unwrap_or_default(),
        "cluster_location": cluster.map_or("location-unknown", |cluster| cluster.location.as_str()),
        "status": instance.status,
        "status_detail": detail,
        "worker_id": instance.worker_id,
        "hostname": instance.host,
        "host_ip": instance.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        "host_port": instance.row.as_ref().and_then(|row| row.host_port).unwrap_or(NODE_PORT),
        "publicip": instance.publicip,
        "cpu_percent": figure(usage.cpu_percent),
        "memory_percent": figure(usage.memory_percent),
        "disk": figure(usage.disk),
        "logs": usage.logs,
        "last_modified_timestamp": instance.changed_at,
        "instance_ip": instance.instance_ip,
        "instance_ip_v6": instance.instance_ip_v6,
        "incarnation": instance.incarnation,
    })
}

/// A figure as a text, also where there is none yet.
fn figure(text: String) -> String {
    if text.is_empty() { "0".to_owned() } else { text }
}

pub fn cluster(live: &Live, cluster: &Cluster) -> Value {
    let known = live.clusters.get(&cluster.id);
    let capacity = known.map(|known| known.capacity.clone()).unwrap_or_default();
    let history = |figure: fn(&(f64, f64, f64)) -> f64| -> Vec<Value> {
        let figures = known.map(|known| known.history.iter()).into_iter().flatten();
        figures
            .map(|entry| json!({ "value": figure(entry), "timestamp": entry.0 }))
            .collect()
    };
    json!({
        "_id": cluster.id,
        "candidate_name": cluster.name,
        "candidate_location": cluster.location,
        "cluster_name": cluster.name,
        "cluster_location": cluster.location,
        "ip": cluster.ip,
        "port": cluster.port.to_string(),
        "active": known.is_some_and(|known| known.connected),
        "active_nodes": capacity.active_nodes,
        "cpu_percent": capacity.cpu_percent,
        "aggregated_cpu_percent": capacity.cpu_percent,
        "memory_percent": capacity.memory_percent,
        "memory": capacity.memory_free,
        "memory_in_mb": capacity.memory_free,
        "memory_total": capacity.memory,
        "vcpus": capacity.vcpus,
        "vcpus_free": capacity.vcpus_free,
        "total_cpu_cores": capacity.vcpus,
        "vgpus": capacity.vgpus,
        "total_gpu_cores": capacity.vgpus,
        "vram": 0,
        "vram_percent": 0,
        "gpu_temp": 0,
        "gpu_drivers": [],
        "gpu_percent": 0,
        "virtualization": capacity.virtualization,
        "architectures": capacity.architectures,
        "hosts": capacity.hosts,
        "supported_addons": [],
        "csi_drivers": [],
        "cpu_history": history(|entry| entry.1),
        "memory_history": history(|entry| entry.2),
        "last_modified_timestamp": known.map_or(0.0, |known| known.seen_at),
    })
}

fn merge(document: &mut Map<String, Value>, fields: Value) {
    if let Value::Object(fields) = fields {
        document.extend(fields);
    }
}

/// A moment as `dd/mm/YYYY HH:MM`, UTC.
pub fn date(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86400);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{day:02}/{month:02}/{year} {hour:02}:{minute:02}")
}

/// A moment as `YYYY-mm-ddTHH:MM:SSZ`.
fn time(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds since 1970 are positive, and fractions are not shown"
    )]
    let seconds = seconds as u64;
    let (year, month, day) = civil(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970, by counting eras of 400 years from the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        let cases = [
            (0, "01/01/1970 00:00", "1970-01-01T00:00:00Z"),
            (951_782_399, "28/02/2000 23:59", "2000-02-28T23:59:59Z"),
            (951_782_400, "29/02/2000 00:00", "2000-02-29T00:00:00Z"),
            (1_735_689_599, "31/12/2024 23:59", "2024-12-31T23:59:59Z"),
            (1_795_390_000, "22/11/2026 23:26", "2026-11-22T23:26:40Z"),
        ];
        for (seconds, short, long) in cases {
            assert_eq!(date(seconds), short);
            assert_eq!(time(seconds as f64), long);
        }
    }
}
