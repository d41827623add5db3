//! Kernels without tcx: programs are filters of a queueing discipline, one each, whatever happens.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use lab::worker::Worker;
use lab::{Host, Namespace, UPLINK};

use crate::fixture::{DEADLINE, FAR_SERVICE, NEAR_SERVICE, Overlay, connect, listen};

const CLSACT: [&str; 2] = ["--attachment", "clsact"];

/// The filters at one side of an interface, a line for each.
fn filters(host: &Host, interface: &str, side: &str) -> Vec<String> {
    let shown = host
        .run("tc", &["filter", "show", "dev", interface, side])
        .expect("tc shows filters")
        .stdout;
    let shown = String::from_utf8(shown).expect("text");
    shown
        .lines()
        .filter(|line| line.contains("handle"))
        .map(str::to_owned)
        .collect()
}

/// Requires exactly one filter, which is this program, at each place where one belongs.
fn assert_one_filter_each(worker: &Worker) {
    for (interface, side, program) in [
        (UPLINK, "ingress", "from_uplink"),
        ("oak0", "ingress", "from_oak0"),
        ("oak0", "egress", "from_host"),
        ("lo", "egress", "from_loopback"),
    ] {
        let found = filters(worker.host(), interface, side);
        assert!(
            matches!(&found[..], [only] if only.contains(program)),
            "{interface} {side}: {found:?}"
        );
    }
}

fn exchange(client: &lab::Endpoint, server: &lab::Endpoint, address: Ipv4Addr) {
    let listener = listen(server, 80);
    let mut stream = connect(client, address, 80).expect("connected");
    let (mut accepted, _) = listener.accept().expect("accepted");
    stream.write_all(b"there").expect("sent");
    let mut received = [0; 5];
    accepted.read_exact(&mut received).expect("received");
    accepted.write_all(b"back!").expect("sent");
    stream.read_exact(&mut received).expect("received");
    assert_eq!(&received, b"back!");
}

#[test]
fn n62_without_tcx_each_program_is_one_filter_through_kills() {
    let mut overlay = Overlay::with("clsact", &CLSACT);
    let status = overlay.near.get("/status").expect("a status");
    assert_eq!(status["attachment"], "clsact");
    assert_one_filter_each(&overlay.near);
    exchange(&overlay.client, &overlay.near_server, NEAR_SERVICE);
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    for _ in 0..5 {
        overlay.near.restart().expect("started again");
        assert_one_filter_each(&overlay.near);
        assert_one_filter_each(&overlay.far);
        overlay
            .client
            .ping(overlay.far_instances[0].address, DEADLINE)
            .expect("answered");
    }
    exchange(
        &overlay.client,
        &overlay.far_servers[0],
        overlay.far_instances[0].address,
    );
}

#[test]
fn n65_filters_of_others_stay_when_ours_go() {
    let mut overlay = Overlay::with("clsact beside others", &CLSACT);
    let host = overlay.near.host().clone();
    host.run(
        "tc",
        &[
            "filter",
            "add",
            "dev",
            UPLINK,
            "ingress",
            "prio",
            "7",
            "bpf",
            "bytecode",
            "1,6 0 0 0",
            "flowid",
            "1:1",
        ],
    )
    .expect("somebody else's filter");
    let theirs = |host: &Host| {
        let found = filters(host, UPLINK, "ingress");
        found.into_iter().find(|line| line.contains("bytecode"))
    };
    let before = theirs(&host);
    assert!(before.is_some());
    // The filter of an endpoint that is taken off goes with its interface; all others when the node is given up.
    overlay
        .near
        .undeploy(&overlay.near_instance.service, 0)
        .expect("taken off");
    overlay.near.daemon().kill().expect("killed");
    let purged = overlay.near.command_line(&["purge"]).expect("run");
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(theirs(&host), before);
    assert_eq!(filters(&host, UPLINK, "ingress").len(), 1);
    assert_eq!(filters(&host, "lo", "egress"), Vec::<String>::new());
    assert!(
        !Path::new("/sys/fs/bpf/oakestra")
            .join(overlay.near.node_id())
            .exists()
    );
}

#[test]
fn a_kernel_that_has_learned_tcx_takes_links_in_place_of_filters() {
    let mut overlay = Overlay::with("clsact to tcx", &CLSACT);
    overlay.client.ping(FAR_SERVICE, DEADLINE).expect("answered");
    for (way, filters_left) in [("tcx", 0), ("clsact", 1), ("tcx", 0)] {
        overlay
            .near
            .restart_with(&["--attachment", way])
            .expect("started again");
        assert_eq!(
            filters(overlay.near.host(), UPLINK, "ingress").len(),
            filters_left,
            "{way}"
        );
        overlay
            .client
            .ping(overlay.far_instances[0].address, DEADLINE)
            .expect("answered");
    }
}
