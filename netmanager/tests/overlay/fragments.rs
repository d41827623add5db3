//! Datagrams in pieces: whole at the other end, whatever order the pieces came in, and wherever they were cut.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use lab::Namespace;
use netmanager::host::TUNNEL_MARK;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt,
};

use crate::fixture::{CLIENT_SERVICE, DEADLINE, FAR_SERVICE, NEAR_NODE, NEAR_SERVICE, Overlay, bind};
use crate::hostile::{TUNNEL_PORT, expect_counter};

const PORT: u16 = 7_000;
const CLIENT_PORT: u16 = 7_001;
/// Bytes of payload that make many fragments.
const LARGE: usize = 20_000;
/// Bytes behind the IPv4 header of each fragment that a test cuts: a multiple of eight.
const PIECE: usize = 1_400;

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position % 251) as u8).collect()
}

/// A datagram from one address to another, whole.
fn datagram(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let builder =
        etherparse::PacketBuilder::ipv4(source.octets(), destination.octets(), 64).udp(CLIENT_PORT, PORT);
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).expect("written to memory");
    bytes
}

/// The packet in pieces of `size` bytes behind the IPv4 header.
fn cut(packet: &[u8], identification: u16, size: usize) -> Vec<Vec<u8>> {
    let (header, body) = etherparse::Ipv4Header::from_slice(packet).expect("an IPv4 packet");
    let last = (body.len() - 1) / size;
    let pieces = body.chunks(size).enumerate();
    pieces
        .map(|(index, piece)| {
            let mut header = etherparse::Ipv4Header {
                identification,
                dont_fragment: false,
                more_fragments: index != last,
                fragment_offset: u16::try_from(index * size / 8)
                    .expect("within a packet")
                    .try_into()
                    .expect("thirteen bits"),
                ..header.clone()
            };
            header.set_payload_len(piece.len()).expect("a short piece");
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().to_vec(), piece.to_vec()].concat()
        })
        .collect()
}

/// A socket that sends IPv4 packets as they are, past the host's own firewall.
fn raw_socket(namespace: &Namespace) -> OwnedFd {
    let opened = namespace.enter(|| {
        socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Raw,
        )
    });
    let socket = opened.expect("entered").expect("root may");
    setsockopt(&socket, sockopt::Mark, &TUNNEL_MARK).expect("root may mark");
    socket
}

fn send(socket: &OwnedFd, packets: &[Vec<u8>]) {
    for packet in packets {
        let destination: [u8; 4] = packet[16..20].try_into().expect("an IPv4 packet");
        let target = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::from(destination), 0));
        let sent = sendto(socket.as_raw_fd(), packet, &target, MsgFlags::empty()).expect("sent");
        assert_eq!(sent, packet.len());
    }
}

/// What the test knows when a datagram does not come.
fn receive(overlay: &Overlay, case: &str, socket: &UdpSocket, expected: &[u8]) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| {
        let [near, far] = [&overlay.near, &overlay.far].map(|worker| worker.get("/drops"));
        panic!("{case}: {error}: near {near:#?}, far {far:#?}")
    });
    assert!(
        buffer[..length] == *expected,
        "{case}: {length} bytes of {}",
        expected.len()
    );
    from
}

