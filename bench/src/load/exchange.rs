//! Request and response of one byte each.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Path;
use super::server::ECHO_PORT;
use super::socket::connected;
use crate::machine::{Processors, Spinners, on_processor};
use crate::statistics::median;

/// How long exchanges run before they count.
const WARM_UP: Duration = Duration::from_millis(100);

/// The median time of an exchange on one connection, in microseconds.
pub fn median_exchange(path: &Path, turn: usize, processors: &Processors, duration: Duration) -> Result<f64> {
    let target = path.target(turn);
    let mut stream = path.client.enter(|| connected(target, ECHO_PORT))??;
    let _awake = Spinners::start(processors)?;
    let times = on_processor(processors.client, || {
        exchange(&mut stream, WARM_UP)?;
        exchange(&mut stream, duration)
    });
    median(&times.with_context(|| format!("exchanges with {target}"))?)
}

/// Microseconds of each exchange. At least one, however little time there is.
fn exchange(stream: &mut TcpStream, duration: Duration) -> Result<Vec<f64>> {
    let began = Instant::now();
    let mut times = Vec::new();
    let mut byte = [0];
    let mut sent = began;
    loop {
        stream.write_all(&byte).context("cannot send")?;
        stream.read_exact(&mut byte).context("no answer")?;
        let answered = Instant::now();
        times.push((answered - sent).as_secs_f64() * 1e6);
        if answered - began >= duration {
            return Ok(times);
        }
        sent = answered;
    }
}
