//! `images`: the container images of the example, wherever they can be had.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::images::{IMAGES, Image, import, is_present, make};
use lab::{DockerClient, wait_for};

use crate::command::{need_root, short};
use crate::setup;
use crate::workspace::target_directory;

/// Seconds that the registry has to answer at all. Where there is no way to it, nobody is to wait.
const REGISTRY_ANSWERS: &str = "3";
const REGISTRY: &str = "https://registry-1.docker.io/v2/";
/// How long an image may take to come.
const PULL_DEADLINE: Duration = Duration::from_secs(120);

/// Makes the images nginx and curl out of Debian's packages, and gives them to the machine's Docker.
///
/// Into target/images, as an archive that is made once; half a minute. The machine's Docker gets those that it does
/// not have and that no registry gives it. Where no Docker answers, the archive is all that is made.
#[derive(clap::Args)]
pub struct Options {}

pub fn run(options: Options) -> Result<()> {
    let Options {} = options;
    need_root("making a root file system")?;
    setup::ensure_complete()?;
    let folder = ensure()?;
    let docker = DockerClient::at(Path::new(DockerClient::MACHINE));
    if !docker.answers() {
        println!(
            "no Docker answers at {}: the images are only in {}",
            DockerClient::MACHINE,
            short(&folder)
        );
        return Ok(());
    }
    provide(&docker, &folder)
}

/// Makes the archive unless it is there, and says where.
pub fn ensure() -> Result<PathBuf> {
    let folder = target_directory()?.join("images");
    if make(&folder)? {
        eprintln!("made images of nginx and curl in {}", short(&folder));
    }
    Ok(folder)
}

/// Gives a Docker that is not a lab's the images that it lacks: from the registry where that answers, since this
/// Docker may be used for more than the example, out of the archive otherwise.
pub fn provide(docker: &DockerClient, folder: &Path) -> Result<()> {
    let missing: Vec<&Image> = IMAGES
        .into_iter()
        .filter(|image| !is_present(docker, image))
        .collect();
    let reachable = !missing.is_empty() && registry_answers();
    for image in missing {
        if reachable && pull(docker, image)? {
            eprintln!("pulled {}", image.name);
        } else {
            import(docker, folder, image)?;
            eprintln!("made {}", image.name);
        }
    }
    Ok(())
}

fn registry_answers() -> bool {
    // Any answer will do: without a token it is a refusal.
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--output",
        "/dev/null",
        "--max-time",
        REGISTRY_ANSWERS,
        REGISTRY,
    ]);
    command.status().is_ok_and(|status| status.success())
}

/// Whether the image came. A registry that answers may still not give it.
fn pull(docker: &DockerClient, image: &Image) -> Result<bool> {
    let mut child = docker
        .command(&["pull", "--quiet", image.name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run docker")?;
    let status = wait_for(&format!("{} to be pulled", image.name), PULL_DEADLINE, || {
        child.try_wait().context("cannot wait for docker")
    });
    match status {
        Ok(status) => Ok(status.success()),
        Err(late) => {
            eprintln!("{late:#}");
            child.kill().context("cannot end docker")?;
            child.wait().context("cannot wait for docker")?;
            Ok(false)
        }
    }
}