/// The pieces in the orders that matter: backwards, the first last, every second one first, twice each.
fn orders(pieces: &[Vec<u8>]) -> [(&'static str, Vec<Vec<u8>>); 4] {
    let backwards = pieces.iter().rev().cloned().collect();
    let rotated = [&pieces[1..], &pieces[..1]].concat();
    let every_second = |first: usize| pieces.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>();
    let twice = pieces
        .iter()
        .rev()
        .flat_map(|piece| [piece.clone(), piece.clone()])
        .collect();
    [
        ("backwards", backwards),
        ("the first last", rotated),
        (
            "every second one first",
            [every_second(1), every_second(0)].concat(),
        ),
        ("backwards and twice", twice),
    ]
}

#[test]
fn p04_large_datagrams_cross_in_both_directions() {
    let overlay = Overlay::new("large datagrams");
    let far_instance = overlay.far_instances[0].address;
    let near_host = overlay.near.host();
    let cases: [(&str, &Namespace, &Namespace, Ipv4Addr); 5] = [
        (
            "another node",
            &overlay.client,
            &overlay.far_servers[0],
            far_instance,
        ),
        (
            "the same node",
            &overlay.client,
            &overlay.near_server,
            NEAR_SERVICE,
        ),
        ("oneself", &overlay.client, &overlay.client, CLIENT_SERVICE),
        (
            "from the node itself",
            near_host,
            &overlay.near_server,
            NEAR_SERVICE,
        ),
        ("to the own node", &overlay.near_server, near_host, NEAR_NODE),
    ];
    for (case, from, to, address) in cases {
        let server = bind(to, PORT);
        let client = bind(from, CLIENT_PORT);
        for length in [LARGE, 8_000, 65_507] {
            let case = format!("{case}, {length} bytes");
            let sent = payload(length);
            client.send_to(&sent, (address, PORT)).expect("sent");
            let peer = receive(&overlay, &case, &server, &sent);
            server.send_to(&sent, peer).expect("sent");
            let peer = receive(&overlay, &format!("{case}, back"), &client, &sent);
            assert_eq!(peer, SocketAddr::from((address, PORT)), "{case}");
        }
    }
    for (case, address) in [("another node", FAR_SERVICE), ("the same node", NEAR_SERVICE)] {
        let mut ping = overlay.client.command("busybox").expect("a command");
        ping.args(["ping", "-c", "3", "-i", "0.2", "-s", "8000", &address.to_string()]);
        let output = ping.output().expect("run");
        assert!(
            output.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss"),
            "{case}"
        );
    }
}

#[test]
fn p04_fragments_out_of_order_wait_for_their_first() {
    let overlay = Overlay::new("out of order");
    let source = overlay.client_instance.namespace_address;
    let far_instance = overlay.far_instances[0].address;
    let client = raw_socket(&overlay.client);
    let mut identification = 100;
    // Of the first datagram to each nobody knows the destination either.
    let cases: [(&str, &Namespace, Ipv4Addr); 3] = [
        ("another node", &overlay.far_servers[0], far_instance),
        ("the same node", &overlay.near_server, NEAR_SERVICE),
        ("the node itself", overlay.near.host(), NEAR_NODE),
    ];
    for (case, to, address) in cases {
        let server = bind(to, PORT);
        let sent = payload(LARGE);
        let whole = datagram(source, address, &sent);
        for order in 0..4 {
            identification += 1;
            let (name, pieces) = orders(&cut(&whole, identification, PIECE))
                .into_iter()
                .nth(order)
                .expect("four");
            send(&client, &pieces);
            let peer = receive(&overlay, &format!("{case}, {name}"), &server, &sent);
            assert_eq!(peer.ip(), overlay.client_instance.address);
        }
    }
    assert!(overlay.near.counter("from_oak0", "TUNNEL").expect("counted") > 0);
}

#[test]
fn p04_fragments_that_the_tunnel_carries_out_of_order_wait_at_the_receiver() {
    let overlay = Overlay::new("tunnel out of order");
    let far = &overlay.far_servers[0];
    let server = bind(far, PORT);
    overlay
        .client
        .ping(overlay.far_instances[0].address, DEADLINE)
        .expect("the way there is known");
    let sent = payload(LARGE);
    let inner = datagram(
        overlay.client_instance.address,
        overlay.far_instances[0].namespace_address,
        &sent,
    );
    let tunnel = raw_socket(overlay.near.host());
    for order in 0..4 {
        let identification = 500 + order as u16;
        let (name, pieces) = orders(&cut(&inner, identification, PIECE))
            .into_iter()
            .nth(order)
            .expect("four");
        let wire: Vec<_> = pieces.iter().map(|piece| outer(&overlay, piece)).collect();
        send(&tunnel, &wire);
        receive(&overlay, name, &server, &sent);
    }
}

/// The tunnel datagram that carries a packet from the near node to the far one.
fn outer(overlay: &Overlay, inner: &[u8]) -> Vec<u8> {
    let [near, far] = [&overlay.near, &overlay.far].map(|worker| worker.host().address().octets());
    let builder = etherparse::PacketBuilder::ipv4(near, far, 64).udp(51_000, TUNNEL_PORT);
    let mut bytes = Vec::with_capacity(builder.size(inner.len()));
    builder.write(&mut bytes, inner).expect("written to memory");
    bytes
}

#[test]
fn p04_tunnel_datagrams_that_came_in_fragments_are_put_together_and_admitted() {
    let overlay = Overlay::new("outer fragments");
    let server = bind(&overlay.far_servers[0], PORT);
    overlay
        .client
        .ping(overlay.far_instances[0].address, DEADLINE)
        .expect("the way there is known");
    let tunnel = raw_socket(overlay.near.host());
    let destination = overlay.far_instances[0].namespace_address;
    let mut identification = 900;
    // The largest fills the outer datagram; each is more than the endpoint's link carries by itself.
    for length in [3_000, LARGE, 65_507 - 28] {
        let sent = payload(length);
        let inner = datagram(overlay.client_instance.address, destination, &sent);
        let whole = outer(&overlay, &inner);
        let in_order = cut(&whole, identification, 1_000);
        for (name, pieces) in [
            ("in order", in_order.clone()),
            ("backwards", in_order.into_iter().rev().collect()),
        ] {
            identification += 1;
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|mut piece| {
                    piece[4..6].copy_from_slice(&identification.to_be_bytes());
                    piece
                })
                .collect();
            send(&tunnel, &pieces);
            let peer = receive(&overlay, &format!("{length} bytes, {name}"), &server, &sent);
            assert_eq!(peer.ip(), overlay.client_instance.address);
        }
    }
    // The same checks as for what comes in one piece.
    let before = overlay
        .far
        .counter("from_oak0", "SOURCE_NOT_ON_NODE")
        .expect("counted");
    let forged = datagram(overlay.far_instances[1].address, destination, &payload(3_000));
    send(&tunnel, &cut(&outer(&overlay, &forged), 999, 1_000));
    expect_counter(&overlay.far, "from_oak0", "SOURCE_NOT_ON_NODE", before + 1);
}

#[test]
fn p04_a_fragment_that_waits_in_vain_is_dropped_and_counted() {
    let overlay = Overlay::new("in vain");
    let far_instance = overlay.far_instances[0].address;
    overlay
        .client
        .ping(far_instance, DEADLINE)
        .expect("the way there is known");
    let whole = datagram(
        overlay.client_instance.namespace_address,
        far_instance,
        &payload(3_000),
    );
    let pieces = cut(&whole, 77, PIECE);
    send(&raw_socket(&overlay.client), &pieces[1..]);
    let tunnel = raw_socket(overlay.near.host());
    let inner = datagram(
        overlay.client_instance.address,
        overlay.far_instances[0].namespace_address,
        &payload(3_000),
    );
    send(&tunnel, &[outer(&overlay, &cut(&inner, 78, PIECE)[1])]);
    expect_counter(&overlay.near, "from_oak0", "FRAGMENT", 2);
    expect_counter(&overlay.far, "from_oak0", "FRAGMENT", 1);
}
