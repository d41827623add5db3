//! `POST /api/node/register`.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use protocol::network::ErrorBody;
use protocol::node::{NodeInformation, Registered};

use super::ClusterSettings;
use crate::measure::host::{self, Memory};

/// The cluster may have to ask its root for addresses first.
const TIMEOUT: Duration = Duration::from_secs(15);
/// What other node engines say of themselves when they are not told otherwise.
const PORT: &str = "3000";

/// Introduces the node to its cluster; `own` is its address as the cluster sees it.
///
/// # Errors
/// When the cluster is away, refuses, or answers something else; in words for a person.
pub(super) async fn register(settings: &ClusterSettings, own: Option<IpAddr>) -> anyhow::Result<Registered> {
    let (address, port) = (&settings.address, settings.port);
    let host = bracketed(address);
    let url = format!("http://{host}:{port}/api/node/register");
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .no_proxy()
        .build()
        .context("setting up HTTP")?;
    let response = client
        .post(&url)
        .json(&information(settings, own))
        .send()
        .await
        .with_context(|| format!("no cluster answers at {address}:{port}"))?;
    let status = response.status();
    let body = response
        .bytes()
        .await
        .with_context(|| format!("the answer of {url} broke off"))?;
    if !status.is_success() {
        let message = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) if !error.message.is_empty() => error.message,
            Ok(_) | Err(_) => String::from_utf8_lossy(&body).chars().take(200).collect(),
        };
        bail!("the cluster at {address}:{port} refuses this node ({status}): {message}");
    }
    let registered: Registered = serde_json::from_slice(&body)
        .with_context(|| format!("{address}:{port} answers, but not as a cluster does"))?;
    let id = &settings.identity.id;
    if registered.id != *id {
        bail!(
            "the cluster gives this node the id {:?}, and it has the id {id} already",
            registered.id
        );
    }
    if registered.broker_port.parse::<u16>().is_err() {
        bail!(
            "the cluster names {:?} as the port of its broker",
            registered.broker_port
        );
    }
    Ok(registered)
}

/// IPv6 addresses stand in brackets where a port follows.
pub(super) fn bracketed(address: &str) -> String {
    if address.contains(':') && !address.starts_with('[') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// Everything that the node says of itself.
fn information(settings: &ClusterSettings, own: Option<IpAddr>) -> NodeInformation {
    let memory = Memory::now();
    NodeInformation {
        id: settings.identity.id.clone(),
        node_key: Some(settings.identity.node_key.clone()),
        host: settings.host.clone(),
        ip: own.map(|address| address.to_string()).unwrap_or_default(),
        port: PORT.to_owned(),
        system_info: host::system(),
        cpu_percent: Some(0.0),
        memory_percent: Some(memory.percent()),
        vcpus: Some(host::cores()),
        memory: Some(memory.available / 1024),
        memory_total: Some(memory.total / 1024),
        architecture: host::architecture(),
        virtualization: vec!["docker".to_owned()],
        ..NodeInformation::default()
    }
}
