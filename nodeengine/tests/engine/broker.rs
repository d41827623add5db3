//! A broker of one's own.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const PROGRAM: &str = "/usr/sbin/mosquitto";

/// A broker on the loopback interface, killed at the end.
pub struct Broker {
    folder: TempDir,
    pub port: u16,
    child: Child,
}

impl Broker {
    /// Starts a broker that takes everybody.
    pub async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let folder = TempDir::new().expect("temporary folder");
        let child = start(&folder, port, true).await;
        Self { folder, port, child }
    }

    /// Kills it, and everything that it knew.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Starts it again, for everybody or for nobody.
    pub async fn start(&mut self, everybody: bool) {
        self.child = start(&self.folder, self.port, everybody).await;
    }
}

async fn start(folder: &TempDir, port: u16, everybody: bool) -> Child {
    let path = folder.path().join("broker.conf");
    let configuration = format!(
        "listener {port} 127.0.0.1\nallow_anonymous {everybody}\npersistence false\nuser root\n\
         log_dest stderr\nlog_type all\nmax_queued_messages 0\n"
    );
    std::fs::write(&path, configuration).expect("configuration");
    let mut child = Command::new(PROGRAM)
        .arg("-c")
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{PROGRAM}: {error}; `cargo xtask setup` installs it"));
    let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    loop {
        let line = log.next_line().await.expect("the broker's log");
        if line.expect("the broker runs").ends_with(" running") {
            break;
        }
    }
    // Read on, else the broker would block on a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    child
}
