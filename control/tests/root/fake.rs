//! A cluster that does what a test wants.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use protocol::cluster::{Capacity, Frame, FromCluster, FromRoot, Hello, InstanceReport, VERSION, Welcome};
use protocol::instance::InstanceStatus;
use protocol::job::Placement;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::fixture::PATIENCE;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub struct Cluster {
    socket: Socket,
    pub welcome: Welcome,
    /// Number of the last message that was sent and that was received.
    pub sent: u64,
    pub received: u64,
    /// Whether messages are acknowledged.
    pub acknowledges: bool,
}

/// Room for a few placements on two nodes.
pub fn capacity() -> Capacity {
    Capacity {
        active_nodes: 2,
        vcpus: 64,
        vcpus_free: 64,
        memory: 65_536,
        memory_free: 65_536,
        largest_vcpus: 32,
        largest_memory: 32_768,
        virtualization: vec!["docker".to_owned()],
        architectures: vec!["amd64".to_owned()],
        hosts: vec!["h1".to_owned(), "h2".to_owned()],
        ..Capacity::default()
    }
}

/// How a cluster called `name` introduces itself.
pub fn hello(name: &str) -> Hello {
    Hello {
        version: VERSION,
        cluster_name: name.to_owned(),
        cluster_location: format!("{name}-town"),
        cluster_key: format!("key of {name}"),
        port: 10100,
        session: None,
        received: 0,
    }
}

pub async fn dial(address: SocketAddr) -> Socket {
    let url = format!("ws://{address}{}", protocol::cluster::PATH);
    tokio_tungstenite::connect_async(url).await.expect("connect").0
}

async fn read(socket: &mut Socket) -> Frame<FromRoot> {
    loop {
        let message = timeout(PATIENCE, socket.next())
            .await
            .expect("a frame in time")
            .expect("a frame");
        if let Message::Text(text) = message.expect("a whole frame") {
            return serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        }
    }
}

/// Says hello and takes the first frame of the root.
pub async fn greet(address: SocketAddr, hello: Hello) -> (Socket, Frame<FromRoot>) {
    let mut socket = dial(address).await;
    let frame = serde_json::to_string(&Frame::<FromCluster>::Hello(hello)).expect("hello");
    socket.send(Message::text(frame)).await.expect("send");
    let answer = read(&mut socket).await;
    (socket, answer)
}

impl Cluster {
    /// Connects with a new session. What the root wants and what there is are still to be said.
    pub async fn connect(address: SocketAddr, name: &str) -> Self {
        Self::connect_with(address, hello(name)).await
    }

    pub async fn connect_with(address: SocketAddr, hello: Hello) -> Self {
        let received = hello.received;
        let (socket, answer) = greet(address, hello).await;
        let Frame::Welcome(welcome) = answer else {
            panic!("not welcome: {answer:?}");
        };
        Self {
            sent: welcome.received,
            received: if welcome.resumed { received } else { 0 },
            socket,
            welcome,
            acknowledges: true,
        }
    }

    /// Connects, takes what is desired, and says that there is room and nothing runs.
    pub async fn ready(address: SocketAddr, name: &str) -> (Self, Vec<Placement>) {
        Self::ready_with(address, name, Vec::new()).await
    }

    /// The same with instances that run already.
    pub async fn ready_with(
        address: SocketAddr,
        name: &str,
        instances: Vec<InstanceReport>,
    ) -> (Self, Vec<Placement>) {
        let mut cluster = Self::connect(address, name).await;
        let FromRoot::Desired { placements, .. } = cluster.next().await else {
            panic!("the first message is not what is desired");
        };
        let capacity = capacity();
        let leases = Vec::new();
        cluster
            .send(FromCluster::State {
                capacity,
                instances,
                leases,
            })
            .await;
        (cluster, placements)
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("send");
    }

    pub async fn send(&mut self, message: FromCluster) {
        self.sent += 1;
        let number = self.sent;
        let frame = serde_json::to_string(&Frame::Message { number, message }).expect("frame");
        self.send_text(&frame).await;
    }

    /// The next message of the root.
    pub async fn next(&mut self) -> FromRoot {
        loop {
            match read(&mut self.socket).await {
                Frame::Message { number, message } => {
                    assert_eq!(number, self.received + 1, "{message:?}");
                    self.received = number;
                    if self.acknowledges {
                        let frame = Frame::<FromCluster>::Acknowledge { number };
                        let text = serde_json::to_string(&frame).expect("frame");
                        self.send_text(&text).await;
                    }
                    return message;
                }
                Frame::Acknowledge { number } => assert!(number <= self.sent),
                other @ (Frame::Hello(_) | Frame::Welcome(_) | Frame::Refused { .. }) => panic!("{other:?}"),
            }
        }
    }

    /// Waits until everything that was sent is acknowledged; nothing else may come.
    pub async fn until_acknowledged(&mut self) {
        loop {
            match read(&mut self.socket).await {
                Frame::Acknowledge { number } if number == self.sent => return,
                Frame::Acknowledge { .. } => {}
                other @ (Frame::Message { .. }
                | Frame::Hello(_)
                | Frame::Welcome(_)
                | Frame::Refused { .. }) => {
                    panic!("{other:?}")
                }
            }
        }
    }

    pub async fn next_deploy(&mut self) -> Placement {
        let message = self.next().await;
        let FromRoot::Deploy { placement } = message else {
            panic!("not a deploy: {message:?}");
        };
        *placement
    }

    /// Says how a placement fares.
    pub async fn report(&mut self, placement: &Placement, status: InstanceStatus) {
        let report = Box::new(report(placement, status));
        self.send(FromCluster::Instance { report }).await;
    }

    /// Does what it is told until it is told to undeploy, and confirms that.
    pub async fn confirm_undeploy(&mut self) {
        let FromRoot::Undeploy { key, incarnation } = self.next().await else {
            panic!("not an undeploy");
        };
        let report = InstanceReport::bare(key, incarnation, InstanceStatus::Undeployed);
        let report = Box::new(report);
        self.send(FromCluster::Instance { report }).await;
    }

    /// How it would go on in the same session.
    pub fn resume(&self, name: &str) -> Hello {
        Hello {
            session: Some(self.welcome.session.clone()),
            received: self.received,
            ..hello(name)
        }
    }
}

/// A report of a placement on the node `w1`.
pub fn report(placement: &Placement, status: InstanceStatus) -> InstanceReport {
    InstanceReport {
        worker_id: "w1".to_owned(),
        host: "h1".to_owned(),
        host_ip: Some([192, 0, 2, 7].into()),
        publicip: "192.0.2.7".to_owned(),
        ..InstanceReport::bare(placement.key(), placement.incarnation, status)
    }
}
