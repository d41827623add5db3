//! What the daemons cost while nothing happens.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::interrupt;

/// A daemon by its name and process id.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    pub id: u32,
}

/// A daemon at rest.
#[derive(Clone, Debug)]
pub struct Footprint {
    pub name: String,
    /// Memory in MiB: its own pages, and its share of those that others have as well. What the kernel holds for it, as
    /// BPF maps, is no part of that.
    pub memory: f64,
    /// Of that, pages that are its own and not backed by a file.
    pub anonymous: f64,
    /// Threads.
    pub threads: usize,
    /// Percent of one processor.
    pub processor: f64,
}

/// Looks at processes for so long, and at their memory in the end.
pub fn look(processes: &[Process], window: Duration) -> Result<Vec<Footprint>> {
    let before: Vec<f64> = processes.iter().map(used).collect::<Result<_>>()?;
    let began = Instant::now();
    while let Some(left) = window.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        interrupt::check()?;
        sleep(left.min(Duration::from_secs(1)));
    }
    let footprint = |(process, before): (&Process, f64)| {
        let processor = (used(process)? - before) / began.elapsed().as_secs_f64() * 100.0;
        let (memory, anonymous) = memory(process)?;
        let threads = fs::read_dir(format!("/proc/{}/task", process.id))
            .with_context(|| format!("cannot count the threads of {}", process.name))?
            .count();
        Ok(Footprint {
            name: process.name.clone(),
            memory,
            anonymous,
            threads,
            processor,
        })
    };
    processes.iter().zip(before).map(footprint).collect()
}

/// Seconds that a process has run so far, in user space and in the kernel.
fn used(process: &Process) -> Result<f64> {
    let path = format!("/proc/{}/stat", process.id);
    let text = fs::read_to_string(&path).with_context(|| format!("{} has ended", process.name))?;
    let ticks = ticks(&text).with_context(|| format!("{path} tells no times"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .context("cannot ask for the length of a tick")?
        .context("the kernel does not tell the length of a tick")?;
    Ok(ticks as f64 / per_second as f64)
}

/// `pid (name) state …`, where user and system time are the 14th and 15th column; a name may contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_name, columns) = stat.rsplit_once(") ")?;
    let mut columns = columns.split_ascii_whitespace().skip(11);
    let mut next = || columns.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Proportional set, and of it what is anonymous; in MiB.
fn memory(process: &Process) -> Result<(f64, f64)> {
    let path = format!("/proc/{}/smaps_rollup", process.id);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let figure = |name: &str| {
        kibibytes(&text, name)
            .map(|size| size as f64 / 1024.0)
            .with_context(|| format!("{path} tells no {name}"))
    };
    Ok((figure("Pss")?, figure("Pss_Anon")?))
}

/// `Pss:                1234 kB`
fn kibibytes(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_process_are_read_whatever_its_name() {
        let stat = "42 (a) R 9 (b)) S 1 1 1 0 -1 4194560 900 0 0 0 120 34 5 6 20 0 8 0 100 1 1";
        assert_eq!(ticks(stat), Some(154));
        assert_eq!(ticks("42 (a) S 1 1"), None);
    }

    #[test]
    fn the_proportional_set_is_not_taken_for_its_parts() {
        let rollup = "00400000-7fff0000 ---p 00000000 00:00 0  [rollup]\nRss:  9000 kB\nPss_Dirty: 7 kB\nPss:     2048 kB\nPss_Anon:  1024 kB\n";
        assert_eq!(kibibytes(rollup, "Pss"), Some(2048));
        assert_eq!(kibibytes(rollup, "Pss_Anon"), Some(1024));
        assert_eq!(kibibytes(rollup, "Swap"), None);
    }

    #[test]
    fn this_process_has_a_footprint() {
        let process = Process {
            name: "test".to_owned(),
            id: std::process::id(),
        };
        let found = look(&[process], Duration::ZERO).expect("it lives");
        let [footprint] = found.as_slice() else {
            panic!("one process, {} footprints", found.len());
        };
        assert!(footprint.memory >= footprint.anonymous && footprint.anonymous > 0.0);
        assert!(footprint.threads > 0);
    }
}
