//! What the cluster says.

use super::*;

#[test]
fn contradictions_are_told_to_who_asked() {
    let contradictions = [
        json!({"app_name": null, "instance_list": [running(0, 66)], "query_key": "10.30.7.7"}),
        table("10.30.7.7", &[running(0, 66)]),
    ];
    for contradiction in contradictions {
        let mut core = up();
        let mut answer = ask(&mut core, "10.30.7.7");
        result(&mut core, &contradiction);
        let answer = answer.try_recv().expect("an answer");
        assert!(
            matches!(answer, Err(ResolveError::Contradictory(_))),
            "{answer:?}"
        );
    }
    let mut core = up();
    let mut answer = ask(&mut core, "x.b.c.d");
    result(&mut core, &table("x.b.c.d", &[running(0, 66)]));
    let answer = answer.try_recv().expect("an answer");
    assert!(
        matches!(answer, Err(ResolveError::Contradictory(_))),
        "{answer:?}"
    );
}

#[test]
fn a_service_without_instances_keeps_its_addresses() {
    let mut core = up();
    let mut answer = ask(&mut core, ADDRESS);
    result(&mut core, &table(ADDRESS, &[]));
    let record = answer
        .try_recv()
        .expect("an answer")
        .expect("no error")
        .expect("a service");
    assert_eq!(record.round_robin, [Ipv4Addr::new(10, 30, 55, 55)]);
    effects(&mut core);

    result(&mut core, &table(NAME, &[running(0, 66)]));
    assert_eq!(effects(&mut core), ["tell a.b.c.d [10.30.55.55] [0]"]);
    result(&mut core, &table(NAME, &[]));
    assert_eq!(effects(&mut core), ["tell a.b.c.d [10.30.55.55] []"]);
}

#[test]
fn only_news_about_a_service_of_interest_are_told() {
    let mut core = up();
    result(&mut core, &table(NAME, &[running(0, 66)]));
    assert_eq!(effects(&mut core), NOTHING, "nobody asked");
    interested(&mut core);
    result(&mut core, &table(NAME, &[running(0, 66)]));
    assert_eq!(effects(&mut core), NOTHING, "nothing new");
    result(&mut core, &table(NAME, &[running(0, 66), running(1, 67)]));
    assert_eq!(effects(&mut core), ["tell a.b.c.d [10.30.55.55] [0, 1]"]);
}

#[test]
fn an_update_is_asked_about_once_however_often_it_comes() {
    let mut core = up();
    interested(&mut core);
    for _ in 0..5 {
        core.message("jobs/a.b.c.d/updates_available", b"not even JSON");
    }
    assert_eq!(effects(&mut core), ["refresh a.b.c.d"]);
    assert_eq!(core.refreshed(&name()), Next::Again);
    assert_eq!(core.refreshed(&name()), Next::Done);

    let _answer = ask(&mut core, NAME);
    core.message("jobs/a.b.c.d/updates_available", b"{}");
    assert_eq!(
        core.refreshed(&name()),
        Next::Again,
        "the question was put before the change"
    );
}

#[test]
fn an_update_of_no_interest_ends_its_subscription() {
    let mut core = up();
    core.message("jobs/a.b.c.d/updates_available", b"{}");
    let removal = [
        "unsubscribe jobs/a.b.c.d/updates_available",
        "publish nodes/n1/net/interest/remove {\"appname\":\"a.b.c.d\"}",
    ];
    assert_eq!(effects(&mut core), removal);
    interested(&mut core);
    core.uninterested(&name());
    assert_eq!(effects(&mut core), removal);
    core.uninterested(&name());
    assert_eq!(effects(&mut core), NOTHING);
}

