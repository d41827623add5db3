//! `kill -9`, again and again, under traffic of every kind: nothing that is established and nothing new to what is
//! known may notice.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::fixture::{CLIENT_SERVICE, DEADLINE, FAR_SERVICE, NEAR_SERVICE, Overlay, bind, connect, listen};

/// How often each test kills.
const KILLS: usize = 20;
/// Enough for what arrives while the reader waits for a processor.
const RECEIVE_BUFFER: usize = 16 << 20;

#[test]
fn n60_no_ping_is_lost_over_twenty_kills() {
    let mut overlay = Overlay::new("kill under ping");
    let far = overlay.far_instances[0].address;
    overlay.client.ping(far, DEADLINE).expect("the way is known");
    let stop = Arc::new(AtomicBool::new(false));
    let counted = overlay.near.counter("from_endpoint", "TUNNEL").expect("counted");
    let pings = Pings::start(&overlay.client, far, &stop);
    for round in 0..KILLS {
        let worker = if round % 2 == 0 {
            &mut overlay.near
        } else {
            &mut overlay.far
        };
        worker.restart().expect("started again");
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, lost) = pings.finish();
    assert!(sent > 200, "{sent} sent");
    assert_eq!(lost, BTreeSet::new(), "lost of {sent}");
    let after = overlay.near.counter("from_endpoint", "TUNNEL").expect("counted");
    assert!(
        after >= counted + sent,
        "counters go on: {counted}, then {sent} pings, then {after}"
    );
    for worker in [&overlay.near, &overlay.far] {
        let listed = worker.get("/endpoints").expect("listed");
        assert_eq!(listed.as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn nothing_is_lost_when_netmanager_is_killed_under_load() {
    let mut overlay = Overlay::new("kill under load");
    let [far, other_far] = &overlay.far_servers;
    // The stream that keeps the processors busy goes from the far host to the near server.
    let mut command = overlay.near_server.command("iperf3").expect("a command");
    command.arg("--server");
    let _server = overlay
        .near_server
        .daemon("iperf3-server", command)
        .expect("started");
    lab::wait_for("iperf3 to listen", DEADLINE, || {
        Ok(!overlay
            .near_server
            .run("ss", &["-Hltn", "sport = :5201"])?
            .stdout
            .is_empty())
    })
    .expect("it listens");
    // A cluster announces the far instances to the near host before it answers the far host; here its own question
    // does.
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    far.ping(CLIENT_SERVICE, DEADLINE).expect("the way is known");
    other_far.ping(NEAR_SERVICE, DEADLINE).expect("the way is known");
    let mut command = other_far.command("iperf3").expect("a command");
    command.args(["--client", &NEAR_SERVICE.to_string(), "--time", "600", "--json"]);
    let mut stream = other_far.daemon("iperf3-client", command).expect("started");

    let stop = Arc::new(AtomicBool::new(false));
    let far_address = overlay.far_instances[0].address;
    overlay
        .client
        .ping(far_address, DEADLINE)
        .expect("the way is known");
    let there = Datagrams::start(&overlay.client, far_address, bind(far, 4_001), &stop);
    let back = Datagrams::start(far, CLIENT_SERVICE, bind(&overlay.client, 4_001), &stop);
    let connections = Connections::start(&overlay.client, far, far_address, &stop);

    for round in 0..KILLS {
        let worker = if round % 2 == 0 {
            &mut overlay.near
        } else {
            &mut overlay.far
        };
        worker.restart().expect("started again");
    }
    stop.store(true, Ordering::Relaxed);
    let (opened, failed) = connections.finish();
    let there = there.finish();
    let back = back.finish();
    assert_eq!(stream.ended().expect("asked"), None, "the stream goes on");
    assert!(
        there.sent > 10_000 && back.sent > 10_000 && opened > 200,
        "{there:?} {back:?} {opened}"
    );
    let counters = || [&overlay.near, &overlay.far].map(|worker| worker.get("/drops").expect("counted"));
    assert_eq!(
        (there.missing, back.missing, failed),
        (0, 0, 0),
        "{there:?} {back:?} of {opened} connections: {:#?}",
        counters()
    );
}

#[test]
fn what_another_version_has_pinned_goes_once_this_one_is_in_place() {
    let mut overlay = Overlay::new("other layout");
    let pins = Path::new(lab::PIN_DIRECTORY).join(overlay.near.node_id());
    let other = pins.join("v0");
    fs::create_dir_all(other.join("links")).expect("a BPF file system");
    overlay.near.restart().expect("started again");
    assert!(!other.exists(), "{}", other.display());
    overlay
        .client
        .ping(FAR_SERVICE, DEADLINE)
        .expect("nothing else is gone");
}

/// 200 echo requests a second.
struct Pings {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<BTreeSet<u16>>,
    done: Arc<AtomicU64>,
}

impl Pings {
    fn start(namespace: &Namespace, target: Ipv4Addr, stop: &Arc<AtomicBool>) -> Self {
        let identifier = (std::process::id() as u16) | 1;
        let opened: nix::Result<OwnedFd> = namespace
            .enter(|| {
                socket(
                    AddressFamily::Inet,
                    SockType::Raw,
                    SockFlag::empty(),
                    SockProtocol::Icmp,
                )
            })
            .expect("entered");
        let sending = Arc::new(opened.expect("root may"));
        setsockopt(&sending.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).expect("a large buffer");
        let deadline = TimeVal::milliseconds(100);
        setsockopt(&sending.as_fd(), sockopt::ReceiveTimeout, &deadline).expect("a deadline");
        let receiving = sending.clone();
        let done = Arc::new(AtomicU64::new(u64::MAX));

        let stop = stop.clone();
        let sender = thread::spawn(move || {
            let target = SockaddrIn::from(std::net::SocketAddrV4::new(target, 0));
            let mut number = 0_u64;
            every(Duration::from_millis(5), &stop, || {
                let packet = echo_request(identifier, number as u16);
                sendto(sending.as_raw_fd(), &packet, &target, MsgFlags::empty()).expect("sent");
                number += 1;
            });
            number
        });
        let finished = done.clone();
        let receiver = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 256];
            let mut last = Instant::now();
            while (seen.len() as u64) < finished.load(Ordering::Relaxed) {
                match recv(receiving.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => {
                        let message = &buffer[20..length];
                        if message[0] == 0 && message[4..6] == identifier.to_be_bytes() {
                            seen.insert(u16::from_be_bytes([message[6], message[7]]));
                            last = Instant::now();
                        }
                    }
                    Err(nix::errno::Errno::EAGAIN) if last.elapsed() > DEADLINE => break,
                    Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            seen
        });
        Self {
            sender,
            receiver,
            done,
        }
    }

    /// How many were sent, and which of them were never answered.
    fn finish(self) -> (u64, BTreeSet<u16>) {
        let sent = self.sender.join().expect("sent to the end");
        assert!(sent <= u64::from(u16::MAX), "numbers do not repeat");
        self.done.store(sent, Ordering::Relaxed);
        let seen = self.receiver.join().expect("received to the end");
        (
            sent,
            (0..sent as u16).filter(|number| !seen.contains(number)).collect(),
        )
    }
}

fn echo_request(identifier: u16, sequence: u16) -> Vec<u8> {
    let header = etherparse::IcmpEchoHeader {
        id: identifier,
        seq: sequence,
    };
    let message = etherparse::Icmpv4Header::with_checksum(etherparse::Icmpv4Type::EchoRequest(header), &[]);
    message.to_bytes().to_vec()
}

/// 10,000 numbered datagrams a second.
struct Datagrams {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
    done: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Delivered {
    sent: u64,
    missing: u64,
}

impl Datagrams {
    fn start(from: &Namespace, target: Ipv4Addr, to: UdpSocket, stop: &Arc<AtomicBool>) -> Self {
        setsockopt(&to.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).expect("a large buffer");
        to.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a deadline");
        let target = SocketAddr::from((target, to.local_addr().expect("bound").port()));
        let sending = bind(from, 0);
        setsockopt(&sending.as_fd(), sockopt::SndBufForce, &RECEIVE_BUFFER).expect("a large buffer");
        let done = Arc::new(AtomicU64::new(u64::MAX));
        let stop = stop.clone();
        let sender = thread::spawn(move || {
            let mut number = 0_u64;
            every(Duration::from_millis(1), &stop, || {
                for _ in 0..10 {
                    sending.send_to(&number.to_be_bytes(), target).expect("sent");
                    number += 1;
                }
            });
            number
        });
        let finished = done.clone();
        let receiver = thread::spawn(move || {
            let mut seen = Vec::new();
            let (mut count, mut buffer, mut last) = (0_u64, [0; 64], Instant::now());
            while count < finished.load(Ordering::Relaxed) {
                match to.recv(&mut buffer) {
                    Ok(length) => {
                        let number = u64::from_be_bytes(buffer[..length].try_into().expect("eight bytes"));
                        let index = number as usize;
                        if seen.len() <= index {
                            seen.resize(index + 1, false);
                        }
                        count += u64::from(!std::mem::replace(&mut seen[index], true));
                        last = Instant::now();
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if last.elapsed() > DEADLINE {
                            break;
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            count
        });
        Self {
            sender,
            receiver,
            done,
        }
    }

    fn finish(self) -> Delivered {
        let sent = self.sender.join().expect("sent to the end");
        self.done.store(sent, Ordering::Relaxed);
        let received = self.receiver.join().expect("received to the end");
        Delivered {
            sent,
            missing: sent - received,
        }
    }
}

/// 200 new connections a second, each with an exchange.
struct Connections {
    client: JoinHandle<(u64, u64)>,
}

impl Connections {
    fn start(client: &Namespace, server: &Namespace, target: Ipv4Addr, stop: &Arc<AtomicBool>) -> Self {
        const PORT: u16 = 4_002;
        let listener = listen(server, PORT);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut byte = [0];
                // A client that failed is counted by the client.
                if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_err() {
                    return;
                }
            }
        });
        let (client, stop) = (client.clone(), stop.clone());
        let client = thread::spawn(move || {
            let (mut opened, mut failed) = (0, 0);
            every(Duration::from_millis(5), &stop, || {
                let exchange = || -> std::io::Result<()> {
                    let mut stream = connect(&client, target, PORT)?;
                    stream.write_all(b"x")?;
                    stream.read_exact(&mut [0])
                };
                match exchange() {
                    Ok(()) => opened += 1,
                    Err(error) => {
                        eprintln!("connection {opened}: {error}");
                        failed += 1;
                    }
                }
            });
            (opened, failed)
        });
        Self { client }
    }

    fn finish(self) -> (u64, u64) {
        self.client.join().expect("connected to the end")
    }
}

/// Calls `work` at a steady rate until `stop`; what was late is made up for.
fn every(period: Duration, stop: &AtomicBool, mut work: impl FnMut()) {
    let start = Instant::now();
    let mut turn = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        work();
        turn += 1;
        if let Some(early) = (start + period * turn).checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
    }
}
