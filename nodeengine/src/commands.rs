//! The verbs of the command line.

mod configure;
mod detach;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use nodeengine::config::Config;
use nodeengine::daemon::{self, NetManager, Settings};
use nodeengine::paths::Paths;
use tracing_subscriber::EnvFilter;

/// The agent of a worker node: runs the containers that its cluster orders, and says how they fare.
///
/// Without a verb it runs as the daemon, in the foreground, or with -d in the background:
///
///     NodeEngine -a 192.0.2.1            join the cluster at 192.0.2.1 (port 10100)
///     NodeEngine -a 192.0.2.1 -n -1      the same without an overlay network
///     NodeEngine status                  show the node and its instances
///     NodeEngine stop                    end the daemon; containers go on running
///     NodeEngine purge                   give the node up: remove its containers and its state
///
/// It needs a Docker engine and, unless told otherwise, NetManager. Both may start later. Containers go on running
/// when it ends or is killed; the next one takes them over.
#[derive(Parser)]
#[command(name = "NodeEngine", version, about, long_about, verbatim_doc_comment)]
pub struct Cli {
    /// Folder under which configuration, state and socket lie
    #[arg(long, global = true, default_value = "/", value_name = "FOLDER")]
    root: PathBuf,

    /// Docker's socket
    #[arg(
        long,
        global = true,
        env = "DOCKER_HOST",
        default_value = "unix:///var/run/docker.sock",
        value_name = "ADDRESS"
    )]
    docker: String,

    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    run: RunOptions,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the node and its instances
    Status(Output),
    /// Follow the log of a daemon in the background; its end is shown first
    Logs(LogOptions),
    /// End the daemon; containers go on running
    Stop,
    /// Print the version
    Version,
    /// Show or change the configuration file; a running daemon reads it when it starts
    #[command(subcommand)]
    Config(configure::Verb),
    /// Give the node up: remove its containers, its Docker network and its state
    ///
    /// The daemon must not be running; Docker must be. The configuration file stays. It may be repeated.
    Purge,
}

#[derive(Args)]
struct RunOptions {
    /// Host name or address of the cluster; remembered
    #[arg(short = 'a', long = "clusterAddr", value_name = "HOST")]
    cluster_address: Option<String>,

    /// Port of the cluster; remembered
    #[arg(short = 'p', long = "clusterPort", value_name = "PORT")]
    cluster_port: Option<u16>,

    /// NetManager: the path of its socket, its port on 127.0.0.1, or -1 for no overlay
    #[arg(short, long, value_name = "NETMANAGER", allow_hyphen_values = true)]
    network: Option<String>,

    /// Run in the background; returns when the cluster has taken the node
    #[arg(short, long, visible_alias = "detatch")]
    detach: bool,

    /// Folder of the log of a daemon in the background
    #[arg(short, long, value_name = "FOLDER")]
    log_folder: Option<PathBuf>,

    /// Name to go by instead of the host's; needed where two nodes share a host
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,

    /// Set for the process that runs in the background
    #[arg(long, hide = true)]
    in_background: bool,
}

#[derive(Args)]
struct LogOptions {
    /// Only show the end, and do not follow
    #[arg(long)]
    no_follow: bool,

    /// Folder of the log, where the daemon was given another one
    #[arg(short, long, value_name = "FOLDER")]
    log_folder: Option<PathBuf>,
}

#[derive(Args)]
struct Output {
    /// How to print
    #[arg(short, long, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Does what the command line says.
///
/// # Errors
/// What the verb's errors are, with their causes.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let paths = Paths::new(&cli.root);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.verb {
            None => start(&cli.root, paths, &cli.docker, cli.run).await,
            Some(Verb::Status(output)) => show::status(&paths, &output).await,
            Some(Verb::Logs(options)) => {
                let folder = options.log_folder.as_deref().unwrap_or(&paths.logs);
                show::logs(folder, !options.no_follow).await
            }
            Some(Verb::Stop) => show::stop(&paths).await,
            Some(Verb::Version) => {
                println!("NodeEngine {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            Some(Verb::Config(verb)) => configure::run(&paths, verb),
            Some(Verb::Purge) => {
                if nodeengine::purge::purge(&paths, &cli.docker).await? {
                    println!("the node is given up; nothing of it is left but its configuration");
                } else {
                    println!("there is no node to give up");
                }
                Ok(())
            }
        }
    })
}

async fn start(root: &Path, paths: Paths, docker: &str, options: RunOptions) -> anyhow::Result<()> {
    let config = remember(&paths, &options)?;
    config.validate()?;
    let netmanager = match &options.network {
        None => Settings::netmanager_of(&config, &paths),
        Some(network) => netmanager(network)?,
    };
    if options.detach {
        return detach::run(root, &paths, docker, &options).await;
    }
    if options.in_background {
        // Of a session of its own, so that the end of the terminal's does not end it.
        nix::unistd::setsid()?;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    daemon::run(Settings {
        paths,
        config,
        netmanager,
        docker: docker.to_owned(),
        host: options.hostname_override,
    })
    .await
}

/// The configuration with what the command line adds to it. A file is made where there is none.
fn remember(paths: &Paths, options: &RunOptions) -> anyhow::Result<Config> {
    let before = Config::read(&paths.config)?;
    let mut config = before.clone();
    if let Some(address) = &options.cluster_address {
        config.cluster_address.clone_from(address);
    }
    if let Some(port) = options.cluster_port {
        config.cluster_port = port;
    }
    config.validate()?;
    if config != before || !paths.config.exists() {
        config.write(&paths.config)?;
    }
    Ok(config)
}

/// What `-n` means: 0, as other node engines have it, or -1 for no overlay.
fn netmanager(text: &str) -> anyhow::Result<Option<NetManager>> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(None),
        Ok(number) => match u16::try_from(number) {
            Ok(port) => Ok(Some(NetManager::Port(port))),
            Err(_) => anyhow::bail!("-n {text}: a port is at most 65535"),
        },
        Err(_) if text.contains('/') => Ok(Some(NetManager::Socket(text.into()))),
        Err(_) => anyhow::bail!("-n {text}: neither a port, nor the path of a socket, nor -1"),
    }
}
