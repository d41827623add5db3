//! The name of a run, which tells who made it.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

/// What every name of every lab begins with.
pub(crate) const PREFIX: &str = "oakt-";
const RADIX: u32 = 36;
/// Digits of a process id: the kernel's largest is 2^22.
const PID_DIGITS: usize = 5;
/// Digits of the number of a lab within its process.
const COUNTER_DIGITS: usize = 3;

/// `<pid><counter><start time>` in base 36, the first two padded to a fixed width. The start time (clock ticks
/// since boot) tells the owner from a later process that was given the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    text: String,
    owner: u32,
    owner_started: u64,
}

impl Run {
    /// A run of this process that no lab has had before.
    pub(crate) fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        ensure!(
            counter < RADIX.pow(COUNTER_DIGITS as u32),
            "this process has made too many labs: {counter}"
        );
        let owner = std::process::id();
        let owner_started = Process::read(owner)
            .with_context(|| format!("/proc/{owner}/stat does not tell when this process started"))?
            .started;
        let text = format!(
            "{}{}{}",
            base36(u64::from(owner), PID_DIGITS),
            base36(u64::from(counter), COUNTER_DIGITS),
            base36(owner_started, 1)
        );
        Ok(Self {
            text,
            owner,
            owner_started,
        })
    }

    /// The run that a name (`oakt-<run>` or `oakt-<run>-<role>`) belongs to; none if no lab made it.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let text = rest.split_once('-').map_or(rest, |(text, _)| text);
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
        {
            return None;
        }
        let owner = u32::from_str_radix(text.get(..PID_DIGITS)?, RADIX).ok()?;
        let owner_started = u64::from_str_radix(text.get(PID_DIGITS + COUNTER_DIGITS..)?, RADIX).ok()?;
        Some(Self {
            text: text.to_owned(),
            owner,
            owner_started,
        })
    }

    /// `oakt-<run>`, the name of its folder.
    pub(crate) fn name(&self) -> String {
        format!("{PREFIX}{}", self.text)
    }

    /// `oakt-<run>-`, what all its other names begin with.
    pub(crate) fn prefix(&self) -> String {
        format!("{PREFIX}{}-", self.text)
    }

    /// Whether the process that made it still runs. One that is dead and only waits for its parent to notice
    /// cannot clean up any more.
    pub(crate) fn owner_lives(&self) -> bool {
        started(self.owner) == Some(self.owner_started)
    }

    /// The id of the process that made it.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// Whether another process, and a live one, made it.
    pub(crate) fn is_anothers(&self) -> bool {
        self.owner != std::process::id() && self.owner_lives()
    }
}

/// When a process started, in clock ticks since boot: with its id, that is what tells it from all others. None if it
/// has ended, also where its parent has not noticed yet.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    let process = Process::read(pid).filter(|process| !matches!(process.state, 'Z' | 'X'))?;
    Some(process.started)
}

struct Process {
    state: char,
    started: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `pid (name) state ...`; the name may itself contain spaces and brackets, so the count begins after the
    /// last one. The start time is field 22, the state field 3.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { state, started })
    }
}

fn base36(mut value: u64, width: usize) -> String {
    let mut digits = Vec::new();
    while value > 0 || digits.len() < width {
        let digit = (value % u64::from(RADIX)) as u32;
        digits.push(char::from_digit(digit, RADIX).expect("a remainder is smaller than the radix"));
        value /= u64::from(RADIX);
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_recognised_by_its_names_and_its_owner_lives() {
        let run = Run::new().expect("this process has a start time");
        assert_eq!(Some(&run), Run::of(&run.name()).as_ref());
        assert_eq!(Some(&run), Run::of(&format!("{}a-client", run.prefix())).as_ref());
        assert!(run.owner_lives());
        assert!(!run.is_anothers());
        assert_ne!(run, Run::new().expect("this process has a start time"));
    }

    #[test]
    fn an_owner_that_started_at_another_time_is_dead() {
        let run = Run::new().expect("this process has a start time");
        let reused = Run {
            owner_started: run.owner_started + 1,
            ..run
        };
        assert!(!reused.owner_lives());
    }

    #[test]
    fn foreign_names_belong_to_no_run() {
        for name in [
            "",
            "oakt-",
            "oakt-abc",
            "oakt-00001000",
            "docker0",
            "oakt-00001000zz_zz-a",
            "oakt-ÄÄÄÄÄÄÄÄÄ-a",
        ] {
            assert_eq!(None, Run::of(name), "{name}");
        }
    }

    #[test]
    fn a_process_name_may_look_like_fields() {
        let fields: Vec<String> = (4..60).map(|field| field.to_string()).collect();
        let process =
            Process::parse(&format!("7 (a) R (b 1) S {}", fields.join(" "))).expect("it is well-formed");
        assert_eq!(('S', 22), (process.state, process.started));
    }

    #[test]
    fn base36_pads() {
        assert_eq!("00010", base36(36, 5));
        assert_eq!("zzzzz", base36(36_u64.pow(5) - 1, 5));
        assert_eq!("0", base36(0, 1));
    }
}
