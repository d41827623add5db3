//! Published ports: from every place that a client may be in, through everything that may happen to a node.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;

use lab::worker::{Instance, Worker, deployment};
use lab::{Endpoint, Host, HostOptions, Lab, Namespace, Offloads};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, socket};

use crate::fixture::{accept, bind, connect, exchange, listen, lone_answers, program, retransmissions};

const FIRST_NAME: &str = "shop.test.first.test";
const SECOND_NAME: &str = "shop.test.second.test";

/// The node's own address in the overlay, which stands in for clients that the server could not answer.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 18, 0, 1);

/// A worker with two endpoints that publish ports, and a host that is none.
struct Publisher {
    worker: Worker,
    first: Endpoint,
    second: Endpoint,
    first_instance: Instance,
    second_instance: Instance,
    world: Host,
    lab: Lab,
}

impl Publisher {
    /// `first` publishes TCP 8080 and UDP 5353, `second` TCP 9090; each as a port of another number.
    fn new(label: &str) -> Self {
        Self::on_wire(label, Offloads::Kept)
    }

    fn on_wire(label: &str, offloads: Offloads) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let options = HostOptions {
            offloads,
            ..HostOptions::default()
        };
        let [host, world] = ["node", "world"].map(|role| lab.host_with(role, options).expect("a host"));
        host.ip("link set lo up").expect("set up");
        let worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
        let [first, second] = ["first", "second"].map(|role| host.endpoint(role).expect("an endpoint"));
        let instance = |service: &str, last| Instance {
            service: service.to_owned(),
            number: 0,
            address: Ipv4Addr::new(10, 30, 1, last),
            namespace_address: Ipv4Addr::new(10, 18, 0, last + 1),
            host: host.address(),
            incarnation: 1,
        };
        let (first_instance, second_instance) = (instance(FIRST_NAME, 1), instance(SECOND_NAME, 2));
        worker
            .publish(&first, &first_instance, "8080:80;5353:53/udp")
            .expect("attached");
        worker
            .publish(&second, &second_instance, "9090:80/tcp")
            .expect("attached");
        Self {
            worker,
            first,
            second,
            first_instance,
            second_instance,
            world,
            lab,
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.worker.host().address()
    }

    /// What happened to packets, for a test that failed.
    fn drops(&self) -> String {
        format!("{:#}", self.worker.get("/drops").expect("counted"))
    }

    /// Connects, exchanges a line each way, and returns the client that the server has seen.
    fn serve(&self, client: &Namespace, address: Ipv4Addr, port: u16, server: &TcpListener) -> Ipv4Addr {
        let stream = connect(client, address, port);
        let mut stream = stream.unwrap_or_else(|error| panic!("{address}:{port}: {error}\n{}", self.drops()));
        assert_eq!(
            stream.peer_addr().expect("connected"),
            socket_address(address, port)
        );
        let (mut accepted, seen) = accept(server);
        exchange(&mut stream, &mut accepted);
        seen
    }

    /// The same by a datagram and its answer.
    fn answer(&self, client: &Namespace, address: Ipv4Addr, port: u16, server: &UdpSocket) -> IpAddr {
        let socket = bind(client, 0);
        socket.send_to(b"question", (address, port)).expect("sent");
        let mut buffer = [0; 16];
        let received = server.recv_from(&mut buffer);
        let (length, seen) =
            received.unwrap_or_else(|error| panic!("{address}:{port}: {error}\n{}", self.drops()));
        assert_eq!(&buffer[..length], b"question");
        server.send_to(b"answer", seen).expect("sent");
        let received = socket.recv_from(&mut buffer);
        let (length, from) =
            received.unwrap_or_else(|error| panic!("{address}:{port}: {error}\n{}", self.drops()));
        assert_eq!(
            (&buffer[..length], from),
            (&b"answer"[..], socket_address(address, port))
        );
        seen.ip()
    }
}

/// Sends enough for superframes to form, and looks at every byte.
fn transfer(case: &str, from: &mut TcpStream, to: &mut TcpStream) {
    const BYTES: usize = 8 << 20;
    let sent: Vec<u8> = (0..BYTES).map(|position| (position % 251) as u8).collect();
    let received = thread::scope(|scope| {
        scope.spawn(|| from.write_all(&sent).expect("sent"));
        let mut received = vec![0; BYTES];
        to.read_exact(&mut received)
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        received
    });
    assert!(received == sent, "{case}: {BYTES} bytes arrived as others");
    let sent_again = retransmissions(from);
    assert!(sent_again < 300, "{case}: {sent_again} segments sent again");
}

