//! Where the daemon keeps its things, and what `netcfg.json` and `tuncfg.json` tell it.
//!
//! Both files have the format that nodes already carry: most values are texts, numbers among them too, keys
//! that are not known are left alone, and a file that is missing means its defaults. Everything is checked
//! before anything is used: what is wrong is reported with the file, the key and the value.

mod files;
mod values;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use files::{NetworkFile, TunnelFile};

use crate::flows::Lifetimes;
use crate::probes::Settings;

/// Overrides the MTU of `tuncfg.json`.
pub const MTU_VARIABLE: &str = "TUN_MTU_SIZE";

/// Where everything of one daemon lies, below a root folder of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `netcfg.json`: who this node is to others.
    pub network_file: PathBuf,
    /// `tuncfg.json`: what the overlay looks like here.
    pub tunnel_file: PathBuf,
    /// The folder of what has to outlive the daemon.
    pub state: PathBuf,
    /// The unix socket of the HTTP API.
    pub socket: PathBuf,
}

impl Paths {
    /// The paths below `root`, which is `/` unless several daemons share a machine.
    pub fn new(root: &Path) -> Self {
        let configuration = root.join("etc/netmanager");
        Self {
            network_file: configuration.join("netcfg.json"),
            tunnel_file: configuration.join("tuncfg.json"),
            socket: configuration.join("netmanager.sock"),
            state: root.join("var/lib/oakestra/netmanager"),
        }
    }
}

/// The checked configuration of one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The tunnel address told to peers; `None` to find out the node's own.
    pub announced_address: Option<Ipv4Addr>,
    /// The UDP port of the tunnel told to peers; another one than `listen_port` behind a NAT.
    pub announced_port: u16,
    /// The UDP port on which tunnel datagrams arrive here.
    pub listen_port: u16,
    /// Host name or address of the cluster's broker; `None` when only the registration names it.
    pub cluster_host: Option<String>,
    /// TCP port of the cluster's broker.
    pub cluster_port: u16,
    /// The interface with the way to the other nodes; `None` for the one with the default route.
    pub default_interface: Option<String>,
    /// MTU of endpoints and of the overlay, in bytes of the inner packet.
    pub mtu: u16,
    /// Whether to log in detail.
    pub debug: bool,
    /// Whether the announced address is the one that the Internet sees.
    pub public_ip_networking: bool,
    /// How often other nodes are probed, and what is made of it.
    pub probes: Settings,
    /// Certificate of this node for the broker, in PEM; always together with a key.
    pub mqtt_certificate: Option<PathBuf>,
    /// Key of that certificate, in PEM.
    pub mqtt_key: Option<PathBuf>,
    /// Certificate of who may sign the broker's, in PEM.
    pub mqtt_ca: Option<PathBuf>,
    /// How long flows may rest.
    pub lifetimes: Lifetimes,
    /// How often all flows are looked at.
    pub sweep_every: Duration,
    /// How long a service that nobody here uses is followed.
    pub interest: Duration,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// A file is not a JSON object.
    #[error("{}: not a JSON object: {source}", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// One value is not what its key needs.
    #[error("{}: {key} = {value}: {problem}", path.display())]
    Value {
        path: PathBuf,
        key: &'static str,
        value: String,
        problem: String,
    },
    /// A variable of the environment is not what it needs to be.
    #[error("environment: {name} = {value:?}: {problem}")]
    Variable {
        name: &'static str,
        value: String,
        problem: String,
    },
}

impl Config {
    /// Reads both files and the environment of this process.
    pub fn read(paths: &Paths) -> Result<Self, ConfigError> {
        Self::read_with(paths, |name| std::env::var_os(name))
    }

    /// Reads both files, and the environment from `variable`.
    pub fn read_with(
        paths: &Paths,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let network = NetworkFile::read(&paths.network_file)?;
        let tunnel = TunnelFile::read(&paths.tunnel_file)?;
        let mtu = match variable(MTU_VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) => values::mtu_of_variable(MTU_VARIABLE, &value)?,
            None => tunnel.mtu,
        };

        Ok(Self {
            announced_address: network.public_address,
            announced_port: network.public_port,
            listen_port: tunnel.port,
            cluster_host: network.cluster_host,
            cluster_port: network.cluster_port,
            default_interface: network.default_interface,
            mtu,
            debug: network.debug,
            public_ip_networking: network.public_ip_networking,
            probes: network.probes,
            mqtt_certificate: network.certificate,
            mqtt_key: network.key,
            mqtt_ca: network.authority,
            lifetimes: network.lifetimes,
            sweep_every: network.sweep_every,
            interest: network.interest,
        })
    }
}

#[cfg(test)]
mod tests;
