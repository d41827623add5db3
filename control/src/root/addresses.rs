//! Who gets which address of the overlay.
//!
//! | range | for |
//! |---|---|
//! | 10.30.0.0/16 | services, instances and nodes, one pool |
//! | fdff:2000::/21 | services |
//! | fdff::/21 | instances and nodes |
//! | 10.18.0.0 to 10.29.255.255 in steps of /26 | subnets of nodes |
//! | fc00::/120 and up | the same for IPv6 |
//!
//! Addresses are given in turn, so that one that has become free is given again only after all others. An IPv6 address
//! ends in the last 16 bits of its IPv4 counterpart, so what is unique there is unique here; only the addresses that
//! people choose have to be avoided. Each address in use has one [`Holding`], written with whatever needs the address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol::cluster::Lease;
use protocol::descriptor::AddressWish;

use super::problem::Problem;
use super::records::{Holder, Holding, Node};
use super::state::Draft;

/// First address of the pool.
const POOL: u32 = u32::from_be_bytes([10, 30, 0, 0]);
/// Addresses in the pool.
const POOL_SIZE: u32 = 1 << 16;
/// First address of the first subnet.
const SUBNETS: u32 = u32::from_be_bytes([10, 18, 0, 0]);
/// Addresses of a subnet.
const SUBNET_SIZE: u32 = 64;
/// Subnets there are, up to 10.29.255.192.
const SUBNET_COUNT: u32 = 12 * 1024;
/// Nodes of other makes have this address themselves, all of them the same one.
const TUNNEL: u32 = u32::from_be_bytes([10, 19, 1, 254]);

const SERVICES_V6: [u16; 2] = [0xfdff, 0x2000];
const INSTANCES_V6: [u16; 2] = [0xfdff, 0];
const SUBNETS_V6: u128 = 0xfc00 << 112;

/// A service's addresses: those that it wishes for, or the next free ones.
pub fn take_for_service(
    draft: &mut Draft<'_>,
    holder: &Holder,
    wish: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    path: &str,
) -> Result<(Ipv4Addr, Ipv6Addr), Problem> {
    if let Some(address) = wish.0 {
        refuse_taken(draft, address.into(), &format!("{path}.addresses.rr_ip"))?;
    }
    if let Some(address) = wish.1 {
        refuse_taken(draft, address.into(), &format!("{path}.addresses.rr_ip_v6"))?;
    }
    let address = match wish.0 {
        Some(address) => address,
        None => next(draft)?,
    };
    let address_v6 = match wish.1 {
        Some(address) => address,
        None => counterpart(draft, SERVICES_V6, address),
    };
    hold(draft, holder, address, address_v6);
    Ok((address, address_v6))
}

/// The address of a service's closest instance: the one that it wishes for, or the next free one. It has no counterpart.
pub fn take_closest(
    draft: &mut Draft<'_>,
    holder: &Holder,
    wish: AddressWish,
    path: &str,
) -> Result<Ipv4Addr, Problem> {
    let address = match wish {
        AddressWish::This(address) => {
            refuse_taken(draft, address.into(), &format!("{path}.addresses.closest_ip"))?;
            address
        }
        AddressWish::Any => next(draft)?,
    };
    draft.holdings.put(Holding {
        address: address.into(),
        holder: holder.clone(),
    });
    Ok(address)
}

/// Gives the address of a closest instance back.
pub fn give_back_closest(draft: &mut Draft<'_>, address: Ipv4Addr) {
    draft.holdings.remove(&address.into());
}

/// The next free addresses, for an instance or a node.
pub fn take(draft: &mut Draft<'_>, holder: &Holder) -> Result<(Ipv4Addr, Ipv6Addr), Problem> {
    let address = next(draft)?;
    let address_v6 = counterpart(draft, INSTANCES_V6, address);
    hold(draft, holder, address, address_v6);
    Ok((address, address_v6))
}

/// Gives addresses back.
pub fn give_back(draft: &mut Draft<'_>, address: Ipv4Addr, address_v6: Ipv6Addr) {
    draft.holdings.remove(&address.into());
    draft.holdings.remove(&address_v6.into());
}

/// The addresses of a node: those that it has here, else those that it holds as far as they are free, else new ones.
/// `key` has to be the one that the node showed the first time.
pub fn lease(
    draft: &mut Draft<'_>,
    node: &str,
    key: Option<&str>,
    held: Option<&Lease>,
) -> Result<Lease, Problem> {
    if let Some(known) = draft.nodes.get(&node.to_owned()) {
        if known.key.as_deref() != key {
            return Err(Problem::conflict(format!(
                "node {node} is another one: it has shown another key"
            )));
        }
        return Ok(known.lease.clone());
    }
    let lease = match held.filter(|held| is_free(draft, held)) {
        Some(held) => take_over(draft, node, held),
        None => new_lease(draft, node)?,
    };
    draft.nodes.put(Node {
        id: node.to_owned(),
        key: key.map(str::to_owned),
        lease: lease.clone(),
    });
    Ok(lease)
}

