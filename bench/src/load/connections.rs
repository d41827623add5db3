//! New connections, one after the other.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Path;
use super::server::ECHO_PORT;
use super::socket::connected;
use crate::machine::{Processors, Spinners, pin};

/// How long connections are made before they count.
const WARM_UP: Duration = Duration::from_millis(100);

/// How often in a second the client connects, has one byte answered and closes, one connection at a time.
pub fn connections_per_second(path: &Path, processors: &Processors, duration: Duration) -> Result<f64> {
    let _awake = Spinners::start(processors)?;
    // The sockets have to be opened inside.
    path.client.enter(|| {
        pin(processors.client)?;
        connect_for(&path.targets, WARM_UP)?;
        connect_for(&path.targets, duration)
    })?
}

fn connect_for(targets: &[Ipv4Addr], duration: Duration) -> Result<f64> {
    let began = Instant::now();
    let mut made = 0_u32;
    for &target in targets.iter().cycle() {
        connect_once(target).with_context(|| format!("connection {made}"))?;
        made += 1;
        if began.elapsed() >= duration {
            break;
        }
    }
    Ok(f64::from(made) / began.elapsed().as_secs_f64())
}

fn connect_once(target: Ipv4Addr) -> Result<()> {
    let mut stream = connected(target, ECHO_PORT)?;
    let mut byte = [0];
    stream
        .write_all(&byte)
        .with_context(|| format!("cannot send to {target}"))?;
    stream
        .read_exact(&mut byte)
        .with_context(|| format!("no answer from {target}"))
}
