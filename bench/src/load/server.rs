//! The servers of a path: one that takes what it is sent, and one that sends it back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use lab::Namespace;

use super::socket::use_congestion_control;
use super::stream::BUFFER;
use crate::machine::pin;

/// Takes what it is sent.
pub const SINK_PORT: u16 = 5001;
/// Sends back each byte that it is sent.
pub const ECHO_PORT: u16 = 5002;

/// The servers in some namespaces, until it is dropped. They take one connection at a time, and all of them run on
/// one processor.
pub struct Servers {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    stopping: AtomicBool,
}

impl Servers {
    /// Listens in every namespace; connections are taken when this returns.
    pub fn start(namespaces: &[&Namespace], processor: usize) -> Result<Self> {
        let mut servers = Self {
            shared: Arc::default(),
            listeners: Vec::new(),
            threads: Vec::new(),
        };
        for namespace in namespaces {
            servers.serve(namespace, SINK_PORT, processor, take)?;
            servers.serve(namespace, ECHO_PORT, processor, send_back)?;
        }
        Ok(servers)
    }

    /// Bytes that the sinks have taken so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn serve(
        &mut self,
        namespace: &Namespace,
        port: u16,
        processor: usize,
        handle: fn(TcpStream, &Shared) -> Result<()>,
    ) -> Result<()> {
        let place = format!("port {port} in {}", namespace.name());
        let listener = namespace
            .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on {place}"))?;
        use_congestion_control(&listener)?;
        let accepting = listener.try_clone().context("cannot duplicate a socket")?;
        self.listeners.push(listener);
        let shared = Arc::clone(&self.shared);
        let work = move || {
            pin(processor)?;
            loop {
                let stream = match accepting.accept() {
                    Ok((stream, _peer)) => stream,
                    Err(_shut_down) if shared.stopping.load(Ordering::Acquire) => return Ok(()),
                    // A client that has gone again before it was taken.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error).with_context(|| format!("cannot accept on {place}")),
                };
                handle(stream, &shared).with_context(|| format!("serving {place}"))?;
            }
        };
        let thread = thread::Builder::new().name(format!("serve-{port}"));
        self.threads
            .push(thread.spawn(work).context("cannot start a thread")?);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        for listener in &self.listeners {
            // What waits in accept returns; every client has closed its connection by now.
            if let Err(error) =
                nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both)
            {
                eprintln!("cannot shut a listener down: {error}");
                return;
            }
        }
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("a server has failed: {error:#}"),
                Err(_panic) => eprintln!("a server has panicked"),
            }
        }
    }
}

fn take(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer) {
            // All of it has arrived, of which the client waits to hear.
            Ok(0) => return stream.shutdown(Shutdown::Write).or_else(gone),
            Ok(length) => {
                shared.received.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) => return gone(error),
        }
    }
}

fn send_back(mut stream: TcpStream, _shared: &Shared) -> Result<()> {
    stream.set_nodelay(true).or_else(gone)?;
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => match stream.write_all(&byte) {
                Ok(()) => {}
                Err(error) => return gone(error),
            },
            Err(error) => return gone(error),
        }
    }
}

/// Clients end their connections by a reset.
fn gone(error: std::io::Error) -> Result<()> {
    let expected = [
        ErrorKind::ConnectionReset,
        ErrorKind::BrokenPipe,
        ErrorKind::NotConnected,
    ];
    if expected.contains(&error.kind()) {
        return Ok(());
    }
    Err(error).context("a connection")
}
