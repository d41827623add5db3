//! Watching what happens: all who watch are told, and nothing is told any more when the last has gone.

use std::net::Ipv4Addr;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use dataplane_ebpf::tables::Settings;
use lab::Daemon;
use lab::worker::Worker;
use netmanager::dataplane::Pins;
use serde_json::Value;

use crate::fixture::{DEADLINE, FAR_NAME, FAR_SERVICE, NO_SERVICE, Overlay, bind};

/// Starts a watcher, which is told everything when this returns.
fn watch(worker: &Worker, name: &str, arguments: &[&str]) -> Daemon {
    let program = crate::fixture::program().display().to_string();
    let before = watchers(worker);
    let mut command = worker.host().command(&program).expect("a command");
    command
        .arg("--root")
        .arg(worker.root())
        .arg("watch")
        .args(arguments);
    let daemon = worker.host().daemon(name, command).expect("started");
    lab::wait_for("somebody to watch", DEADLINE, || {
        Ok(watchers(worker) == before + 1)
    })
    .expect("watches");
    daemon
}

/// How many watch, by the figures.
fn watchers(worker: &Worker) -> u32 {
    let socket = worker
        .root()
        .join("etc/netmanager/netmanager.sock")
        .display()
        .to_string();
    let arguments = ["-sS", "--unix-socket", &socket, "http://netmanager/metrics"];
    let output = worker.host().run("curl", &arguments).expect("run");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oakestra_watchers "));
    line.unwrap_or_else(|| panic!("{text}"))
        .parse::<f64>()
        .expect("a number") as u32
}

/// Whether the programs tell what happens.
fn is_told(worker: &Worker) -> bool {
    let data = MapData::from_pin(Pins::of(worker.node_id()).map("SETTINGS")).expect("pinned");
    let settings: Array<_, Settings> = Map::from_map_data(data)
        .and_then(Array::try_from)
        .expect("an array");
    settings.get(&0, 0).expect("readable").watching != 0
}

