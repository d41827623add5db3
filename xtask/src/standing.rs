//! A system that lives on when the command that started it has ended, as a file in its folder tells of it.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lab::system::{Plan, Seat, System};
use lab::{DockerClient, Namespace};
use serde_json::{Value, json};

/// Where `up` keeps everything: state, configuration, logs, programs.
pub const DIRECTORY: &str = "/var/lib/oakt-up";
/// The file that marks a lab as a demonstration's.
pub const MARK: &str = "demonstration";

const FILE: &str = "standing.json";
/// How the machine's own namespace is called.
const MACHINE: &str = "machine";

/// A process as it is found again: an id alone may be another's by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub name: String,
    pub pid: u32,
    started: u64,
}

impl Recorded {
    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        lab::started(self.pid) == Some(self.started)
    }
}

/// What stands, and where.
#[derive(Clone, Debug)]
pub struct Standing {
    pub plan: Plan,
    /// None before everything was started.
    pub processes: Vec<Recorded>,
}

impl Standing {
    /// What is about to be started.
    pub fn planned(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            processes: Vec::new(),
        }
    }

    /// What runs.
    pub fn of(system: &mut System) -> Self {
        let mut processes: Vec<(String, u32)> = system
            .daemons()
            .iter()
            .map(|daemon| (daemon.name().to_owned(), daemon.pid()))
            .collect();
        if let Some(docker) = system.own_docker() {
            processes.push(("docker".to_owned(), docker.daemon().pid()));
        }
        let mut standing = Self::planned(system.plan());
        for (name, pid) in processes {
            standing.add(&name, pid);
        }
        standing
    }

    /// Notes one more process; one that has ended is not worth a note.
    pub fn add(&mut self, name: &str, pid: u32) {
        if let Some(started) = lab::started(pid) {
            self.processes.push(Recorded {
                name: name.to_owned(),
                pid,
                started,
            });
        }
    }

    /// Whether everything runs that was started.
    pub fn is_whole(&self) -> bool {
        !self.processes.is_empty() && self.processes.iter().all(Recorded::runs)
    }

    /// Writes the file, in one step.
    pub fn save(&self) -> Result<()> {
        let path = self.plan.directory.join(FILE);
        let beside = self.plan.directory.join(format!("{FILE}.new"));
        let context = || format!("cannot write {}", path.display());
        fs::write(&beside, format!("{:#}", self.document())).with_context(context)?;
        fs::rename(&beside, &path).with_context(context)
    }

    /// Reads the file of a folder, if there is one.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let parsed = serde_json::from_slice(&text).ok();
        let standing = parsed.and_then(|document: Value| Self::parse(directory, &document));
        let standing = standing.with_context(|| {
            format!(
                "{} is not what this version writes: `cargo xtask down` first",
                path.display()
            )
        })?;
        Ok(Some(standing))
    }

    fn document(&self) -> Value {
        let Plan {
            directory: _,
            programs,
            docker,
            root,
            cluster,
            workers,
            background: _,
        } = &self.plan;
        let processes = self
            .processes
            .iter()
            .map(|process| json!({"name": process.name, "pid": process.pid, "started": process.started}));
        json!({
            "programs": programs,
            "docker": docker.socket(),
            "root": seat_document(root),
            "cluster": seat_document(cluster),
            "workers": workers.iter().map(seat_document).collect::<Vec<_>>(),
            "processes": processes.collect::<Vec<_>>(),
        })
    }

    fn parse(directory: &Path, document: &Value) -> Option<Self> {
        let seat = |value: &Value| parse_seat(directory, value);
        let process = |value: &Value| {
            Some(Recorded {
                name: value["name"].as_str()?.to_owned(),
                pid: value["pid"].as_u64()?.try_into().ok()?,
                started: value["started"].as_u64()?,
            })
        };
        Some(Self {
            plan: Plan {
                directory: directory.to_owned(),
                programs: PathBuf::from(document["programs"].as_str()?),
                docker: DockerClient::at(Path::new(document["docker"].as_str()?)),
                root: seat(&document["root"])?,
                cluster: seat(&document["cluster"])?,
                workers: document["workers"]
                    .as_array()?
                    .iter()
                    .map(seat)
                    .collect::<Option<_>>()?,
                background: true,
            },
            processes: document["processes"]
                .as_array()?
                .iter()
                .map(process)
                .collect::<Option<_>>()?,
        })
    }
}

fn seat_document(seat: &Seat) -> Value {
    let Seat {
        name,
        namespace,
        address,
    } = seat;
    json!({"name": name, "namespace": namespace.name(), "address": address})
}

fn parse_seat(directory: &Path, value: &Value) -> Option<Seat> {
    let namespace = value["namespace"].as_str()?;
    let address: Ipv4Addr = value["address"].as_str()?.parse().ok()?;
    Some(Seat {
        name: value["name"].as_str()?.to_owned(),
        namespace: if namespace == MACHINE {
            Namespace::machine(directory)
        } else {
            Namespace::named(namespace, directory)
        },
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_is_read_as_it_was_written() {
        let directory = Path::new("/var/lib/oakt-test");
        let seat = |name: &str, namespace: Namespace, last: u8| Seat {
            name: name.to_owned(),
            namespace,
            address: Ipv4Addr::new(198, 51, 100, last),
        };
        let machine = Namespace::machine(directory);
        let plan = Plan {
            directory: directory.to_owned(),
            programs: directory.join("bin"),
            docker: DockerClient::at(Path::new("/var/run/docker.sock")),
            root: seat("root", machine.clone(), 1),
            cluster: seat("cluster", machine.clone(), 1),
            workers: vec![
                seat("worker-1", machine, 1),
                seat("worker-2", Namespace::named("oakt-test-worker-2", directory), 2),
            ],
            background: true,
        };
        let mut standing = Standing::planned(&plan);
        standing.add("this", std::process::id());
        assert!(standing.is_whole());

        let document = standing.document();
        let read = Standing::parse(directory, &document).expect("it is what was written");
        assert_eq!(document, read.document());
        assert_eq!(standing.processes, read.processes);
        assert_eq!(
            Path::new("/run/netns/oakt-test-worker-2"),
            read.plan.workers[1].namespace.path()
        );
        assert!(Standing::parse(directory, &json!({})).is_none());
    }
}
