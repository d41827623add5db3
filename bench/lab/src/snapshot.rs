//! What the machine's network looks like, to see that nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::docker::DockerClient;
use crate::process::output;
use crate::remains::{PLUGIN_DIRECTORY, SHIM_DIRECTORY, control_groups, entries, mounts};
use crate::run::Run;

/// Sysctls that count or measure, and so change without anybody changing them.
const VOLATILE: &[&str] = &["net.netfilter.nf_conntrack_count"];

/// The root namespace as `ip netns`, `ip link`, `nft -s list ruleset`, `bpftool link`, `/sys/fs/bpf` and
/// `sysctl net` show it; besides, what is mounted, the control groups at the top, sockets of network drivers and of
/// containers' parents, and what the machine's Docker has, if it answers. Names of labs that belong to other living
/// processes are left out: they come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at the namespace of the calling thread, which ought to be the root namespace. Needs root. Without
    /// `nft` or `bpftool` on the machine there are no rules or links to look at.
    pub fn take() -> Result<Self> {
        let mut sections = BTreeMap::new();
        sections.insert("ip netns", namespaces()?);
        sections.insert("ip link", links()?);
        sections.insert("nft", rules()?);
        sections.insert("bpf link", bpf_links()?);
        sections.insert("/sys/fs/bpf", pins()?);
        sections.insert("mounts", mount_points()?);
        sections.insert(
            "cgroup",
            control_groups()?
                .into_iter()
                .filter(|name| !is_anothers(name))
                .collect(),
        );
        sections.insert("network drivers", sockets(PLUGIN_DIRECTORY)?);
        sections.insert("containers' parents", sockets(SHIM_DIRECTORY)?);
        sections.insert("docker", docker()?);
        // Last, since looking at the rules may load modules that bring sysctls of their own.
        sections.insert("sysctl", sysctls()?);
        Ok(Self { sections })
    }

    /// What is different in a later snapshot, a line for each thing that is new (`+`) or gone (`-`); a changed
    /// value is both.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let nothing = BTreeSet::new();
        let mut lines = Vec::new();
        for (section, before) in &self.sections {
            let after = later.sections.get(section).unwrap_or(&nothing);
            lines.extend(
                before
                    .difference(after)
                    .map(|entry| format!("{section}: - {entry}")),
            );
            lines.extend(
                after
                    .difference(before)
                    .map(|entry| format!("{section}: + {entry}")),
            );
        }
        lines
    }
}

