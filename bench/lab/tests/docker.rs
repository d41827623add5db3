//! A Docker of a lab's own starts, runs the images of the example, and leaves nothing. Needs root and dockerd.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::images::{self, CURL, FOLDER_VARIABLE, NGINX};
use lab::{Docker, DockerClient, Lab, PIN_DIRECTORY, PLUGIN_DIRECTORY, Snapshot, remove_standing, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(20);
/// Set in the process that plays the owner that is killed.
const OWNER: &str = "LAB_TEST_OWNER";

/// Where the images are: `cargo xtask test` tells; without it they are made in cargo's folder for tests.
fn images_folder() -> Result<PathBuf> {
    let folder = std::env::var_os(FOLDER_VARIABLE).map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("images"),
        PathBuf::from,
    );
    images::make(&folder)?;
    Ok(folder)
}

/// What differs from before and bears the name of this run: other tests may come and go meanwhile.
fn left(before: &Snapshot, prefix: &str) -> Result<Vec<String>> {
    let run = prefix.trim_end_matches('-');
    let mut lines = before.difference(&Snapshot::take()?);
    lines.retain(|line| line.contains(run));
    Ok(lines)
}

/// Processes whose command line or output names the run.
fn processes(prefix: &str) -> Result<Vec<String>> {
    let run = prefix.trim_end_matches('-');
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let output = fs::read_link(path.join("fd/1")).unwrap_or_default();
        if line.contains(run) || output.to_string_lossy().contains(run) {
            found.push(line);
        }
    }
    Ok(found)
}

fn sleeper(docker: &DockerClient) -> Result<String> {
    docker.text(&["run", "--detach", "--network", "none", NGINX.name])
}

#[test]
fn a_docker_runs_both_images_and_leaves_nothing() -> Result<()> {
    let folder = images_folder()?;
    let before = Snapshot::take()?;
    let lab = Lab::new("docker")?;
    let prefix = lab.prefix();
    let mut docker = Docker::start(lab.directory())?;
    let client = docker.client().clone();
    images::import_missing(&client, &folder)?;
    assert!(images::is_present(&client, &NGINX) && images::is_present(&client, &CURL));

    let nginx = sleeper(&client)?;
    let ask = |container: &str| client.text(&["exec", container, "curl", "--silent", "http://127.0.0.1"]);
    wait_for("nginx to serve its page", DEADLINE, || {
        Ok(ask(&nginx)?.contains("nginx"))
    })?;
    // As the original: a user without rights, a shell, and arguments that are curl's.
    let shell = [
        "run",
        "--rm",
        "--network",
        "none",
        CURL.name,
        "sh",
        "-c",
        "id -u; sleep 0",
    ];
    assert_eq!("100", client.text(&shell)?);
    let version = client.text(&["run", "--rm", "--network", "none", CURL.name, "--version"])?;
    assert!(version.starts_with("curl "), "{version}");

    // Containers live on while dockerd is away.
    let pid = client.text(&["inspect", "--format", "{{.State.Pid}}", &nginx])?;
    docker.restart()?;
    assert_eq!(
        pid,
        client.text(&["inspect", "--format", "{{.State.Pid}}", &nginx])?
    );
    assert!(ask(&nginx)?.contains("nginx"));

    docker.remove()?;
    // Dead and not yet reaped, it has no command line either.
    let line = fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
    assert!(line.is_empty(), "nginx has ended with its Docker");
    lab.remove()?;
    assert_eq!(Vec::<String>::new(), left(&before, &prefix)?);
    assert_eq!(Vec::<String>::new(), processes(&prefix)?);
    Ok(())
}

