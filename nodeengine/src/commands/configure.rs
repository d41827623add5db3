//! `NodeEngine config …`.

use clap::{Subcommand, ValueEnum};
use nodeengine::config::Config;
use nodeengine::paths::Paths;

#[derive(Subcommand)]
pub enum Verb {
    /// Print the configuration
    Show,
    /// Put the defaults in the place of the configuration, also of one that cannot be read
    Default,
    /// Set where the cluster is
    Cluster {
        /// Host name or address, without scheme and port
        address: String,
        /// Port
        #[arg(short = 'p', long = "clusterPort", default_value_t = 10100)]
        port: u16,
    },
    /// Set the network of containers
    Network {
        mode: Network,
        /// NetManager's socket
        #[arg(default_value = "/etc/netmanager/netmanager.sock")]
        socket: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// NetManager at its usual socket
    Auto,
    /// NetManager at another socket
    Manual,
    /// No overlay
    Off,
}

/// Does what the verb says and prints what is set then.
pub fn run(paths: &Paths, verb: Verb) -> anyhow::Result<()> {
    let path = &paths.config;
    let config = match verb {
        Verb::Show => {
            let config = Config::read(path)?;
            println!("{}", serde_json::to_string_pretty(&config)?);
            return Ok(());
        }
        Verb::Default => Config::default(),
        Verb::Cluster { address, port } => Config {
            cluster_address: address,
            cluster_port: port,
            ..Config::read(path)?
        },
        Verb::Network { mode, socket } => Config {
            overlay_network: match mode {
                Network::Auto => "default".to_owned(),
                Network::Manual => format!("custom:{socket}"),
                Network::Off => String::new(),
            },
            ..Config::read(path)?
        },
    };
    config.validate()?;
    config.write(path)?;
    println!("written to {}", path.display());
    Ok(())
}
