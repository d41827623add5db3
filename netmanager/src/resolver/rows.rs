//! From the rows of the wire to the records of the daemon: each row is checked on its own, and a row that is
//! not usable costs nobody but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use dataplane_ebpf::address;
use protocol::network::{InstanceRow, IpType, Lenient, PeerRow, ServiceAddress, ServiceName};
use tracing::{debug, warn};

use super::{InstanceRecord, NodeAddress, ServiceRecord};

/// Why a row is not a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// It is not running yet.
    Pending,
    /// What is wrong with it.
    Malformed(String),
}

/// What the rows of one service say.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) record: ServiceRecord,
    /// Every service and instance address that any of the rows names, also for instances that do not run.
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    /// Number of rows that could not be used, those of instances that do not run yet not counted.
    pub(super) malformed: usize,
}

/// Reads all rows of one service and the addresses that are named beside them.
pub(super) fn table(
    service: &ServiceName,
    rows: Vec<Lenient<InstanceRow>>,
    service_addresses: &[ServiceAddress],
) -> Table {
    let mut addresses = BTreeSet::new();
    let mut services = Services::default();
    let mut instances = BTreeMap::new();
    let mut malformed = 0;
    collect(service_addresses, &mut addresses, &mut services);

    for row in rows {
        let row = match row {
            Lenient::Read(row) => row,
            Lenient::Malformed { raw, error } => {
                malformed += 1;
                warn!(%service, %error, "row of the table skipped");
                debug!(%raw, "what the row was");
                continue;
            }
        };
        collect(&row.service_ip, &mut addresses, &mut services);
        addresses.extend(row.instance_ip);
        let number = row.instance_number;
        match instance(service, row) {
            Ok(record) => keep_newest(&mut instances, record),
            Err(Skip::Pending) => debug!(%service, number, "instance is not running yet"),
            Err(Skip::Malformed(error)) => {
                malformed += 1;
                warn!(%service, number, %error, "row of the table skipped");
            }
        }
    }

    let mut instances: Vec<InstanceRecord> = instances.into_values().collect();
    instances.sort_by_key(|instance| (instance.number, instance.address));
    let record = ServiceRecord {
        name: service.as_str().to_owned(),
        round_robin: services.round_robin.into_iter().collect(),
        closest: services.closest.into_iter().collect(),
        instances,
    };
    Table {
        record,
        addresses,
        malformed,
    }
}

/// Reads the rows of a push, which may belong to any services.
pub(super) fn peers(rows: Vec<Lenient<PeerRow>>) -> Vec<InstanceRecord> {
    let mut instances = BTreeMap::new();
    for row in rows {
        match row {
            Lenient::Read(PeerRow { app_name, row }) => {
                let number = row.instance_number;
                match instance(&app_name, row) {
                    Ok(record) => keep_newest(&mut instances, record),
                    Err(Skip::Pending) => debug!(service = %app_name, number, "peer is not running yet"),
                    Err(Skip::Malformed(error)) => {
                        warn!(service = %app_name, number, %error, "row of a peer skipped");
                    }
                }
            }
            Lenient::Malformed { raw, error } => {
                warn!(%error, "row of a peer skipped");
                debug!(%raw, "what the row was");
            }
        }
    }
    instances.into_values().collect()
}

/// Reads one row.
pub(super) fn instance(service: &ServiceName, row: InstanceRow) -> Result<InstanceRecord, Skip> {
    let (Some(namespace_address), Some(host), Some(port)) = (row.namespace_ip, row.host_ip, row.host_port)
    else {
        return Err(Skip::Pending);
    };
    let Some(instance_address) = row.instance_ip else {
        return malformed("a running instance has no instance_ip");
    };
    if !address::is_service_or_instance(instance_address.octets()) {
        return malformed(format!("instance_ip {instance_address} is not in 10.30.0.0/16"));
    }
    if !in_a_subnet(namespace_address) {
        return malformed(format!(
            "namespace_ip {namespace_address} is not in the subnet of any node"
        ));
    }
    let IpAddr::V4(host) = host else {
        return malformed(format!("host_ip {host}: tunnels between nodes are IPv4 only"));
    };
    if host.is_unspecified()
        || host.is_multicast()
        || host.is_broadcast()
        || address::in_overlay(host.octets())
    {
        return malformed(format!("host_ip {host} is not the address of a node"));
    }
    if port == 0 {
        return malformed("host_port 0 is not a port");
    }

    let incarnation = row.incarnation.filter(|incarnation| *incarnation != 0);
    Ok(InstanceRecord {
        service: service.as_str().to_owned(),
        number: row.instance_number,
        address: instance_address,
        namespace_address,
        incarnation: incarnation
            .unwrap_or_else(|| place_hash(instance_address, namespace_address, host, port)),
        node: NodeAddress {
            id: row.node_id.or(row.worker_id),
            address: host,
            port,
        },
        application: row.app_id.unwrap_or(0),
        draining: row.draining,
    })
}

