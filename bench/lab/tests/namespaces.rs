//! What a lab's hosts, endpoints and daemons can do. Needs root.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::capture::Capture;
use lab::{HostOptions, Lab, Offloads, UPLINK, wait_for};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(5);

#[test]
fn hosts_on_one_wire_reach_each_other_and_nobody_else() -> Result<()> {
    let lab = Lab::new("ping")?;
    let a = lab.host("a")?;
    let b = lab.host_with(
        "b",
        HostOptions {
            address: Some(Ipv4Addr::new(192, 0, 2, 77)),
            ..HostOptions::default()
        },
    )?;
    assert_eq!(Ipv4Addr::new(192, 0, 2, 1), a.address());
    assert_eq!(Ipv4Addr::new(192, 0, 2, 77), b.address());

    a.ping(b.address(), DEADLINE)?;
    b.ping(a.address(), DEADLINE)?;

    let error = a
        .ping(Ipv4Addr::new(192, 0, 2, 200), Duration::from_millis(50))
        .expect_err("nobody is there");
    assert!(
        format!("{error:#}").contains("no answer within 50ms"),
        "{error:#}"
    );
    lab.host("a").expect_err("a role is taken once");
    lab.host_with(
        "c",
        HostOptions {
            address: Some(a.address()),
            ..HostOptions::default()
        },
    )
    .expect_err("an address is taken once");
    lab.remove()
}

#[test]
fn a_wide_wire_passes_long_frames_and_a_narrow_host_drops_them() -> Result<()> {
    let lab = Lab::new("mtu")?;
    let wide = HostOptions {
        mtu: 9000,
        ..HostOptions::default()
    };
    let (a, b, narrow) = (
        lab.host_with("a", wide)?,
        lab.host_with("b", wide)?,
        lab.host("narrow")?,
    );

    assert!(receives(&a, &b, 8000)?);
    assert!(receives(&a, &narrow, 1000)?);
    assert!(!receives(&a, &narrow, 8000)?);
    lab.remove()
}

