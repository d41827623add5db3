//! One TCP stream: its throughput, and what it costs the machine.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::server::SINK_PORT;
use super::socket::connected;
use super::{PATIENCE, Path};
use crate::machine::{Processors, busy_seconds, on_processor};

/// Bytes per write and at most per read.
pub const BUFFER: usize = 256 << 10;
/// How long a stream runs before it counts, so that its window is open.
const WARM_UP: Duration = Duration::from_millis(300);

/// What a stream has carried.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Payload that the server has read.
    pub gigabits_per_second: f64,
    /// Work of the whole machine, both ends and everything between.
    pub busy_seconds_per_gigabyte: f64,
}

/// Sends for this long as fast as it goes.
pub fn stream(path: &Path, turn: usize, processors: &Processors, duration: Duration) -> Result<Stream> {
    let target = path.target(turn);
    let stream = path.client.enter(|| connected(target, SINK_PORT))??;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| on_processor(processors.client, || send(stream, &stop)));
        let measured = {
            // Also when measuring fails, or the sender is waited for for ever.
            let _stopped_at_the_end = StopAtTheEnd(&stop);
            measure(path, duration)
        };
        match sender.join() {
            Ok(sent) => sent.with_context(|| format!("a stream to {target}"))?,
            Err(panic) => resume_unwind(panic),
        }
        measured
    })
}

fn measure(path: &Path, duration: Duration) -> Result<Stream> {
    thread::sleep(WARM_UP);
    let before = Reading::take(path)?;
    let after = loop {
        thread::sleep(duration);
        let after = Reading::take(path)?;
        // A stall counts for as long as it lasts: no bytes would be no figure.
        if after.received > before.received {
            break after;
        }
        let waited = after.at - before.at;
        ensure!(waited < PATIENCE, "nothing has arrived within {waited:?}");
    };
    let bytes = (after.received - before.received) as f64;
    Ok(Stream {
        gigabits_per_second: bytes * 8.0 / 1e9 / (after.at - before.at).as_secs_f64(),
        busy_seconds_per_gigabyte: (after.busy - before.busy) / (bytes / 1e9),
    })
}

struct Reading {
    at: Instant,
    received: u64,
    busy: f64,
}

impl Reading {
    fn take(path: &Path) -> Result<Self> {
        Ok(Self {
            busy: busy_seconds()?,
            at: Instant::now(),
            received: path.servers.received(),
        })
    }
}

struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends when the server has read everything, so that nothing of it is left for the next measurement.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    let buffer = vec![0; BUFFER];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&buffer).context("cannot send")?;
    }
    stream.shutdown(Shutdown::Write).context("cannot end")?;
    let answered = stream.read(&mut [0]).context("the server has not ended")?;
    ensure!(answered == 0, "the server has sent something");
    Ok(())
}
