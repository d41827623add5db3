//! One function per call.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use dataplane_ebpf::address::GATEWAY;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::messages::{
    Activation, Capabilities, CreateEndpoint, CreateNetwork, CreatedEndpoint, Endpoint, EndpointInformation,
    Interface, InterfaceName, Joined, Options, StaticRoute,
};
use super::options;
use super::peer::Peer;
use crate::api::error::chain;
use crate::node::{AttachError, Node};
use crate::state::DockerEndpoint;

/// What plugins of Docker answer with.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// The pool of a network whose addresses Docker leaves alone.
const NO_POOL: &str = "0.0.0.0/0";

type Caller = ConnectInfo<Peer>;
type Answer<T> = Result<Reply<T>, Refusal>;

/// An answer.
pub struct Reply<T>(T);

/// Why there is none, for whoever called Docker.
pub struct Refusal(String);

pub async fn activate() -> Reply<Activation> {
    Reply(Activation {
        implements: ["NetworkDriver"],
    })
}

pub async fn capabilities() -> Reply<Capabilities> {
    Reply(Capabilities {
        scope: "local",
        connectivity_scope: "local",
    })
}

pub async fn nothing() -> Reply<Options> {
    Reply(Options::new())
}

pub async fn create_network(body: Bytes) -> Answer<Options> {
    let network: CreateNetwork = read(&body)?;
    options::refuse_of_network(&network.options).map_err(refusal)?;
    let pool = network.pools.iter().find(|pool| pool.pool != NO_POOL);
    if let Some(pool) = pool.or(network.pools_v6.first()) {
        return Err(Refusal(format!(
            "the node gives out the addresses of its containers, not Docker from {}: create the network with \
             --ipam-driver null, and without --ipv6",
            pool.pool
        )));
    }
    Ok(Reply(Options::new()))
}

pub async fn create_endpoint(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): Caller,
    body: Bytes,
) -> Answer<CreatedEndpoint> {
    peer.check().map_err(refusal)?;
    let request: CreateEndpoint = read(&body)?;
    if !request.interface.address.is_empty() {
        return Err(Refusal(format!(
            "the node gives out the addresses of its containers; {} cannot be asked for",
            request.interface.address
        )));
    }
    let mac = mac_of(&request.interface.mac)?;
    let wish = options::read(&request.options, mac).map_err(refusal)?;
    let noted: DockerEndpoint = finish(node.note_docker(request.endpoint, wish)).await?;
    let mac = if mac.is_some() {
        String::new()
    } else {
        noted.mac.map(|byte| format!("{byte:02x}")).join(":")
    };
    Ok(Reply(CreatedEndpoint {
        interface: Interface {
            address: format!("{}/32", noted.namespace_address),
            address_v6: String::new(),
            mac,
        },
    }))
}

pub async fn join(State(node): State<Arc<Node>>, ConnectInfo(peer): Caller, body: Bytes) -> Answer<Joined> {
    peer.check().map_err(refusal)?;
    let request: Endpoint = read(&body)?;
    let home = peer.namespace().map_err(refusal)?;
    let src_name = finish(node.join_docker(request.endpoint, home)).await?;
    let gateway = Ipv4Addr::from(GATEWAY);
    Ok(Reply(Joined {
        interface_name: InterfaceName {
            src_name,
            dst_prefix: "eth",
        },
        gateway,
        static_routes: [StaticRoute {
            destination: format!("{gateway}/32"),
            route_type: StaticRoute::ON_LINK,
        }],
        disable_gateway_service: true,
    }))
}

pub async fn leave(State(node): State<Arc<Node>>, ConnectInfo(peer): Caller, body: Bytes) -> Answer<Options> {
    peer.check().map_err(refusal)?;
    let request: Endpoint = read(&body)?;
    finish(node.leave_docker(request.endpoint)).await?;
    Ok(Reply(Options::new()))
}

pub async fn delete_endpoint(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): Caller,
    body: Bytes,
) -> Answer<Options> {
    peer.check().map_err(refusal)?;
    let request: Endpoint = read(&body)?;
    finish(node.delete_docker(request.endpoint)).await?;
    Ok(Reply(Options::new()))
}

pub async fn endpoint_information() -> Reply<EndpointInformation> {
    Reply(EndpointInformation {
        value: Options::new(),
    })
}

pub async fn unknown(uri: Uri) -> Response {
    let refusal = Refusal(format!("this driver knows no call {}", uri.path()));
    (StatusCode::NOT_FOUND, refusal).into_response()
}

/// Runs what changes something in a task of its own: a caller that hangs up does not leave it half-done.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, AttachError>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.map_err(refusal)?.map_err(refusal)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // What Docker sends when it had no answer and asks again.
    if body.is_empty() {
        let text = "NetManager was started anew while Docker waited for it; start the container again";
        return Err(Refusal(text.to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| Refusal(format!("the call cannot be read: {error}")))
}

/// The Ethernet address that the container is to have; none where the text is empty.
fn mac_of(text: &str) -> Result<Option<[u8; 6]>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    mac.map(Some)
        .ok_or_else(|| Refusal(format!("{text:?} is no Ethernet address")))
}

fn refusal(error: impl std::error::Error + 'static) -> Refusal {
    Refusal(chain(&error))
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        document(&self.0)
    }
}

impl IntoResponse for Refusal {
    /// Without an error of HTTP: Docker shows the text alone then.
    fn into_response(self) -> Response {
        tracing::warn!(reason = self.0, "Docker was refused");
        document(&json!({ "Err": self.0 }))
    }
}

fn document(content: &impl Serialize) -> Response {
    match serde_json::to_vec(content) {
        Ok(body) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_is_read_or_refused() {
        assert!(matches!(mac_of(""), Ok(None)));
        assert!(matches!(
            mac_of("02:42:0a:00:00:02"),
            Ok(Some([2, 0x42, 0x0a, 0, 0, 2]))
        ));
        for bad in [
            "02:42",
            "02:42:0a:00:00:zz",
            "02-42-0a-00-00-02",
            "02:42:0a:00:00:02:03",
        ] {
            assert!(mac_of(bad).is_err(), "{bad}");
        }
    }
}
