//! `NodeEngine status`, `logs` and `stop`.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodeengine::Lock;
use nodeengine::paths::Paths;
use nodeengine::status::Status;
use serde_json::Value;

use super::detach::LOG;
use super::{Format, Output};

/// How much of the log is shown before what is new.
const LOG_END: u64 = 4096;
const LOG_INTERVAL: Duration = Duration::from_millis(500);
/// The daemon does nothing long when it ends.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const STOP_INTERVAL: Duration = Duration::from_millis(20);

pub async fn status(paths: &Paths, output: &Output) -> anyhow::Result<()> {
    let status = Status::ask(&paths.socket).await.context("asking the daemon")?;
    let Some(status) = status else {
        bail!(
            "no NodeEngine answers at {}; is it running?",
            paths.socket.display()
        );
    };
    match output.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Format::Table => table(&status),
    }
    Ok(())
}

fn table(status: &Status) {
    println!(
        "node     {} ({}), pid {}, version {}",
        status.node, status.host, status.pid, status.version
    );
    println!("cluster  {}: {}", status.cluster, said(&status.standing));
    println!("network  {}", said(&status.network));
    println!("docker   {}", said(&status.runtime));
    if status.instances.is_empty() {
        println!("no instances");
        return;
    }
    let name = |instance: &nodeengine::status::InstanceStatusLine| {
        format!("{}.instance.{}", instance.job_name, instance.instance)
    };
    let width = status
        .instances
        .iter()
        .map(|instance| name(instance).len())
        .max()
        .unwrap_or_default();
    println!(
        "{:width$}  {:10}  {:12}  DETAIL",
        "INSTANCE", "STATUS", "CONTAINER"
    );
    for instance in &status.instances {
        println!(
            "{:width$}  {:10}  {:12}  {}",
            name(instance),
            instance.status,
            instance.container.get(..12).unwrap_or_default(),
            instance.status_detail
        );
    }
}

/// A state and, where there is one, its reason.
fn said(state: &Value) -> String {
    let text = |key| state.get(key).and_then(Value::as_str);
    let name = text("state").unwrap_or("unknown");
    match text("reason") {
        Some(reason) => format!("{name}: {reason}"),
        None => name.to_owned(),
    }
}

pub async fn logs(folder: &Path, follow: bool) -> anyhow::Result<()> {
    let path = folder.join(LOG);
    let mut file = std::fs::File::open(&path).with_context(|| {
        format!(
            "opening {}; a daemon in the foreground logs to its terminal",
            path.display()
        )
    })?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_END)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    // It may begin within a line.
    let begin = match text.iter().position(|byte| *byte == b'\n') {
        Some(end) if size > LOG_END => end + 1,
        Some(_) | None => 0,
    };
    let mut output = std::io::stdout();
    output.write_all(&text[begin..])?;
    output.flush()?;
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        text.clear();
        file.read_to_end(&mut text)?;
        output.write_all(&text)?;
        output.flush()?;
    }
}

pub async fn stop(paths: &Paths) -> anyhow::Result<()> {
    let Some(pid) = Lock::held_by(&paths.state)? else {
        println!("NodeEngine is not running");
        return Ok(());
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("ending process {pid}"))?;
    let deadline = Instant::now() + STOP_PATIENCE;
    while Lock::held_by(&paths.state)?.is_some() {
        if Instant::now() > deadline {
            bail!("NodeEngine (pid {pid}) was asked to end and still runs");
        }
        tokio::time::sleep(STOP_INTERVAL).await;
    }
    println!("NodeEngine has ended; containers go on running");
    Ok(())
}