/// What a watcher has written as JSON so far.
fn events(watcher: &Daemon) -> Vec<Value> {
    let log = watcher.log().expect("readable");
    // The last line may be half-written.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Waits until an event is told that has these values.
fn told(watcher: &Daemon, what: &str, values: &[(&str, Value)]) -> Value {
    lab::wait_for(what, DEADLINE, || {
        let found = events(watcher)
            .into_iter()
            .find(|event| values.iter().all(|(name, value)| event[*name] == *value));
        Ok(found)
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:#?}", events(watcher)))
}

#[test]
fn everybody_who_watches_is_told_of_drops_misses_and_flows() {
    let overlay = Overlay::new("watch");
    let near = &overlay.near;
    assert!(!is_told(near));
    let all = watch(near, "watch-all", &["-o", "json"]);
    let lines = watch(
        near,
        "watch-lines",
        &["--kind", "drop", "--reason", "not_a_service"],
    );
    assert!(is_told(near));

    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    let stray = bind(&overlay.client, 4_000);
    stray.send_to(b"stray", ("10.18.0.3", 9)).expect("sent");
    stray.send_to(b"lost", (NO_SERVICE, 9)).expect("sent");

    let client = || Value::from("10.18.0.2");
    let kind = |kind: &str| ("kind", Value::from(kind));
    let miss = told(&all, "the miss", &[kind("miss"), ("protocol", "icmp".into())]);
    assert_eq!(
        (&miss["reason"], &miss["hook"]),
        (&"PARK".into(), &"from_endpoint".into())
    );
    assert_eq!(
        (&miss["source"], &miss["destination"]),
        (&client(), &FAR_SERVICE.to_string().into())
    );
    assert!(
        miss["interface"]
            .as_str()
            .is_some_and(|name| name.starts_with("oak")),
        "{miss}"
    );
    let flow = told(&all, "the flow", &[kind("flow"), ("protocol", "icmp".into())]);
    let instances = overlay
        .far_instances
        .clone()
        .map(|instance| Value::from(instance.address.to_string()));
    assert!(instances.contains(&flow["instance"]), "{flow}");
    assert_eq!(flow["service"], FAR_NAME);
    let drop = told(
        &all,
        "the drop",
        &[kind("drop"), ("reason", "NOT_A_SERVICE".into())],
    );
    assert_eq!(
        (&drop["source_port"], &drop["destination_port"]),
        (&4_000.into(), &9.into())
    );
    assert_eq!(drop["length"], 14 + 20 + 8 + 5);
    told(
        &all,
        "the other miss",
        &[kind("miss"), ("destination", NO_SERVICE.to_string().into())],
    );

    lab::wait_for("the line", DEADLINE, || Ok(lines.log()?.lines().count() == 1)).expect("written");
    let line = lines.log().expect("readable");
    let expected = "drop  udp 10.18.0.2:4000 > 10.18.0.3:9, 47 B, from_endpoint at ";
    assert!(
        line.contains(expected) && line.contains("NOT_A_SERVICE"),
        "{line}"
    );
}

#[test]
fn nothing_is_told_any_more_when_the_last_watcher_is_gone() {
    let mut overlay = Overlay::new("watch ends");
    let near = &overlay.near;
    let mut first = watch(near, "watch-first", &["-o", "json"]);
    let mut second = watch(near, "watch-second", &["-o", "json"]);
    first.kill().expect("killed");
    lab::wait_for("the watcher to be missed", DEADLINE, || Ok(watchers(near) == 1)).expect("missed");
    assert!(is_told(near), "the other one watches");
    let ended = second.terminate(Duration::from_secs(5)).expect("ended");
    assert!(!ended.success(), "by the signal");
    lab::wait_for("nobody to be told", DEADLINE, || Ok(!is_told(near))).expect("ended");

    // The one who watches stays, NetManager is killed: the next one has nobody.
    let mut orphan = watch(near, "watch-orphan", &[]);
    overlay.near.restart().expect("started again");
    assert!(!is_told(&overlay.near));
    let status = orphan.wait(DEADLINE).expect("it notices");
    assert_eq!(status.code(), Some(1));

    // A NetManager that ends properly ends who watches, and does not wait for it.
    let mut last = watch(&overlay.near, "watch-last", &[]);
    let ended = overlay.near.daemon().terminate(DEADLINE).expect("ended");
    assert!(ended.success(), "{ended}");
    assert_eq!(last.wait(DEADLINE).expect("it ends").code(), Some(1));
    assert!(!is_told(&overlay.near));
}

#[test]
fn a_flood_is_told_in_part_and_how_much_was_left_out() {
    let overlay = Overlay::new("watch flood");
    let near = &overlay.near;
    let watcher = watch(near, "watch", &["-o", "json"]);
    let stray = bind(&overlay.client, 4_000);
    let before = near.counter("from_endpoint", "NOT_A_SERVICE").expect("counted");
    const PACKETS: usize = 20_000;
    let target = Ipv4Addr::new(10, 18, 0, 3);
    for _ in 0..PACKETS {
        stray.send_to(b"flood", (target, 9)).expect("sent");
    }
    let counted = near.counter("from_endpoint", "NOT_A_SERVICE").expect("counted") - before;
    lab::wait_for("all of them to be accounted for", DEADLINE, || {
        let events = events(&watcher);
        let left_out: u64 = events.iter().filter_map(|event| event["left_out"].as_u64()).sum();
        let drops = events
            .iter()
            .filter(|event| event["reason"] == "NOT_A_SERVICE")
            .count() as u64;
        assert!(
            drops + left_out <= counted + 100,
            "{drops} told, {left_out} left out of {counted}"
        );
        Ok(left_out > 0 && drops + left_out >= counted)
    })
    .expect("accounted for");
    overlay
        .client
        .ping(FAR_SERVICE, DEADLINE)
        .expect("the overlay works");
}
