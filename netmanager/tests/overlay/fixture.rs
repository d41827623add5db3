//! The hosts, their endpoints, and sockets in them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use lab::worker::{Answers, Instance, Service, Worker};
use lab::{Endpoint, Lab};

/// How long anything in these tests may take that should take milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long answers about services take.
pub const DELAY: Duration = Duration::from_millis(50);

/// Leads to the two servers on the far host in turn.
pub const FAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);
/// Leads to the server on the client's own host.
pub const NEAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 44, 44);
/// Leads to the client.
pub const CLIENT_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 33, 33);
/// Nobody has it.
pub const NO_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 99, 99);

pub const NEAR_NODE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);
pub const FAR_NODE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 2);

pub const CLIENT_NAME: &str = "shop.test.client.test";
pub const NEAR_NAME: &str = "shop.test.near.test";
pub const FAR_NAME: &str = "shop.test.far.test";

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_NetManager"))
}

/// Host `near` with the client and a server, host `far` with two servers.
pub struct Overlay {
    pub near: Worker,
    pub far: Worker,
    pub client: Endpoint,
    pub near_server: Endpoint,
    pub far_servers: [Endpoint; 2],
    pub client_instance: Instance,
    pub near_instance: Instance,
    pub far_instances: [Instance; 2],
    pub lab: Lab,
}

impl Overlay {
    /// Everything attached, nothing asked for yet.
    pub fn new(label: &str) -> Self {
        Self::with(label, &[])
    }

    /// The same, with these arguments for both daemons.
    pub fn with(label: &str, arguments: &[&str]) -> Self {
        let lab = Lab::new(label).expect("a lab");
        let near_host = lab.host("near").expect("a host");
        let far_host = lab.host("far").expect("a host");
        let instance = |service: &str, number, address, namespace_address, host: &lab::Host| Instance {
            service: service.to_owned(),
            number,
            address,
            namespace_address,
            host: host.address(),
            incarnation: 1,
        };
        let ip = Ipv4Addr::new;
        let client_instance = instance(CLIENT_NAME, 0, ip(10, 30, 1, 1), ip(10, 18, 0, 2), &near_host);
        let near_instance = instance(NEAR_NAME, 0, ip(10, 30, 1, 2), ip(10, 18, 0, 3), &near_host);
        let far_instances = [
            instance(FAR_NAME, 0, ip(10, 30, 2, 1), ip(10, 18, 0, 66), &far_host),
            instance(FAR_NAME, 1, ip(10, 30, 2, 2), ip(10, 18, 0, 67), &far_host),
        ];

        let service = |name: &str, address, instances: &[Instance]| Service {
            name: name.to_owned(),
            addresses: vec![address],
            instances: instances.to_vec(),
            delay: DELAY,
        };
        let services = vec![
            service(
                CLIENT_NAME,
                CLIENT_SERVICE,
                std::slice::from_ref(&client_instance),
            ),
            service(NEAR_NAME, NEAR_SERVICE, std::slice::from_ref(&near_instance)),
            service(FAR_NAME, FAR_SERVICE, &far_instances),
        ];
        let near_answers = Answers {
            subnet: Some(ip(10, 18, 0, 0)),
            address: Some(NEAR_NODE),
            peers: Vec::new(),
            services: services.clone(),
        };
        let far_answers = Answers {
            subnet: Some(ip(10, 18, 0, 64)),
            address: Some(FAR_NODE),
            // What a cluster announces before it answers the near host's question.
            peers: vec![client_instance.clone(), near_instance.clone()],
            services,
        };
        let start = |host: &lab::Host, answers: &Answers| {
            Worker::start_with(&lab, host, program(), answers, arguments).expect("a NetManager")
        };
        let near = start(&near_host, &near_answers);
        let far = start(&far_host, &far_answers);

        let client = near_host.endpoint("client").expect("an endpoint");
        let near_server = near_host.endpoint("server").expect("an endpoint");
        let far_servers = ["server0", "server1"].map(|role| far_host.endpoint(role).expect("an endpoint"));
        for (worker, endpoint, instance) in [
            (&near, &client, &client_instance),
            (&near, &near_server, &near_instance),
            (&far, &far_servers[0], &far_instances[0]),
            (&far, &far_servers[1], &far_instances[1]),
        ] {
            let address = worker.deploy(endpoint, instance).expect("attached");
            assert_eq!(
                address, instance.namespace_address,
                "addresses are given out in order"
            );
        }
        Self {
            near,
            far,
            client,
            near_server,
            far_servers,
            client_instance,
            near_instance,
            far_instances,
            lab,
        }
    }
}

/// What a worker is told that is alone: its own addresses, and of no service.
pub fn lone_answers() -> Answers {
    Answers {
        subnet: Some(Ipv4Addr::new(10, 18, 0, 0)),
        address: Some(NEAR_NODE),
        ..Answers::default()
    }
}

/// The first instance on a worker that is alone.
pub fn lone_instance(host: &lab::Host) -> Instance {
    Instance {
        service: CLIENT_NAME.to_owned(),
        number: 0,
        address: Ipv4Addr::new(10, 30, 1, 1),
        namespace_address: Ipv4Addr::new(10, 18, 0, 2),
        host: host.address(),
        incarnation: 1,
    }
}

/// A TCP socket that listens in a namespace on all addresses.
pub fn listen(endpoint: &lab::Namespace, port: u16) -> TcpListener {
    endpoint
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .expect("entered")
        .expect("the port is free")
}

/// A UDP socket in a namespace on all addresses, which waits no longer than [`DEADLINE`].
pub fn bind(endpoint: &lab::Namespace, port: u16) -> UdpSocket {
    let socket = endpoint
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .expect("entered")
        .expect("the port is free");
    socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    socket
}

/// Connects from a namespace.
pub fn connect(endpoint: &lab::Namespace, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let target = SocketAddr::V4(SocketAddrV4::new(address, port));
    let stream = endpoint
        .enter(|| TcpStream::connect_timeout(&target, DEADLINE))
        .expect("entered")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Accepts one connection: the stream and the address that the server sees.
pub fn accept(listener: &TcpListener) -> (TcpStream, Ipv4Addr) {
    let (stream, peer) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let SocketAddr::V4(peer) = peer else {
        panic!("an IPv4 socket has an IPv4 peer")
    };
    (stream, *peer.ip())
}

/// Sends a line one way and back.
pub fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"question").expect("sent");
    let mut buffer = [0; 8];
    server.read_exact(&mut buffer).expect("received");
    assert_eq!(&buffer, b"question");
    server.write_all(b"answered").expect("sent");
    client.read_exact(&mut buffer).expect("received");
    assert_eq!(&buffer, b"answered");
}

/// Segments that a TCP socket has sent again.
pub fn retransmissions(stream: &TcpStream) -> u32 {
    let mut info: libc::tcp_info = unsafe_zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the buffer is a tcp_info of `length` bytes, of which the kernel writes at most that many.
    let code = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_total_retrans
}

fn unsafe_zeroed() -> libc::tcp_info {
    // SAFETY: a structure of integers, for which all zeros are a value.
    unsafe { std::mem::zeroed() }
}
