//! What a container uses, out of the files of its control group.
//!
//! Where a process is in the hierarchy stands in `/proc/<pid>/cgroup`, whichever way Docker has arranged it:
//!
//! ```text
//!   version 1   4:memory:/docker/<id>            /sys/fs/cgroup/memory/docker/<id>/memory.usage_in_bytes
//!   version 2   0::/system.slice/docker-<id>…    /sys/fs/cgroup/system.slice/docker-<id>…/memory.current
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::runtime::Usage;

const ROOT: &str = "/sys/fs/cgroup";

/// What the group of the process uses; `None` when it is gone.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    if pid == 0 {
        return None;
    }
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let groups = Groups::parse(&groups, Path::new(ROOT));
    Some(Usage {
        cpu_nanoseconds: groups.cpu()?,
        memory: groups.memory()?,
    })
}

/// Folders of a process in the hierarchies.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    cpu: Option<PathBuf>,
    memory: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl Groups {
    fn parse(text: &str, root: &Path) -> Self {
        let mut groups = Self::default();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                groups.unified = Some(root.join(path));
            }
            for controller in controllers.split(',') {
                match controller {
                    // The name of the first controller may be a link to the hierarchy of all of them.
                    "cpuacct" => groups.cpu = Some(root.join("cpuacct").join(path)),
                    "memory" => groups.memory = Some(root.join("memory").join(path)),
                    _ => {}
                }
            }
        }
        groups
    }

    fn cpu(&self) -> Option<u64> {
        if let Some(folder) = &self.cpu {
            return number(&folder.join("cpuacct.usage"));
        }
        let microseconds = field(&self.unified.as_ref()?.join("cpu.stat"), "usage_usec")?;
        Some(microseconds.saturating_mul(1000))
    }

    /// Without the part of the page cache that has not been used lately, as `docker stats` has it.
    fn memory(&self) -> Option<u64> {
        let (all, cache) = match (&self.memory, &self.unified) {
            (Some(folder), _) => (
                number(&folder.join("memory.usage_in_bytes"))?,
                field(&folder.join("memory.stat"), "total_inactive_file"),
            ),
            (None, Some(folder)) => (
                number(&folder.join("memory.current"))?,
                field(&folder.join("memory.stat"), "inactive_file"),
            ),
            (None, None) => return None,
        };
        Some(all.saturating_sub(cache.unwrap_or_default()))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, text).expect("write");
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        write(&root.join("cpuacct/docker/x/cpuacct.usage"), "5000\n");
        write(&root.join("memory/docker/x/memory.usage_in_bytes"), "1000\n");
        write(
            &root.join("memory/docker/x/memory.stat"),
            "cache 7\ntotal_inactive_file 300\n",
        );
        let first = Groups::parse(
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n0::/elsewhere\n",
            root,
        );
        assert_eq!((first.cpu(), first.memory()), (Some(5000), Some(700)));

        write(
            &root.join("system.slice/x.scope/cpu.stat"),
            "usage_usec 5\nuser_usec 3\n",
        );
        write(&root.join("system.slice/x.scope/memory.current"), "1000\n");
        write(
            &root.join("system.slice/x.scope/memory.stat"),
            "anon 7\ninactive_file 300\n",
        );
        let second = Groups::parse("0::/system.slice/x.scope\n", root);
        assert_eq!((second.cpu(), second.memory()), (Some(5000), Some(700)));
    }

    #[test]
    fn this_process_uses_something_and_a_gone_one_nothing() {
        assert_eq!(usage(0), None);
        assert_eq!(usage(u32::MAX), None);
    }
}
