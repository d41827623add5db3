//! What must not pass, does not, and is counted under its reason.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use etherparse::PacketBuilder;
use lab::Namespace;
use lab::worker::Worker;
use netmanager::host::TUNNEL_MARK;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt,
};

use crate::fixture::{DEADLINE, FAR_SERVICE, Overlay, bind};

/// UDP port of the server that nothing hostile may reach.
pub const PORT: u16 = 53;
pub const TUNNEL_PORT: u16 = 50103;

/// An overlay whose far server 0 has a socket, and whose paths are known.
pub struct Target {
    pub overlay: Overlay,
    pub socket: UdpSocket,
}

impl Target {
    pub fn new(label: &str) -> Self {
        let overlay = Overlay::new(label);
        let socket = bind(&overlay.far_servers[0], PORT);
        overlay
            .client
            .ping(overlay.far_instances[0].address, DEADLINE)
            .expect("the way there is known");
        Self { overlay, socket }
    }

    /// The inner packet that a tunnel would carry from the client to the server.
    pub fn inner(&self) -> Inner {
        Inner {
            source: self.overlay.client_instance.address,
            destination: self.overlay.far_instances[0].namespace_address,
        }
    }

    pub fn far_address(&self) -> Ipv4Addr {
        self.overlay.far.host().address()
    }

    /// Sends a payload from the near host to the far tunnel port, past the near host's own firewall, as another
    /// program could on a host that has none.
    pub fn tunnel(&self, payload: &[u8]) {
        let socket = plain_socket(self.overlay.near.host());
        setsockopt(&socket.as_fd(), sockopt::Mark, &TUNNEL_MARK).expect("root may mark");
        socket
            .send_to(payload, (self.far_address(), TUNNEL_PORT))
            .expect("sent");
    }

    /// Nothing has reached the server, which is alive.
    pub fn nothing_arrived(&self) {
        let client = bind(&self.overlay.client, 0);
        client
            .send_to(b"honest", (self.overlay.far_instances[0].address, PORT))
            .expect("sent");
        let mut buffer = [0; 64];
        let (length, peer) = self.socket.recv_from(&mut buffer).expect("the honest datagram");
        assert_eq!(
            &buffer[..length],
            b"honest",
            "something hostile from {peer} was delivered before"
        );
    }
}

