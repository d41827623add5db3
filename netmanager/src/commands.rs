//! The verbs of the command line.

mod daemon;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use netmanager::config::Paths;
use netmanager::dataplane::Attachment;
use netmanager::endpoint::Step;
use netmanager::state::Store;

/// Where every Docker looks for drivers that are reached by a socket.
const DOCKER_PLUGINS: &str = "/run/docker/plugins";

/// The network of a worker node: loads and feeds the data plane in the kernel, attaches containers to it, and finds
/// out where unknown addresses are.
///
/// Without a verb it runs as the daemon. A node engine registers it and attaches containers through the unix socket
/// /etc/netmanager/netmanager.sock. Whatever was attached goes on working when the daemon ends or is killed; the
/// next one takes over.
#[derive(Parser)]
#[command(name = "NetManager", version, about, long_about)]
pub struct Cli {
    /// Folder under which configuration, state and socket lie
    #[arg(long, global = true, default_value = "/", value_name = "FOLDER")]
    root: PathBuf,

    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    run: RunOptions,
}

#[derive(Subcommand)]
enum Verb {
    /// Run as the daemon (this is what happens without a verb, too)
    Run(RunOptions),
    /// Show the node at a glance
    Status(Output),
    /// Show the containers attached to this node
    Endpoints(Output),
    /// Show the service addresses this node knows, and where they lead
    Services(Output),
    /// Show what happened to packets: every verdict and every reason for a drop, with its counter
    Drops(Output),
    /// Give the node up: detach everything and remove all that NetManager has in the kernel and on the disk
    ///
    /// The daemon must not be running. What other programs have is left alone. Containers lose the overlay.
    Purge,
    /// Show the programs to the running kernel's verifier, without attaching anything
    Verify(Output),
}

#[derive(Args)]
pub struct RunOptions {
    /// Also serve the API on this TCP port of 127.0.0.1, for node engines that expect it (6000)
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,

    /// Answer from this file instead of asking a cluster; for laboratories
    #[arg(long, value_name = "FILE")]
    static_answers: Option<PathBuf>,

    /// The folder where Docker looks for network drivers; `off` to be none
    #[arg(long, value_name = "FOLDER", default_value = DOCKER_PLUGINS)]
    docker_plugins: PathBuf,

    /// How programs are attached to interfaces, instead of the better way that the kernel has: `clsact` or `tcx`
    #[arg(long, hide = true, value_name = "WAY", overrides_with = "attachment")]
    attachment: Option<Attachment>,

    /// Fail at this step of every attach, to see that it leaves nothing behind
    #[arg(long, hide = true, value_name = "STEP")]
    fail_attach_at: Option<Step>,

    /// Crash at this step of every attach, to see that the next process leaves nothing behind
    #[arg(long, hide = true, value_name = "STEP")]
    crash_attach_at: Option<Step>,

    /// Fail at this step of every detach
    #[arg(long, hide = true, value_name = "STEP")]
    fail_detach_at: Option<Step>,

    /// Crash at this step of every detach
    #[arg(long, hide = true, value_name = "STEP")]
    crash_detach_at: Option<Step>,
}

#[derive(Args)]
pub struct Output {
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.verb {
            None => daemon::run(&paths, cli.run).await,
            Some(Verb::Run(options)) => daemon::run(&paths, options).await,
            Some(Verb::Status(output)) => show::status(&paths.socket, &output).await,
            Some(Verb::Endpoints(output)) => show::endpoints(&paths.socket, &output).await,
            Some(Verb::Services(output)) => show::services(&paths.socket, &output).await,
            Some(Verb::Drops(output)) => show::drops(&paths.socket, &output).await,
            Some(Verb::Purge) => purge(&paths.state, &paths.socket).await,
            Some(Verb::Verify(output)) => show::verify(&output),
        }
    })
}

async fn purge(state: &Path, socket: &Path) -> anyhow::Result<()> {
    if !state.exists() {
        println!("there is no node to give up");
        return Ok(());
    }
    let store = Store::open(state)?;
    netmanager::node::purge(&store).await?;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    println!("the node is given up; nothing of it is left");
    Ok(())
}
