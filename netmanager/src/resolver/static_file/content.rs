//! What one version of the file says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use protocol::network::{InstanceRow, IpType, Lenient, PeerRow, ServiceAddress, ServiceName};
use serde::Deserialize;

use super::StaticFileError;
use crate::resolver::rows::{self, Skip};
use crate::resolver::{InstanceRecord, Lease, ServiceRecord};

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    subnet: Ipv4Addr,
    subnet_v6: Option<Ipv6Addr>,
    instance_ip: Option<Ipv4Addr>,
    instance_ip_v6: Option<Ipv6Addr>,
    #[serde(default)]
    app_id: u32,
    #[serde(default)]
    peers: Vec<PeerRow>,
    #[serde(default)]
    services: Vec<ServiceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceEntry {
    name: ServiceName,
    #[serde(default)]
    rr: Vec<Ipv4Addr>,
    #[serde(default)]
    closest: Vec<Ipv4Addr>,
    #[serde(default)]
    delay_milliseconds: u64,
    #[serde(default)]
    instances: Vec<InstanceRow>,
}

/// What the file says, checked.
pub(super) struct Content {
    pub(super) lease: Lease,
    pub(super) peers: Vec<InstanceRecord>,
    /// By name.
    pub(super) services: BTreeMap<String, Service>,
}

/// One service of the file.
pub(super) struct Service {
    pub(super) record: ServiceRecord,
    /// By which it is found, beside its name.
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    pub(super) delay: Duration,
}

impl Content {
    /// Reads the file at `path`. One bad row refuses the whole file: a person wrote it, and is best helped by
    /// hearing of it.
    pub(super) fn read(path: &Path) -> Result<Self, StaticFileError> {
        let text = std::fs::read(path).map_err(|source| StaticFileError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let document: Document = serde_json::from_slice(&text).map_err(|source| StaticFileError::Json {
            path: path.to_owned(),
            source,
        })?;
        Self::check(document).map_err(|problem| StaticFileError::Content {
            path: path.to_owned(),
            problem,
        })
    }

    fn check(document: Document) -> Result<Self, String> {
        let lease = Lease {
            subnet: rows::subnet(document.subnet)?,
            subnet_v6: document.subnet_v6,
            instance_address: document
                .instance_ip
                .map(rows::node_instance_address)
                .transpose()?,
            instance_address_v6: document.instance_ip_v6,
            application: document.app_id,
        };
        for peer in &document.peers {
            check_row(&peer.app_name, &peer.row)?;
        }
        let peers = rows::peers(document.peers.into_iter().map(Lenient::from).collect());

        let mut services = BTreeMap::new();
        for entry in document.services {
            let name = entry.name.as_str().to_owned();
            let service = Service::check(entry)?;
            if services.insert(name.clone(), service).is_some() {
                return Err(format!("service {name} is there twice"));
            }
        }
        Ok(Self {
            lease,
            peers,
            services,
        })
    }
}

impl Service {
    fn check(entry: ServiceEntry) -> Result<Self, String> {
        for row in &entry.instances {
            check_row(&entry.name, row)?;
        }
        let service_address = |key: &str, kind, address: Ipv4Addr| {
            if !dataplane_ebpf::address::is_service_or_instance(address.octets()) {
                return Err(format!(
                    "service {}: {key} {address} is not in 10.30.0.0/16",
                    entry.name
                ));
            }
            Ok(ServiceAddress {
                kind,
                address: Some(address),
                address_v6: None,
            })
        };
        let round_robin = entry
            .rr
            .iter()
            .map(|address| ("rr", IpType::RoundRobin, *address));
        let closest = entry
            .closest
            .iter()
            .map(|address| ("closest", IpType::Closest, *address));
        let service_addresses: Vec<_> = round_robin
            .chain(closest)
            .map(|(key, kind, address)| service_address(key, kind, address))
            .collect::<Result<_, _>>()?;
        let rows = entry.instances.into_iter().map(Lenient::from).collect();
        let table = rows::table(&entry.name, rows, &service_addresses);
        let delay = Duration::from_millis(entry.delay_milliseconds);
        Ok(Self {
            record: table.record,
            addresses: table.addresses,
            delay,
        })
    }
}

fn check_row(service: &ServiceName, row: &InstanceRow) -> Result<(), String> {
    match rows::instance(service, row.clone()) {
        Ok(_) | Err(Skip::Pending) => Ok(()),
        Err(Skip::Malformed(problem)) => Err(format!(
            "service {service}, instance {}: {problem}",
            row.instance_number
        )),
    }
}