#[test]
fn a_docker_of_a_host_brings_its_rules_there_and_nowhere_else() -> Result<()> {
    let before = Snapshot::take()?;
    let lab = Lab::new("docker rules")?;
    let prefix = lab.prefix();
    let host = lab.host("a")?;
    let docker = Docker::start_in(&host, lab.directory())?;
    let rules = host.run("iptables-save", &["-t", "filter"])?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(rules.contains(":DOCKER-USER "), "{rules}");
    assert!(rules.contains(":FORWARD DROP"), "{rules}");
    assert!(host.ip("link show docker0").is_ok());
    docker.remove()?;
    lab.remove()?;
    assert_eq!(Vec::<String>::new(), left(&before, &prefix)?);
    Ok(())
}

#[test]
fn what_a_killed_owner_left_of_a_docker_is_swept() -> Result<()> {
    let name = "what_a_killed_owner_left_of_a_docker_is_swept";
    let folder = images_folder()?;
    if std::env::var_os(OWNER).is_some() {
        let lab = Lab::new("docker owner")?;
        let docker = Docker::start(lab.directory())?;
        images::import(docker.client(), &folder, &NGINX)?;
        sleeper(docker.client())?;
        // Not by `println`, which the test harness keeps.
        writeln!(std::io::stdout(), "{}", lab.prefix())?;
        loop {
            thread::park();
        }
    }

    let before = Snapshot::take()?;
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", name])
        .env(OWNER, "yes")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = owner.stdout.take().context("its output is piped")?;
    let prefix = BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("oakt-"))
        .context("the owner has made no Docker")?;
    // Dockerd, containerd, the container's parent, by what their command lines name.
    let made = processes(&prefix)?;
    for part in ["dockerd ", "containerd --config", "containerd-shim"] {
        assert!(made.iter().any(|line| line.contains(part)), "{part}: {made:?}");
    }

    kill(Pid::from_raw(owner.id().cast_signed()), Signal::SIGKILL)?;
    owner.wait()?;
    Lab::new("next")?.remove()?;
    assert_eq!(Vec::<String>::new(), processes(&prefix)?);
    assert_eq!(Vec::<String>::new(), left(&before, &prefix)?);
    assert!(!Path::new("/tmp").join(prefix.trim_end_matches('-')).exists());
    Ok(())
}

/// What a killed NetManager leaves: a state that names the node, its pins, the socket of its network driver. The
/// latter two.
fn node(directory: &Path, id: &str) -> Result<[PathBuf; 2]> {
    let state = directory.join("worker-1/var/lib/oakestra/netmanager");
    fs::create_dir_all(&state)?;
    let registered = format!("{{\"registration\": {{\"node_id\": \"{id}\"}}}}");
    fs::write(state.join("state.json"), registered)?;
    let pins = Path::new(PIN_DIRECTORY).join(id);
    fs::create_dir_all(&pins).context("bpffs is not mounted?")?;
    let plugin = Path::new(PLUGIN_DIRECTORY).join(format!("oakestra-{id}.sock"));
    fs::create_dir_all(PLUGIN_DIRECTORY)?;
    fs::write(&plugin, "")?;
    Ok([pins, plugin])
}

#[test]
fn a_standing_docker_is_removed_by_its_folder() -> Result<()> {
    let folder = images_folder()?;
    let before = Snapshot::take()?;
    let name = format!("oakt-docker-{}", std::process::id());
    let directory = Path::new("/tmp").join(&name);
    fs::create_dir(&directory)?;
    let mut docker = Docker::start(&directory)?;
    images::import(docker.client(), &folder, &NGINX)?;
    sleeper(docker.client())?;
    let traces = node(&directory, &format!("node{}", std::process::id()))?;
    docker.release();
    let client = docker.client().clone();
    drop(docker);
    assert!(client.answers(), "it runs on");

    remove_standing(&directory)?;
    for path in traces.iter().chain([&directory]) {
        assert!(!path.exists(), "{}", path.display());
    }
    assert_eq!(Vec::<String>::new(), processes(&name)?);
    assert_eq!(Vec::<String>::new(), left(&before, &name)?);
    remove_standing(&directory)?;
    Ok(())
}