/// Connects from a port of the caller's choice.
fn connect_from(namespace: &Namespace, own: u16, address: Ipv4Addr, port: u16) -> TcpStream {
    let connect = || {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        socket::bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, own))?;
        let [first, second, third, fourth] = address.octets();
        socket::connect(
            socket.as_raw_fd(),
            &SockaddrIn::new(first, second, third, fourth, port),
        )?;
        Ok::<_, nix::Error>(TcpStream::from(socket))
    };
    namespace.enter(connect).expect("entered").expect("connected")
}

fn socket_address(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(address, port))
}

#[test]
fn every_client_is_served_and_most_are_seen_as_who_they_are() {
    let publisher = Publisher::new("published");
    let node = publisher.address();
    let tcp = listen(&publisher.first, 80);
    let udp = bind(&publisher.first, 53);
    let host: &Namespace = publisher.worker.host();
    let cases: [(&str, &Namespace, Ipv4Addr, Ipv4Addr); 5] = [
        ("another host", &publisher.world, node, publisher.world.address()),
        ("the node, by its address", host, node, NODE),
        ("the node, by localhost", host, Ipv4Addr::LOCALHOST, NODE),
        (
            "a container of the node",
            &publisher.second,
            node,
            publisher.second_instance.namespace_address,
        ),
        ("the container itself", &publisher.first, node, NODE),
    ];
    for rp_filter in ["0", "1"] {
        for scope in ["all", "lo", lab::UPLINK] {
            let key = format!("net.ipv4.conf.{scope}.rp_filter");
            host.sysctl(&key, rp_filter).expect("set");
        }
        for (case, client, address, expected) in cases {
            let seen = publisher.serve(client, address, 8080, &tcp);
            assert_eq!(seen, expected, "{case}");
            let seen = publisher.answer(client, address, 5353, &udp);
            assert_eq!(seen, expected, "{case}");
        }
    }
    for (case, client, address, _) in cases {
        let mut client = connect(client, address, 8080).expect("connected");
        let (mut server, _) = accept(&tcp);
        transfer(case, &mut client, &mut server);
        transfer(case, &mut server, &mut client);
    }
    for hook in ["from_uplink", "from_loopback", "from_endpoint"] {
        assert!(
            publisher.worker.counter(hook, "PUBLISH").expect("counted") > 0,
            "{hook}"
        );
    }
}

#[test]
fn a_wire_like_a_physical_one_serves_too() {
    let publisher = Publisher::on_wire("published nic", Offloads::LikeNic);
    let tcp = listen(&publisher.first, 80);
    let mut client = connect(&publisher.world, publisher.address(), 8080).expect("connected");
    let (mut server, seen) = accept(&tcp);
    assert_eq!(seen, publisher.world.address());
    transfer("to the server", &mut client, &mut server);
    transfer("to the client", &mut server, &mut client);
    let udp = bind(&publisher.first, 53);
    let seen = publisher.answer(&publisher.world, publisher.address(), 5353, &udp);
    assert_eq!(seen, publisher.world.address());
}

#[test]
fn a_client_on_another_node_is_masqueraded_there_and_served() {
    let publisher = Publisher::new("published afar");
    let far_host = publisher.lab.host("far").expect("a host");
    let answers = lab::worker::Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 64)),
        address: Some(Ipv4Addr::new(10, 30, 0, 2)),
        ..lab::worker::Answers::default()
    };
    let far = Worker::start(&publisher.lab, &far_host, program(), &answers).expect("a NetManager");
    let client = far_host.endpoint("client").expect("an endpoint");
    let instance = Instance {
        service: "shop.test.client.test".to_owned(),
        number: 0,
        address: Ipv4Addr::new(10, 30, 2, 1),
        namespace_address: Ipv4Addr::new(10, 18, 0, 66),
        host: far_host.address(),
        incarnation: 1,
    };
    far.deploy(&client, &instance).expect("attached");
    let tcp = listen(&publisher.first, 80);
    let seen = publisher.serve(&client, publisher.address(), 8080, &tcp);
    assert_eq!(seen, far_host.address());
    let udp = bind(&publisher.first, 53);
    let seen = publisher.answer(&client, publisher.address(), 5353, &udp);
    assert_eq!(seen, far_host.address());
}

