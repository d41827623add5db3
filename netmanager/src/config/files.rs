//! What each of the two files says.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane_ebpf::address;

use super::ConfigError;
use super::values::Document;
use crate::flows::Lifetimes;
use crate::probes::Settings;

const DEFAULT_CLUSTER_PORT: u16 = 10003;
const DEFAULT_MTU: u16 = 1450;
const DEFAULT_SWEEP: Duration = Duration::from_secs(10);
const DEFAULT_INTEREST: Duration = Duration::from_secs(600);
/// Milliseconds: fast enough to matter, and slow enough for a link that costs.
const INTERVAL_RANGE: RangeInclusive<u32> = 20..=3_600_000;
const RATE_RANGE: RangeInclusive<u32> = 1..=100_000;

/// `netcfg.json`.
pub(super) struct NetworkFile {
    pub(super) public_address: Option<Ipv4Addr>,
    pub(super) public_port: u16,
    pub(super) cluster_host: Option<String>,
    pub(super) cluster_port: u16,
    pub(super) default_interface: Option<String>,
    pub(super) debug: bool,
    pub(super) public_ip_networking: bool,
    pub(super) probes: Settings,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) authority: Option<PathBuf>,
    pub(super) lifetimes: Lifetimes,
    pub(super) sweep_every: Duration,
    pub(super) interest: Duration,
}

impl NetworkFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = Document::read(path)?;
        let path_of = |key| Ok::<_, ConfigError>(file.text(key)?.map(PathBuf::from));
        let certificate = path_of("MqttCert")?;
        let key = path_of("MqttKey")?;
        // One without the other would mean an anonymous connection where a person asked for an identity.
        match (&certificate, &key) {
            (Some(_), None) => return Err(file.refuse("MqttKey", &"".into(), "MqttCert needs its key")),
            (None, Some(_)) => {
                return Err(file.refuse("MqttCert", &"".into(), "MqttKey needs its certificate"));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }

        Ok(Self {
            public_address: public_address(&file)?,
            public_port: file.port("NodePublicPort", address::TUNNEL_PORT)?,
            cluster_host: cluster_host(&file)?,
            cluster_port: file.port("ClusterMqttPort", DEFAULT_CLUSTER_PORT)?,
            default_interface: default_interface(&file)?,
            debug: file.flag("Debug")?,
            public_ip_networking: file.flag("PublicIPNetworking")?,
            probes: probes(&file)?,
            certificate,
            key,
            authority: path_of("MqttCa")?,
            lifetimes: lifetimes(&file.section("FlowLifetimes")?)?,
            sweep_every: file.seconds("FlowSweepSeconds", DEFAULT_SWEEP)?,
            interest: file.seconds("InterestSeconds", DEFAULT_INTEREST)?,
        })
    }
}

/// The section says how many seconds a flow may rest, by how it stands.
fn lifetimes(section: &Document) -> Result<Lifetimes, ConfigError> {
    let default = Lifetimes::default();
    Ok(Lifetimes {
        tcp_opening: section.seconds("TcpOpening", default.tcp_opening)?,
        tcp_established: section.seconds("TcpEstablished", default.tcp_established)?,
        tcp_closed: section.seconds("TcpClosed", default.tcp_closed)?,
        tcp_reset: section.seconds("TcpReset", default.tcp_reset)?,
        udp_one_way: section.seconds("UdpOneWay", default.udp_one_way)?,
        udp_answered: section.seconds("UdpAnswered", default.udp_answered)?,
        icmp: section.seconds("Icmp", default.icmp)?,
    })
}

