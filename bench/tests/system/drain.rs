//! What is taken away while it is used goes without anybody noticing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::Namespace;

use crate::stage::{PATIENCE, SERVICE_ADDRESS, Stage, ensure_different_nodes};

/// How long an instance goes on with what it has begun to serve, where nobody says otherwise.
const DRAIN: Duration = Duration::from_secs(3);

#[test]
fn p17_no_connection_fails_while_one_of_two_replicas_is_taken_away() -> Result<()> {
    let stage = Stage::set("drain", 2)?;
    let client = stage.system.client();
    let application = stage.create()?;
    let leaving = stage.run(&application.nginx)?;
    let staying = stage.run(&application.nginx)?;
    ensure_different_nodes(&leaving, &staying)?;
    let plan = stage.system.plan().clone();
    let from = plan
        .workers
        .iter()
        .find(|seat| seat.address.to_string() == staying.host_ip)
        .context("the second instance is on no worker")?
        .namespace
        .clone();
    let service = format!("http://{SERVICE_ADDRESS}");
    lab::wait_for("both to serve", PATIENCE, || {
        for _ in 0..4 {
            if stage.fetch(&from, &service)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })?;

    // One to each of them.
    let mut kept = [keep_alive(&from)?, keep_alive(&from)?];
    let begun = Instant::now();
    client.undeploy(&application.nginx, leaving.number)?;
    let (mut fetched, mut exchanged) = (0, 0);
    loop {
        let page = stage.fetch(&from, &service);
        let after = begun.elapsed();
        let page = page.with_context(|| format!("after {after:?} and {fetched} successes"))?;
        ensure!(
            !page.is_empty(),
            "nothing after {after:?} and {fetched} successes"
        );
        fetched += 1;
        if after < DRAIN * 2 / 3 {
            for stream in &mut kept {
                exchange(stream).with_context(|| format!("a connection from before, after {after:?}"))?;
                exchanged += 1;
            }
        }
        let is_gone = client.instances(&application.nginx)?.len() == 1;
        if is_gone && after > 2 * DRAIN {
            break;
        }
        ensure!(after < PATIENCE, "it does not go");
    }
    ensure!(exchanged >= 4, "{exchanged} exchanges while it drained");
    // What nobody uses goes at once.
    client.delete_application(&application.id)?;
    stage.wait_until_bare()
}

/// A connection to the service that stays open.
fn keep_alive(from: &Namespace) -> Result<TcpStream> {
    let mut stream = from.enter(|| TcpStream::connect((SERVICE_ADDRESS, 80)))??;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    exchange(&mut stream)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the connection is closed");
        answer.extend_from_slice(&buffer[..length]);
    }
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
