//! A broker of one's own, and a gate before it.

use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::stage::within;

const PROGRAM: &str = "/usr/sbin/mosquitto";

/// Who may connect.
pub enum Access {
    Everybody,
    Nobody,
    /// The user with this name and password.
    User(&'static str, &'static str),
}

/// A broker on the loopback interface, killed at the end.
pub struct Broker {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Broker {
    /// Starts a broker and waits until it listens.
    pub async fn new(access: Access) -> Self {
        let folder = TempDir::new().expect("temporary folder");
        let port = free_port();
        let everybody = matches!(access, Access::Everybody);
        let mut configuration = format!(
            "listener {port} 127.0.0.1\nallow_anonymous {everybody}\npersistence false\nuser root\n\
             log_dest stderr\nlog_type all\n"
        );
        if let Access::User(name, password) = access {
            let file = folder.path().join("passwords");
            let made = Command::new("mosquitto_passwd")
                .args(["-b", "-c"])
                .arg(&file)
                .args([name, password])
                .status()
                .await
                .expect("mosquitto_passwd runs");
            assert!(made.success(), "{made}");
            configuration.push_str(&format!("password_file {}\n", file.display()));
        }
        std::fs::write(folder.path().join("broker.conf"), configuration).expect("configuration");
        let child = start(&folder).await;
        Self { folder, port, child }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the broker without a warning, and waits for its end.
    pub async fn kill(&mut self) {
        within(self.child.kill()).await.expect("the broker is killed");
    }

    /// Starts it again, without anything that it knew.
    pub async fn start(&mut self) {
        self.child = start(&self.folder).await;
    }
}

async fn start(folder: &TempDir) -> Child {
    let mut child = Command::new(PROGRAM)
        .arg("-c")
        .arg(folder.path().join("broker.conf"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{PROGRAM}: {error}; `cargo xtask setup` installs it"));
    let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    within(async {
        let mut said = Vec::new();
        loop {
            let line = log.next_line().await.expect("the broker's log");
            let line = line.unwrap_or_else(|| panic!("the broker ended: {said:?}"));
            if line.ends_with(" running") {
                return;
            }
            said.push(line);
        }
    })
    .await;
    // Read on, else the broker would block on a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    child
}

/// Stands before a broker; closed, nobody gets in.
pub struct Gate {
    port: u16,
    behind: u16,
    connections: JoinSet<()>,
}

impl Gate {
    /// An open gate before the broker at port `behind`.
    pub async fn before(behind: u16) -> Self {
        let mut gate = Self {
            port: free_port(),
            behind,
            connections: JoinSet::new(),
        };
        gate.open().await;
        gate
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection, and refuses new ones.
    pub fn close(&mut self) {
        self.connections = JoinSet::new();
    }

    /// Lets connections through.
    pub async fn open(&mut self) {
        // The one before has to be gone before its port is free.
        self.connections.shutdown().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))
            .await
            .expect("the gate's port");
        let behind = self.behind;
        self.connections.spawn(async move {
            let mut through = JoinSet::new();
            while let Ok((mut outside, _)) = listener.accept().await {
                through.spawn(async move {
                    // A broker that is not there, or goes away, ends the connection: that is all it can mean.
                    if let Ok(mut inside) = TcpStream::connect((Ipv4Addr::LOCALHOST, behind)).await {
                        drop(copy_bidirectional(&mut outside, &mut inside).await);
                    }
                });
            }
        });
    }
}

/// A port that nobody uses at the moment.
fn free_port() -> u16 {
    let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
