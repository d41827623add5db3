//! The translation table: what of it is here, with what the root knows of other clusters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use protocol::job::{InstanceKey, Placement};
use protocol::network::{
    InstanceRow, IpType, Lenient, PeerRow, ServiceAddress, ServiceName, TableQuery, TableResult,
};
use protocol::node::{of_overlay_name, overlay_name};

use super::super::records::Attached;
use super::{Core, Instance, Node};

/// Where tunnels end that nobody has said anything about.
const TUNNEL_PORT: u16 = 50103;

impl Core {
    /// The service that a question is about, as far as it is known here.
    pub(super) fn find(&self, query: &TableQuery) -> Option<ServiceName> {
        if query.sip.is_empty() {
            let service: ServiceName = query.sname.parse().ok()?;
            let known = self.is_known(&service)
                || self.network.remote.contains_key(&service)
                || self.node_of_name(&service).is_some();
            return known.then_some(service);
        }
        let address: IpAddr = query.sip.parse().ok()?;
        let here = self
            .instances
            .iter()
            .find(|(_, instance)| leads_to(&instance.record.placement, address));
        if let Some((key, _)) = here {
            return Some(key.job_name.clone());
        }
        if let Some(service) = self.draining_at(address) {
            return Some(service.clone());
        }
        let node = self.nodes.values().find(|node| {
            let lease = node.record.lease.as_ref();
            lease.is_some_and(|lease| is(address, Some(lease.instance_ip), lease.instance_ip_v6))
        });
        if let Some(node) = node {
            return overlay_name(&node.record.id);
        }
        let elsewhere = self.network.remote.iter().find(|(_, table)| {
            let of_service = table
                .service_ip
                .iter()
                .any(|service| is(address, service.address, service.address_v6));
            of_service
                || rows(&table.instance_list).any(|row| {
                    is(address, row.instance_ip, row.instance_ip_v6)
                        || row
                            .service_ip
                            .iter()
                            .any(|service| is(address, service.address, service.address_v6))
                })
        });
        elsewhere.map(|(service, _)| service.clone())
    }

    /// Whether instances of a service are placed here.
    pub(super) fn is_known(&self, service: &ServiceName) -> bool {
        self.of_service(service).next().is_some() || self.draining_of(service).next().is_some()
    }