/// Whether nobody has any of the addresses of a lease, and all of them are of the ranges that are given away.
fn is_free(draft: &Draft<'_>, lease: &Lease) -> bool {
    let Some(number) = subnet_number(lease.subnet) else {
        return false;
    };
    let (Some(subnet_v6), Some(instance_ip_v6)) = (lease.subnet_v6, lease.instance_ip_v6) else {
        return false;
    };
    let offset = lease.instance_ip.to_bits().wrapping_sub(POOL);
    let [first, second] = INSTANCES_V6;
    subnet_v6 == v6_subnet(number)
        && (1..POOL_SIZE - 1).contains(&offset)
        && instance_ip_v6.segments()[..2] == [first, second]
        && !draft.holdings.contains(&lease.instance_ip.into())
        && !draft.holdings.contains(&instance_ip_v6.into())
        && !draft.nodes.iter().any(|node| node.lease.subnet == lease.subnet)
}

fn take_over(draft: &mut Draft<'_>, node: &str, held: &Lease) -> Lease {
    draft.counters.leases_taken_over += 1;
    let addresses = [
        Some(held.instance_ip.into()),
        held.instance_ip_v6.map(IpAddr::from),
    ];
    for address in addresses.into_iter().flatten() {
        draft.holdings.put(Holding {
            address,
            holder: Holder::Node { id: node.to_owned() },
        });
    }
    held.clone()
}

/// Which of the subnets it is.
fn subnet_number(subnet: Ipv4Addr) -> Option<u32> {
    let distance = subnet.to_bits().checked_sub(SUBNETS)?;
    let number = distance / SUBNET_SIZE;
    let is_one = distance % SUBNET_SIZE == 0 && number < SUBNET_COUNT && next_subnet(number) == number;
    is_one.then_some(number)
}

fn v6_subnet(number: u32) -> Ipv6Addr {
    Ipv6Addr::from(SUBNETS_V6 + u128::from(number) * 256)
}

fn new_lease(draft: &mut Draft<'_>, node: &str) -> Result<Lease, Problem> {
    let mut number = next_subnet(draft.counters.next_subnet);
    // Those that were taken over lie anywhere.
    if draft.counters.leases_taken_over > 0 {
        let taken: BTreeSet<Ipv4Addr> = draft.nodes.iter().map(|node| node.lease.subnet).collect();
        while taken.contains(&Ipv4Addr::from(SUBNETS + number * SUBNET_SIZE)) {
            number = next_subnet(number + 1);
        }
    }
    if number >= SUBNET_COUNT {
        return Err(Problem::conflict(
            "every subnet from 10.18.0.0 to 10.29.255.192 is leased",
        ));
    }
    draft.counters.next_subnet = number + 1;
    let holder = Holder::Node { id: node.to_owned() };
    let (instance_ip, instance_ip_v6) = take(draft, &holder)?;
    Ok(Lease {
        subnet: Ipv4Addr::from(SUBNETS + number * SUBNET_SIZE),
        subnet_v6: Some(v6_subnet(number)),
        instance_ip,
        instance_ip_v6: Some(instance_ip_v6),
    })
}

/// The number itself, or the one after it where the subnet contains [`TUNNEL`].
fn next_subnet(number: u32) -> u32 {
    if number == (TUNNEL - SUBNETS) / SUBNET_SIZE {
        number + 1
    } else {
        number
    }
}

fn refuse_taken(draft: &Draft<'_>, address: IpAddr, path: &str) -> Result<(), Problem> {
    match draft.holdings.get(&address) {
        None => Ok(()),
        Some(Holding { holder, .. }) => {
            Err(Problem::conflict(format!("{address} belongs to {holder} already")).at(path))
        }
    }
}

/// The next free address of the pool, after the one given last. The first and the last of the pool are not given.
fn next(draft: &mut Draft<'_>) -> Result<Ipv4Addr, Problem> {
    let start = draft.counters.next_address;
    for step in 0..POOL_SIZE {
        let offset = (start + step) % POOL_SIZE;
        let address = Ipv4Addr::from(POOL + offset);
        let usable = (1..POOL_SIZE - 1).contains(&offset);
        if usable && !draft.holdings.contains(&address.into()) {
            draft.counters.next_address = (offset + 1) % POOL_SIZE;
            return Ok(address);
        }
    }
    Err(Problem::conflict("every address of 10.30.0.0/16 is in use"))
}

/// The IPv6 address that goes with `address`: it ends in the same 16 bits. Where somebody has chosen just that one, the
/// 16 bits before them differ.
fn counterpart(draft: &Draft<'_>, [first, second]: [u16; 2], address: Ipv4Addr) -> Ipv6Addr {
    let [_, _, third, fourth] = address.octets();
    let last = u16::from_be_bytes([third, fourth]);
    let mut candidate = Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last);
    let mut distinction = 0_u16;
    // At most as many steps as there are addresses that people chose.
    while draft.holdings.contains(&candidate.into()) {
        distinction = distinction.wrapping_add(1);
        candidate = Ipv6Addr::new(first, second, 0, 0, 0, 0, distinction, last);
    }
    candidate
}

fn hold(draft: &mut Draft<'_>, holder: &Holder, address: Ipv4Addr, address_v6: Ipv6Addr) {
    for address in [IpAddr::from(address), IpAddr::from(address_v6)] {
        draft.holdings.put(Holding {
            address,
            holder: holder.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
