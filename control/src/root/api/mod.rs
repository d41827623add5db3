//! The REST interface, port 10000.
//!
//! Each route is served with and without a slash at its end. Whatever goes wrong is answered with one kind of body,
//! [`ErrorBody`](protocol::network::ErrorBody).

mod accounts;
mod applications;
mod clusters;
mod edge;
mod extract;
mod services;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, any, delete, get, post};
use tokio_util::sync::CancellationToken;

use super::Root;
use super::problem::Problem;
use crate::session::server::Clusters;

/// Largest body of a request, in bytes.
pub const LARGEST_BODY: usize = 1 << 20;

/// Everything that is served. Connections of clusters end with `stop`.
pub fn service(root: &Root, stop: CancellationToken) -> IntoMakeServiceWithConnectInfo<Router, SocketAddr> {
    let clusters: Arc<dyn Clusters> = Arc::new(root.clone());
    let router = routes()
        .with_state(root.clone())
        .merge(root.0.server.router(clusters, stop))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn(edge::guard));
    router.into_make_service_with_connect_info()
}

fn routes() -> Router<Root> {
    let mut router = Router::new();
    for (path, methods) in [
        ("/status", get(status)),
        ("/api/auth/login", post(accounts::login)),
        ("/api/auth/register", post(accounts::register)),
        ("/api/auth/refresh", post(accounts::refresh)),
        ("/api/permission/{name}", get(accounts::permission)),
        ("/api/user", any(not_there_yet)),
        (
            "/api/user/{name}",
            get(accounts::show).post(accounts::change_password),
        ),
        ("/api/users", get(accounts::list)),
        ("/api/organization", any(not_there_yet)),
        ("/api/organization/{id}", any(not_there_yet)),
        ("/api/application", post(applications::create)),
        (
            "/api/application/{id}",
            get(applications::show)
                .put(applications::update)
                .delete(applications::delete),
        ),
        ("/api/applications", get(applications::list)),
        ("/api/applications/{user}", get(applications::list_of_user)),
        // As the first steps for new users spell it.
        ("/api/aplications", get(applications::list)),
        ("/api/aplications/{user}", get(applications::list_of_user)),
        ("/api/service", post(services::create)),
        (
            "/api/service/{id}",
            get(services::show).put(services::update).delete(services::delete),
        ),
        ("/api/services", get(services::list)),
        ("/api/services/{application}", get(services::list_of_application)),
        ("/api/service/{id}/instance", post(services::deploy)),
        ("/api/service/{id}/instance/{number}", delete(services::undeploy)),
        ("/api/clusters", get(clusters::list)),
        ("/api/clusters/active", get(clusters::list_active)),
        ("/api/clusters/{id}", delete(clusters::forget)),
    ] {
        router = both(router, path, methods);
    }
    router
}

/// Serves a path with and without a slash at its end.
fn both(router: Router<Root>, path: &str, methods: MethodRouter<Root>) -> Router<Root> {
    router
        .route(path, methods.clone())
        .route(&format!("{path}/"), methods)
}

/// Whether the root serves: who gets this answer, gets others.
async fn status() -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({ "status": "ok" }))
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path").at(uri.path())
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not possible at this path"),
    )
    .at(uri.path())
}

async fn not_there_yet(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_IMPLEMENTED,
        format!("this root has no organizations and sends no mail, so it does not serve {method} here"),
    )
    .at(uri.path())
}
