//! A machine on the wire.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::endpoint::Endpoint;
use crate::laboratory::Shared;
use crate::namespace::Namespace;

/// The interface by which every host is plugged into the wire.
pub const UPLINK: &str = "uplink";
/// The gateway of a routed endpoint, a link-local address that no interface has.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// What the wire does with frames longer than its MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// Superframes of up to 64 KiB cross whole and checksums are left open, as between virtual machines on one
    /// machine.
    #[default]
    Kept,
    /// The sender segments and sums before the wire, the receiver merges (GRO), as with a physical network card.
    LikeNic,
}

/// How a host is made; the default is what most tests want.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Of the uplink and of the wire's end of it.
    pub mtu: u32,
    pub offloads: Offloads,
    /// Its address in 192.0.2.0/24; the next free one if there is none here.
    pub address: Option<Ipv4Addr>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            offloads: Offloads::Kept,
            address: None,
        }
    }
}

/// A namespace that stands for a machine, plugged into the lab's wire by [`UPLINK`]. A handle: it lives until the
/// lab ends.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Namespace,
    role: String,
    address: Ipv4Addr,
    next_link: Arc<AtomicU32>,
    shared: Arc<Shared>,
}

impl Host {
    pub(crate) fn create(shared: &Arc<Shared>, role: &str, options: HostOptions) -> Result<Self> {
        let HostOptions {
            mtu,
            offloads,
            address,
        } = options;
        let address = shared.take_address(address)?;
        let namespace = shared.create_namespace(role)?;
        let wire = &shared.wire;
        let [.., number] = address.octets();
        let port = format!("port{number}");

        // Addresses that can be recognised in a capture.
        wire.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} address 02:00:c0:00:02:{number:02x} netns {}",
            namespace.name()
        ))?;
        if offloads == Offloads::LikeNic {
            // Both ends: frames from a neighbour that keeps its offloads are segmented on the way in.
            wire.run("ethtool", &["-K", &port, "tso", "off", "gso", "off", "tx", "off"])?;
            namespace.run(
                "ethtool",
                &["-K", UPLINK, "tso", "off", "gso", "off", "tx", "off", "gro", "on"],
            )?;
        }
        shared.widen_wire(mtu)?;
        wire.ip(&format!("link set {port} master wire up"))?;
        namespace.ip(&format!("address add {address}/24 dev {UPLINK}"))?;
        namespace.ip(&format!("link set {UPLINK} up"))?;
        namespace.wait_until_up(UPLINK)?;
        wire.wait_until_up(&port)?;

        Ok(Self {
            namespace,
            role: role.to_owned(),
            address,
            next_link: Arc::new(AtomicU32::new(0)),
            shared: Arc::clone(shared),
        })
    }

    /// Its address on the wire.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes a namespace that stands for a container on this host, with nothing but `lo` in it: wiring it is the
    /// node manager's task.
    pub fn endpoint(&self, role: &str) -> Result<Endpoint> {
        self.shared.create_endpoint(&format!("{}-{role}", self.role))
    }

    /// Makes an endpoint and connects it by plain routing, the way a measurement's baseline goes: a veth pair, the
    /// address as /32 on `eth0` inside, the default route by a gateway that needs no resolution, forwarding in the
    /// host. No neighbour is ever asked for, in either direction.
    pub fn routed_endpoint(&self, role: &str, address: Ipv4Addr, mtu: u32) -> Result<Endpoint> {
        let endpoint = self.endpoint(role)?;
        let number = self.next_link.fetch_add(1, Ordering::Relaxed);
        let link = format!("routed{number}");
        let [high, low] = u16::try_from(number)
            .context("too many endpoints on one host")?
            .to_be_bytes();
        let outside = format!("02:00:0a:00:{high:02x}:{low:02x}");
        let inside = format!("02:00:0a:01:{high:02x}:{low:02x}");

        self.ip(&format!(
            "link add {link} mtu {mtu} address {outside} type veth peer name eth0 mtu {mtu} address {inside} netns {}",
            endpoint.name()
        ))?;
        self.ip(&format!("link set {link} up"))?;
        endpoint.ip(&format!("address add {address}/32 dev eth0"))?;
        endpoint.ip("link set eth0 up")?;
        endpoint.ip(&format!(
            "neighbour replace {GATEWAY} lladdr {outside} dev eth0 nud permanent"
        ))?;
        endpoint.ip(&format!("route add default via {GATEWAY} dev eth0 onlink"))?;
        self.ip(&format!(
            "neighbour replace {address} lladdr {inside} dev {link} nud permanent"
        ))?;
        self.ip(&format!("route add {address}/32 dev {link}"))?;
        self.sysctl("net.ipv4.ip_forward", "1")?;
        endpoint.wait_until_up("eth0")?;
        self.wait_until_up(&link)?;
        Ok(endpoint)
    }

    /// Routes a destination (`10.0.2.0/24`) by another host.
    pub fn route(&self, destination: &str, via: Ipv4Addr) -> Result<()> {
        self.ip(&format!("route replace {destination} via {via}"))?;
        Ok(())
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}
