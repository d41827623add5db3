//! `up` brings the system up beside whatever else a machine does, and `down` leaves nothing of it, however it ended.
//! Needs root, dockerd, and the variables that `cargo xtask test` sets. The machine is a host of a lab.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::images::FOLDER_VARIABLE;
use lab::system::PROGRAMS_VARIABLE;
use lab::{Host, Lab, PIN_DIRECTORY, PLUGIN_DIRECTORY, node_ids, remove_standing, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// A machine on which commands of this package are run.
struct Machine {
    host: Host,
    directory: PathBuf,
}

impl Machine {
    fn new(lab: &Lab, name: &str) -> Result<Self> {
        Ok(Self {
            host: lab.host("machine")?,
            directory: Path::new("/tmp").join(format!("oakt-{name}-{}", std::process::id())),
        })
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_xtask"))?;
        command.arg(verb).arg("--directory").arg(&self.directory);
        Ok(command)
    }

    fn up(&self) -> Result<Command> {
        let folder = |name: &str| {
            std::env::var_os(name).with_context(|| format!("{name} is not set: use `cargo xtask test`"))
        };
        let mut command = self.command("up")?;
        command
            .arg("--built")
            .args([folder(PROGRAMS_VARIABLE)?, folder(FOLDER_VARIABLE)?]);
        Ok(command)
    }

    fn status(&self) -> Result<Value> {
        let output = self.command("status")?.args(["-o", "json"]).output()?;
        let reports: Value = serde_json::from_slice(&output.stdout).context("status prints JSON")?;
        Ok(reports[0].clone())
    }

    /// What a system could leave in the network of its machine.
    fn network(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for (program, arguments) in [
            ("ip", &["-o", "link"][..]),
            ("ip", &["-o", "-4", "address"]),
            ("ip", &["-4", "route", "show", "table", "all"]),
            ("nft", &["-s", "list", "ruleset"]),
        ] {
            let output = self.host.run(program, arguments)?;
            found.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
        }
        let forwards = self
            .host
            .enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward"))??;
        found.insert(format!("ip_forward {forwards}"));
        Ok(found)
    }

    /// Paths and processes that name the folder, and what nodes have elsewhere.
    fn remains(&self, nodes: &[String]) -> Result<Vec<PathBuf>> {
        let name = self.directory.display().to_string();
        let mut found: Vec<PathBuf> = nodes
            .iter()
            .flat_map(|node| {
                let plugin = format!("oakestra-{node}.sock");
                [
                    Path::new(PIN_DIRECTORY).join(node),
                    Path::new(PLUGIN_DIRECTORY).join(plugin),
                ]
            })
            .chain([self.directory.clone()])
            .filter(|path| path.exists())
            .collect();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&name) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = remove_standing(&self.directory) {
            eprintln!("{error:#}");
        }
    }
}

fn success(output: Output) -> Result<String> {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "{}: {text}", output.status);
    Ok(text)
}

#[test]
fn a_system_stands_until_it_is_taken_down() -> Result<()> {
    let lab = Lab::new("standing")?;
    let machine = Machine::new(&lab, "stand")?;
    let before = machine.network()?;

    let told = success(machine.up()?.output()?)?;
    assert!(told.contains("http://198.51.100.1:10000"), "{told}");
    let report = machine.status()?;
    assert_eq!(true, report["healthy"], "{report}");
    let nodes = node_ids(&machine.directory)?;
    assert_eq!(1, nodes.len(), "{nodes:?}");

    let again = success(machine.up()?.output()?)?;
    assert!(again.contains("up already"), "{again}");
    let pids = |report: &Value| -> Vec<Value> {
        let daemons = report["daemons"].as_array().into_iter().flatten();
        daemons.map(|daemon| daemon["pid"].clone()).collect()
    };
    assert_eq!(pids(&report), pids(&machine.status()?));

    // A part dies, is missed, and comes back with the rest.
    let root = report["daemons"][0]["pid"]
        .as_u64()
        .context("the root has a process")?;
    kill(Pid::from_raw(i32::try_from(root)?), Signal::SIGKILL)?;
    wait_for("the root to be missed", DEADLINE, || {
        Ok(machine.status()?["healthy"] == false)
    })?;
    success(machine.up()?.output()?)?;
    assert_eq!(true, machine.status()?["healthy"]);
    assert_eq!(nodes, node_ids(&machine.directory)?, "the node is still the same");

    success(machine.command("down")?.output()?)?;
    assert_eq!(Vec::<PathBuf>::new(), machine.remains(&nodes)?);
    assert_eq!(before, machine.network()?);
    success(machine.command("down")?.output()?)?;
    Ok(())
}

#[test]
fn an_up_that_is_killed_half_way_is_taken_down_too() -> Result<()> {
    let lab = Lab::new("half-way")?;
    let machine = Machine::new(&lab, "half")?;
    let before = machine.network()?;
    // The moments at which these have just come to be: its Docker, its plan, the node's state.
    for made in [
        "docker/docker.sock",
        "standing.json",
        "worker-1/var/lib/oakestra/netmanager/state.json",
    ] {
        let mut up = machine
            .up()?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let path = machine.directory.join(made);
        wait_for(made, DEADLINE, || Ok(path.exists()))?;
        up.kill()?;
        up.wait()?;
        let nodes = node_ids(&machine.directory)?;
        success(machine.command("down")?.output()?).with_context(|| format!("killed with {made}"))?;
        assert_eq!(
            Vec::<PathBuf>::new(),
            machine.remains(&nodes)?,
            "killed with {made}"
        );
        assert_eq!(before, machine.network()?, "killed with {made}");
    }
    Ok(())
}
