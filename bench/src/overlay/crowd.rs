//! What else a node knows while it is measured: a thousand services and ten thousand flows.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::worker::{Instance, Service, Worker};
use lab::{Endpoint, wait_for};

use super::topology::FAR_SERVICE;

pub const SERVICES: u16 = 1_000;
pub const FLOWS: u16 = 10_000;

/// Services asked for at once: fewer packets than wait in the queue of the tap, which NetManager reads them from.
const BATCH: u16 = 200;
/// Outside the range of which the kernel gives ports to clients, so that no measurement uses the same.
const FIRST_PORT: u16 = 10_000;
/// Where datagrams go; nobody reads them.
const PORT: u16 = 9;
/// How long NetManager may take for a batch, or the data plane for the flows.
const DEADLINE: Duration = Duration::from_secs(20);

/// Sockets that take the datagrams of the flows, so that nothing answers that they are unwanted.
pub struct Receivers {
    _sockets: Vec<UdpSocket>,
}

/// A service in the crowd has one instance on the other host. No endpoint stands behind it.
pub fn services(host: Ipv4Addr) -> impl Iterator<Item = Service> {
    (0..SERVICES).map(move |number| {
        let name = format!("bench.test.crowd{number}.test");
        Service {
            addresses: vec![address(number)],
            instances: vec![Instance {
                service: name.clone(),
                number: 0,
                address: offset(Ipv4Addr::new(10, 30, 128, 0), number),
                namespace_address: offset(Ipv4Addr::new(10, 18, 64, 0), number),
                host,
                incarnation: 1,
            }],
            name,
            ..Service::default()
        }
    })
}

/// Makes the worker learn of every service in the crowd, and opens the flows. All of them begin at the client.
pub fn gather(worker: &Worker, client: &Endpoint, servers: &[Endpoint]) -> Result<Receivers> {
    learn(worker, client).context("cannot make NetManager learn of all services")?;
    let receivers = servers
        .iter()
        .map(|server| {
            server
                .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
                .with_context(|| format!("cannot bind UDP port {PORT} in {}", server.name()))
        })
        .collect::<Result<Vec<_>>>()?;
    open_flows(worker, client).context("cannot open the flows")?;
    Ok(Receivers { _sockets: receivers })
}

fn learn(worker: &Worker, client: &Endpoint) -> Result<()> {
    let socket = client
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?
        .context("cannot bind a UDP port")?;
    let addresses: Vec<Ipv4Addr> = std::iter::once(FAR_SERVICE)
        .chain((0..SERVICES).map(address))
        .collect();
    let known_before = known_services(worker)?;
    for (batch, learnt) in addresses.chunks(BATCH.into()).zip(1..) {
        for address in batch {
            socket
                .send_to(&[0], (*address, PORT))
                .with_context(|| format!("cannot send to {address}"))?;
        }
        let expected = known_before + (learnt * u64::from(BATCH)).min(addresses.len() as u64);
        wait_for("the services to be known", DEADLINE, || {
            Ok(known_services(worker)? >= expected)
        })?;
    }
    Ok(())
}

fn known_services(worker: &Worker) -> Result<u64> {
    worker.get("/status")?["services"]
        .as_u64()
        .context("NetManager does not tell how many services it knows")
}

fn open_flows(worker: &Worker, client: &Endpoint) -> Result<()> {
    let tunnelled = || worker.counter("from_endpoint", "TUNNEL");
    let before = tunnelled()?;
    client.enter(|| {
        for port in (FIRST_PORT..).take(FLOWS.into()) {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot bind UDP port {port}"))?;
            socket
                .send_to(&[0], (FAR_SERVICE, PORT))
                .with_context(|| format!("cannot send to {FAR_SERVICE}"))?;
        }
        Ok::<(), anyhow::Error>(())
    })??;
    wait_for("the flows to be open", DEADLINE, || {
        Ok(tunnelled()? - before >= u64::from(FLOWS))
    })
}

fn address(number: u16) -> Ipv4Addr {
    offset(Ipv4Addr::new(10, 30, 100, 0), number)
}

fn offset(first: Ipv4Addr, number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + u32::from(number))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everything_in_the_crowd_has_an_address_of_its_own() {
        let host = Ipv4Addr::new(192, 0, 2, 1);
        let addresses: HashSet<Ipv4Addr> = services(host)
            .flat_map(|service| {
                let [instance] = &service.instances[..] else {
                    panic!("{} has one instance", service.name);
                };
                [service.addresses[0], instance.address, instance.namespace_address]
            })
            .collect();
        assert_eq!(addresses.len(), 3 * usize::from(SERVICES));
    }
}
