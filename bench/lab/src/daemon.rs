//! A process that runs as long as it is held.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::shown;
use crate::wait::wait_for;

/// How many lines of the log are shown when a test fails.
const LAST_LINES: usize = 40;

/// A process in a namespace, made by [`Namespace::daemon`](crate::Namespace::daemon). Dropped, it is killed and
/// reaped; while the holder panics, the end of its log is shown.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    command: Command,
    child: Child,
    log: PathBuf,
    /// Whether it is somebody else's to end.
    released: bool,
}

impl Daemon {
    pub(crate) fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("cannot duplicate a file")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = spawn(&mut command)?;
        Ok(Self {
            name: name.to_owned(),
            command,
            child,
            log,
            released: false,
        })
    }

    /// Its name, which is also that of its log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it running when this is dropped; who else is to end it finds it by its id, or by the marker of its run.
    pub fn release(&mut self) {
        self.released = true;
    }

    /// The process id; of the last process where it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far to stdout and stderr, all processes since the start together.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of what it has written.
    pub fn log_end(&self, lines: usize) -> Result<String> {
        Ok(last_lines(&self.log()?, lines))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot ask for the state of {}", self.name))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_for(&what, deadline, || self.ended())
    }

    /// Sends a signal to the running process.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Asking first reaps it if it has ended; its id can't be another process's before that.
        if let Some(status) = self.ended()? {
            bail!("{} has ended ({status}), {signal} can't reach it", self.name);
        }
        match kill(Pid::from_raw(self.child.id().cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("cannot send {signal} to {}", self.name)),
        }
    }

    /// Ends it without warning (SIGKILL) and waits until it is gone. Harmless if it has ended.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Asks it to end (SIGTERM). One that has not after the grace is killed, which the status then tells.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        match self.wait(grace) {
            Ok(status) => Ok(status),
            Err(_late) => self.kill(),
        }
    }

    /// Starts the same command again, after killing the process if it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(&[])
    }

    /// The same, with further arguments from now on.
    pub fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.kill()?;
        self.command.args(arguments);
        self.child = spawn(&mut self.command)?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if thread::panicking() {
            match self.log() {
                Ok(log) => eprintln!(
                    "--- end of the log of {}:\n{}---",
                    self.name,
                    last_lines(&log, LAST_LINES)
                ),
                Err(error) => eprintln!("--- {}: {error:#}", self.name),
            }
        }
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = String::new();
    for line in &lines[lines.len().saturating_sub(count)..] {
        tail.push_str(line);
        tail.push('\n');
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        assert_eq!("b\nc\n", last_lines("a\nb\nc", 2));
        assert_eq!("a\n", last_lines("a\n", 2));
        assert_eq!("", last_lines("", 2));
    }
}
