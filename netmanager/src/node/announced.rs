//! Which address other nodes are told to send to.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::{Node, lock};
use crate::host::uplink;

/// An address of the Internet, to see which way leads there; nothing is sent to it.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// How long a name server may take; it may well be out of reach just now.
const LOOKUP_WITHIN: Duration = Duration::from_secs(1);
/// How long the outcome of a look-up holds, whatever it was.
const LOOKUP_EVERY: Duration = Duration::from_secs(60);

/// Where the cluster is, as far as it is known.
#[derive(Debug, Default)]
pub struct ClusterAddresses {
    addresses: Vec<Ipv4Addr>,
    asked: Option<Instant>,
}

impl Node {
    /// Finds out which address peers are to send to: the configured one, that of the configured interface, that
    /// towards the cluster or the Internet, any. Tells the cluster when it is another one than was told last; as
    /// long as there is none, that one stays, for there is no better.
    pub(super) async fn find_announced(&self, own: &[(u32, Ipv4Addr)]) {
        let found = match (self.config.announced_address, &self.config.default_interface) {
            (Some(address), _) => Some(address),
            (None, Some(name)) => self.address_of_interface(name, own).await,
            (None, None) => self.address_towards_others(own).await,
        };
        // Any address is a guess: it is only made when there has never been anything better.
        let may_guess = self.config.default_interface.is_none();
        let guess = own.first().map(|(_, address)| *address).filter(|_| may_guess);
        match self.note_announced(found, guess) {
            (Some(address), last) if last != Some(address) => {
                tracing::info!(%address, "the address that other nodes send to");
                self.announce_all().await;
            }
            (Some(_), _) => {}
            (None, _) => tracing::warn!("no address to announce: other nodes do not find this one"),
        }
    }

    /// Notes what was found, the guess only if there was nothing before. What is announced now, and was before.
    fn note_announced(
        &self,
        found: Option<Ipv4Addr>,
        guess: Option<Ipv4Addr>,
    ) -> (Option<Ipv4Addr>, Option<Ipv4Addr>) {
        let mut announced = lock(&self.announced);
        let last = *announced;
        *announced = found.or(last).or(guess);
        (*announced, last)
    }

    async fn address_of_interface(&self, name: &str, own: &[(u32, Ipv4Addr)]) -> Option<Ipv4Addr> {
        match self.netlink.link_by_name(name).await {
            Ok(link) => {
                let index = link?.index;
                let found = own.iter().find(|(interface, _)| *interface == index);
                found.map(|(_, address)| *address)
            }
            Err(error) => {
                tracing::warn!(%error, interface = name, "cannot look at the configured interface");
                None
            }
        }
    }

    async fn address_towards_others(&self, own: &[(u32, Ipv4Addr)]) -> Option<Ipv4Addr> {
        for target in self.cluster_addresses().await.into_iter().chain([SOMEWHERE]) {
            // The cluster may be on this very machine.
            if own.iter().any(|(_, address)| *address == target) {
                return Some(target);
            }
            if let Ok(route) = uplink::route_to(&self.netlink, target).await {
                return Some(route.source);
            }
        }
        None
    }

    /// The addresses of the cluster that the registration or the configuration names.
    async fn cluster_addresses(&self) -> Vec<Ipv4Addr> {
        let configured = self.config.cluster_host.as_deref().unwrap_or_default();
        let host = match self.registration.cluster_address.as_str() {
            "" => configured,
            registered => registered,
        };
        if host.is_empty() {
            return Vec::new();
        }
        if let Ok(address) = host.parse() {
            return vec![address];
        }
        {
            let mut cluster = lock(&self.cluster);
            if cluster.asked.is_some_and(|asked| asked.elapsed() < LOOKUP_EVERY) {
                return cluster.addresses.clone();
            }
            cluster.asked = Some(Instant::now());
        }
        let lookup = tokio::net::lookup_host((host, self.config.cluster_port));
        let found: Vec<Ipv4Addr> = match tokio::time::timeout(LOOKUP_WITHIN, lookup).await {
            Ok(Ok(found)) => found
                .filter_map(|address| match address.ip() {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            Ok(Err(error)) => {
                tracing::debug!(%error, host, "the cluster's name is not known");
                Vec::new()
            }
            Err(_elapsed) => {
                tracing::debug!(host, "no answer about the cluster's name in time");
                Vec::new()
            }
        };
        let mut cluster = lock(&self.cluster);
        if !found.is_empty() {
            cluster.addresses = found;
        }
        cluster.addresses.clone()
    }
}
