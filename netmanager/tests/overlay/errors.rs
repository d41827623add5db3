//! ICMP errors on real sockets: closed ports, nobody there, packets too big.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Endpoint, Host, Lab, Namespace, UPLINK};

use crate::fixture::{
    CLIENT_NAME, DEADLINE, DELAY, FAR_NAME, FAR_NODE, FAR_SERVICE, NEAR_NODE, NEAR_SERVICE, NO_SERVICE,
    Overlay, accept, bind, connect, listen, program,
};

/// Nobody listens there.
const CLOSED: u16 = 9;
/// A service without instances.
const EMPTY_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 98, 98);
/// Retransmission of a SYN takes a second; what is told comes at once, or with the first retransmission when the
/// kernel was still busy sending.
const TOLD_WITHIN: Duration = Duration::from_millis(2_500);

#[test]
fn n31_a_datagram_to_a_closed_port_is_refused_from_everywhere() {
    let overlay = Overlay::new("closed port");
    let near_host: &Namespace = overlay.near.host();
    // The far node has been told of the near node's containers, and not of itself.
    for (who, client, where_to, service) in [
        ("client", &*overlay.client, "another node", FAR_SERVICE),
        ("client", &*overlay.client, "this node", NEAR_SERVICE),
        ("host", near_host, "this node", NEAR_SERVICE),
    ] {
        let socket = bind(client, 0);
        socket.connect((service, CLOSED)).expect("connected");
        for turn in ["first", "second"] {
            socket.send(b"anybody there?").expect("sent");
            let error = socket.recv(&mut [0; 8]).expect_err("nobody is");
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{who} to {where_to}, {turn}"
            );
        }
    }
}

#[test]
fn n33_nobody_there_is_told_at_once() {
    let overlay = Overlay::new("nobody there");
    let start = Instant::now();
    let error = connect(&overlay.client, NO_SERVICE, 80).expect_err("nobody has the address");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    assert!(start.elapsed() < TOLD_WITHIN, "after {:?}", start.elapsed());
    let start = Instant::now();
    let error = connect(&overlay.client, NO_SERVICE, 80).expect_err("nobody has it still");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    assert!(start.elapsed() < TOLD_WITHIN, "after {:?}", start.elapsed());

    let socket = told_of_errors(&overlay.client);
    socket.connect((NO_SERVICE, 53)).expect("connected");
    socket.send(b"anybody there?").expect("sent");
    let error = socket.recv(&mut [0; 8]).expect_err("nobody is");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");

    let error = connect(overlay.near.host(), NO_SERVICE, 80).expect_err("nor for the host");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
}

#[test]
fn n33_a_service_without_instances_and_a_node_without_a_way_are_told() {
    let overlay = Overlay::new("no instances");
    let service = Service {
        name: "shop.test.empty.test".to_owned(),
        addresses: vec![EMPTY_SERVICE],
        instances: Vec::new(),
        delay: Duration::ZERO,
    };
    let far = Service {
        name: FAR_NAME.to_owned(),
        addresses: vec![FAR_SERVICE],
        instances: overlay.far_instances.to_vec(),
        delay: Duration::ZERO,
    };
    let answers = Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 0)),
        address: Some(NEAR_NODE),
        peers: Vec::new(),
        services: vec![service, far],
    };
    overlay.near.answer(&answers).expect("answered");
    let told = |what, service| {
        let start = Instant::now();
        let error = connect(&overlay.client, service, 80).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{what}: {error}");
        assert!(start.elapsed() < TOLD_WITHIN, "{what}: {:?}", start.elapsed());
    };
    told("no instances", EMPTY_SERVICE);

    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    overlay
        .near
        .host()
        .ip(&format!("link set {UPLINK} down"))
        .expect("set down");
    lab::wait_for("the way to be missed", DEADLINE, || {
        let socket = told_of_errors(&overlay.client);
        socket.connect((FAR_SERVICE, CLOSED))?;
        socket.send(b"anybody there?")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let outcome = socket.recv(&mut [0; 8]);
        Ok(outcome.is_err_and(|error| error.kind() == ErrorKind::HostUnreachable))
    })
    .expect("told");
    told("no way", FAR_SERVICE);
}

#[test]
fn n36_a_packet_of_the_inner_size_passes_and_one_more_byte_is_told() {
    let overlay = Overlay::new("inner size");
    let server = bind(&overlay.far_servers[0], 53);
    let other = bind(&overlay.far_servers[1], 53);
    for server in [&server, &other] {
        server.set_nonblocking(true).expect("set");
    }
    let instance = overlay.far_instances[0].address;
    for outer in [1280, 1400] {
        let host = overlay.near.host();
        let endpoint = &overlay.client;
        host.ip(&format!("link set {UPLINK} mtu {outer}")).expect("set");
        // A socket that must not fragment, and does not remember what was said to others.
        let largest = outer - 28 - 28;
        let mut told = Vec::new();
        lab::wait_for("the way's size to be followed", DEADLINE, || {
            endpoint.run("ip", &["route", "flush", "cache"])?;
            let socket = unfragmented(endpoint);
            socket.connect((instance, 53))?;
            socket.send(&vec![0; largest + 1])?;
            let outcome = socket.recv(&mut [0; 8]);
            let route = endpoint.run("ip", &["route", "get", &instance.to_string()])?;
            let route = String::from_utf8_lossy(&route.stdout).into_owned();
            told.push(format!("{outcome:?}, {route}"));
            // Until the new size is known it is the one before that is told.
            let is_told = outcome.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE));
            Ok(is_told && route.contains(&format!("mtu {}", outer - 28)))
        })
        .unwrap_or_else(|error| panic!("{error}: {told:?}"));

        let socket = unfragmented(endpoint);
        socket.connect((instance, 53)).expect("connected");
        while server.recv(&mut [0; 2048]).is_ok() {}
        socket.send(&vec![0; largest]).expect("it fits");
        lab::wait_for("the datagram", DEADLINE, || {
            Ok(server.recv(&mut [0; 2048]).is_ok_and(|length| length == largest))
        })
        .expect("it arrives");
    }
}