/// An inner UDP packet; each case states what is wrong with it.
#[derive(Clone, Copy)]
pub struct Inner {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

impl Inner {
    pub fn bytes(self) -> Vec<u8> {
        let builder =
            PacketBuilder::ipv4(self.source.octets(), self.destination.octets(), 64).udp(4_000, PORT);
        let mut bytes = Vec::with_capacity(builder.size(7));
        builder.write(&mut bytes, b"hostile").expect("written to memory");
        bytes
    }
}

#[test]
fn a_false_source_address_is_dropped() {
    let target = Target::new("spoofed");
    let before = target
        .overlay
        .near
        .counter("from_endpoint", "SPOOFED")
        .expect("counted");
    let false_sources = [
        target.overlay.near_instance.namespace_address,
        target.overlay.client_instance.address,
        target.far_address(),
        Ipv4Addr::new(203, 0, 113, 7),
    ];
    for source in false_sources {
        for destination in [
            FAR_SERVICE,
            target.overlay.far_instances[0].address,
            target.far_address(),
        ] {
            send_raw(&target.overlay.client, &Inner { source, destination }.bytes());
        }
    }
    expect_counter(&target.overlay.near, "from_endpoint", "SPOOFED", before + 12);
    target.nothing_arrived();
}

#[test]
fn nobody_but_the_data_plane_speaks_to_a_tunnel_port() {
    let target = Target::new("tunnel port");
    let (near, far) = (&target.overlay.near, &target.overlay.far);
    let payload = target.inner().bytes();
    let seen_by_far = || {
        let tunnelled = ["DELIVER", "STRANGER", "INNER_SHORT"].map(|name| far.counter("from_uplink", name));
        tunnelled
            .into_iter()
            .map(|count| count.expect("counted"))
            .sum::<u64>()
    };
    let before = seen_by_far();

    let from_endpoint = plain_socket(&target.overlay.client);
    from_endpoint
        .send_to(&payload, (target.far_address(), TUNNEL_PORT))
        .expect("sent");
    expect_counter(near, "from_endpoint", "TUNNEL_FROM_ENDPOINT", 1);

    // As Docker does: a namespace of its own, routed and masqueraded by the node.
    let other = near
        .host()
        .routed_endpoint("other", Ipv4Addr::new(172, 31, 0, 2), 1500)
        .expect("an endpoint");
    let rule = "add table ip oakt_other; add chain ip oakt_other out { type nat hook postrouting priority 100; }; \
                add rule ip oakt_other out ip saddr 172.31.0.2 masquerade";
    near.host().run("nft", &[rule]).expect("masqueraded");
    other
        .ping(target.far_address(), DEADLINE)
        .expect("it reaches the other host otherwise");
    let from_other = plain_socket(&other);
    from_other
        .send_to(&payload, (target.far_address(), TUNNEL_PORT))
        .expect("sent");
    expect_counter(near, "firewall", "TUNNEL_FROM_HOST", 1);

    assert!(
        !nobody_sends(near, target.far_address()),
        "the kernel tells whoever sends"
    );
    expect_counter(near, "firewall", "TUNNEL_FROM_HOST", 2);

    assert_eq!(seen_by_far(), before, "nothing of it crossed the wire");
    target.nothing_arrived();
}

#[test]
fn a_stranger_is_heard_by_nobody() {
    let target = Target::new("stranger");
    let stranger = target.overlay.lab.host("stranger").expect("a host");
    let socket = plain_socket(&stranger);
    let payload = target.inner().bytes();
    for _ in 0..1_000 {
        socket
            .send_to(&payload, (target.far_address(), TUNNEL_PORT))
            .expect("sent");
    }
    let far = &target.overlay.far;
    lab::wait_for("every datagram to be counted", DEADLINE, || {
        let handed_up = far.counter("from_uplink", "STRANGER")?;
        let dropped = far.counter("from_uplink", "UNKNOWN_PEER")?;
        Ok(handed_up > 0 && dropped > 0 && handed_up + dropped == 1_000)
    })
    .expect("some were handed up, the rest dropped");
    target.nothing_arrived();
}

#[test]
fn a_known_host_speaks_only_for_its_own_instances_and_to_those_here() {
    let target = Target::new("known host");
    let honest = target.inner();
    let far_instance = target.overlay.far_instances[1].address;
    let cases = [
        (
            "foreign destination",
            Inner {
                destination: Ipv4Addr::new(10, 18, 0, 3),
                ..honest
            },
            "DESTINATION_NOT_LOCAL",
        ),
        (
            "a host behind this one",
            Inner {
                destination: Ipv4Addr::new(192, 0, 2, 1),
                ..honest
            },
            "DESTINATION_NOT_LOCAL",
        ),
        (
            "an instance that lives here",
            Inner {
                source: far_instance,
                ..honest
            },
            "SOURCE_NOT_ON_NODE",
        ),
        (
            "no overlay source",
            Inner {
                source: Ipv4Addr::new(192, 0, 2, 9),
                ..honest
            },
            "SOURCE_NOT_OVERLAY",
        ),
        (
            "a namespace address as source",
            Inner {
                source: Ipv4Addr::new(10, 18, 0, 2),
                ..honest
            },
            "SOURCE_NOT_OVERLAY",
        ),
    ];
    for (what, inner, reason) in cases {
        let before = target
            .overlay
            .far
            .counter("from_uplink", reason)
            .expect("counted");
        target.tunnel(&inner.bytes());
        lab::wait_for(what, DEADLINE, || {
            Ok(target.overlay.far.counter("from_uplink", reason)? == before + 1)
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    }
    target.nothing_arrived();
}

#[test]
fn the_overlay_is_not_reached_from_the_wire_without_a_tunnel() {
    let target = Target::new("unencapsulated");
    let stranger = target.overlay.lab.host("stranger").expect("a host");
    let far = target.far_address();
    stranger.route("10.16.0.0/12", far).expect("routed");
    let honest = target.inner();
    for destination in [
        honest.destination,
        target.overlay.far_instances[0].address,
        Ipv4Addr::new(10, 18, 0, 65),
    ] {
        send_raw(
            &stranger,
            &Inner {
                destination,
                ..honest
            }
            .bytes(),
        );
    }
    expect_counter(&target.overlay.far, "from_uplink", "UNENCAPSULATED", 3);
    target.nothing_arrived();
}

#[test]
fn random_bytes_and_truncated_datagrams_are_counted() {
    let target = Target::new("fuzz");
    let far = &target.overlay.far;
    let dropped = || -> u64 {
        let rows = far.get("/drops").expect("counted");
        let rows = rows.as_array().expect("a list").iter();
        rows.filter(|row| row["hook"] == "from_uplink" && row["dropped"] == true)
            .filter_map(|row| row["packets"].as_u64())
            .sum()
    };
    let before = dropped();

    let valid = target.inner().bytes();
    for length in 0..valid.len() {
        target.tunnel(&valid[..length]);
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        // xorshift64 (Marsaglia 2003): the same bytes in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut sent = valid.len() as u64;
    for _ in 0..2_000 {
        let length = (random() % 200) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if let Some(first) = bytes.first_mut().filter(|_| random() % 2 == 0) {
            *first = 0x45;
        }
        target.tunnel(&bytes);
        sent += 1;
    }
    lab::wait_for("everything to be counted as dropped", DEADLINE, || {
        Ok(dropped() - before >= sent)
    })
    .expect("counted");
    assert_eq!(dropped() - before, sent, "each exactly once");
    target.nothing_arrived();
}

pub fn plain_socket(namespace: &Namespace) -> UdpSocket {
    let bound = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    bound.expect("entered").expect("a free port")
}

/// Whether a user without any rights can send to the tunnel port at an address.
pub fn nobody_sends(from: &Worker, to: Ipv4Addr) -> bool {
    let script = format!("echo hostile > /dev/udp/{to}/{TUNNEL_PORT}");
    let mut nobody = from.host().command("setpriv").expect("a command");
    nobody.args([
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        "bash",
        "-c",
        &script,
    ]);
    nobody.output().expect("run").status.success()
}

/// Sends an IPv4 packet as it is.
pub fn send_raw(namespace: &Namespace, packet: &[u8]) {
    let opened: nix::Result<OwnedFd> = namespace
        .enter(|| {
            socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::Raw,
            )
        })
        .expect("entered");
    let socket = opened.expect("root may");
    let destination: [u8; 4] = packet[16..20].try_into().expect("an IPv4 packet");
    let target = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::from(destination), 0));
    let sent = sendto(socket.as_raw_fd(), packet, &target, MsgFlags::empty()).expect("sent");
    assert_eq!(sent, packet.len());
}

pub fn expect_counter(worker: &Worker, hook: &str, name: &str, expected: u64) {
    let what = format!("{expected} packets counted as {name} at {hook}");
    lab::wait_for(&what, DEADLINE, || Ok(worker.counter(hook, name)? >= expected))
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", worker.get("/drops")));
    assert_eq!(
        worker.counter(hook, name).expect("counted"),
        expected,
        "{name} at {hook}"
    );
}

#[test]
fn a_container_reaches_the_world_by_the_address_of_its_node() {
    let overlay = Overlay::new("masquerade");
    let world = overlay.lab.host("world").expect("a host");
    let server = bind(&world, 7);
    let client = bind(&overlay.client, 0);
    client.send_to(b"hello", (world.address(), 7)).expect("sent");
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).expect("received");
    let SocketAddr::V4(peer) = peer else {
        panic!("an IPv4 socket has an IPv4 peer")
    };
    assert_eq!(
        (&buffer[..length], *peer.ip()),
        (&b"hello"[..], overlay.near.host().address())
    );
    server.send_to(b"world", peer).expect("sent");
    let (length, from) = client.recv_from(&mut buffer).expect("received");
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"world"[..], world.address().into())
    );
}
