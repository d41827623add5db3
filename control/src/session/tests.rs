//! Both halves over wires that break wherever a test wants them to.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use protocol::cluster::{FromCluster, FromRoot, Hello, VERSION};
use protocol::network::TableQuery;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Connect};
use super::drive::{WireRead, WireWrite};
use super::outbox::{Arrival, Broken, Next};
use super::server::{Clusters, Server};
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn messages_arrive_once_and_in_order_wherever_the_wire_breaks() {
    for budget in 1..40 {
        let stage = Stage::start(Some(budget), 1024);
        stage.wait("a session", |heard| heard.begins >= 1).await;
        for number in 0..20 {
            stage.say_both(number);
            if number % 3 == 0 {
                tokio::task::yield_now().await;
            }
        }
        stage.wait("everything", Heard::is_whole).await;
        let heard = stage.root.heard.lock().expect("heard").clone();
        assert_eq!(heard.begins, 1, "budget {budget}: the session was lost");
        assert_eq!(
            heard.numbers,
            (0..20).collect::<Vec<_>>(),
            "budget {budget}, at the root"
        );
        let heard = stage.cluster.heard.lock().expect("heard").clone();
        assert_eq!(
            heard.numbers,
            (0..20).collect::<Vec<_>>(),
            "budget {budget}, at the cluster"
        );
        assert_eq!(heard.begins, 1, "budget {budget}: the session was lost");
        stage.end().await;
    }
}