#[test]
fn ports_lead_to_their_own_endpoint_and_are_shown() {
    let publisher = Publisher::new("published twice");
    let node = publisher.address();
    let (first, second) = (listen(&publisher.first, 80), listen(&publisher.second, 80));
    publisher.serve(&publisher.world, node, 8080, &first);
    publisher.serve(&publisher.world, node, 9090, &second);
    let refused = connect(&publisher.world, node, 80).expect_err("nobody has published 80");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let shown = publisher.worker.get("/endpoints").expect("listed");
    let ports: Vec<_> = shown
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| endpoint["ports"].as_str().expect("a text").to_owned())
        .collect();
    assert_eq!(ports, ["8080:80/tcp;5353:53/udp", "9090:80/tcp"]);
    let table = publisher.worker.command_line(&["endpoints"]).expect("run");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("PORTS") && table.contains("9090:80/tcp"),
        "{table}"
    );
}

#[test]
fn a_port_has_one_holder_at_a_time() {
    let publisher = Publisher::new("port taken");
    let third = publisher.worker.host().endpoint("third").expect("an endpoint");
    let instance = Instance {
        service: "shop.test.third.test".to_owned(),
        address: Ipv4Addr::new(10, 30, 1, 3),
        ..publisher.first_instance
    };
    let busy = listen(publisher.worker.host(), 7070);
    for (ports, holder) in [
        ("8080", "shop.test.first.test/0"),
        ("1234;9090:1", "shop.test.second.test/0"),
        ("50103/udp", "the tunnel"),
        ("7070:80", "a process of the node"),
    ] {
        let body = deployment(&third, &instance, ports).to_string();
        let (code, answer) = publisher
            .worker
            .request("/container/deploy", Some(&body))
            .expect("asked");
        assert_eq!(code, 409, "{ports}: {answer}");
        assert_eq!(answer["path"], "portMappings");
        assert!(
            answer["message"]
                .as_str()
                .is_some_and(|message| message.contains(holder)),
            "{answer}"
        );
    }
    drop(busy);
    let listed = publisher.worker.get("/endpoints").expect("listed");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "nothing has changed");

    // Other protocol, other port.
    let address = publisher.worker.publish(&third, &instance, "8080:80/udp");
    address.expect("attached");
    publisher.worker.undeploy(&instance.service, 0).expect("detached");

    // Given up, it is free at once, and what was established ends.
    let server = listen(&publisher.first, 80);
    let mut client = connect(&publisher.world, publisher.address(), 8080).expect("connected");
    let (mut accepted, _) = accept(&server);
    exchange(&mut client, &mut accepted);
    publisher.worker.undeploy(FIRST_NAME, 0).expect("detached");
    let refused = connect(&publisher.world, publisher.address(), 8080).expect_err("nobody has it");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    client.write_all(b"anybody there?").expect("queued");
    let ended = client.read(&mut [0; 16]).expect_err("it has ended");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    publisher
        .worker
        .publish(&third, &instance, "8080:80")
        .expect("attached");
    let server = listen(&third, 80);
    publisher.serve(&publisher.world, publisher.address(), 8080, &server);
}

#[test]
fn nothing_notices_that_netmanager_is_killed() {
    let mut publisher = Publisher::new("published kill");
    let node = publisher.address();
    let server = listen(&publisher.first, 80);
    let mut client = connect(&publisher.world, node, 8080).expect("connected");
    let (mut accepted, _) = accept(&server);
    let mut own = connect(publisher.worker.host(), Ipv4Addr::LOCALHOST, 8080).expect("connected");
    let (mut own_accepted, _) = accept(&server);
    exchange(&mut client, &mut accepted);
    exchange(&mut own, &mut own_accepted);

    publisher.worker.daemon().kill().expect("killed");
    exchange(&mut client, &mut accepted);
    exchange(&mut own, &mut own_accepted);
    publisher.serve(&publisher.world, node, 8080, &server);

    publisher.worker.restart().expect("started again");
    exchange(&mut client, &mut accepted);
    exchange(&mut own, &mut own_accepted);
    publisher.serve(&publisher.world, node, 8080, &server);
    let body = deployment(&publisher.second, &publisher.first_instance, "9090").to_string();
    let (code, answer) = publisher
        .worker
        .request("/container/deploy", Some(&body))
        .expect("asked");
    assert_eq!(code, 409, "who has which port is known: {answer}");
}

