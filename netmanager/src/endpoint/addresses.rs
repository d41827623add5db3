//! Which namespace addresses are in use.
//!
//! In each subnet of 64 addresses the first is the network's, the next the node's, the last nobody's, and
//! those between are containers'. The IPv6 subnet beside it gives each of them the address with the same
//! number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

/// Length of an IPv4 subnet's prefix.
pub const SUBNET_PREFIX_LENGTH: u8 = 26;
/// Length of an IPv6 subnet's prefix.
pub const SUBNET_PREFIX_LENGTH_V6: u8 = 120;
/// The address that nodes of the original system give their tunnel interface, every one the same.
pub const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 19, 1, 254);

/// Number of the node's own address in its subnet.
const NODE: u8 = 1;
/// Numbers of containers' addresses in their subnet.
const CONTAINERS: std::ops::RangeInclusive<u8> = 2..=62;

/// A subnet that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubnetError {
    #[error("{0} is not a subnet of 64 addresses")]
    Size(Ipv4Network),
    #[error("{0} is not a subnet of 256 addresses")]
    SizeV6(Ipv6Network),
}

/// All addresses of all subnets are in use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("all {0} namespace addresses are in use")]
pub struct Exhausted(pub usize);

/// The namespace addresses of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceAddresses {
    pub v4: Ipv4Addr,
    /// Where the node has an IPv6 subnet beside the IPv4 one.
    pub v6: Option<Ipv6Addr>,
}

/// Gives out namespace addresses. The caller keeps it in the state file.
///
/// An address that is released is given out again only when there is none left that never was, and then the
/// one that has been free for the longest time, so that whoever still remembers its last owner has time to
/// forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// By the network's address; the value is the subnet.
    subnets: BTreeMap<Ipv4Addr, Subnet>,
    /// In the order in which the subnets came.
    order: Vec<Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    /// Oldest first.
    freed: VecDeque<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subnet {
    v6: Option<Ipv6Addr>,
    /// Number of the next address that was never used.
    next: u8,
}

impl Addresses {
    /// Adds a subnet; one that is there already gets the IPv6 subnet given.
    ///
    /// # Errors
    /// It has not the size that subnets have.
    pub fn add_subnet(&mut self, v4: Ipv4Network, v6: Option<Ipv6Network>) -> Result<(), SubnetError> {
        if v4.prefix() != SUBNET_PREFIX_LENGTH {
            return Err(SubnetError::Size(v4));
        }
        if let Some(v6) = v6.filter(|v6| v6.prefix() != SUBNET_PREFIX_LENGTH_V6) {
            return Err(SubnetError::SizeV6(v6));
        }
        let network = v4.network();
        let v6 = v6.map(|v6| v6.network());
        if let Some(subnet) = self.subnets.get_mut(&network) {
            subnet.v6 = v6;
        } else {
            self.subnets.insert(
                network,
                Subnet {
                    v6,
                    next: *CONTAINERS.start(),
                },
            );
            self.order.push(network);
        }
        Ok(())
    }

    /// The node's own address: the first of its first subnet.
    pub fn node(&self) -> Option<NamespaceAddresses> {
        let network = self.order.first()?;
        self.both(numbered(*network, NODE))
    }

    /// Gives out an address.
    ///
    /// # Errors
    /// There is none left.
    pub fn allocate(&mut self) -> Result<NamespaceAddresses, Exhausted> {
        let address = self.never_used().or_else(|| self.freed.pop_front());
        let address = address.ok_or(Exhausted(self.used.len()))?;
        self.used.insert(address);
        Ok(self.both(address).unwrap_or(NamespaceAddresses {
            v4: address,
            v6: None,
        }))
    }

    /// Takes an address that is in use whatever this state says, such as that of an endpoint that was found.
    /// Whether it was free, and a container's address of one of the subnets.
    pub fn reserve(&mut self, address: Ipv4Addr) -> bool {
        let network = network_of(address);
        let number = number_of(address);
        let Some(subnet) = self.subnets.get_mut(&network) else {
            return false;
        };
        if !is_container(address) || self.used.contains(&address) {
            return false;
        }
        if let Some(position) = self.freed.iter().position(|freed| *freed == address) {
            self.freed.remove(position);
        } else {
            // Those it skips were never used: they wait behind the freed ones, which is late but right.
            self.freed.extend(
                (subnet.next..number)
                    .map(|n| numbered(network, n))
                    .filter(|a| is_container(*a)),
            );
            subnet.next = subnet.next.max(number + 1);
        }
        self.used.insert(address)
    }

    /// Takes an address back. Whether it was in use.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        let was_used = self.used.remove(&address);
        if was_used {
            self.freed.push_back(address);
        }
        was_used
    }

    /// The addresses of an endpoint whose IPv4 address is known; `None` outside the subnets.
    pub fn both(&self, v4: Ipv4Addr) -> Option<NamespaceAddresses> {
        let subnet = self.subnets.get(&network_of(v4))?;
        let v6 = subnet
            .v6
            .map(|v6| Ipv6Addr::from_bits(v6.to_bits() | u128::from(number_of(v4))));
        Some(NamespaceAddresses { v4, v6 })
    }

    /// The addresses that are in use.
    pub fn used(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.used.iter().copied()
    }

    /// How many are left. The node asks for a further subnet when they get few.
    pub fn free(&self) -> usize {
        let never_used = self.order.iter().map(|network| {
            let next = self.subnets.get(network).map_or(u8::MAX, |subnet| subnet.next);
            (next..=*CONTAINERS.end())
                .filter(|number| is_container(numbered(*network, *number)))
                .count()
        });
        self.freed.len() + never_used.sum::<usize>()
    }

    fn never_used(&mut self) -> Option<Ipv4Addr> {
        for network in &self.order {
            let Some(subnet) = self.subnets.get_mut(network) else {
                continue;
            };
            while subnet.next <= *CONTAINERS.end() {
                let address = numbered(*network, subnet.next);
                subnet.next += 1;
                if is_container(address) {
                    return Some(address);
                }
            }
        }
        None
    }
}

fn is_container(address: Ipv4Addr) -> bool {
    CONTAINERS.contains(&number_of(address)) && address != RESERVED
}

fn number_of(address: Ipv4Addr) -> u8 {
    address.octets()[3] & 63
}

fn network_of(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & !63)
}

fn numbered(network: Ipv4Addr, number: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() | u32::from(number))
}

#[cfg(test)]
mod tests;
