use std::net::Ipv4Addr;

use netmanager::endpoint::name;
use netmanager::host::changes::{Change, Changes};
use netmanager::host::offload::{self, Outcome, UDP_SEGMENTATION};
use netmanager::host::sysctl::Sysctls;
use netmanager::host::uplink::{local_addresses, neighbour, resolve, route_to};
use netmanager::host::{Error, Netlink};

use super::namespace::{DEADLINE, Process, as_host, ip, wire};

const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn the_way_to_a_peer_is_what_the_kernel_says() {
    as_host(async || {
        let (netlink, peer) = (Netlink::open().expect("opens"), Process::start());
        wire("up0", "192.0.2.1/24", &peer, "192.0.2.2/24");
        ip("link set up0 address 02:00:00:00:00:01 mtu 1492");
        ip("route add 198.51.100.0/24 via 192.0.2.2 mtu lock 1280");

        let direct = route_to(&netlink, PEER).await.expect("a route");
        assert_eq!((direct.interface_name.as_str(), direct.next_hop), ("up0", PEER));
        assert_eq!((direct.source, direct.mtu), (Ipv4Addr::new(192, 0, 2, 1), 1492));
        assert_eq!(direct.local_mac, [2, 0, 0, 0, 0, 1]);
        let far = route_to(&netlink, Ipv4Addr::new(198, 51, 100, 7))
            .await
            .expect("a route");
        assert_eq!(
            (far.interface, far.next_hop, far.mtu),
            (direct.interface, PEER, 1280)
        );

        let none = route_to(&netlink, Ipv4Addr::new(203, 0, 113, 1))
            .await
            .expect_err("no route");
        assert_eq!(none.errno(), Some(libc::ENETUNREACH));
        let own = route_to(&netlink, Ipv4Addr::new(192, 0, 2, 1))
            .await
            .expect_err("an own address");
        assert!(matches!(own, Error::LocalDestination(_)), "{own}");
        ip("tuntap add tun0 mode tun");
        ip("link set tun0 up");
        ip("route add 203.0.113.0/24 dev tun0 src 192.0.2.1");
        let tunnel = route_to(&netlink, Ipv4Addr::new(203, 0, 113, 1))
            .await
            .expect_err("no Ethernet");
        assert!(matches!(tunnel, Error::NotEthernet { .. }), "{tunnel}");
    });
}

#[test]
fn a_neighbour_is_found_out_and_reported() {
    as_host(async || {
        let (netlink, peer) = (Netlink::open().expect("opens"), Process::start());
        wire("up0", "192.0.2.1/24", &peer, "192.0.2.2/24");
        peer.ip("link set eth0 address 02:00:00:00:00:02");
        let up0 = route_to(&netlink, PEER).await.expect("a route").interface;
        assert_eq!(neighbour(&netlink, up0, PEER).await.expect("asks"), None);

        let mut changes = Changes::open().expect("subscribes");
        resolve(&netlink, up0, PEER).await.expect("asks");
        let found = |change| {
            if let Change::Neighbour {
                address: PEER, entry, ..
            } = change
            {
                entry
            } else {
                None
            }
        };
        let found = wait_for(&mut changes, found).await;
        assert_eq!((found.mac, found.is_confirmed()), ([2, 0, 0, 0, 0, 2], true));
        assert_eq!(neighbour(&netlink, up0, PEER).await.expect("asks"), Some(found));

        ip("neighbour delete 192.0.2.2 dev up0");
        let gone = Change::Neighbour {
            interface: up0,
            address: PEER,
            entry: None,
        };
        wait_for(&mut changes, |change| (change == gone).then_some(())).await;

        // Nobody is there: no entry that could be used.
        let nobody = Ipv4Addr::new(192, 0, 2, 77);
        resolve(&netlink, up0, nobody).await.expect("asks");
        assert_eq!(neighbour(&netlink, up0, nobody).await.expect("asks"), None);
    });
}

#[test]
fn links_addresses_and_routes_are_reported() {
    as_host(async || {
        let mut changes = Changes::open().expect("subscribes");
        ip("link add one type bridge");
        let added = |change| {
            if let Change::Link {
                interface,
                removed: false,
            } = change
            {
                Some(interface)
            } else {
                None
            }
        };
        let one = wait_for(&mut changes, added).await;
        ip("address add 192.0.2.1/24 dev one");
        let address = Change::Address { interface: one };
        wait_for(&mut changes, |change| (change == address).then_some(())).await;
        ip("link set one up");
        wait_for(&mut changes, |change| (change == Change::Route).then_some(())).await;
        ip("link delete one");
        let gone = Change::Link {
            interface: one,
            removed: true,
        };
        wait_for(&mut changes, |change| (change == gone).then_some(())).await;
    });
}

