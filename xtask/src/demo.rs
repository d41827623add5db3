//! `demo`: the user's example, from nothing to an answer.

mod example;
mod holder;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::command::need_root;
use crate::daemons::{self, Profile};
use crate::{images, interrupt, setup};
use steps::Steps;

/// Shows a client on one node reaching its server on another by a service address.
///
/// Installs what is missing, builds everything in release mode, makes the images, and starts a root, a cluster and
/// two workers on four hosts made of network namespaces, with a Docker of their own. Deploys xtask/demo/client-server.json over
/// the root's REST API, shows what curl got from nginx, that it went through the tunnel, and what the data plane
/// counted. Then everything is taken down. Needs root; the machine's own network and Docker are not touched.
#[derive(clap::Args)]
pub struct Options {
    /// Leave it running; `cargo xtask down` ends it.
    #[arg(long)]
    keep: bool,
    /// The part that runs in a process of its own, with the folders of programs and images.
    #[arg(long, hide = true, num_args = 2, value_names = ["PROGRAMS", "IMAGES"])]
    hold: Option<Vec<PathBuf>>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Options { keep, hold } = options;
    need_root("making hosts out of network namespaces")?;
    if let Some([programs, images]) = hold.as_deref() {
        return holder::hold(programs, images, keep).map(|()| ExitCode::SUCCESS);
    }
    let mut steps = Steps::new();
    setup::ensure_complete()?;
    steps.done("nothing is missing on this machine");
    let programs = daemons::build(Profile::Release)?;
    steps.done("programs and daemons are built");
    let images = images::ensure()?;
    steps.done("the images of nginx and curl are made");
    // From here on there is something to take down.
    interrupt::catch()?;
    holder::start(&programs, &images, keep)
}
