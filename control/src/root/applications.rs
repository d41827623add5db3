//! Applications and their services: made, changed and taken away.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use protocol::descriptor::{AddressWish, ApplicationDescriptor, Descriptor, ServiceDescriptor};
use protocol::job::Job;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::records::{Application, Holder, Service, User};
use super::state::Draft;
use super::{addresses, id, instances};

/// Keys of a service's document that are never taken from a descriptor.
const RESERVED: [&str; 25] = [
    "_id",
    "RR_ip",
    "RR_ip_v6",
    "appId",
    "applicationID",
    "closest_ip",
    "cmd",
    "constraints",
    "environment",
    "image",
    "incarnation",
    "instance_ip",
    "instance_ip_v6",
    "instance_list",
    "instance_number",
    "job_name",
    "memory",
    "microserviceID",
    "next_instance_progressive_number",
    "service_ip",
    "status",
    "status_detail",
    "userId",
    "virtualization",
    "warnings",
];
/// Keys that the job has as fields of its own, beside those.
const OWN: [&str; 5] = ["one_shot", "port", "storage", "vcpus", "vgpus"];

/// The application, if it is this user's or the user may see all.
pub fn find<'draft>(draft: &'draft Draft<'_>, user: &User, id: &str) -> Result<&'draft Application, Problem> {
    draft
        .applications
        .get(&id.to_owned())
        .filter(|application| !application.deleting && (user.is_admin() || application.owner == user.name))
        .ok_or_else(|| Problem::unknown("application", id))
}

/// The service, if it is this user's or the user may see all.
pub fn find_service<'draft>(
    draft: &'draft Draft<'_>,
    user: &User,
    id: &str,
) -> Result<&'draft Service, Problem> {
    draft
        .services
        .get(&id.to_owned())
        .filter(|service| !service.deleting && (user.is_admin() || service.owner == user.name))
        .ok_or_else(|| Problem::unknown("service", id))
}

/// Makes all applications of a descriptor.
pub fn create(draft: &mut Draft<'_>, user: &User, descriptor: &Descriptor) -> Result<(), Problem> {
    for wish in &descriptor.applications {
        refuse_name(draft, user, wish)?;
        draft.counters.last_app += 1;
        let application = Application {
            id: id::new(),
            app_id: draft.counters.last_app,
            owner: user.name.clone(),
            name: wish.name.clone(),
            namespace: wish.namespace.clone(),
            description: wish.description.clone(),
            services: Vec::new(),
            rest: without(&wish.rest, &["_id", "action", "userId"]),
            deleting: false,
        };
        let id = application.id.clone();
        draft.applications.put(application);
        add_services(draft, &id, &wish.services)?;
    }
    Ok(())
}

fn refuse_name(draft: &Draft<'_>, user: &User, wish: &ApplicationDescriptor) -> Result<(), Problem> {
    let same = |other: &&Application| (&other.name, &other.namespace) == (&wish.name, &wish.namespace);
    let Some(other) = draft.applications.iter().find(same) else {
        return Ok(());
    };
    let reason = if other.deleting {
        "is being deleted: instances of it are still being undeployed, try again in a moment"
    } else if other.owner == user.name {
        "exists already"
    } else {
        "exists already and belongs to another user; names are the same for everybody"
    };
    let message = format!(
        "application {:?} in namespace {:?} {reason}",
        wish.name, wish.namespace
    );
    Err(Problem::conflict(message).at(format!("{}.application_name", wish.path)))
}

/// Adds services to an application that exists. The answer is their ids.
pub fn add_services(
    draft: &mut Draft<'_>,
    application: &str,
    wishes: &[ServiceDescriptor],
) -> Result<Vec<String>, Problem> {
    let Some(mut application) = draft.applications.get(&application.to_owned()).cloned() else {
        return Err(Problem::unknown("application", application));
    };
    let mut added = Vec::new();
    // Those that choose their address come first, or another one could be given it in the meantime.
    let mut order: Vec<&ServiceDescriptor> = wishes.iter().collect();
    order.sort_by_key(|wish| {
        let chooses_closest = matches!(wish.closest_ip, Some(AddressWish::This(_)));
        wish.rr_ip.is_none() && wish.rr_ip_v6.is_none() && !chooses_closest
    });
    let mut ids = BTreeMap::new();
    for wish in order {
        let id = add_service(draft, &application, wish)?;
        ids.insert(&wish.path, id);
    }
    for wish in wishes {
        if let Some(id) = ids.remove(&wish.path) {
            application.services.push(id.clone());
            added.push(id);
        }
    }
    draft.applications.put(application);
    Ok(added)
}