#[test]
fn a_masqueraded_connection_from_a_published_number_goes_on() {
    let mut publisher = Publisher::new("the trap");
    let world = listen(&publisher.world, 4_000);
    let mut client = connect_from(&publisher.second, 8080, publisher.world.address(), 4_000);
    let (mut accepted, seen) = world.accept().expect("a connection");
    exchange(&mut client, &mut accepted);
    assert_eq!(seen.ip(), publisher.address());
    assert_ne!(seen.port(), 8080, "masqueraded under another number");

    // The same without the rule that sees to that: the programs alone leave it alone.
    publisher.worker.daemon().kill().expect("killed");
    let table = format!("oakestra_{}", publisher.worker.node_id());
    for command in [
        format!("flush chain inet {table} to_world"),
        format!(
            "add rule inet {table} to_world ip saddr 10.18.0.0/26 oifname {} masquerade",
            lab::UPLINK
        ),
    ] {
        publisher.worker.host().run("nft", &[&command]).expect("changed");
    }
    let mut client = connect_from(&publisher.second, 9090, publisher.world.address(), 4_000);
    let (mut accepted, seen) = world.accept().expect("a connection");
    exchange(&mut client, &mut accepted);
    assert_eq!(seen, socket_address(publisher.address(), 9090));
    publisher.worker.restart().expect("started again");

    // A datagram has no flag that says what it is, so it is the rule that keeps it.
    let socket = bind(&publisher.world, 4_001);
    let asker = bind(&publisher.second, 5353);
    asker
        .send_to(b"question", (publisher.world.address(), 4_001))
        .expect("sent");
    let mut buffer = [0; 16];
    let (_, seen) = socket.recv_from(&mut buffer).expect("received");
    assert_ne!(seen.port(), 5353, "masqueraded under another number");
    socket.send_to(b"answer", seen).expect("sent");
    let (length, _) = asker.recv_from(&mut buffer).expect("received");
    assert_eq!(&buffer[..length], b"answer");
}

#[test]
fn published_ports_are_reserved_and_given_back() {
    const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
    let lab = Lab::new("reserved").expect("a lab");
    let host = lab.host("node").expect("a host");
    // Somebody else's.
    host.sysctl(RESERVED, "8080,20000-20002").expect("set");
    let reserved = || {
        let output = host.run("sysctl", &["-n", RESERVED]).expect("read");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let endpoint = host.endpoint("first").expect("an endpoint");
    let instance = crate::fixture::lone_instance(&host);
    worker
        .publish(&endpoint, &instance, "8080;8081;5353/udp")
        .expect("attached");
    assert_eq!(reserved(), "5353,8080-8081,20000-20002");
    worker.restart().expect("started again");
    assert_eq!(reserved(), "5353,8080-8081,20000-20002");
    worker.undeploy(&instance.service, 0).expect("detached");
    assert_eq!(reserved(), "8080,20000-20002");

    worker.publish(&endpoint, &instance, "8082").expect("attached");
    assert_eq!(reserved(), "8080,8082,20000-20002");
    worker.daemon().kill().expect("killed");
    let purged = worker.command_line(&["reset"]).expect("run");
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(reserved(), "8080,20000-20002");
    for key in ["accept_local", "route_localnet"] {
        let value = host
            .run("sysctl", &["-n", &format!("net.ipv4.conf.lo.{key}")])
            .expect("read");
        assert_eq!(String::from_utf8_lossy(&value.stdout).trim(), "0", "{key}");
    }
}

#[test]
fn a_failed_deployment_leaves_no_port_behind() {
    let lab = Lab::new("port undone").expect("a lab");
    let host = lab.host("node").expect("a host");
    let arguments = ["--fail-attach-at", "save-state"];
    let worker =
        Worker::start_with(&lab, &host, program(), &lone_answers(), &arguments).expect("a NetManager");
    let endpoint = host.endpoint("first").expect("an endpoint");
    let instance = crate::fixture::lone_instance(&host);
    let body = deployment(&endpoint, &instance, "8080:80").to_string();
    let (code, answer) = worker.request("/container/deploy", Some(&body)).expect("asked");
    assert_eq!(code, 500, "{answer}");
    let output = host
        .run("sysctl", &["-n", "net.ipv4.ip_local_reserved_ports"])
        .expect("read");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "");
    let world = lab.host("world").expect("a host");
    let refused = connect(&world, host.address(), 8080).expect_err("nobody has it");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
