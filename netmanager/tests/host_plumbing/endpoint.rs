use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::task::Poll;

use netmanager::endpoint::{
    AttachOptions, Attached, Error, Fault, Injected, Step, Undo, attach, detach, list, name,
};
use netmanager::host::{self, Netlink};

use super::namespace::{Process, as_host, eventually, ip, snapshot};

const NODE: &str = "node-a";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 18, 0, 66);

#[test]
fn a_container_is_wired_and_taken_off_without_a_trace() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        container.ip("link set lo up");
        let before = (snapshot(), container.snapshot());
        let attached = attach_all(&netlink, &options(&container))
            .await
            .expect("attaches");

        assert_eq!(attached.host_interface_name, name::host_link(NODE, ADDRESS));
        assert_eq!(attached.container_interface_name, "eth0");
        let host = ip(&format!("-d link show {}", attached.host_interface_name));
        for expected in [
            "mtu 1400",
            &mac(attached.host_mac),
            "alias oakestra node-a web.0",
            ",UP",
        ] {
            assert!(host.contains(expected), "{expected}: {host}");
        }
        assert!(
            host.starts_with(&format!("{}: ", attached.host_interface)),
            "{host}"
        );
        let off = format!(
            "/proc/sys/net/ipv6/conf/{}/disable_ipv6",
            attached.host_interface_name
        );
        assert_eq!(std::fs::read_to_string(off).expect("reads"), "1\n");
        let inside = container.ip("-d link show eth0");
        assert!(
            inside.contains("mtu 1400") && inside.contains(&mac(attached.mac)),
            "{inside}"
        );
        let routes = container.ip("route show");
        assert!(
            routes.contains("default via 169.254.1.1 dev eth0 proto 111 onlink"),
            "{routes}"
        );
        assert!(
            routes.contains("169.254.1.1 dev eth0 proto 111 scope link"),
            "{routes}"
        );
        let gateway = format!("169.254.1.1 dev eth0 lladdr {} PERMANENT", mac(attached.host_mac));
        assert_eq!(container.ip("-4 neighbour show nud permanent").trim(), gateway);
        let back = format!(
            "10.18.0.66 dev {} proto 111 scope link",
            attached.host_interface_name
        );
        assert_eq!(ip("route show 10.18.0.66/32").trim(), back);

        detach(&netlink, NODE, ADDRESS).await.expect("detaches");
        assert_eq!((snapshot(), container.snapshot()), before);
        detach(&netlink, NODE, ADDRESS).await.expect("finds nothing");
    });
}

/// N-66: whatever step fails, everything is as it was, and then it can be done again.
#[test]
fn n66_a_failure_at_any_step_leaves_no_trace() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        let before = (snapshot(), container.snapshot());
        for step in Step::PLUMBING {
            let options = AttachOptions {
                fault: Fault::at(step),
                ..options(&container)
            };
            let error = attach_all(&netlink, &options).await.expect_err("fails as asked");
            assert!(
                matches!(error, Error::Injected(Injected(failed)) if failed == step),
                "{step}: {error}"
            );
            assert_eq!((snapshot(), container.snapshot()), before, "{step}");
        }
        attach_all(&netlink, &options(&container))
            .await
            .expect("attaches");

        // A step of the caller fails after all these have been done.
        detach(&netlink, NODE, ADDRESS).await.expect("detaches");
        container.ip("link set lo down");
        let before = (snapshot(), container.snapshot());
        let mut undo = Undo::default();
        let outcome = attach(&netlink, &options(&container), &mut undo).await;
        let outcome = outcome.and_then(|_| Ok(Fault::at(Step::SaveState).check(Step::SaveState)?));
        undo.finish(outcome).await.expect_err("fails as asked");
        assert_eq!((snapshot(), container.snapshot()), before);
    });
}

/// As when the client of the request goes away: the future is dropped at each point where it waits.
#[test]
fn a_caller_that_goes_away_leaves_no_trace() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        let before = (snapshot(), container.snapshot());
        let mut cancelled = 0;
        loop {
            let options = options(&container);
            if polled(attach_all(&netlink, &options), cancelled).await.is_some() {
                break;
            }
            cancelled += 1;
            let as_before = async || (snapshot(), container.snapshot()) == before;
            eventually(&format!("no trace after {cancelled} polls"), as_before).await;
        }
        assert!(cancelled > Step::PLUMBING.len(), "{cancelled}");
    });
}

#[test]
fn the_second_time_nothing_changes() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        let first = attach_all(&netlink, &options(&container))
            .await
            .expect("attaches");
        let before = (snapshot(), container.snapshot());
        let second = attach_all(&netlink, &options(&container))
            .await
            .expect("finds it attached");
        assert_eq!(second, first);
        assert_eq!((snapshot(), container.snapshot()), before);

        let options = AttachOptions {
            fault: Fault::at(Step::AddHostRoute),
            ..options(&container)
        };
        attach_all(&netlink, &options).await.expect_err("fails as asked");
        assert_eq!(
            (snapshot(), container.snapshot()),
            before,
            "what was there before is not undone"
        );

        // Somebody has taken things away: they come back.
        container.ip("route delete default");
        ip(&format!("route delete {ADDRESS}/32"));
        attach_all(&netlink, &self::options(&container))
            .await
            .expect("mends");
        assert_eq!((snapshot(), container.snapshot()), before);
    });
}