fn namespaces() -> Result<BTreeSet<String>> {
    let output = output(Command::new("ip").args(["netns", "list"]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `name (id: 3)`: the number is given to a namespace when somebody asks for it.
    let names = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next());
    Ok(names
        .filter(|name| !is_anothers(name))
        .map(str::to_owned)
        .collect())
}

fn links() -> Result<BTreeSet<String>> {
    let output = output(Command::new("ip").args(["-o", "link"]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `7: veth1@if6: <BROADCAST,...`
    Ok(text
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(str::to_owned)
        .collect())
}

fn rules() -> Result<BTreeSet<String>> {
    if !is_installed("nft") {
        return Ok(BTreeSet::new());
    }
    let output = output(Command::new("nft").args(["-s", "list", "ruleset"]))?;
    Ok(flat_rules(&String::from_utf8_lossy(&output.stdout)))
}

/// One entry for each line, with the table and chain it stands in, and numbered where the same rule stands there
/// more than once.
fn flat_rules(ruleset: &str) -> BTreeSet<String> {
    let mut path: Vec<&str> = Vec::new();
    let mut entries = BTreeSet::new();
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "}" {
            path.pop();
            continue;
        }
        let text = line.strip_suffix('{').unwrap_or(line).trim();
        let mut entry = path
            .iter()
            .chain([&text])
            .copied()
            .collect::<Vec<_>>()
            .join(" / ");
        let once = entry.clone();
        let mut count = 1;
        while entries.contains(&entry) {
            count += 1;
            entry = format!("{once} (number {count})");
        }
        entries.insert(entry);
        if line.ends_with('{') {
            path.push(text);
        }
    }
    entries
}

fn bpf_links() -> Result<BTreeSet<String>> {
    if !is_installed("bpftool") {
        return Ok(BTreeSet::new());
    }
    // -f: with the places where each is pinned.
    let output = output(Command::new("bpftool").args(["-j", "-f", "link", "show"]))?;
    // It may print nothing at all where there is none.
    let text = String::from_utf8_lossy(&output.stdout);
    if text.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let links: Vec<Value> = serde_json::from_str(&text).context("cannot read what bpftool printed")?;
    let is_mine = |link: &&Value| {
        let pins = link["pinned"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        !pins.flat_map(|pin| pin.split('/')).any(is_anothers)
    };
    Ok(links
        .iter()
        .filter(is_mine)
        .map(|link| format!("{} {}", link["id"], link["type"]))
        .collect())
}

fn pins() -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    walk(Path::new("/sys/fs/bpf"), &mut |path, _is_directory| {
        let text = path.to_string_lossy();
        let mine = !text.split('/').any(is_anothers);
        if mine {
            paths.insert(text.into_owned());
        }
        mine
    })?;
    // The shared parent of foreign labs' pins comes and goes with them.
    let parent = format!("{}/", crate::PIN_DIRECTORY);
    if !paths.iter().any(|path| path.starts_with(&parent)) && has_anothers(Path::new(crate::PIN_DIRECTORY)) {
        paths.remove(crate::PIN_DIRECTORY);
    }
    Ok(paths)
}

fn mount_points() -> Result<BTreeSet<String>> {
    let points = mounts()?;
    Ok(points
        .iter()
        // Each namespace with a name is one, and stands under its name.
        .filter(|mount| mount.kind != "nsfs")
        .map(|mount| format!("{} ({})", mount.point.display(), mount.kind))
        .filter(|text| !text.split(['/', ' ']).any(is_anothers))
        .collect())
}

fn sockets(directory: &str) -> Result<BTreeSet<String>> {
    let paths = entries(Path::new(directory))?;
    let names = paths.iter().filter_map(|path| path.file_name());
    Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
}

fn docker() -> Result<BTreeSet<String>> {
    let docker = DockerClient::at(Path::new(DockerClient::MACHINE));
    let mut found = BTreeSet::new();
    if docker.answers() {
        for (kind, arguments) in [
            ("container", &["ps", "--all", "--quiet", "--no-trunc"][..]),
            ("volume", &["volume", "ls", "--quiet"]),
            ("network", &["network", "ls", "--quiet", "--no-trunc"]),
        ] {
            let text = docker.text(arguments)?;
            found.extend(text.lines().map(|line| format!("{kind} {line}")));
        }
    }
    Ok(found)
}

fn has_anothers(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_str().is_some_and(is_anothers))
    })
}

fn sysctls() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    walk(Path::new("/proc/sys/net"), &mut |path, is_directory| {
        if is_directory {
            return true;
        }
        let text = path.to_string_lossy();
        let key = text.trim_start_matches("/proc/sys/").replace('/', ".");
        // What can't be read (write-only triggers, secrets that are not set) has no value.
        if let Ok(value) = fs::read_to_string(path)
            && !VOLATILE.iter().any(|volatile| key == *volatile)
        {
            lines.insert(format!("{key} = {}", value.trim()));
        }
        true
    })?;
    Ok(lines)
}

/// Visits everything below a folder, and below a folder in it if the visitor says so. What disappears meanwhile
/// is not there.
fn walk(directory: &Path, visit: &mut impl FnMut(&Path, bool) -> bool) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", directory.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if visit(&entry.path(), is_directory) && is_directory {
            walk(&entry.path(), visit)?;
        }
    }
    Ok(())
}

fn is_anothers(name: &str) -> bool {
    Run::of(name).is_some_and(|run| run.is_anothers())
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(section: &'static str, entries: &[&str]) -> Snapshot {
        let entries = entries.iter().map(|entry| (*entry).to_owned()).collect();
        Snapshot {
            sections: BTreeMap::from([(section, entries)]),
        }
    }

    #[test]
    fn a_difference_names_what_came_and_what_went() {
        let before = snapshot("sysctl", &["a = 1", "b = 1"]);
        let after = snapshot("sysctl", &["b = 2", "a = 1"]);
        assert_eq!(
            ["sysctl: - b = 1", "sysctl: + b = 2"].as_slice(),
            before.difference(&after)
        );
        assert!(before.difference(&before.clone()).is_empty());
    }

    #[test]
    fn a_rule_is_known_by_its_place() {
        let ruleset =
            "table ip nat {\n\tchain POST {\n\t\tmasquerade\n\t\tmasquerade\n\t}\n}\ntable ip b {\n}\n";
        let entries = flat_rules(ruleset);
        let expected = [
            "table ip b",
            "table ip nat",
            "table ip nat / chain POST",
            "table ip nat / chain POST / masquerade",
            "table ip nat / chain POST / masquerade (number 2)",
        ];
        assert_eq!(
            expected.as_slice(),
            entries.iter().map(String::as_str).collect::<Vec<_>>()
        );
    }
}
