//! The machine that measures: its processors, and how much of them was used.

use std::fs;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// The calling thread, as the calls of the scheduler name it.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Which processors the load runs on: the same for every path, so that the scheduler's choice is no part of the
/// difference between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processors {
    pub client: usize,
    /// Another than the client's, where there is one.
    pub server: usize,
    all: Vec<usize>,
}

impl Processors {
    /// Those that this process may use.
    pub fn find() -> Result<Self> {
        let allowed = sched_getaffinity(THIS_THREAD).context("cannot ask for the allowed processors")?;
        let all: Vec<usize> = (0..CpuSet::count())
            .filter(|&number| allowed.is_set(number).unwrap_or(false))
            .collect();
        let client = *all.first().context("no processor is allowed")?;
        let server = *all.get(1).unwrap_or(&client);
        Ok(Self { client, server, all })
    }
}

/// How many processors the machine has, whether or not this process may use them.
pub fn processors_online() -> Result<usize> {
    let number = sysconf(SysconfVar::_NPROCESSORS_ONLN).context("cannot ask for the number of processors")?;
    let number = number.context("the kernel does not tell the number of processors")?;
    Ok(usize::try_from(number)?)
}

/// Keeps the calling thread, and threads that it starts, on one processor.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)
        .with_context(|| format!("there is no processor {processor}"))?;
    sched_setaffinity(THIS_THREAD, &set).with_context(|| format!("cannot run on processor {processor}"))
}

/// Runs a closure on one processor, on a thread of its own; its panic goes on in the caller.
pub fn on_processor<T: Send>(processor: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || {
        pin(processor)?;
        work()
    };
    match thread::scope(|scope| scope.spawn(pinned).join()) {
        Ok(outcome) => outcome,
        Err(panic) => resume_unwind(panic),
    }
}

/// Threads that keep every processor from sleeping, and give way to everything else at once.
///
/// A virtual processor that sleeps is woken by the machine below, which takes longer than a packet's whole way and
/// varies with that machine's other load. So latencies are measured with all of them awake.
pub struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinners {
    pub fn start(processors: &Processors) -> Result<Self> {
        let mut spinners = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let (ready, started) = std::sync::mpsc::channel();
        for &processor in &processors.all {
            let (stop, ready) = (Arc::clone(&spinners.stop), ready.clone());
            let spin = move || {
                let prepared = pin(processor).and_then(|()| become_idle_class());
                let goes_on = prepared.is_ok();
                // The receiver waits for every thread, unless another could not be started.
                if ready.send(prepared).is_err() {
                    return;
                }
                while goes_on && !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = thread::Builder::new().name(format!("spin-{processor}"));
            spinners
                .threads
                .push(thread.spawn(spin).context("cannot start a thread")?);
        }
        for _ in &spinners.threads {
            started.recv().context("a spinner ended before it began")??;
        }
        Ok(spinners)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread that kept a processor awake has panicked");
            }
        }
    }
}

/// Gives the calling thread only the time that nobody else wants.
fn become_idle_class() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live until the call returns, and it only reads them.
    let code = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    ensure!(
        code == 0,
        "cannot enter the idle class: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Seconds that all processors together have worked since the machine started, in user space, the kernel and
/// interrupts; not what the machine below has taken away.
pub fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let ticks = busy_ticks(&text).context("/proc/stat does not tell how busy the machine is")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .context("cannot ask for the length of a tick")?
        .context("the kernel does not tell the length of a tick")?;
    Ok(ticks as f64 / per_second as f64)
}

/// Which share of the machine is used, looking for so long.
pub fn busy_share(look: Duration) -> Result<f64> {
    let (began, before) = (Instant::now(), busy_seconds()?);
    thread::sleep(look);
    let used = busy_seconds()? - before;
    Ok(used / began.elapsed().as_secs_f64() / processors_online()? as f64)
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guests are counted in user already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let total = stat.lines().next()?.strip_prefix("cpu ")?;
    let columns: Vec<u64> = total
        .split_ascii_whitespace()
        .map(|column| column.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, interrupts, deferred, ..] = columns[..] else {
        return None;
    };
    Some(user + nice + system + interrupts + deferred)
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> Result<String> {
    let name = nix::sys::utsname::uname().context("cannot ask for the kernel's release")?;
    Ok(name.release().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_work() {
        let stat = "cpu  100 20 3000 400000 50000 600 7000 800000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(100 + 20 + 3000 + 600 + 7000));
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7 8"), None, "one processor alone");
        assert_eq!(busy_ticks("cpu  1 2 3"), None, "too few columns");
        assert_eq!(busy_ticks(""), None);
    }
}