#[test]
fn an_endpoint_follows_its_container_and_an_address_has_one_owner() {
    as_host(async || {
        let (netlink, old, new) = (
            Netlink::open().expect("opens"),
            Process::start(),
            Process::start(),
        );
        attach_all(&netlink, &options(&old)).await.expect("attaches");

        let other = AttachOptions {
            endpoint: "db.0".to_owned(),
            ..options(&new)
        };
        let before = (snapshot(), new.snapshot());
        let error = attach_all(&netlink, &other).await.expect_err("is refused");
        assert!(matches!(error, Error::InUse { address: ADDRESS, .. }), "{error}");
        assert_eq!((snapshot(), new.snapshot()), before);

        // The container was started again, and its old namespace is still there.
        attach_all(&netlink, &options(&new)).await.expect("attaches");
        assert!(new.ip("-br address show eth0").contains("10.18.0.66/32"));
        assert!(!old.ip("-br link show").contains("eth0"));
    });
}

#[test]
fn the_next_free_name_is_taken_and_a_default_route_is_left_alone() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        container.ip("link add eth0 type bridge");
        container.ip("link add eth2 type bridge");
        let attached = attach_all(&netlink, &options(&container))
            .await
            .expect("attaches");
        assert_eq!(attached.container_interface_name, "eth1");
        detach(&netlink, NODE, ADDRESS).await.expect("detaches");

        container.ip("link set eth0 up");
        container.ip("route add default dev eth0");
        let before = (snapshot(), container.ip("-4 route show table all"));
        let error = attach_all(&netlink, &options(&container))
            .await
            .expect_err("is refused");
        assert!(
            matches!(&error, Error::Host(host::Error::ForeignRoute(route)) if route == "0.0.0.0/0"),
            "{error}"
        );
        assert_eq!((snapshot(), container.ip("-4 route show table all")), before);
    });
}

#[test]
fn what_cannot_be_attached_is_refused_by_its_reason() {
    as_host(async || {
        let (netlink, container) = (Netlink::open().expect("opens"), Process::start());
        // The namespace of this thread stands for the host's; a thread's number serves as a process's does.
        let own = AttachOptions {
            pid: nix::unistd::gettid().as_raw().cast_unsigned(),
            ..options(&container)
        };
        let error = attach_all(&netlink, &own).await.expect_err("is refused");
        assert!(matches!(error, Error::HostNamespace(_)), "{error}");

        let gone = AttachOptions {
            pid: u32::MAX,
            ..options(&container)
        };
        assert_eq!(
            attach_all(&netlink, &gone).await.expect_err("is refused").errno(),
            Some(libc::ENOENT)
        );

        let long = AttachOptions {
            endpoint: "x".repeat(256),
            ..options(&container)
        };
        let error = attach_all(&netlink, &long).await.expect_err("is refused");
        assert!(matches!(error, Error::Alias { .. }), "{error}");
    });
}

#[test]
fn a_later_process_finds_the_links_of_its_node() {
    as_host(async || {
        let (netlink, first, second) = (
            Netlink::open().expect("opens"),
            Process::start(),
            Process::start(),
        );
        attach_all(&netlink, &options(&first)).await.expect("attaches");
        let other = Ipv4Addr::new(10, 18, 9, 66);
        let other_node = AttachOptions {
            node_id: "node-b".to_owned(),
            address: other,
            ..options(&second)
        };
        attach_all(&netlink, &other_node).await.expect("attaches");
        // As a process leaves it that is killed right after making the link.
        let half = name::host_link(NODE, Ipv4Addr::new(10, 18, 0, 70));
        ip(&format!("link add {half} type veth peer name half"));
        ip("link add oakley type bridge");

        let mut found = list(&netlink, NODE).await.expect("lists");
        found.sort_by_key(|found| found.address);
        let seen: Vec<_> = found
            .iter()
            .map(|found| (found.address, found.endpoint.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [(ADDRESS, Some("web.0")), (Ipv4Addr::new(10, 18, 0, 70), None)]
        );

        for found in found {
            detach(&netlink, NODE, found.address).await.expect("detaches");
        }
        assert_eq!(list(&netlink, NODE).await.expect("lists"), []);
        assert_eq!(list(&netlink, "node-b").await.expect("lists").len(), 1);
    });
}

/// As the caller does it.
async fn attach_all(netlink: &Netlink, options: &AttachOptions) -> Result<Attached, Error> {
    let mut undo = Undo::default();
    let outcome = attach(netlink, options, &mut undo).await;
    undo.finish(outcome).await
}

fn options(container: &Process) -> AttachOptions {
    AttachOptions {
        node_id: NODE.to_owned(),
        endpoint: "web.0".to_owned(),
        pid: container.pid(),
        address: ADDRESS,
        mtu: 1400,
        fault: Fault::default(),
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The outcome of a future, unless it takes more polls than this.
async fn polled<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
