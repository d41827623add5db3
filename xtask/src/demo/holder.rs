//! The process that owns the demonstration's lab.
//!
//! A lab lives as long as its owner. With `--keep` it is to live on when the command has ended, and without it has to
//! go when the command is interrupted. So a process of its own owns it, apart from the terminal: the command passes on
//! that it has ended, or that it may be left alone, and takes down what it leaves if it dies.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::{env, fs, io};

use anyhow::{Context as _, Result};
use lab::Lab;
use lab::system::System;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::example;
use super::steps::Steps;
use crate::interrupt;
use crate::standing::{MARK, Standing};

const WORKERS: usize = 2;
/// What the owner says when it may be left alone.
const KEPT: u8 = b'k';

/// Starts the owner, and waits until it has ended or may be left alone. Its exit code becomes ours.
pub fn start(programs: &Path, images: &Path, keep: bool) -> Result<ExitCode> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    command.arg("demo");
    if keep {
        command.arg("--keep");
    }
    command.arg("--hold").arg(programs).arg(images);
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    // SAFETY: two system calls, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            setsid().map_err(io::Error::from)?;
            // Killed without warning, this process takes the owner along; what that leaves, the next lab or `down`
            // removes.
            set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)
        });
    }
    let mut child = command.spawn().context("cannot start the lab's owner")?;
    // The other end is now the owner's alone: its end is told by the end of the stream.
    drop(command);
    if says_kept(&ours)? {
        return Ok(ExitCode::SUCCESS);
    }
    if interrupt::has_come() {
        return end(child);
    }
    let status = child.wait().context("cannot wait for the lab's owner")?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    lab::sweep()?;
    Ok(ExitCode::FAILURE)
}

fn end(mut child: Child) -> Result<ExitCode> {
    eprintln!("interrupted: taking everything down");
    child.kill().context("cannot end the lab's owner")?;
    child.wait().context("cannot wait for the lab's owner")?;
    lab::sweep()?;
    Ok(ExitCode::FAILURE)
}

/// Waits for what the owner says; false when it ends without a word, or when a signal comes.
fn says_kept(mut stream: &UnixStream) -> Result<bool> {
    let mut word = [0];
    loop {
        match stream.read(&mut word) {
            Ok(length) => return Ok(length == 1 && word[0] == KEPT),
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                if interrupt::has_come() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error).context("cannot hear from the lab's owner"),
        }
    }
}

/// The owner's life: makes the lab, shows the example, takes everything down.
pub fn hold(programs: &Path, images: &Path, keep: bool) -> Result<()> {
    // A copy that its daemons don't inherit, nor anybody's input.
    let channel = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot keep the channel")?;
    dup2_stdin(null()?).context("cannot close the input")?;
    let channel = UnixStream::from(channel);

    let mut steps = Steps::new();
    let lab = Lab::new("demo")?;
    // So that `down` finds it however this ends.
    fs::write(lab.directory().join(MARK), "").context("cannot mark the lab")?;
    let mut system = System::start(&lab, programs, images, WORKERS)?;
    steps.done("a root, a cluster, two workers and a Docker run, on a wire of their own");
    let outcome = example::show(&system, &lab, &mut steps);
    if outcome.is_err() {
        eprintln!("{}", system.log_ends());
    }
    if keep && outcome.is_ok() {
        Standing::of(&mut system).save()?;
        println!("it is left running: `cargo xtask status` shows it, `cargo xtask down` ends it");
        leave_alone(&channel, lab.directory())?;
    }
    drop(system);
    lab.remove()?;
    if outcome.is_ok() && !keep {
        steps.done("everything is taken down again");
    }
    outcome
}

/// Tells the command that it may end, and waits for SIGTERM.
fn leave_alone(mut channel: &UnixStream, directory: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    // Nothing is started after this that would inherit it.
    signals.thread_block().context("cannot hold signals back")?;
    set_pdeathsig(None).context("cannot outlive the command")?;
    // Whoever reads what this command prints is to see its end.
    let log = fs::File::create(directory.join("holder.log")).context("cannot write a log")?;
    dup2_stdout(&log).context("cannot redirect the output")?;
    dup2_stderr(&log).context("cannot redirect the output")?;
    channel.write_all(&[KEPT]).context("cannot tell the command")?;
    channel
        .shutdown(Shutdown::Both)
        .context("cannot close the channel")?;
    signals.wait().context("cannot wait for a signal")?;
    Ok(())
}

fn null() -> Result<fs::File> {
    fs::File::open("/dev/null").context("cannot open /dev/null")
}