/// Checks the first address of a node's /26.
pub(super) fn subnet(subnet: Ipv4Addr) -> Result<Ipv4Addr, String> {
    if !subnet.octets()[3].is_multiple_of(64) {
        return Err(format!("subnet {subnet} is not the first address of a /26"));
    }
    if !in_a_subnet(subnet) {
        return Err(format!(
            "subnet {subnet} is not in the part of 10.16.0.0/12 that nodes have"
        ));
    }
    Ok(subnet)
}

/// Checks the address by which a node itself is reached.
pub(super) fn node_instance_address(instance: Ipv4Addr) -> Result<Ipv4Addr, String> {
    if !address::is_service_or_instance(instance.octets()) {
        return Err(format!(
            "the node's own address {instance} is not in 10.30.0.0/16"
        ));
    }
    Ok(instance)
}

fn in_a_subnet(namespace: Ipv4Addr) -> bool {
    address::in_overlay(namespace.octets()) && !address::is_service_or_instance(namespace.octets())
}

fn malformed<T>(problem: impl Into<String>) -> Result<T, Skip> {
    Err(Skip::Malformed(problem.into()))
}

/// The addresses of one service by what they mean.
#[derive(Default)]
struct Services {
    round_robin: BTreeSet<Ipv4Addr>,
    closest: BTreeSet<Ipv4Addr>,
}

fn collect(
    service_addresses: &[ServiceAddress],
    addresses: &mut BTreeSet<Ipv4Addr>,
    services: &mut Services,
) {
    for service_address in service_addresses {
        let Some(address) = service_address.address else {
            continue;
        };
        if !address::is_service_or_instance(address.octets()) {
            warn!(%address, "service address outside of 10.30.0.0/16 skipped");
            continue;
        }
        addresses.insert(address);
        match service_address.kind {
            IpType::RoundRobin => services.round_robin.insert(address),
            IpType::Closest => services.closest.insert(address),
            IpType::Instance | IpType::Other(_) => continue,
        };
    }
}

/// Two rows for one address are two placements of one instance; the older one has ended.
fn keep_newest(instances: &mut BTreeMap<Ipv4Addr, InstanceRecord>, record: InstanceRecord) {
    match instances.get(&record.address) {
        Some(kept) if kept.incarnation >= record.incarnation => {
            debug!(service = %record.service, number = record.number, "older placement in the same table");
        }
        Some(_) | None => {
            instances.insert(record.address, record);
        }
    }
}