#[test]
fn n35_a_transfer_goes_on_when_less_fits_on_the_way() {
    const BYTES: usize = 30_000_000;
    const SMALLER: usize = 3_000_000;
    let routed = Routed::new("path mtu");
    let listener = listen(&routed.server, 80);
    let mut client = connect(&routed.client, FAR_SERVICE, 80).expect("connected");
    client.set_write_timeout(Some(DEADLINE)).expect("a deadline");
    let (mut server, _) = accept(&listener);
    let receiver = std::thread::spawn(move || {
        let mut received = 0;
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = server.read(&mut buffer) {
            received += length;
        }
        received
    });
    let chunk = vec![0x5a; 100_000];
    for sent in (0..BYTES).step_by(chunk.len()) {
        if sent == SMALLER {
            routed.narrow(1400);
        }
        client.write_all(&chunk).expect("it goes on");
    }
    drop(client);
    assert_eq!(receiver.join().expect("received"), BYTES);
    let told = routed
        .near
        .counter("from_endpoint", "ICMP_TOO_BIG")
        .expect("counted");
    assert!(told > 0, "the client was told what fits");
}

/// Two workers with a router between them.
struct Routed {
    near: Worker,
    _far: Worker,
    client: Endpoint,
    server: Endpoint,
    router: Host,
    far_host: Host,
    _lab: Lab,
}

impl Routed {
    fn new(label: &str) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let [near_host, router, far_host] =
            ["near", "router", "far"].map(|role| lab.host(role).expect("a host"));
        let ip = Ipv4Addr::new;
        let far_address = ip(198, 51, 100, 2);
        let far_name = far_host.name();
        router
            .ip(&format!(
                "link add beyond type veth peer name beyond netns {far_name}"
            ))
            .expect("made");
        for (host, address) in [(&router, ip(198, 51, 100, 1)), (&far_host, far_address)] {
            host.ip(&format!("address add {address}/24 dev beyond"))
                .expect("added");
            host.ip("link set beyond up").expect("set up");
        }
        router.sysctl("net.ipv4.ip_forward", "1").expect("set");
        let wire_address = far_host.address();
        far_host
            .ip(&format!("address delete {wire_address}/24 dev {UPLINK}"))
            .expect("removed");
        far_host.route("default", ip(198, 51, 100, 1)).expect("routed");
        near_host
            .route("198.51.100.0/24", router.address())
            .expect("routed");

        let instance = |service: &str, address, namespace_address, host| Instance {
            service: service.to_owned(),
            number: 0,
            address,
            namespace_address,
            host,
            incarnation: 1,
        };
        let client_instance = instance(
            CLIENT_NAME,
            ip(10, 30, 1, 1),
            ip(10, 18, 0, 2),
            near_host.address(),
        );
        let server_instance = instance(FAR_NAME, ip(10, 30, 2, 1), ip(10, 18, 0, 66), far_address);
        let services = vec![Service {
            name: FAR_NAME.to_owned(),
            addresses: vec![FAR_SERVICE],
            instances: vec![server_instance.clone()],
            delay: DELAY,
        }];
        let answers = |subnet, address, peers| Answers {
            subnet: Some(subnet),
            address: Some(address),
            peers,
            services: services.clone(),
        };
        let near_answers = answers(ip(10, 18, 0, 0), NEAR_NODE, Vec::new());
        let far_answers = answers(ip(10, 18, 0, 64), FAR_NODE, vec![client_instance.clone()]);
        let near = Worker::start(&lab, &near_host, program(), &near_answers).expect("a NetManager");
        let far = Worker::start(&lab, &far_host, program(), &far_answers).expect("a NetManager");
        let client = near_host.endpoint("client").expect("an endpoint");
        let server = far_host.endpoint("server").expect("an endpoint");
        near.deploy(&client, &client_instance).expect("attached");
        far.deploy(&server, &server_instance).expect("attached");
        Self {
            near,
            _far: far,
            client,
            server,
            router,
            far_host,
            _lab: lab,
        }
    }

    /// From now on packets of this size fit between the router and the far host.
    fn narrow(&self, mtu: u32) {
        for host in [&self.far_host, &self.router] {
            host.ip(&format!("link set beyond mtu {mtu}")).expect("set");
        }
    }
}

/// A UDP socket whose datagrams must not be fragmented.
fn unfragmented(endpoint: &Namespace) -> UdpSocket {
    let socket = bind(endpoint, 0);
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a deadline");
    set(&socket, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    socket
}

/// A UDP socket that is also told of errors which need not be final.
fn told_of_errors(endpoint: &Namespace) -> UdpSocket {
    let socket = bind(endpoint, 0);
    set(&socket, libc::IP_RECVERR, 1);
    socket
}

fn set(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the value lives across the call, and its length is told.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
}
