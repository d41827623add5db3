use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

use netmanager::endpoint::{AttachOptions, Fault, Undo, attach};
use netmanager::host::firewall::{
    FirewallOptions, NamedCounter, TUNNEL_FROM_HOST, apply, counters, remove, set_tunnels,
};
use netmanager::host::sysctl::Sysctls;
use netmanager::host::{Error, Netlink, TUNNEL_MARK};
use nix::sys::socket::{setsockopt, sockopt};

use super::namespace::{DEADLINE, Process, as_host, as_nobody, eventually, ip, nft, wire};

const NODE: &str = "node-a";
/// Another one than the peer's.
const OWN_PORT: u16 = 50100;
const PEER: &str = "192.0.2.2";
const TUNNEL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 50103);

#[test]
fn the_second_time_nothing_changes_and_removal_leaves_no_trace() {
    as_host(async || {
        // Another tool at the same hooks.
        nft("add table inet other");
        nft("add chain inet other post { type nat hook postrouting priority srcnat; }");
        nft("add rule inet other post ip saddr 172.17.0.0/16 masquerade");
        let before = nft("-s list ruleset");

        apply(&options()).await.expect("applies");
        let first = nft("-s list ruleset");
        for expected in [
            "table inet oakestra_node-a",
            "elements = { 192.0.2.2 . 50103",
            "type filter hook postrouting priority raw; policy accept;",
            "type filter hook forward priority mangle; policy accept;",
            "type filter hook input priority mangle; policy accept;",
            "meta mark != 0x6f616b65 udp dport 50100 counter name \"tunnel_from_host\" drop",
            "ip daddr 10.16.0.0/12 ct state invalid,new,untracked counter name \"unencapsulated\" drop",
            "ip daddr 10.16.0.0/12 iifname != { \"lo\", \"oak0\" } counter name \"unencapsulated\" drop",
            "meta mark != 0x6f616b65 ip daddr . udp dport @tunnel_ports counter name \"tunnel_from_host\" drop",
            "ip saddr { 10.18.0.0/26, 10.18.4.0/26 } ip daddr != 10.16.0.0/12 oifname != \"oak0\" masquerade",
        ] {
            assert!(first.contains(expected), "{expected}: {first}");
        }
        apply(&options()).await.expect("applies again");
        assert_eq!(nft("-s list ruleset"), first);

        // What nft lists it can read again, as distributions do when they start.
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(first.as_bytes()).expect("writes");
        nft("flush ruleset");
        nft(&format!("-f {}", file.path().display()));
        assert_eq!(nft("-s list ruleset"), first);

        remove(NODE).await.expect("removes");
        assert_eq!(nft("-s list ruleset"), before);
        remove(NODE).await.expect("finds nothing");
        assert_eq!(nft("-s list ruleset"), before);
        assert_eq!(counters(NODE).await.expect("lists"), []);
    });
}

#[test]
fn the_set_of_tunnels_is_what_it_should_be() {
    as_host(async || {
        let error = set_tunnels(NODE, &tunnels(&[1]))
            .await
            .expect_err("there is no table");
        assert!(matches!(error, Error::Nft { .. }), "{error}");
        apply(&FirewallOptions {
            tunnels: BTreeSet::new(),
            ..options()
        })
        .await
        .expect("applies");
        for wanted in [&[1, 2, 3][..], &[2, 3, 4], &[]] {
            assert!(
                set_tunnels(NODE, &tunnels(wanted)).await.expect("changes"),
                "{wanted:?}"
            );
            assert!(
                !set_tunnels(NODE, &tunnels(wanted)).await.expect("is the same"),
                "{wanted:?}"
            );
            let ruleset = nft("list ruleset");
            for last in 1..5 {
                let listed = ruleset.contains(&format!("198.51.100.{last} . 50103"));
                assert_eq!(listed, wanted.contains(&last), "{last}: {ruleset}");
            }
        }
    });
}

#[test]
fn a_container_reaches_the_world_by_masquerade() {
    as_host(async || {
        let (netlink, container, world) = (
            Netlink::open().expect("opens"),
            Process::start(),
            Process::start(),
        );
        wire("up0", "192.0.2.1/24", &world, "192.0.2.2/24");
        Sysctls::default().set_required().expect("sets");
        apply(&options()).await.expect("applies");
        let attachment = AttachOptions {
            node_id: NODE.to_owned(),
            endpoint: "web.0".to_owned(),
            pid: container.pid(),
            address: Ipv4Addr::new(10, 18, 0, 2),
            mtu: 1450,
            fault: Fault::default(),
        };
        let mut undo = Undo::default();
        let outcome = attach(&netlink, &attachment, &mut undo).await;
        undo.finish(outcome).await.expect("attaches");

        let listener = world.run(|| TcpListener::bind("192.0.2.2:80").expect("binds"));
        let mut client = container.run(|| {
            TcpStream::connect_timeout(&"192.0.2.2:80".parse().expect("an address"), DEADLINE)
                .expect("connects")
        });
        let (mut server, seen) = listener.accept().expect("accepts");
        assert_eq!(seen.ip(), Ipv4Addr::new(192, 0, 2, 1), "the world sees the host");
        client.set_read_timeout(Some(DEADLINE)).expect("sets");
        server.write_all(b"pong").expect("sends");
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("receives");
        assert_eq!(&answer, b"pong");
    });
}