/// FNV-1a over where an instance is. It has to stay the same over restarts and versions, which the hashers of
/// the standard library do not promise.
fn place_hash(instance: Ipv4Addr, namespace: Ipv4Addr, host: Ipv4Addr, port: u16) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let place = [instance.octets(), namespace.octets(), host.octets()];
    let bytes = place.into_iter().flatten().chain(port.to_be_bytes());
    let hash = bytes.fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_whole_row_becomes_a_record() {
        let record = read(running()).expect("running");
        let expected = InstanceRecord {
            service: "a.b.c.d".to_owned(),
            number: 3,
            address: Ipv4Addr::new(10, 30, 0, 2),
            namespace_address: Ipv4Addr::new(10, 18, 0, 66),
            node: NodeAddress {
                id: Some("n2".to_owned()),
                address: Ipv4Addr::new(192, 0, 2, 11),
                port: 50103,
            },
            incarnation: 9,
            application: 4,
            draining: true,
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn a_place_without_a_number_gets_one_that_depends_on_the_place_only() {
        let without = |change: &[(&str, Value)]| {
            let mut row = running();
            row["incarnation"] = Value::Null;
            for (key, value) in change {
                row[*key] = value.clone();
            }
            read(row).expect("running").incarnation
        };
        let first = without(&[]);
        assert_eq!(first, 0x9cc4_36de_ec89_13e0, "the number outlives versions");
        assert_eq!(
            without(&[("draining", json!(false)), ("appId", Value::Null)]),
            first
        );
        assert_eq!(without(&[("incarnation", json!(0))]), first, "0 is no number");
        for change in [
            ("instance_ip", json!("10.30.0.3")),
            ("namespace_ip", json!("10.18.0.67")),
            ("host_ip", json!("192.0.2.12")),
            ("host_port", json!(50104)),
        ] {
            assert_ne!(without(std::slice::from_ref(&change)), first, "{change:?}");
        }
    }

    #[test]
    fn rows_that_are_not_usable_say_why() {
        let pending = [
            ("namespace_ip", Value::Null),
            ("host_ip", json!("")),
            ("host_port", Value::Null),
        ];
        for (key, value) in pending {
            let mut row = running();
            row[key] = value;
            assert_eq!(read(row), Err(Skip::Pending), "{key}");
        }
        let wrong = [
            ("instance_ip", Value::Null, "no instance_ip"),
            ("instance_ip", json!("10.18.0.2"), "not in 10.30.0.0/16"),
            (
                "namespace_ip",
                json!("10.30.0.2"),
                "not in the subnet of any node",
            ),
            (
                "namespace_ip",
                json!("192.0.2.2"),
                "not in the subnet of any node",
            ),
            ("host_ip", json!("2001:db8::1"), "IPv4 only"),
            ("host_ip", json!("0.0.0.0"), "not the address of a node"),
            ("host_ip", json!("10.18.0.1"), "not the address of a node"),
            ("host_port", json!(0), "not a port"),
        ];
        for (key, value, expected) in wrong {
            let mut row = running();
            row[key] = value.clone();
            match read(row) {
                Err(Skip::Malformed(error)) => assert!(error.contains(expected), "{key}: {error}"),
                other => panic!("{key} = {value}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_table_keeps_what_is_usable() {
        let rows = json!([
            {"instance_number": 2, "instance_ip": "10.30.0.4", "namespace_ip": "10.18.0.67",
             "host_ip": "192.0.2.11", "host_port": 50103,
             "service_ip": [{"IpType": "RR", "Address": "10.30.55.55"},
                            {"IpType": "Closest", "Address": "10.30.55.56"},
                            {"IpType": "instance_ip", "Address": "10.30.0.4"}]},
            {"instance_number": "two"},
            {"instance_number": 1, "instance_ip": "10.30.0.3",
             "service_ip": [{"IpType": "RR", "Address": "10.30.55.57"}, {"IpType": "RR", "Address": "8.8.8.8"}]},
            {"instance_number": 0, "instance_ip": "10.30.0.2", "namespace_ip": "10.18.0.66", "host_ip": "::1",
             "host_port": 50103}
        ]);
        let rows: Vec<Lenient<InstanceRow>> = serde_json::from_value(rows).expect("rows");
        let table = table(&name(), rows, &[]);
        assert_eq!(
            table.record.round_robin,
            [Ipv4Addr::new(10, 30, 55, 55), Ipv4Addr::new(10, 30, 55, 57)]
        );
        assert_eq!(table.record.closest, [Ipv4Addr::new(10, 30, 55, 56)]);
        let numbers: Vec<u32> = table
            .record
            .instances
            .iter()
            .map(|instance| instance.number)
            .collect();
        assert_eq!((numbers, table.malformed), (vec![2], 2));
        let last_octets: Vec<u8> = table
            .addresses
            .iter()
            .map(|address| address.octets()[3])
            .collect();
        assert_eq!(last_octets, [2, 3, 4, 55, 56, 57]);
    }

    #[test]
    fn the_newest_placement_of_an_address_wins_wherever_it_stands() {
        for order in [[1_u64, 2], [2, 1]] {
            let rows = order.map(|incarnation| {
                let mut row = running();
                row["incarnation"] = json!(incarnation);
                row["app_name"] = json!("a.b.c.d");
                serde_json::from_value(row).expect("row")
            });
            let records = peers(rows.into());
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].incarnation, 2, "{order:?}");
        }
    }

    fn running() -> Value {
        json!({
            "instance_number": 3, "instance_ip": "10.30.0.2", "namespace_ip": "10.18.0.66",
            "host_ip": "192.0.2.11", "host_port": "50103", "node_id": "n2", "incarnation": 9, "appId": 4,
            "draining": true
        })
    }

    fn read(row: Value) -> Result<InstanceRecord, Skip> {
        instance(&name(), serde_json::from_value(row).expect("row"))
    }

    fn name() -> ServiceName {
        "a.b.c.d".parse().expect("name")
    }
}
