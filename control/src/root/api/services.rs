//! Services and their instances.

use axum::extract::State;
use axum::http::StatusCode;
use protocol::descriptor::Descriptor;
use serde_json::{Value, json};

use super::Problem;
use super::extract::{Admin, Caller, Json, Segments};
use crate::root::records::Service;
use crate::root::{Root, applications, documents, instances};

/// The services that `wanted` holds for, without those that are being deleted.
fn all(root: &Root, wanted: impl Fn(&Service) -> bool) -> axum::Json<Value> {
    axum::Json(root.read(|state, live| {
        let shown = |service: &&Service| !service.deleting && wanted(service);
        let services = state.services.values().filter(shown);
        services
            .map(|service| documents::service(state, live, root.0.started_at, service))
            .collect()
    }))
}

/// Adds services to an application: all of them, or none.
pub async fn create(
    State(root): State<Root>,
    Caller(caller): Caller,
    Json(body): Json,
) -> Result<axum::Json<Value>, Problem> {
    let descriptor = Descriptor::read(&body)?;
    let unprocessable =
        |message: &str, path: &str| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message).at(path));
    let Ok([wish]) = <[_; 1]>::try_from(descriptor.applications) else {
        return unprocessable("exactly one application belongs here", "applications");
    };
    if wish.services.is_empty() {
        return unprocessable("there is no microservice to add", "applications[0].microservices");
    }
    if wish.id.is_empty() {
        return unprocessable(
            "applicationID is missing; it says which application the services are added to",
            "applications[0].applicationID",
        );
    }
    let names: Vec<String> = wish.services.iter().map(|service| service.name.clone()).collect();
    let added = root
        .change(move |draft| {
            let application = applications::find(draft, &caller, &wish.id)?;
            if (&application.name, &application.namespace) != (&wish.name, &wish.namespace) {
                let message = format!(
                    "application {} is {:?} in namespace {:?}",
                    application.id, application.name, application.namespace
                );
                return Err(Problem::conflict(message).at("applications[0].application_name"));
            }
            applications::add_services(draft, &wish.id, &wish.services)
        })
        .await?;
    let deployed: Vec<Value> = names
        .iter()
        .zip(&added)
        .map(|(name, id)| json!({ "service_name": name, "status": 200, "job_id": id }))
        .collect();
    Ok(axum::Json(json!({
        "job_id": added.last(),
        "deployed_services": deployed,
        "failed_services": [],
    })))
}

pub async fn show(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let document = root.read(|state, live| {
        let service = state.services.get(&id)?;
        let visible = !service.deleting && (caller.is_admin() || service.owner == caller.name);
        visible.then(|| documents::service(state, live, root.0.started_at, service))
    });
    document
        .map(axum::Json)
        .ok_or_else(|| Problem::unknown("service", &id))
}

/// Services are not changed: they are deleted and made again.
pub async fn update(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    root.change({
        let id = id.clone();
        move |draft| applications::find_service(draft, &caller, &id).map(|_| ())
    })
    .await?;
    Err(Problem::new(
        StatusCode::NOT_IMPLEMENTED,
        "a service is not changed in place; delete it and make it again",
    )
    .at(id))
}

pub async fn delete(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    root.change(move |draft| {
        applications::find_service(draft, &caller, &id)?;
        applications::delete_service(draft, &id);
        Ok(())
    })
    .await?;
    Ok(axum::Json(json!({ "message": "Job deleted" })))
}

pub async fn list(State(root): State<Root>, _: Admin) -> axum::Json<Value> {
    all(&root, |_| true)
}

pub async fn list_of_application(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let visible = root.read(|state, _| {
        state.applications.get(&id).is_some_and(|application| {
            !application.deleting && (caller.is_admin() || application.owner == caller.name)
        })
    });
    if visible {
        Ok(all(&root, |service| service.job.application_id == id))
    } else {
        Err(Problem::unknown("application", &id))
    }
}

/// One more instance. The answer comes when the wish is durable; how it fares is in the service's document.
pub async fn deploy(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let number = root
        .change(move |draft| {
            applications::find_service(draft, &caller, &id)?;
            instances::deploy(draft, &id)
        })
        .await?;
    Ok(axum::Json(json!({ "message": "ok", "instance_number": number })))
}

/// One instance less, or none any more with the number -1.
pub async fn undeploy(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments((id, number)): Segments<(String, String)>,
) -> Result<axum::Json<Value>, Problem> {
    root.change(move |draft| {
        applications::find_service(draft, &caller, &id)?;
        let all = draft.instances_of(&id);
        let meant: Vec<_> = if number == "-1" {
            all
        } else {
            let named = all.into_iter().filter(|(_, known)| known.to_string() == number);
            named.collect()
        };
        if meant.is_empty() && number != "-1" {
            return Err(Problem::unknown("instance", &number));
        }
        for key in meant {
            instances::undeploy(draft, &key);
        }
        Ok(())
    })
    .await?;
    Ok(axum::Json(json!({ "message": "ok" })))
}