#[tokio::test]
async fn a_side_that_has_started_anew_is_told_everything() {
    let stage = Stage::start(None, 1024);
    stage.wait("a session", |heard| heard.begins >= 1).await;
    stage.say_both(0);
    stage
        .wait("the first message", |heard| !heard.numbers.is_empty())
        .await;

    stage.restart_root();
    stage.wait("a second session", |heard| heard.begins >= 2).await;
    stage.say_both(1);
    stage
        .wait("the second message", |heard| heard.numbers.len() >= 2)
        .await;
    assert_eq!(stage.root.heard.lock().expect("heard").numbers, [0, 1]);
    stage.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_ends_nothing() {
    let (mut near, far) = pipe(None);
    let root = Arc::new(Side::default());
    let server = Server::new(timing());
    let clusters: Arc<dyn Clusters> = Arc::clone(&root) as _;
    let (serving, serving_clusters) = (server.clone(), Arc::clone(&clusters));
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let stop = stop.clone();
        async move { serving.serve(far, None, &serving_clusters, &stop).await }
    });
    near.say(&serde_json::to_string(&protocol::cluster::Frame::<()>::Hello(hello())).expect("hello"));
    for text in [
        "nonsense",
        "{}",
        r#"{"frame":"gossip"}"#,
        r#"{"frame":"hello"}"#,
        r#"{"frame":"message","number":"one","message":{}}"#,
        r#"{"frame":"message","number":1,"message":{"kind":"of a later version"}}"#,
        r#"{"frame":"message","number":2,"message":{"kind":"lookup","query":{"sname":"5","sip":""}}}"#,
        r#"{"frame":"message","number":2,"message":{"kind":"lookup","query":{"sname":"5","sip":""}}}"#,
    ] {
        near.say(text);
    }
    root.wait("the message that can be read", |heard| heard.numbers == [5])
        .await;
    near.hear(r#"{"frame":"acknowledge","number":2}"#).await;
    assert_eq!(server.counters().malformed.load(Ordering::Relaxed), 6);

    near.say(r#"{"frame":"message","number":9,"message":{"kind":"lookup","query":{"sname":"6","sip":""}}}"#);
    timeout(DEADLINE, task)
        .await
        .expect("a gap ends the connection")
        .expect("without a panic");
    assert_eq!(root.heard.lock().expect("heard").numbers, [5]);
}

#[tokio::test]
async fn a_silent_root_is_left() {
    let stage = Stage::start(None, 1024);
    stage.wait("a session", |heard| heard.begins >= 1).await;
    stage.network.mute();
    stage
        .cluster
        .wait("the silence to be noticed", |heard| {
            heard.connected == Some(false)
        })
        .await;
    stage.network.unmute();
    stage.say_both(0);
    stage.wait("a message", |heard| heard.numbers == [0]).await;
    assert_eq!(
        stage.root.heard.lock().expect("heard").begins,
        1,
        "the session is resumed"
    );
    stage.end().await;
}

#[tokio::test]
async fn a_refused_cluster_hears_why() {
    let stage = Stage::start(None, 1024);
    stage.wait("a session", |heard| heard.begins >= 1).await;
    let (mut near, far) = pipe(None);
    let mut stranger = hello();
    stranger.cluster_key = "another".to_owned();
    near.say(&serde_json::to_string(&protocol::cluster::Frame::<()>::Hello(stranger)).expect("hello"));
    let clusters: Arc<dyn Clusters> = Arc::clone(&stage.root) as _;
    stage
        .network
        .server()
        .serve(far, None, &clusters, &stage.stop)
        .await;
    near.hear(r#"{"frame":"refused","message":"the key is another one"}"#)
        .await;
    stage.end().await;
}

#[test]
fn an_outbox_that_overflows_begins_anew() {
    let outbox = Outbox::with_capacity(2);
    outbox.send(0);
    outbox.start("s".to_owned());
    outbox.send(1);
    outbox.begin([10]);
    outbox.send(11);
    assert_eq!(outbox.session(), (Some("s".to_owned()), 0));
    outbox.send(12);
    assert_eq!(outbox.session(), (None, 0));
    assert_eq!(outbox.resume(0), Err(Broken::NoSession));
}

#[tokio::test]
async fn numbers_that_cannot_be_are_found() {
    let outbox = Outbox::default();
    outbox.start("s".to_owned());
    outbox.begin(["a", "b", "c"]);
    assert_eq!(outbox.next().await, Ok(Next::Message(1, "a")));
    assert_eq!(outbox.next().await, Ok(Next::Message(2, "b")));
    assert_eq!(outbox.acknowledge(1), Ok(()));
    assert_eq!(outbox.resume(1), Ok(()));
    assert_eq!(outbox.next().await, Ok(Next::Message(2, "b")), "written again");
    assert_eq!(outbox.arrived(1), Ok(Arrival::New));
    outbox.taken(1);
    assert_eq!(outbox.next().await, Ok(Next::Acknowledge(1)));
    assert_eq!(outbox.arrived(1), Ok(Arrival::Again));
    assert_eq!(
        outbox.next().await,
        Ok(Next::Acknowledge(1)),
        "acknowledged again"
    );
    assert_eq!(outbox.arrived(3), Err(Broken::Gap { last: 1, found: 3 }));
    assert_eq!(
        outbox.acknowledge(4),
        Err(Broken::Acknowledged {
            lowest: 1,
            highest: 3,
            found: 4
        })
    );
    assert_eq!(outbox.session(), (None, 1), "the session is given up");
}

/// A root and a cluster, and what is between them.
struct Stage {
    root: Arc<Side>,
    cluster: Arc<Side>,
    network: Arc<Network>,
    outbox: Arc<Outbox<FromCluster>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Stage {
    /// Each of the first connections breaks after `budget` frames.
    fn start(budget: Option<usize>, breaks: usize) -> Self {
        let root = Arc::new(Side::default());
        let cluster = Arc::new(Side::default());
        let stop = CancellationToken::new();
        let network = Arc::new(Network {
            server: Mutex::new(Server::new(timing())),
            clusters: Arc::clone(&root) as _,
            budget,
            breaks: AtomicUsize::new(breaks),
            muted: Arc::default(),
            stop: stop.clone(),
        });
        let client = Client::new(hello(), timing());
        let outbox = client.outbox();
        let task = tokio::spawn({
            let (network, cluster, stop) = (Arc::clone(&network), Arc::clone(&cluster), stop.clone());
            async move { client.run(&*network, &*cluster, &|_| {}, &stop).await }
        });
        Self {
            root,
            cluster,
            network,
            outbox,
            stop,
            task,
        }
    }

    fn say_both(&self, number: u64) {
        self.outbox.send(FromCluster::Lookup { query: query(number) });
        let message = FromRoot::LeaseRefused {
            node_id: number.to_string(),
            message: String::new(),
        };
        self.network.server().send("1", message);
    }

    async fn wait(&self, what: &str, mut until: impl FnMut(&Heard) -> bool) {
        self.root.wait(what, &mut until).await;
        self.cluster.wait(what, &mut until).await;
    }

    /// The root has forgotten everything, and its connections are gone.
    fn restart_root(&self) {
        let before = std::mem::replace(
            &mut *self.network.server.lock().expect("server"),
            Server::new(timing()),
        );
        before.forget("1");
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task)
            .await
            .expect("the client stops")
            .expect("without a panic");
    }
}

struct Network {
    server: Mutex<Server>,
    clusters: Arc<dyn Clusters>,
    budget: Option<usize>,
    breaks: AtomicUsize,
    muted: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Network {
    fn server(&self) -> Server {
        self.server.lock().expect("server").clone()
    }

    fn mute(&self) {
        self.muted.store(true, Ordering::SeqCst);
    }

    fn unmute(&self) {
        self.muted.store(false, Ordering::SeqCst);
    }
}

impl Connect for Network {
    type Wire = Pipe;

    async fn connect(&self) -> Result<Pipe, WireError> {
        // Each connection lives a little longer than the one before: with less than a welcome and one more frame
        // nothing ever gets through.
        let budget = self.budget.and_then(|budget| {
            let connection = self.breaks.fetch_sub(1, Ordering::SeqCst);
            (connection > 0).then(|| budget + (1024 - connection))
        });
        let (mut near, mut far) = pipe(budget);
        near.muted = Arc::clone(&self.muted);
        far.muted = Arc::clone(&self.muted);
        let (server, clusters, stop) = (self.server(), Arc::clone(&self.clusters), self.stop.clone());
        tokio::spawn(async move { server.serve(far, None, &clusters, &stop).await });
        Ok(near)
    }
}

/// One end of a wire.
struct Pipe {
    read: mpsc::UnboundedReceiver<WireEvent>,
    write: mpsc::UnboundedSender<WireEvent>,
    /// Texts that still get through, shared by both ends.
    budget: Arc<Mutex<Option<usize>>>,
    broken: CancellationToken,
    muted: Arc<AtomicBool>,
}

fn pipe(budget: Option<usize>) -> (Pipe, Pipe) {
    let budget = Arc::new(Mutex::new(budget));
    let broken = CancellationToken::new();
    let muted = Arc::<AtomicBool>::default();
    let ((one, two), (three, four)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let end = |write, read| Pipe {
        read,
        write,
        budget: Arc::clone(&budget),
        broken: broken.clone(),
        muted: Arc::clone(&muted),
    };
    (end(one, four), end(three, two))
}

impl Pipe {
    fn say(&mut self, text: &str) {
        self.write
            .send(WireEvent::Text(text.to_owned()))
            .expect("the other end is there");
    }

    async fn hear(&mut self, expected: &str) {
        let text = WireEvent::Text(expected.to_owned());
        timeout(DEADLINE, async {
            while self.read.recv().await.expect("the wire is whole") != text {}
        })
        .await
        .expect(expected);
    }
}

struct PipeRead(mpsc::UnboundedReceiver<WireEvent>, CancellationToken);

struct PipeWrite {
    write: mpsc::UnboundedSender<WireEvent>,
    budget: Arc<Mutex<Option<usize>>>,
    broken: CancellationToken,
    muted: Arc<AtomicBool>,
}

impl Wire for Pipe {
    type Read = PipeRead;
    type Write = PipeWrite;

    fn split(self) -> (PipeRead, PipeWrite) {
        let write = PipeWrite {
            write: self.write,
            budget: self.budget,
            broken: self.broken.clone(),
            muted: self.muted,
        };
        (PipeRead(self.read, self.broken), write)
    }
}

impl WireRead for PipeRead {
    async fn next(&mut self) -> Result<WireEvent, WireError> {
        tokio::select! {
            biased;
            () = self.1.cancelled() => Err(WireError::Broken("cut".to_owned())),
            event = self.0.recv() => event.ok_or(WireError::Closed),
        }
    }
}

impl WireWrite for PipeWrite {
    async fn text(&mut self, text: String) -> Result<(), WireError> {
        if let Some(left) = self.budget.lock().expect("budget").as_mut() {
            if *left == 0 {
                self.broken.cancel();
                return Err(WireError::Broken("cut".to_owned()));
            }
            *left -= 1;
        }
        if self.muted.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.write
            .send(WireEvent::Text(text))
            .map_err(|_closed| WireError::Closed)
    }

    async fn ping(&mut self) -> Result<(), WireError> {
        if self.muted.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.write
            .send(WireEvent::Other)
            .map_err(|_closed| WireError::Closed)
    }

    async fn close(&mut self) {
        self.broken.cancel();
    }
}

#[derive(Clone, Debug, Default)]
struct Heard {
    begins: usize,
    numbers: Vec<u64>,
    connected: Option<bool>,
}

impl Heard {
    fn is_whole(&self) -> bool {
        self.numbers.len() >= 20
    }
}

/// What a side has heard.
#[derive(Default)]
struct Side {
    heard: Mutex<Heard>,
    changed: Notify,
}

impl Side {
    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().expect("heard"));
        self.changed.notify_waiters();
    }

    async fn wait(&self, what: &str, mut until: impl FnMut(&Heard) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if until(&self.heard.lock().expect("heard")) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(DEADLINE, waiting).await.is_err() {
            panic!("{what}: {:?}", self.heard.lock().expect("heard"));
        }
    }
}

#[async_trait]
impl Handler<FromRoot, FromCluster> for Side {
    async fn begin(&self, outbox: &Outbox<FromCluster>) {
        outbox.begin([]);
        self.note(|heard| heard.begins += 1);
    }

    async fn message(&self, message: FromRoot) -> Result<(), NotTaken> {
        // Time for the wire to break in the middle.
        tokio::task::yield_now().await;
        if let FromRoot::LeaseRefused { node_id, .. } = message {
            self.note(|heard| heard.numbers.push(node_id.parse().expect("a number")));
        }
        Ok(())
    }

    async fn connected(&self, connected: bool) {
        self.note(|heard| heard.connected = Some(connected));
    }
}

#[async_trait]
impl Clusters for Side {
    async fn admit(&self, hello: &Hello, _peer: Option<std::net::SocketAddr>) -> Result<String, String> {
        if hello.cluster_key == "key" {
            Ok("1".to_owned())
        } else {
            Err("the key is another one".to_owned())
        }
    }

    async fn begin(&self, _cluster: &str, outbox: &Outbox<FromRoot>) {
        outbox.begin([]);
        self.note(|heard| heard.begins += 1);
    }

    async fn message(&self, _cluster: &str, message: FromCluster) -> Result<(), NotTaken> {
        tokio::task::yield_now().await;
        if let FromCluster::Lookup { query } = message {
            self.note(|heard| heard.numbers.push(query.sname.parse().expect("a number")));
        }
        Ok(())
    }

    async fn connected(&self, _cluster: &str, connected: bool) {
        self.note(|heard| heard.connected = Some(connected));
    }
}

fn query(number: u64) -> TableQuery {
    TableQuery {
        sname: number.to_string(),
        sip: String::new(),
    }
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        cluster_name: "c1".to_owned(),
        cluster_location: String::new(),
        cluster_key: "key".to_owned(),
        port: 10100,
        session: None,
        received: 0,
    }
}

fn timing() -> Timing {
    Timing {
        keep_alive: Duration::from_millis(50),
        dead_after: Duration::from_millis(300),
        handshake: Duration::from_secs(1),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
    }
}