/// Sends one datagram that may not be fragmented, and tells whether it arrives.
fn receives(from: &lab::Host, to: &lab::Host, length: usize) -> Result<bool> {
    let receiver = to.enter(|| UdpSocket::bind((to.address(), 0)))??;
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    let sender = from.enter(|| UdpSocket::bind((from.address(), 0)))??;
    sender.send_to(&vec![7; length], receiver.local_addr()?)?;
    let mut datagram = vec![0; length];
    match receiver.recv(&mut datagram) {
        Ok(received) => {
            ensure!(received == length, "{received} of {length} bytes arrived");
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_wire_like_a_nic_carries_segments_and_the_other_kind_superframes() -> Result<()> {
    let lab = Lab::new("offloads")?;
    let nic = lab.host_with(
        "nic",
        HostOptions {
            offloads: Offloads::LikeNic,
            ..HostOptions::default()
        },
    )?;
    let kept = lab.host("kept")?;

    for (host, expected) in [(&nic, ["off", "off", "on"]), (&kept, ["on", "on", "off"])] {
        let output = host.run("ethtool", &["-k", UPLINK])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let keys = [
            "tcp-segmentation-offload",
            "generic-segmentation-offload",
            "generic-receive-offload",
        ];
        for (key, value) in keys.into_iter().zip(expected) {
            assert!(
                text.contains(&format!("{key}: {value}")),
                "{}: {key} is not {value}",
                host.name()
            );
        }
    }
    nic.ping(kept.address(), DEADLINE)?;
    lab.remove()
}

#[test]
fn an_endpoint_is_a_process_in_an_empty_namespace() -> Result<()> {
    let lab = Lab::new("endpoint")?;
    let host = lab.host("a")?;
    let endpoint = host.endpoint("client")?;

    let links = endpoint.ip("-o link")?;
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert_eq!(1, links.lines().count(), "{links}");
    assert!(links.contains(" lo: <LOOPBACK,UP"), "{links}");
    let inside = endpoint.enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    assert_eq!(inside, fs::read_link(format!("/proc/{}/ns/net", endpoint.pid()))?);
    assert_ne!(inside, fs::read_link("/proc/self/ns/net")?);

    // Only the network differs: what is mounted, bpffs for one, is visible inside too.
    let mounts = fs::read_link("/proc/self/ns/mnt")?;
    assert_eq!(mounts, fs::read_link(format!("/proc/{}/ns/mnt", endpoint.pid()))?);

    let (path, pid) = (endpoint.path(), endpoint.pid());
    endpoint.remove()?;
    assert!(!path.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    host.endpoint("client")?;
    lab.remove()
}

#[test]
fn routed_endpoints_reach_each_other_by_plain_routing() -> Result<()> {
    let lab = Lab::new("routing")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let client = a.routed_endpoint("client", Ipv4Addr::new(10, 0, 1, 2), 1450)?;
    let neighbour = a.routed_endpoint("neighbour", Ipv4Addr::new(10, 0, 1, 3), 1450)?;
    let server = b.routed_endpoint("server", Ipv4Addr::new(10, 0, 2, 2), 1450)?;
    a.route("10.0.2.0/24", b.address())?;
    b.route("10.0.1.0/24", a.address())?;

    client.ping(Ipv4Addr::new(10, 0, 1, 3), DEADLINE)?;
    neighbour.ping(Ipv4Addr::new(10, 0, 2, 2), DEADLINE)?;
    // A socket that was opened inside works from everywhere.
    let listener = server.enter(|| TcpListener::bind("10.0.2.2:80"))??;
    let stream = client.enter(|| TcpStream::connect_timeout(&([10, 0, 2, 2], 80).into(), DEADLINE))??;
    let (_, peer) = listener.accept()?;
    assert_eq!(stream.local_addr()?, peer);
    lab.remove()
}

#[test]
fn a_command_that_fails_says_where_and_why() -> Result<()> {
    let lab = Lab::new("failure")?;
    let host = lab.host("a")?;
    let error = host.ip("link show absent").expect_err("there is no such link");
    let text = format!("{error:#}");
    for part in [host.name(), "ip link show absent", "absent", "does not exist"] {
        assert!(text.contains(part), "{text}");
    }
    let outcome = std::panic::catch_unwind(|| host.enter(|| panic!("inside")).is_ok());
    assert_eq!(
        Some(&"inside"),
        outcome.expect_err("the panic goes on").downcast_ref()
    );

    lab.remove()?;
    let error = host.command("true").expect_err("the lab is gone");
    assert_eq!(format!("namespace {} is gone", host.name()), error.to_string());
    host.endpoint("late").expect_err("the lab is gone");
    Ok(())
}

#[test]
fn a_daemon_is_started_ended_and_started_again() -> Result<()> {
    let lab = Lab::new("daemon")?;
    let host = lab.host("a")?;
    let mut command = host.command("sh")?;
    command.args([
        "-c",
        "trap 'echo asked; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done",
    ]);
    let mut daemon = host.daemon("shell", command)?;
    let ready = |daemon: &lab::Daemon, count| {
        wait_for("the shell's trap", DEADLINE, || {
            Ok(daemon.log()?.matches("ready").count() == count)
        })
    };

    ready(&daemon, 1)?;
    let first = daemon.pid();
    daemon.restart()?;
    ready(&daemon, 2)?;
    assert_ne!(first, daemon.pid());
    assert_eq!(Some(7), daemon.terminate(DEADLINE)?.code());
    assert!(daemon.log()?.ends_with("asked\n"));
    assert_eq!(
        Some(7),
        daemon.terminate(DEADLINE)?.code(),
        "asking the dead changes nothing"
    );
    daemon.signal(Signal::SIGHUP).expect_err("it has ended");

    let mut command = host.command("sh")?;
    command.args(["-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done"]);
    let mut deaf = host.daemon("deaf", command)?;
    wait_for("the shell's trap", DEADLINE, || Ok(deaf.log()?.contains("deaf")))?;
    let status = deaf.terminate(Duration::from_millis(50))?;
    assert_eq!(Some(Signal::SIGKILL as i32), status.signal());
    lab.remove()
}

#[test]
fn a_capture_sees_each_datagram_of_the_wire_once() -> Result<()> {
    let lab = Lab::new("capture")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    // So that the first datagram is not held back for the neighbour's address.
    a.ping(b.address(), DEADLINE)?;
    let capture = Capture::start(lab.wire(), 50103)?;
    let target = SocketAddrV4::new(b.address(), 50103);
    let sent = a.enter(|| -> std::io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"one", target)?;
        socket.send_to(b"elsewhere", (b.address(), 50104))?;
        socket.send_to(b"two", target)?;
        Ok(())
    })?;
    sent?;
    let seen = capture.end()?;
    let payloads: Vec<&[u8]> = seen.iter().map(|datagram| &datagram.payload[..3]).collect();
    assert_eq!([&b"one"[..], b"two"].as_slice(), payloads);
    assert!(seen.iter().all(|datagram| datagram.destination == target));
    lab.remove()
}
