//! Nothing a lab made outlives it, however it ends. Needs root.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{Daemon, Host, Lab, PIN_DIRECTORY, Snapshot, sweep, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(10);
/// Set in the process that plays the owner that is killed.
const OWNER: &str = "LAB_TEST_OWNER";

/// A lab with everything in it that may be left behind.
fn furnished() -> Result<(Lab, Daemon)> {
    let lab = Lab::new("furnished")?;
    let host = lab.host("a")?;
    lab.host("b")?;
    host.endpoint("client")?;
    let daemon = sleeper(&host)?;
    fs::write(lab.directory().join("state"), "something")?;
    let pins = Path::new(PIN_DIRECTORY).join(host.name()).join("v1");
    fs::create_dir_all(&pins).context("bpffs is not mounted?")?;
    let map = pins.join("map").display().to_string();
    let create = [
        "map", "create", &map, "type", "array", "key", "4", "value", "4", "entries", "1", "name", "map",
    ];
    host.run("bpftool", &create)?;
    Ok((lab, daemon))
}

/// A daemon whose child is nobody's any more: only its namespace tells whose it is.
fn sleeper(host: &Host) -> Result<Daemon> {
    let mut command = host.command("sh")?;
    command.args(["-c", "sleep 1000 & echo ready; sleep 1001"]);
    let daemon = host.daemon("sleeper", command)?;
    wait_for("the shell's child", DEADLINE, || {
        Ok(daemon.log()?.contains("ready"))
    })?;
    Ok(daemon)
}

/// All that there is of a run: namespaces, processes, folder, pins.
fn remains(prefix: &str) -> Result<Vec<String>> {
    let run = prefix.trim_end_matches('-');
    let mut found = Vec::new();
    for directory in ["/run/netns", "/tmp", PIN_DIRECTORY] {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(run))
            {
                found.push(path.display().to_string());
            }
        }
    }
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // The shell's log is the one thing that ties a process to the run from outside of its namespace.
        if fs::read_link(path.join("fd/1")).is_ok_and(|target| target.to_string_lossy().contains(run)) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

/// Four namespaces, folder and pins, and the shell with its child.
fn has_everything(remains: &[String]) -> bool {
    let processes = remains.iter().filter(|path| path.starts_with("/proc")).count();
    processes >= 2 && remains.len() - processes == 6
}

#[test]
fn a_lab_that_ends_leaves_nothing() -> Result<()> {
    let (lab, daemon) = furnished()?;
    let prefix = lab.prefix();
    let made = remains(&prefix)?;
    assert!(has_everything(&made), "{made:?}");

    drop(lab);
    assert_eq!(Vec::<String>::new(), remains(&prefix)?);
    drop(daemon);
    Ok(())
}

#[test]
fn a_panic_leaves_nothing() -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    let outcome = thread::spawn(move || {
        let (lab, _daemon) = furnished().expect("root can make a lab");
        sender.send(lab.prefix()).expect("the test listens");
        panic!("as a failing test does");
    })
    .join();
    assert!(outcome.is_err());
    assert_eq!(Vec::<String>::new(), remains(&receiver.recv()?)?);
    Ok(())
}

#[test]
fn what_a_killed_owner_left_goes_when_the_next_lab_comes() -> Result<()> {
    let name = "what_a_killed_owner_left_goes_when_the_next_lab_comes";
    if std::env::var_os(OWNER).is_some() {
        let (lab, _daemon) = furnished()?;
        // Not by `println`, which the test harness keeps.
        writeln!(std::io::stdout(), "{}", lab.prefix())?;
        loop {
            thread::park();
        }
    }

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
        .context("the owner has made no lab")?;

    // As long as the owner lives, what it made is nobody else's business.
    sweep()?;
    let made = remains(&prefix)?;
    assert!(has_everything(&made), "{made:?}");

    // Not reaped yet, it is dead all the same.
    kill(Pid::from_raw(owner.id().cast_signed()), Signal::SIGKILL)?;
    let stat = format!("/proc/{}/stat", owner.id());
    wait_for("the owner to die", DEADLINE, || {
        Ok(fs::read_to_string(&stat)?.contains(") Z "))
    })?;
    // From here on, the next lab of any process may sweep it; at the latest it is this one.
    let next = Lab::new("next")?;
    assert_eq!(Vec::<String>::new(), remains(&prefix)?);
    owner.wait()?;
    next.remove()
}

#[test]
fn half_a_namespace_is_swept_too() -> Result<()> {
    // The name of a run whose owner, process 1, started at another time than this tells.
    let prefix = "oakt-00001000zzzzzz";
    let path = Path::new("/run/netns").join(format!("{prefix}-a"));
    drop(Lab::new("for the folder of the names")?);
    fs::write(&path, "")?;
    fs::create_dir_all(Path::new("/tmp").join(prefix))?;
    sweep()?;
    assert_eq!(Vec::<String>::new(), remains(prefix)?);
    Ok(())
}

#[test]
fn a_snapshot_shows_what_a_lab_leaves() -> Result<()> {
    let before = Snapshot::take()?;
    let lab = Lab::new("seen")?;
    let host = lab.host("a")?;
    let pins = Path::new(PIN_DIRECTORY).join(host.name());
    fs::create_dir_all(&pins).context("bpffs is not mounted?")?;
    let prefix = lab.prefix();
    // Other tests may come and go meanwhile.
    let difference = || -> Result<Vec<String>> {
        let mut lines = before.difference(&Snapshot::take()?);
        lines.retain(|line| line.contains(&prefix));
        Ok(lines)
    };

    let expected = [
        format!("/sys/fs/bpf: + {}", pins.display()),
        format!("ip netns: + {prefix}a"),
        format!("ip netns: + {prefix}wire"),
    ];
    assert_eq!(expected.as_slice(), difference()?);
    lab.remove()?;
    assert_eq!(Vec::<String>::new(), difference()?);
    Ok(())
}
