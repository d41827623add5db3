use std::net::{Ipv4Addr, UdpSocket};

use netmanager::host::oak0::{FRAME_CAPACITY, Oak0, Oak0Options, remove_leftover};
use netmanager::host::{Error, Netlink};

use super::namespace::{DEADLINE, as_host, ip, snapshot};

const OPTIONS: Oak0Options = Oak0Options {
    address: Ipv4Addr::new(10, 18, 0, 65),
    mtu: 1450,
};

#[test]
fn the_second_time_nothing_changes() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        let oak0 = Oak0::open(&netlink, &OPTIONS).await.expect("opens");
        let first = snapshot();
        assert!(oak0.udp_segmentation());
        let link = ip("-d link show oak0");
        for expected in [
            "NOARP",
            ",UP",
            "mtu 1450",
            "type tap",
            "persist on",
            "vnet_hdr on",
        ] {
            assert!(link.contains(expected), "{expected}: {link}");
        }
        assert_eq!(
            ip("-br address show oak0").split_whitespace().nth(2),
            Some("10.18.0.65/32")
        );
        let routes = ip("route show proto 111");
        assert!(
            routes.contains("10.30.0.0/16 dev oak0 scope link src 10.18.0.65"),
            "{routes}"
        );
        assert!(routes.contains("unreachable 10.16.0.0/12"), "{routes}");

        let index = oak0.index();
        drop(oak0);
        let oak0 = Oak0::open(&netlink, &OPTIONS).await.expect("opens again");
        assert_eq!((oak0.index(), snapshot()), (index, first));
    });
}

#[test]
fn what_was_made_is_removed() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        let before = snapshot();
        let oak0 = Oak0::open(&netlink, &OPTIONS).await.expect("opens");
        oak0.remove(&netlink).await.expect("removes");
        assert_eq!(snapshot(), before);

        // As after `kill -9` and an uninstall.
        drop(Oak0::open(&netlink, &OPTIONS).await.expect("opens"));
        remove_leftover(&netlink).await.expect("removes");
        assert_eq!(snapshot(), before);
        remove_leftover(&netlink).await.expect("finds nothing");
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn only_one_may_have_it_open() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        let _oak0 = Oak0::open(&netlink, &OPTIONS).await.expect("opens");
        let before = snapshot();
        let error = Oak0::open(&netlink, &OPTIONS).await.expect_err("is refused");
        assert_eq!(error.to_string(), "another NetManager is running: it holds oak0");
        let errors = remove_leftover(&netlink).await.expect_err("is refused");
        assert!(
            matches!(errors.all(), [Error::AlreadyRunning("oak0")]),
            "{errors}"
        );
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn another_address_takes_the_place_of_the_old_one() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        drop(Oak0::open(&netlink, &OPTIONS).await.expect("opens"));
        let options = Oak0Options {
            address: Ipv4Addr::new(10, 18, 4, 1),
            mtu: 1400,
        };
        let _oak0 = Oak0::open(&netlink, &options).await.expect("opens");
        let addresses = ip("-4 -o address show oak0");
        assert_eq!(addresses.matches("inet ").count(), 1, "{addresses}");
        assert!(addresses.contains("10.18.4.1/32"), "{addresses}");
        assert!(ip("route show 10.30.0.0/16").contains("src 10.18.4.1"));
        assert!(ip("link show oak0").contains("mtu 1400"));
    });
}

#[test]
fn what_belongs_to_others_is_left_alone() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        ip("link add oak0 type bridge");
        let before = snapshot();
        let error = Oak0::open(&netlink, &OPTIONS).await.expect_err("is refused");
        assert!(
            matches!(&error, Error::ForeignLink(name) if name == "oak0"),
            "{error}"
        );
        assert!(remove_leftover(&netlink).await.is_err());
        assert_eq!(snapshot(), before);
        ip("link delete oak0");

        ip("link add other type bridge");
        ip("link set other up");
        for (route, name) in [
            ("10.30.0.0/16 dev other", "10.30.0.0/16"),
            ("10.16.0.0/12 dev other", "10.16.0.0/12"),
        ] {
            ip(&format!("route add {route}"));
            let before = ip("-4 route show table all");
            let error = Oak0::open(&netlink, &OPTIONS).await.expect_err("is refused");
            assert!(
                matches!(&error, Error::ForeignRoute(route) if route == name),
                "{error}"
            );
            assert_eq!(ip("-4 route show table all"), before);
            assert!(!ip("-br link show").contains("oak0"), "it was not there before");
            ip(&format!("route delete {route}"));
        }
    });
}

/// A datagram leaves with its checksum unfinished, as the header says; written back with the ends exchanged
/// and the same header, it arrives.
#[test]
fn a_frame_goes_out_and_comes_back_as_it_is() {
    as_host(async || {
        let netlink = Netlink::open().expect("opens");
        let oak0 = Oak0::open(&netlink, &OPTIONS).await.expect("opens");
        let socket = UdpSocket::bind("10.18.0.65:4000").expect("binds");
        socket.set_read_timeout(Some(DEADLINE)).expect("sets");
        socket.connect("10.30.1.2:5000").expect("connects");
        socket.send(b"over and out").expect("sends");

        let mut frame = vec![0; FRAME_CAPACITY];
        let length = oak0.receive(&mut frame).await.expect("receives");
        frame.truncate(length);
        assert_eq!(length, 10 + 14 + 20 + 8 + 12);
        const NEEDS_CHECKSUM: u8 = 1;
        assert_eq!(frame[0], NEEDS_CHECKSUM);
        let (source, destination) = (24 + 12, 24 + 16);
        assert_eq!(frame[source..source + 8], [10, 18, 0, 65, 10, 30, 1, 2]);
        exchange(&mut frame, source, destination, 4);
        exchange(&mut frame, 44, 46, 2);
        oak0.send(&frame).await.expect("sends");

        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).expect("comes back");
        assert_eq!(&answer[..length], b"over and out");
    });
}

fn exchange(bytes: &mut [u8], first: usize, second: usize, length: usize) {
    for offset in 0..length {
        bytes.swap(first + offset, second + offset);
    }
}