#[test]
fn a_refresh_does_not_bring_back_an_interest_that_ended() {
    let mut core = up();
    interested(&mut core);
    let (sender, _answer) = oneshot::channel();
    let waiter = Waiter {
        answer: sender,
        interested: false,
    };
    core.ask(QueryKey::Name(name()), waiter, Instant::now())
        .expect("up");
    core.uninterested(&name());
    effects(&mut core);
    result(&mut core, &table(NAME, &[running(0, 66)]));
    assert_eq!(effects(&mut core), NOTHING);
    assert_eq!(core.refreshed(&name()), Next::Done);
}

#[test]
fn a_service_that_is_gone_is_told_and_forgotten() {
    let mut core = up();
    interested(&mut core);
    core.message("jobs/a.b.c.d/updates_available", b"{\"type\":\"UNDEPLOYMENT\"}");
    effects(&mut core);
    let gone = json!({"app_name": null, "instance_list": [], "query_key": NAME});
    result(&mut core, &gone);
    assert_eq!(
        effects(&mut core),
        ["unsubscribe jobs/a.b.c.d/updates_available", "tell a.b.c.d gone"]
    );

    interested(&mut core);
    result(&mut core, &gone);
    assert_eq!(
        effects(&mut core),
        ["refresh a.b.c.d"],
        "nobody said that it would go"
    );
    assert_eq!(core.refreshed(&name()), Next::Doubt);
    result(&mut core, &gone);
    assert_eq!(
        effects(&mut core),
        ["unsubscribe jobs/a.b.c.d/updates_available", "tell a.b.c.d gone"]
    );
}

#[test]
fn peers_are_acknowledged_when_they_are_installed() {
    let mut core = up();
    let push = json!({"version": 3, "rows": [
        {"app_name": NAME, "instance_number": 0, "instance_ip": "10.30.0.9", "namespace_ip": "10.18.0.70",
         "host_ip": "192.0.2.12", "host_port": 50103},
        {"app_name": "nonsense"}, 5
    ]});
    message(&mut core, "nodes/n1/net/peers", &push);
    assert_eq!(effects(&mut core), ["tell 1 peers", "await peers 3"]);
    message(&mut core, "nodes/n1/net/peers", &push);
    assert_eq!(effects(&mut core), NOTHING);
    core.peers_finished(None, 3, true);
    let acknowledgement = ["publish nodes/n1/net/peers/ack {\"version\":3}"];
    assert_eq!(effects(&mut core), acknowledgement);
    message(&mut core, "nodes/n1/net/peers", &push);
    assert_eq!(
        effects(&mut core),
        acknowledgement,
        "known, and acknowledged again"
    );
}

#[test]
fn messages_that_cannot_be_read_change_nothing() {
    let mut core = up();
    interested(&mut core);
    let mut answer = ask(&mut core, ADDRESS);
    effects(&mut core);
    let topics = [
        "nodes/n1/net/subnetwork/result",
        "nodes/n1/net/tablequery/result",
        "nodes/n1/net/peers",
        "nodes/n2/net/peers",
        "jobs/no name/updates_available",
        "",
    ];
    let payloads: [&[u8]; 7] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{\"app_name\":7}",
        b"{\"version\":-1,\"rows\":{}}",
    ];
    for topic in topics {
        for payload in payloads {
            core.message(topic, payload);
        }
    }
    assert_eq!(effects(&mut core), NOTHING);
    assert!(answer.try_recv().is_err());
    result(&mut core, &table(ADDRESS, &[running(0, 66)]));
    assert!(answer.try_recv().expect("an answer").is_ok());
}

#[test]
fn a_lease_that_cannot_be_is_refused() {
    for address in ["10.18.0.65", "192.0.2.0", "10.30.0.0"] {
        let mut core = up();
        let (waiter, mut answer) = oneshot::channel();
        core.ask_lease(waiter, Instant::now());
        message(
            &mut core,
            "nodes/n1/net/subnetwork/result",
            &json!({"address": address}),
        );
        let answer = answer.try_recv().expect("an answer");
        assert!(
            matches!(answer, Err(ResolveError::Contradictory(_))),
            "{address}: {answer:?}"
        );
    }
}