#[test]
fn an_overflow_is_reported_and_survived() {
    as_host(async || {
        let mut changes = Changes::with_buffer(4096).expect("subscribes");
        for number in 0..100 {
            ip(&format!("link add d{number} type bridge"));
        }
        wait_for(&mut changes, |change| (change == Change::Overflow).then_some(())).await;
        // What was received before the overflow is still there to be read; then it goes on.
        let mut links = 0;
        while tokio::time::timeout(std::time::Duration::ZERO, changes.next())
            .await
            .is_ok()
        {
            links += 1;
        }
        assert!(links < 100, "{links}");
        ip("link delete d7");
        let gone = |change| matches!(change, Change::Link { removed: true, .. }).then_some(());
        wait_for(&mut changes, gone).await;
    });
}

#[test]
fn own_addresses_are_those_that_others_could_send_to() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        let container = name::host_link("node-a", Ipv4Addr::new(10, 18, 0, 2));
        for (link, address) in [
            ("up0", "192.0.2.1/24"),
            ("oak0", "10.18.0.1/32"),
            (&container, "203.0.113.9/32"),
        ] {
            ip(&format!("link add {link} type bridge"));
            ip(&format!("address add {address} dev {link}"));
        }
        ip("address add 198.51.100.1/32 dev lo");
        ip("address add 192.0.2.129/25 dev up0");
        let up0 = netlink
            .link_by_name("up0")
            .await
            .expect("asks")
            .expect("a link")
            .index;
        let expected = [[192, 0, 2, 1], [192, 0, 2, 129]].map(|address| (up0, Ipv4Addr::from(address)));
        assert_eq!(local_addresses(&netlink).await.expect("lists"), expected);
    });
}

#[test]
fn an_offload_is_switched_off_and_back() {
    as_host(async || {
        ip("link add up0 type veth peer name up1");
        let set = |feature, wanted| offload::set_feature("up0", feature, wanted).expect("sets");
        assert_eq!(set(UDP_SEGMENTATION, false), Outcome::Changed);
        assert_eq!(set(UDP_SEGMENTATION, false), Outcome::AsWanted);
        assert_eq!(ethtool_shows(), "off");
        assert_eq!(set(UDP_SEGMENTATION, true), Outcome::Changed);
        assert_eq!(ethtool_shows(), "on");
        assert_eq!(set("no-such-feature", false), Outcome::Unknown);
        assert_eq!(set("tx-esp-segmentation", true), Outcome::Fixed);

        let gone = offload::set_feature("up9", UDP_SEGMENTATION, false).expect_err("no such interface");
        assert_eq!(gone.errno(), Some(libc::ENODEV));
    });
}

#[test]
fn settings_are_restored() {
    as_host(async || {
        let forward = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("reads");
        let mut sysctls = Sysctls::default();
        sysctls.set("net.ipv4.ip_forward", "0").expect("sets");
        let mut sysctls = Sysctls::default();
        sysctls.note_required().expect("reads");
        assert_eq!(
            (sysctls.is_empty(), &*forward()),
            (false, "0\n"),
            "noted, not changed"
        );
        assert!(sysctls.set("net.ipv4.ip_forward", "1").expect("sets"));
        assert!(!sysctls.set("net.ipv4.ip_forward", "1").expect("is set"));
        assert_eq!(forward(), "1\n");

        // A later process restores what the earlier one has changed.
        let text = serde_json::to_string(&sysctls).expect("serialises");
        let mut sysctls: Sysctls = serde_json::from_str(&text).expect("parses");
        sysctls.set_required().expect("is set");
        sysctls.restore().expect("restores");
        assert_eq!(forward(), "0\n");
        assert!(sysctls.is_empty());
    });
}

async fn wait_for<T>(changes: &mut Changes, mut wanted: impl FnMut(Change) -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = wanted(changes.next().await.expect("a change")) {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .expect("is reported in time")
}

fn ethtool_shows() -> String {
    let output = std::process::Command::new("ethtool")
        .args(["-k", "up0"])
        .output()
        .expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tx-udp-segmentation: "))
        .expect("a line");
    line.to_owned()
}