/// A user of the host and a namespace that is masqueraded as Docker does it are both kept from a tunnel port,
/// while the data plane's own socket passes; other ports of the peer are open to all.
#[test]
fn only_the_mark_passes_to_a_tunnel_port() {
    as_host(async || {
        let (peer, other) = (Process::start(), Process::start());
        wire("up0", "192.0.2.1/24", &peer, "192.0.2.2/24");
        wire("docker0", "172.17.0.1/16", &other, "172.17.0.2/16");
        other.ip("route add default via 172.17.0.1");
        nft("add table ip docker");
        nft("add chain ip docker post { type nat hook postrouting priority srcnat; }");
        nft("add rule ip docker post ip saddr 172.17.0.0/16 oifname != docker0 masquerade");
        Sysctls::default().set_required().expect("sets");
        apply(&options()).await.expect("applies");
        let [tunnel, open] = [50103, 50104].map(|port| {
            let socket = peer.run(|| UdpSocket::bind((PEER, port)).expect("binds"));
            socket.set_read_timeout(Some(DEADLINE)).expect("sets");
            socket
        });

        let refused = as_nobody(|| send(&socket(), b"nobody", 50103)).expect_err("is dropped");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        other
            .run(|| send(&socket(), b"masqueraded", 50103))
            .expect("leaves its namespace");
        eventually("both are counted", async || {
            counted(TUNNEL_FROM_HOST).await.packets == 2
        })
        .await;
        assert_eq!(counted(TUNNEL_FROM_HOST).await.bytes, 28 * 2 + 6 + 11);

        let own = socket();
        setsockopt(&own, sockopt::Mark, &TUNNEL_MARK).expect("marks");
        send(&own, b"tunnel", 50103).expect("sends");
        assert_eq!(receive(&tunnel), b"tunnel", "the first that arrives");

        as_nobody(|| send(&socket(), b"nobody", 50104)).expect("sends");
        assert_eq!(receive(&open), b"nobody");
        other
            .run(|| send(&socket(), b"masqueraded", 50104))
            .expect("sends");
        assert_eq!(receive(&open), b"masqueraded");

        // The counter goes on through every change.
        apply(&options()).await.expect("applies");
        set_tunnels(NODE, &tunnels(&[9])).await.expect("changes");
        assert_eq!(counted(TUNNEL_FROM_HOST).await.packets, 2);
        as_nobody(|| send(&socket(), b"nobody", 50103)).expect("no tunnel any more");
        assert_eq!(receive(&tunnel), b"nobody");
        ip("link delete docker0");
    });
}

/// The own tunnel's port is a tunnel's wherever it is: a node that nobody has told of is none the less one that
/// may know this one.
#[test]
fn only_the_mark_passes_to_the_own_tunnels_port_anywhere() {
    as_host(async || {
        let (unknown, other) = (Process::start(), Process::start());
        wire("up0", "192.0.2.1/24", &unknown, "192.0.2.2/24");
        wire("docker0", "172.17.0.1/16", &other, "172.17.0.2/16");
        other.ip("route add default via 172.17.0.1");
        Sysctls::default().set_required().expect("sets");
        apply(&FirewallOptions {
            tunnels: BTreeSet::new(),
            ..options()
        })
        .await
        .expect("applies");
        let there = unknown.run(|| UdpSocket::bind((PEER, OWN_PORT)).expect("binds"));
        let here = UdpSocket::bind(("127.0.0.1", OWN_PORT)).expect("binds");
        for socket in [&there, &here] {
            socket.set_read_timeout(Some(DEADLINE)).expect("sets");
        }

        for destination in [PEER, "127.0.0.1", "192.0.2.1"] {
            let refused = as_nobody(|| socket().send_to(b"nobody", (destination, OWN_PORT)));
            let refused = refused.expect_err("is dropped");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{destination}");
        }
        other
            .run(|| send(&socket(), b"forwarded", OWN_PORT))
            .expect("leaves its namespace");
        eventually("all are counted", async || {
            counted(TUNNEL_FROM_HOST).await.packets == 4
        })
        .await;

        let own = socket();
        setsockopt(&own, sockopt::Mark, &TUNNEL_MARK).expect("marks");
        send(&own, b"tunnel", OWN_PORT).expect("sends");
        assert_eq!(receive(&there), b"tunnel", "the first that arrives");
        own.send_to(b"tunnel", ("127.0.0.1", OWN_PORT)).expect("sends");
        assert_eq!(receive(&here), b"tunnel", "the first that arrives");
    });
}

fn options() -> FirewallOptions {
    FirewallOptions {
        node_id: NODE.to_owned(),
        subnets: ["10.18.0.0/26", "10.18.4.0/26"]
            .map(|subnet| subnet.parse().expect("a network"))
            .to_vec(),
        listen_port: OWN_PORT,
        tunnels: BTreeSet::from([TUNNEL]),
        published: BTreeSet::new(),
    }
}

fn tunnels(last: &[u8]) -> BTreeSet<SocketAddrV4> {
    last.iter()
        .map(|last| SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, *last), 50103))
        .collect()
}

async fn counted(name: &str) -> NamedCounter {
    let counters = counters(NODE).await.expect("lists");
    let found = counters.iter().find(|counter| counter.name == name);
    found.unwrap_or_else(|| panic!("{name}: {counters:?}")).clone()
}

fn socket() -> UdpSocket {
    UdpSocket::bind("0.0.0.0:0").expect("binds")
}

fn send(socket: &UdpSocket, text: &[u8], port: u16) -> io::Result<usize> {
    socket.send_to(text, (PEER, port))
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("receives");
    buffer[..length].to_vec()
}
