//! Applications.

use axum::extract::State;
use protocol::descriptor::Descriptor;
use serde_json::{Value, json};

use super::Problem;
use super::extract::{Admin, Caller, Json, Segments};
use crate::root::records::Application;
use crate::root::{Root, applications, documents};

/// The applications that `wanted` holds for, without those that are being deleted.
fn all(root: &Root, wanted: impl Fn(&Application) -> bool) -> axum::Json<Value> {
    axum::Json(root.read(|state, _| {
        let shown = |application: &&Application| !application.deleting && wanted(application);
        let applications = state.applications.values().filter(shown);
        applications
            .map(|application| documents::application(state, application))
            .collect()
    }))
}

/// Makes what a descriptor says. The answer is all applications of the caller.
pub async fn create(
    State(root): State<Root>,
    Caller(caller): Caller,
    Json(body): Json,
) -> Result<axum::Json<Value>, Problem> {
    let descriptor = Descriptor::read(&body)?;
    let user = caller.clone();
    root.change(move |draft| applications::create(draft, &user, &descriptor))
        .await?;
    Ok(all(&root, |application| application.owner == caller.name))
}

pub async fn show(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let document = root.read(|state, _| {
        let application = state.applications.get(&id)?;
        let visible = !application.deleting && (caller.is_admin() || application.owner == caller.name);
        visible.then(|| documents::application(state, application))
    });
    document
        .map(axum::Json)
        .ok_or_else(|| Problem::unknown("application", &id))
}

pub async fn update(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
    body: Json,
) -> Result<axum::Json<Value>, Problem> {
    let fields = body.object()?.clone();
    root.change(move |draft| applications::update(draft, &caller, &id, &fields))
        .await?;
    Ok(axum::Json(json!({ "message": "Application is updated" })))
}

pub async fn delete(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    root.change(move |draft| applications::delete(draft, &caller, &id))
        .await?;
    Ok(axum::Json(json!({ "message": "Application Deleted" })))
}

pub async fn list(State(root): State<Root>, _: Admin) -> axum::Json<Value> {
    all(&root, |_| true)
}

/// The applications of a user, who is named by id or by name.
pub async fn list_of_user(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(user): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    let name = root.read(|state, _| {
        let meant = state
            .users
            .values()
            .find(|known| known.id == user || known.name == user);
        meant.map(|known| known.name.clone())
    });
    match name.filter(|name| caller.is_admin() || *name == caller.name) {
        Some(name) => Ok(all(&root, |application| application.owner == name)),
        None => Err(Problem::unknown("user", &user)),
    }
}