fn add_service(
    draft: &mut Draft<'_>,
    application: &Application,
    wish: &ServiceDescriptor,
) -> Result<String, Problem> {
    let name = match wish.job_name(&application.name, &application.namespace) {
        Ok(name) => name,
        Err(error) => return Err(Problem::bad_request(error.to_string()).at(wish.path.clone())),
    };
    let path = format!("{}.microservice_name", wish.path);
    if let Some(other) = draft.service_named(&name) {
        let reason = if other.deleting {
            "is being deleted: instances of it are still being undeployed, try again in a moment"
        } else {
            "exists already"
        };
        return Err(Problem::conflict(format!("service {name} {reason}")).at(path));
    }
    let id = id::new();
    let holder = Holder::Service {
        id: id.clone(),
        name: name.to_string(),
    };
    // The one that is chosen comes first, or the other could be given it.
    let mut closest_ip = None;
    if let Some(chosen @ AddressWish::This(_)) = wish.closest_ip {
        closest_ip = Some(addresses::take_closest(draft, &holder, chosen, &wish.path)?);
    }
    let wished = (wish.rr_ip, wish.rr_ip_v6);
    let (rr_ip, rr_ip_v6) = addresses::take_for_service(draft, &holder, wished, &wish.path)?;
    if let Some(AddressWish::Any) = wish.closest_ip {
        closest_ip = Some(addresses::take_closest(
            draft,
            &holder,
            AddressWish::Any,
            &wish.path,
        )?);
    }
    let mut rest = without(&without(&wish.given, &RESERVED), &OWN);
    let copies = [
        ("app_name", &application.name),
        ("app_ns", &application.namespace),
        ("service_name", &wish.name),
        ("service_ns", &wish.namespace),
    ];
    for (key, value) in copies {
        rest.insert(key.to_owned(), json!(value));
    }
    draft.note_changed(&name, None);
    draft.services.put(Service {
        job: Job {
            id: id.clone(),
            job_name: name,
            application_id: application.id.clone(),
            image: wish.code.clone(),
            virtualization: wish.virtualization.clone(),
            cmd: wish.cmd.clone(),
            environment: wish.environment.clone(),
            port: wish.ports.to_string(),
            memory: wish.memory,
            vcpus: wish.vcpus,
            vgpus: wish.vgpus,
            storage: wish.storage,
            one_shot: wish.one_shot,
            constraints: wish.constraints.clone(),
            rest: rest.into_iter().collect(),
        },
        app_id: application.app_id,
        owner: application.owner.clone(),
        rr_ip,
        rr_ip_v6,
        closest_ip,
        next_instance: 0,
        warnings: wish.warnings.clone(),
        deleting: false,
    });
    Ok(id)
}

fn without(map: &Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    let other = map.iter().filter(|(key, _)| !keys.contains(&key.as_str()));
    other.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Changes what may be changed: the description. Names are part of the names of services and stay.
pub fn update(
    draft: &mut Draft<'_>,
    user: &User,
    id: &str,
    body: &Map<String, Value>,
) -> Result<(), Problem> {
    let mut application = find(draft, user, id)?.clone();
    let fixed = [
        ("application_name", &application.name),
        ("application_namespace", &application.namespace),
    ];
    for (key, value) in fixed {
        let given = body.get(key).filter(|given| !given.is_null());
        if given.is_some_and(|given| given.as_str() != Some(value)) {
            let message =
                format!("{key} is {value:?} and stays so: the names of its services are made of it");
            return Err(Problem::conflict(message).at(key));
        }
    }
    match body.get("application_desc") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => application.description.clone_from(text),
        Some(_) => {
            return Err(
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "application_desc is not a text")
                    .at("application_desc"),
            );
        }
    }
    draft.applications.put(application);
    Ok(())
}

/// Takes an application away with everything that it has.
pub fn delete(draft: &mut Draft<'_>, user: &User, id: &str) -> Result<(), Problem> {
    let mut application = find(draft, user, id)?.clone();
    let services = application.services.clone();
    application.deleting = true;
    draft.applications.put(application);
    for service in &services {
        delete_service(draft, service);
    }
    forget_empty_application(draft, id);
    Ok(())
}

/// Takes a service away: for people it is gone at once, its addresses are free when all instances have gone.
pub fn delete_service(draft: &mut Draft<'_>, id: &str) {
    let Some(mut service) = draft.services.get(&id.to_owned()).cloned() else {
        return;
    };
    service.deleting = true;
    draft.services.put(service);
    for instance in draft.instances_of(id) {
        instances::undeploy(draft, &instance);
    }
    forget_empty_service(draft, id);
}

/// Removes a service that is being deleted once it has no instances any more.
pub fn forget_empty_service(draft: &mut Draft<'_>, id: &str) {
    let Some(service) = draft.services.get(&id.to_owned()).cloned() else {
        return;
    };
    if !service.deleting || !draft.instances_of(id).is_empty() {
        return;
    }
    addresses::give_back(draft, service.rr_ip, service.rr_ip_v6);
    if let Some(address) = service.closest_ip {
        addresses::give_back_closest(draft, address);
    }
    draft.note_changed(&service.job.job_name, None);
    draft.services.remove(&id.to_owned());
    let application = &service.job.application_id;
    if let Some(mut application) = draft.applications.get(application).cloned() {
        application.services.retain(|other| other != id);
        draft.applications.put(application);
    }
    forget_empty_application(draft, application);
}

fn forget_empty_application(draft: &mut Draft<'_>, id: &str) {
    let key = id.to_owned();
    let empty = |application: &Application| application.deleting && application.services.is_empty();
    if draft.applications.get(&key).is_some_and(empty) {
        draft.applications.remove(&key);
    }
}
