//! `NodeEngine -d`: the daemon in the background.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nodeengine::paths::Paths;
use nodeengine::status::Status;
use nodeengine::{Lock, LockError};

use super::RunOptions;

/// How long the cluster has to take the node, until the command returns without.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(50);
pub(super) const LOG: &str = "nodeengine.log";

/// Starts the daemon and waits for its registration.
///
/// # Errors
/// When it ends, or is not registered in time; then it goes on trying.
pub async fn run(root: &Path, paths: &Paths, docker: &str, options: &RunOptions) -> anyhow::Result<()> {
    if let Some(pid) = Lock::held_by(&paths.state)? {
        return Err(LockError::Held {
            path: paths.state.display().to_string(),
            pid: pid.to_string(),
        }
        .into());
    }
    let folder = options.log_folder.as_deref().unwrap_or(&paths.logs);
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let log = folder.join(LOG);
    let file = File::options()
        .create(true)
        .append(true)
        // It tells what runs here, and why it failed.
        .mode(0o600)
        .open(&log)
        .with_context(|| format!("opening {}", log.display()))?;
    let begin = file.metadata()?.len();
    let mut child = spawn(root, docker, options, file)?;
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::new();
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("the daemon has ended ({status}): {}", since(&log, begin));
        }
        if let Ok(Some(status)) = Status::ask(&paths.socket).await
            && status.pid == child.id()
        {
            if status.registered {
                println!("NodeEngine started (pid {})", status.pid);
                println!("node {} is registered at {}", status.node, status.cluster);
                println!("its log is {}", log.display());
                return Ok(());
            }
            last = reason(&status);
        }
        tokio::time::sleep(INTERVAL).await;
    }
    bail!(
        "the daemon runs (pid {}), but is not registered yet, and goes on trying: {last}; its log is {}",
        child.id(),
        log.display()
    )
}

fn spawn(root: &Path, docker: &str, options: &RunOptions, log: File) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command
        .arg("--in-background")
        .arg("--root")
        .arg(root)
        .args(["--docker", docker]);
    // Address and port were written to the configuration.
    if let Some(network) = &options.network {
        command.arg("-n").arg(network);
    }
    if let Some(name) = &options.hostname_override {
        command.arg("--hostname-override").arg(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the daemon")
}

fn reason(status: &Status) -> String {
    let reason = status.standing.get("reason");
    reason
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// The last line that was logged since `begin`.
fn since(log: &Path, begin: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let begin = usize::try_from(begin).unwrap_or_default().min(text.len());
    let text = String::from_utf8_lossy(&text[begin..]).into_owned();
    text.lines().last().unwrap_or("it has logged nothing").to_owned()
}
