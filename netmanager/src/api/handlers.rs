//! One function per route.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use protocol::network::{DeployRequest, DeployResponse, RegisterRequest, UndeployRequest};
use protocol::ports::{PortMappings, PortMappingsError};

use super::error::ApiError;
use crate::dataplane::CounterRow;
use crate::directory::ServiceView;
use crate::manager::Manager;
use crate::node::{Deploy, EndpointView, NodeView, Place, Status};

type Body<T> = Result<Json<T>, JsonRejection>;

pub async fn register(
    State(manager): State<Arc<Manager>>,
    body: Body<RegisterRequest>,
) -> Result<(), ApiError> {
    let Json(request) = body?;
    // In a task of its own: a caller that hangs up does not leave a registration half-done.
    tokio::spawn(async move {
        manager
            .register(&request.client_id, &request.cluster_address, request.broker)
            .await
    })
    .await
    .map_err(|error| anyhow::anyhow!(error))??;
    Ok(())
}

pub async fn deploy(
    State(manager): State<Arc<Manager>>,
    body: Body<DeployRequest>,
) -> Result<Json<DeployResponse>, ApiError> {
    let node = manager.node().await?;
    let Json(request) = body?;
    let ports: PortMappings = request
        .port_mappings
        .parse()
        .map_err(|error: PortMappingsError| {
            ApiError::new(StatusCode::BAD_REQUEST, "portMappings", error.to_string())
        })?;
    let deploy = Deploy {
        place: Place::Process(request.pid),
        service: request.service_name.clone(),
        number: request.instance_number,
        instance_address: request.instance_ip,
        incarnation: request.incarnation,
        application: request.app_id.unwrap_or_default(),
        ports,
    };
    let addresses = tokio::spawn(node.attach(deploy))
        .await
        .map_err(|error| anyhow::anyhow!(error))??;
    Ok(Json(DeployResponse {
        service_name: request.service_name,
        namespace_address: addresses.v4,
        namespace_address_v6: addresses.v6,
    }))
}

pub async fn undeploy(
    State(manager): State<Arc<Manager>>,
    body: Body<UndeployRequest>,
) -> Result<(), ApiError> {
    let node = manager.node().await?;
    let Json(request) = body?;
    tokio::spawn(async move {
        node.detach(request.service_name.as_str(), request.instance_number)
            .await
    })
    .await
    .map_err(|error| anyhow::anyhow!(error))??;
    Ok(())
}

pub async fn status(State(manager): State<Arc<Manager>>) -> Result<Json<Status>, ApiError> {
    Ok(Json(manager.node().await?.status().await))
}

pub async fn endpoints(State(manager): State<Arc<Manager>>) -> Result<Json<Vec<EndpointView>>, ApiError> {
    Ok(Json(manager.node().await?.endpoints().await))
}

pub async fn services(State(manager): State<Arc<Manager>>) -> Result<Json<Vec<ServiceView>>, ApiError> {
    Ok(Json(manager.node().await?.services()))
}

pub async fn nodes(State(manager): State<Arc<Manager>>) -> Result<Json<Vec<NodeView>>, ApiError> {
    Ok(Json(manager.node().await?.nodes().await?))
}

pub async fn drops(State(manager): State<Arc<Manager>>) -> Result<Json<Vec<CounterRow>>, ApiError> {
    Ok(Json(manager.node().await?.counters().await?))
}