/// Everything about probes may be left out.
fn probes(file: &Document) -> Result<Settings, ConfigError> {
    let default = Settings::default();
    let milliseconds = |key, default: Duration| {
        let default = u32::try_from(default.as_millis()).unwrap_or(u32::MAX);
        let number = file.integer(key, INTERVAL_RANGE, default)?;
        Ok::<_, ConfigError>(Duration::from_millis(number.into()))
    };
    let metered = file.text("MeteredInterfaces")?.unwrap_or_default();
    let metered = metered.split(',').map(str::trim).filter(|name| !name.is_empty());
    Ok(Settings {
        interval: milliseconds("ProbeInterval", default.interval)?,
        metered_interval: milliseconds("ProbeIntervalMetered", default.metered_interval)?,
        metered_interfaces: metered.map(str::to_owned).collect(),
        silent_after: milliseconds("ProbeSilence", default.silent_after)?,
        per_second: file.integer("ProbesPerSecond", RATE_RANGE, default.per_second)?,
        answered_per_second: file.integer(
            "ProbesAnsweredPerSecond",
            RATE_RANGE,
            default.answered_per_second,
        )?,
    })
}

fn public_address(file: &Document) -> Result<Option<Ipv4Addr>, ConfigError> {
    const KEY: &str = "NodePublicAddress";
    let Some(address) = file.address(KEY)?.filter(|address| !address.is_unspecified()) else {
        return Ok(None);
    };
    let refuse = |problem| Err(file.refuse(KEY, &address.to_string().into(), problem));
    if address.is_multicast() || address.is_broadcast() {
        return refuse("peers need the address of one node");
    }
    if address::in_overlay(address.octets()) {
        return refuse("10.16.0.0/12 is the overlay itself");
    }
    Ok(Some(address))
}

fn cluster_host(file: &Document) -> Result<Option<String>, ConfigError> {
    const KEY: &str = "ClusterUrl";
    let Some(host) = file.text(KEY)?.filter(|host| *host != "0.0.0.0") else {
        return Ok(None);
    };
    if host.contains('/') || host.contains(char::is_whitespace) {
        let problem = "a host name or an address is needed, without scheme, port and path";
        return Err(file.refuse(KEY, &host.into(), problem));
    }
    Ok(Some(host.to_owned()))
}

fn default_interface(file: &Document) -> Result<Option<String>, ConfigError> {
    const KEY: &str = "DefaultInterface";
    let Some(name) = file.text(KEY)? else {
        return Ok(None);
    };
    // The kernel's own rule for the name of an interface.
    if name.len() >= nix::libc::IFNAMSIZ || name.contains('/') || name.contains(char::is_whitespace) {
        let problem = "an interface has a name of at most 15 bytes without slash and space";
        return Err(file.refuse(KEY, &name.into(), problem));
    }
    Ok(Some(name.to_owned()))
}

/// `tuncfg.json`. Its tunnel device and the addresses of that device mean nothing to a data plane without
/// one; they are checked, so that a broken file is noticed, and left alone.
pub(super) struct TunnelFile {
    pub(super) port: u16,
    pub(super) mtu: u16,
}

impl TunnelFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = Document::read(path)?;
        file.text("HostTunnelDeviceName")?;
        file.address("TunnelIP")?;
        file.check_address_v6("TunNetIPv6")?;
        file.check_address_v6("ProxySubnetworkIPv6")?;
        file.check_prefix_length_v6("ProxySubnetworkIPv6Prefix")?;
        check_service_range(&file)?;

        Ok(Self {
            port: file.port("TunnelPort", address::TUNNEL_PORT)?,
            mtu: file.mtu("MTUsize", DEFAULT_MTU)?,
        })
    }
}

/// The range of service addresses belongs to the address plan of all nodes; one node cannot have its own.
fn check_service_range(file: &Document) -> Result<(), ConfigError> {
    let network = Ipv4Addr::from(address::SERVICES);
    let mask = Ipv4Addr::from_bits(u32::MAX << (u32::BITS - u32::from(address::SERVICES_PREFIX_LENGTH)));
    for (key, only) in [("ProxySubnetwork", network), ("ProxySubnetworkMask", mask)] {
        if let Some(other) = file.address(key)?.filter(|value| *value != only) {
            let problem = format!("service addresses are in {network}/{mask} on every node");
            return Err(file.refuse(key, &other.to_string().into(), &problem));
        }
    }
    Ok(())
}
