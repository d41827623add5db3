use serde_json::{Value, json};

use super::messages::key_of;
use super::*;

mod messages;

#[test]
fn a_query_is_asked_once_and_answered_to_everyone() {
    let mut core = up();
    let [mut first, mut second] = [ask(&mut core, ADDRESS), ask(&mut core, ADDRESS)];
    let mut by_name = ask(&mut core, NAME);
    let mut other = ask(&mut core, "10.30.99.99");
    assert_eq!(
        effects(&mut core),
        [
            "publish nodes/n1/net/tablequery/request {\"sname\":\"\",\"sip\":\"10.30.55.55\"}",
            "publish nodes/n1/net/tablequery/request {\"sname\":\"a.b.c.d\",\"sip\":\"\"}",
            "publish nodes/n1/net/tablequery/request {\"sname\":\"\",\"sip\":\"10.30.99.99\"}",
        ]
    );

    result(&mut core, &table(ADDRESS, &[running(0, 66)]));
    for answer in [&mut first, &mut second, &mut by_name] {
        let record = answer
            .try_recv()
            .expect("an answer")
            .expect("no error")
            .expect("a service");
        assert_eq!((record.name.as_str(), record.instances.len()), (NAME, 1));
    }
    assert!(other.try_recv().is_err(), "another question has no answer yet");
    assert_eq!(
        effects(&mut core),
        ["subscribe jobs/a.b.c.d/updates_available", "refresh a.b.c.d"]
    );
}

#[test]
fn an_unknown_service_is_known_not_to_exist() {
    let mut core = up();
    let mut answer = ask(&mut core, ADDRESS);
    effects(&mut core);
    result(
        &mut core,
        &json!({"app_name": null, "instance_list": [], "query_key": ADDRESS}),
    );
    assert_eq!(answer.try_recv().expect("an answer"), Ok(None));
    assert_eq!(effects(&mut core), NOTHING);
}

#[test]
fn a_lease_that_came_too_late_is_kept_for_the_next_who_asks() {
    let mut core = up();
    let (waiter, mut answer) = oneshot::channel();
    let ticket = core.ask_lease(waiter, Instant::now());
    assert_eq!(
        effects(&mut core),
        ["publish nodes/n1/net/subnet {\"METHOD\":\"GET\"}"]
    );
    core.leave_lease(ticket);
    message(
        &mut core,
        "nodes/n1/net/subnetwork/result",
        &json!({"address": "10.18.0.64", "addressv6": ""}),
    );
    assert!(answer.try_recv().is_err());
    let lease = core.claim_lease().expect("kept");
    assert_eq!(
        (lease.subnet, lease.application),
        (Ipv4Addr::new(10, 18, 0, 64), 0)
    );
    assert_eq!(core.claim_lease(), None);
}

#[test]
fn whatever_was_wanted_while_away_is_done_on_return() {
    let mut core = up();
    interested(&mut core);
    let mut waiting = ask(&mut core, "10.30.7.7");
    effects(&mut core);
    core.disconnected(ResolveError::Away("cut".to_owned()));
    core.disconnected(ResolveError::Away("cut".to_owned()));
    assert_eq!(effects(&mut core), ["tell up false the cluster is away: cut"]);
    assert_eq!(
        waiting.try_recv().expect("an answer"),
        Err(ResolveError::Away("cut".to_owned()))
    );
    let (sender, _answer) = oneshot::channel();
    let waiter = Waiter {
        answer: sender,
        interested: true,
    };
    let away = core.ask(QueryKey::Name(name()), waiter, Instant::now());
    assert_eq!(away, Err(ResolveError::Away("cut".to_owned())));

    let (waiter, _lease) = oneshot::channel();
    core.ask_lease(waiter, Instant::now());
    core.set_announcement(&deployed(), AnnouncementStatus::Deployed);
    assert_eq!(effects(&mut core), NOTHING);

    core.connected(true);
    assert_eq!(effects(&mut core), [BASE]);
    assert!(core.subscribed(&[true; 3]));
    assert_eq!(
        effects(&mut core),
        [
            "publish nodes/n1/net/subnet {\"METHOD\":\"GET\"}",
            "publish nodes/n1/net/service/deployed {\"appname\":\"a.b.c.d\",\"status\":\"DEPLOYED\",\
             \"instance_number\":2,\"nsip\":\"10.18.0.2\",\"nsipv6\":\"\",\"host_port\":\"50103\",\
             \"host_ip\":\"192.0.2.10\"}",
            "subscribe jobs/a.b.c.d/updates_available",
            "refresh a.b.c.d",
            "tell up true connected to the cluster",
        ]
    );

    // Announced to this broker already; to one that forgot everything it is announced again.
    for (session, expected) in [(true, 0), (false, 1)] {
        core.disconnected(ResolveError::Away("cut".to_owned()));
        core.connected(session);
        assert!(core.subscribed(&[true; 3]));
        let announced = effects(&mut core)
            .iter()
            .filter(|effect| effect.contains("/service/deployed"))
            .count();
        assert_eq!(announced, expected, "session {session}");
    }
}