    fn of_service<'a>(&'a self, service: &ServiceName) -> impl Iterator<Item = &'a Instance> {
        let first = InstanceKey {
            job_name: service.clone(),
            instance_number: 0,
        };
        let last = InstanceKey {
            job_name: service.clone(),
            instance_number: u32::MAX,
        };
        self.instances.range(first..=last).map(|(_, instance)| instance)
    }

    pub(super) fn node_of_name(&self, service: &ServiceName) -> Option<&Node> {
        self.nodes.get(of_overlay_name(service)?)
    }

    /// Everything that is known of a service, wherever it is.
    pub(super) fn table(&self, service: &ServiceName) -> Option<TableResult> {
        if let Some(node) = self.node_of_name(service) {
            return Some(TableResult {
                app_name: Some(service.clone()),
                instance_list: self.node_row(node).map(Lenient::Read).into_iter().collect(),
                query_key: String::new(),
                service_ip: Vec::new(),
            });
        }
        let remote = self.network.remote.get(service);
        let mut here: BTreeMap<u32, InstanceRow> = self
            .of_service(service)
            .map(|instance| (instance.record.placement.instance_number, self.row(instance)))
            .collect();
        for (stop, draining) in self.draining_of(service) {
            // Where another placement of the same instance is there already, that one counts.
            here.entry(draining.placement.instance_number)
                .or_insert_with(|| self.draining_row(stop, draining));
        }
        if here.is_empty() && remote.is_none() {
            return None;
        }
        let placed = self
            .of_service(service)
            .map(|instance| &instance.record.placement);
        let draining = self.draining_of(service).map(|(_, draining)| &draining.placement);
        let service_ip = match placed.chain(draining).next() {
            Some(placement) => placement.service_ip.clone(),
            None => remote.map(|table| table.service_ip.clone()).unwrap_or_default(),
        };
        for row in remote.iter().flat_map(|table| rows(&table.instance_list)) {
            // What the root says of this cluster is older than what this cluster knows.
            let of_this_cluster = !self.id.is_empty() && row.cluster_id.as_ref() == Some(&self.id);
            if !of_this_cluster {
                here.entry(row.instance_number).or_insert_with(|| row.clone());
            }
        }
        Some(TableResult {
            app_name: Some(service.clone()),
            instance_list: here.into_values().map(Lenient::Read).collect(),
            query_key: String::new(),
            service_ip,
        })
    }

    pub(super) fn row(&self, instance: &Instance) -> InstanceRow {
        let record = &instance.record;
        self.row_of(
            &record.placement,
            record.incarnation,
            record.node.as_deref(),
            record.attached,
        )
    }

    pub(super) fn row_of(
        &self,
        placement: &Placement,
        incarnation: u64,
        node: Option<&str>,
        attached: Option<Attached>,
    ) -> InstanceRow {
        let mut row = InstanceRow {
            instance_number: placement.instance_number,
            instance_ip: placement.instance_ip,
            instance_ip_v6: placement.instance_ip_v6,
            cluster_id: Some(self.id.clone()).filter(|id| !id.is_empty()),
            worker_id: node.map(str::to_owned),
            service_ip: placement.service_ip.clone(),
            incarnation: Some(incarnation),
            node_id: node.map(str::to_owned),
            app_id: Some(placement.app_id),
            ..InstanceRow::default()
        };
        row.service_ip.push(ServiceAddress {
            kind: IpType::Instance,
            address: placement.instance_ip,
            address_v6: placement.instance_ip_v6,
        });
        let node = node.and_then(|id| self.nodes.get(id));
        if let (Some(attached), Some((address, port))) = (attached, node.and_then(Node::tunnel)) {
            row.namespace_ip = Some(attached.namespace_ip);
            row.namespace_ip_v6 = attached.namespace_ip_v6;
            row.host_ip = Some(address);
            row.host_port = Some(port);
        }
        row
    }

    /// A node is an instance too; its namespace address is the first of its subnet.
    fn node_row(&self, node: &Node) -> Option<InstanceRow> {
        let lease = node.record.lease.as_ref()?;
        let (address, port) = node.tunnel()?;
        let first_v6 = lease.subnet_v6.map(|subnet| (subnet.to_bits() + 1).into());
        Some(InstanceRow {
            instance_number: 0,
            instance_ip: Some(lease.instance_ip),
            instance_ip_v6: lease.instance_ip_v6,
            cluster_id: Some(self.id.clone()).filter(|id| !id.is_empty()),
            worker_id: Some(node.record.id.clone()),
            namespace_ip: Some((lease.subnet.to_bits() + 1).into()),
            namespace_ip_v6: first_v6,
            host_ip: Some(address),
            host_port: Some(port),
            service_ip: vec![ServiceAddress {
                kind: IpType::Instance,
                address: Some(lease.instance_ip),
                address_v6: lease.instance_ip_v6,
            }],
            node_id: Some(node.record.id.clone()),
            ..InstanceRow::default()
        })
    }

    /// The node itself and what is attached on it.
    pub(super) fn rows_of_node(&self, id: &str) -> Vec<PeerRow> {
        let itself = self.nodes.get(id).and_then(|node| {
            Some(PeerRow {
                app_name: overlay_name(id)?,
                row: self.node_row(node)?,
            })
        });
        let instances = self.instances.iter().filter(|(_, instance)| instance.is_on(id));
        let instances = instances.map(|(key, instance)| PeerRow {
            app_name: key.job_name.clone(),
            row: self.row(instance),
        });
        itself
            .into_iter()
            .chain(instances.filter(|peer| peer.row.namespace_ip.is_some()))
            .collect()
    }
}

impl Node {
    /// Where its tunnel ends: as it says, or as is usual.
    fn tunnel(&self) -> Option<(IpAddr, u16)> {
        match self.record.tunnel {
            Some(tunnel) => Some((tunnel.address, tunnel.port)),
            None => Some((self.address()?, TUNNEL_PORT)),
        }
    }
}

/// The rows that can be read.
pub(super) fn rows(list: &[Lenient<InstanceRow>]) -> impl Iterator<Item = &InstanceRow> {
    list.iter().filter_map(|row| match row {
        Lenient::Read(row) => Some(row),
        Lenient::Malformed { .. } => None,
    })
}

/// Whether an address is that of an instance or of its service.
pub(super) fn leads_to(placement: &Placement, address: IpAddr) -> bool {
    is(address, placement.instance_ip, placement.instance_ip_v6)
        || placement
            .service_ip
            .iter()
            .any(|service| is(address, service.address, service.address_v6))
}

fn is(address: IpAddr, v4: Option<std::net::Ipv4Addr>, v6: Option<std::net::Ipv6Addr>) -> bool {
    match address {
        IpAddr::V4(address) => v4 == Some(address),
        IpAddr::V6(address) => v6 == Some(address),
    }
}
