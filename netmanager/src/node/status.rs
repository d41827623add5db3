//! What a node says about itself.

use std::net::Ipv4Addr;

use dataplane_ebpf::tables::LAYOUT;
use protocol::ports::PortMappings;
use serde::{Deserialize, Serialize};

use super::{FlowFigures, Node, host_address, lock};
use crate::dataplane::CounterRow;
use crate::directory::ServiceView;
use crate::host::firewall;
use crate::trace::{Question, Site, Trace};

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node_id: String,
    pub subnet: String,
    /// Address of the node itself inside the overlay.
    pub namespace_address: Ipv4Addr,
    /// Address by which others reach the node itself.
    pub instance_address: Option<Ipv4Addr>,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    pub local_addresses: Vec<Ipv4Addr>,
    /// The address that peers are told to send to.
    pub announced_address: Option<Ipv4Addr>,
    /// How tunnel datagrams are taken off the wire.
    pub uplink_mode: String,
    /// How programs are attached: `tcx`, or `clsact` where the kernel has no better.
    #[serde(default)]
    pub attachment: String,
    pub layout: u32,
    pub mtu: u16,
    pub endpoints: usize,
    pub services: usize,
    pub nodes: Vec<String>,
    /// Whether the cluster can be asked.
    pub connected: bool,
    pub connection: String,
    /// Why first packets to unknown addresses are not read; `None` when they are.
    #[serde(default)]
    pub upcalls_broken: Option<String>,
    /// Packets that did not wait for an answer because there was no room, because the address had just been asked
    /// for in vain, and that waited in vain.
    pub parked_full: u64,
    pub parked_refused: u64,
    pub parked_unanswered: u64,
    /// The tables of flows, as they were seen last.
    #[serde(default)]
    pub flows: FlowFigures,
}

/// An endpoint, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub service: String,
    pub instance: u32,
    pub namespace_address: Ipv4Addr,
    pub instance_address: Ipv4Addr,
    pub incarnation: u64,
    /// The process that was attached; none where Docker asked for it.
    pub pid: Option<u32>,
    /// The endpoint of Docker, where Docker asked for it.
    #[serde(default)]
    pub docker_endpoint: Option<String>,
    pub interface: String,
    /// Ports of the node that lead to it, `host:container/protocol` separated by `;`.
    #[serde(default)]
    pub ports: PortMappings,
}

impl Node {
    /// The node at a glance.
    pub async fn status(&self) -> Status {
        let endpoints = self.kept.lock().await.state.endpoints.len();
        let (connected, connection) = lock(&self.connection).clone();
        let parked = lock(&self.parking).dropped();
        let directory = self.directory();
        Status {
            node_id: self.registration.node_id.clone(),
            subnet: format!("{}/26", self.registration.subnet),
            namespace_address: host_address(&self.registration),
            instance_address: self.registration.instance_address,
            tunnel_port: self.config.listen_port,
            local_addresses: lock(&self.local_addresses).clone(),
            announced_address: *lock(&self.announced),
            uplink_mode: "tc".to_owned(),
            attachment: lock(&self.dataplane).attachment().as_str().to_owned(),
            layout: LAYOUT,
            mtu: self.config.mtu,
            endpoints,
            services: directory.service_count(),
            nodes: directory
                .node_keys()
                .iter()
                .map(|key| format!("{}:{}", key.address, key.port))
                .collect(),
            connected,
            connection,
            upcalls_broken: lock(&self.upcalls_broken).clone(),
            parked_full: parked.full,
            parked_refused: parked.refused,
            parked_unanswered: parked.unanswered,
            flows: self.flows.figures(),
        }
    }

    /// The endpoints of this node.
    pub async fn endpoints(&self) -> Vec<EndpointView> {
        let kept = self.kept.lock().await;
        let view = |endpoint: &crate::state::EndpointState| EndpointView {
            service: endpoint.service.clone(),
            instance: endpoint.number,
            namespace_address: endpoint.namespace_address,
            instance_address: endpoint.instance_address,
            incarnation: endpoint.incarnation,
            pid: endpoint.pid,
            docker_endpoint: endpoint.docker.clone(),
            interface: endpoint
                .attached
                .as_ref()
                .map_or_else(String::new, |attached| attached.interface_name.clone()),
            ports: endpoint.ports.clone(),
        };
        kept.state.endpoints.values().map(view).collect()
    }

    /// The service addresses that this node knows.
    pub fn services(&self) -> Vec<ServiceView> {
        self.directory().services()
    }

    /// What the data plane would do with a packet.
    ///
    /// # Errors
    /// When the kernel refuses to show a table.
    pub fn trace(&self, question: &Question) -> anyhow::Result<Trace> {
        let site = Site {
            tunnel_port: self.config.listen_port,
            host_address: host_address(&self.registration),
        };
        Ok(self.directory().trace(site, question)?)
    }

    /// What happened to packets: the data plane's counters, and what the firewall kept from tunnel ports
    /// and out of the overlay.
    ///
    /// # Errors
    /// When the kernel refuses to read the counters.
    pub async fn counters(&self) -> anyhow::Result<Vec<CounterRow>> {
        let mut rows = self.all_counters().await?;
        rows.retain(|row| row.packets > 0);
        Ok(rows)
    }

    /// As [`Self::counters`], with those that are zero.
    ///
    /// # Errors
    /// As [`Self::counters`].
    pub async fn all_counters(&self) -> anyhow::Result<Vec<CounterRow>> {
        let mut rows = self.directory().all_counters()?;
        for counter in firewall::counters(&self.registration.node_id).await? {
            rows.push(CounterRow {
                hook: "firewall".to_owned(),
                name: counter.name.to_uppercase(),
                dropped: true,
                packets: counter.packets,
                bytes: counter.bytes,
                meaning: firewall::meaning(&counter.name).to_owned(),
            });
        }
        Ok(rows)
    }
}