#[test]
fn what_is_asked_before_the_first_connection_waits_for_its_outcome() {
    let new = || Core::new("n1", Duration::from_secs(5), Duration::from_secs(10));
    let mut core = new();
    let mut answer = ask(&mut core, ADDRESS);
    assert_eq!(effects(&mut core), NOTHING);
    core.disconnected(ResolveError::Away("nobody there".to_owned()));
    assert_eq!(
        answer.try_recv().expect("an answer"),
        Err(ResolveError::Away("nobody there".to_owned()))
    );

    let mut core = new();
    let mut answer = ask(&mut core, ADDRESS);
    core.connected(false);
    core.subscribed(&[true; 3]);
    let query = "publish nodes/n1/net/tablequery/request {\"sname\":\"\",\"sip\":\"10.30.55.55\"}";
    assert_eq!(
        effects(&mut core),
        [BASE, query, "tell up true connected to the cluster"]
    );
    result(&mut core, &table(ADDRESS, &[running(0, 66)]));
    assert!(answer.try_recv().expect("an answer").is_ok());
}

#[test]
fn a_broker_that_refuses_the_topics_of_the_node_is_of_no_use() {
    let mut core = Core::new("n1", Duration::from_secs(5), Duration::from_secs(10));
    core.connected(false);
    effects(&mut core);
    assert!(!core.subscribed(&[true, false, true]));
    assert!(
        matches!(core.down(), Some(ResolveError::Refused(_))),
        "{:?}",
        core.down()
    );
    core.connected(false);
    assert!(core.subscribed(&[true; 3]));
    assert!(core.subscribed(&[false]), "one service less is no reason to go");
    assert_eq!(core.down(), None);
}

const NAME: &str = "a.b.c.d";
const ADDRESS: &str = "10.30.55.55";
const BASE: &str =
    "subscribe nodes/n1/net/subnetwork/result nodes/n1/net/tablequery/result nodes/n1/net/peers";
const NOTHING: [&str; 0] = [];

/// A core with a connection, and nothing to do.
fn up() -> Core {
    let mut core = Core::new("n1", Duration::from_secs(5), Duration::from_secs(10));
    core.connected(false);
    assert_eq!(effects(&mut core), [BASE]);
    assert!(core.subscribed(&[true; 3]));
    assert_eq!(effects(&mut core), ["tell up true connected to the cluster"]);
    core
}

/// Makes the service one of interest, with one instance.
fn interested(core: &mut Core) {
    let answer = ask(core, NAME);
    result(core, &table(NAME, &[running(0, 66)]));
    drop(answer);
    assert_eq!(core.refreshed(&name()), Next::Done);
    effects(core);
}

fn ask(core: &mut Core, key: &str) -> oneshot::Receiver<Answer> {
    let (sender, answer) = oneshot::channel();
    let waiter = Waiter {
        answer: sender,
        interested: true,
    };
    core.ask(key_of(key).expect("a key"), waiter, Instant::now())
        .expect("up");
    answer
}

fn result(core: &mut Core, result: &Value) {
    message(core, "nodes/n1/net/tablequery/result", result);
}

fn message(core: &mut Core, topic: &str, message: &Value) {
    core.message(topic, message.to_string().as_bytes());
}

fn table(key: &str, rows: &[Value]) -> Value {
    json!({"app_name": NAME, "instance_list": rows, "query_key": key})
}

fn running(number: u32, octet: u8) -> Value {
    json!({
        "instance_number": number, "instance_ip": format!("10.30.0.{}", number + 2),
        "namespace_ip": format!("10.18.0.{octet}"), "host_ip": "192.0.2.11", "host_port": 50103,
        "service_ip": [{"IpType": "RR", "Address": ADDRESS}]
    })
}

fn deployed() -> Deployed {
    Deployed {
        service: name(),
        number: 2,
        namespace_address: Ipv4Addr::new(10, 18, 0, 2),
        namespace_address_v6: None,
        node_address: Ipv4Addr::new(192, 0, 2, 10),
        node_port: 50103,
        incarnation: None,
    }
}

fn name() -> ServiceName {
    NAME.parse().expect("name")
}

/// What is to be done, one line each.
fn effects(core: &mut Core) -> Vec<String> {
    core.take_effects().into_iter().map(describe).collect()
}

fn describe(effect: Effect) -> String {
    match effect {
        Effect::Send(Outgoing::Publish { topic, payload }) => {
            format!("publish {topic} {}", String::from_utf8_lossy(&payload))
        }
        Effect::Send(Outgoing::Subscribe(topics)) => format!("subscribe {}", topics.join(" ")),
        Effect::Send(Outgoing::Unsubscribe(topic)) => format!("unsubscribe {topic}"),
        Effect::Tell(Update::Peers { instances, .. }) => format!("tell {} peers", instances.len()),
        Effect::Tell(Update::Service(record)) => {
            let numbers: Vec<u32> = record.instances.iter().map(|instance| instance.number).collect();
            format!("tell {} {:?} {numbers:?}", record.name, record.round_robin)
        }
        Effect::Tell(Update::Gone { name }) => format!("tell {name} gone"),
        Effect::Tell(Update::Connection { up, detail }) => format!("tell up {up} {detail}"),
        Effect::Refresh(name) => format!("refresh {name}"),
        Effect::AwaitPeers { version, .. } => format!("await peers {version}"),
    }
}
