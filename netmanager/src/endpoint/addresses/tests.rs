use proptest::prelude::*;

use super::*;

#[test]
fn containers_get_the_addresses_after_the_nodes() {
    let mut addresses = with_subnets(&["10.18.0.64/26"]);
    let node = NamespaceAddresses {
        v4: Ipv4Addr::new(10, 18, 0, 65),
        v6: None,
    };
    assert_eq!(addresses.node(), Some(node));
    assert_eq!(addresses.free(), 61);
    let given: Vec<_> = std::iter::from_fn(|| addresses.allocate().ok())
        .map(|both| both.v4)
        .collect();
    let expected: Vec<_> = (66..=126).map(|last| Ipv4Addr::new(10, 18, 0, last)).collect();
    assert_eq!(given, expected);
    assert_eq!(addresses.allocate(), Err(Exhausted(61)));
    assert_eq!(addresses.free(), 0);
}

#[test]
fn the_address_of_every_old_tunnel_is_never_given_out() {
    let mut addresses = with_subnets(&["10.19.1.192/26"]);
    assert_eq!(addresses.free(), 60);
    let given: Vec<_> = std::iter::from_fn(|| addresses.allocate().ok())
        .map(|both| both.v4)
        .collect();
    assert_eq!((given.len(), given.contains(&RESERVED)), (60, false));
    assert!(!addresses.reserve(RESERVED));
}

#[test]
fn a_released_address_waits_until_all_others_were_used() {
    let mut addresses = with_subnets(&["10.18.0.0/26", "10.18.4.0/26"]);
    let first = addresses.allocate().expect("free").v4;
    let second = addresses.allocate().expect("free").v4;
    assert!(addresses.release(second) && addresses.release(first));
    assert!(!addresses.release(first), "only once");
    let rest: Vec<_> = std::iter::from_fn(|| addresses.allocate().ok())
        .map(|both| both.v4)
        .collect();
    assert_eq!(rest.len(), 122);
    assert_eq!(rest[rest.len() - 2..], [second, first]);
    assert_eq!(
        rest[58..61],
        [[10, 18, 0, 62], [10, 18, 4, 2], [10, 18, 4, 3]].map(Ipv4Addr::from)
    );
}

#[test]
fn each_has_its_own_ipv6_address() {
    let mut addresses = Addresses::default();
    let v4 = "10.18.0.64/26".parse().expect("a network");
    addresses
        .add_subnet(v4, Some("fc00::300/120".parse().expect("a network")))
        .expect("a subnet");
    let node = addresses.node().expect("a node");
    assert_eq!(node.v6, Some("fc00::301".parse().expect("an address")));
    let first = addresses.allocate().expect("free");
    assert_eq!(
        (first.v4.to_string(), first.v6.map(|v6| v6.to_string())),
        ("10.18.0.66".to_owned(), Some("fc00::302".to_owned()))
    );
    assert_eq!(addresses.both(first.v4), Some(first));
}

#[test]
fn a_found_endpoint_keeps_its_address() {
    let mut addresses = with_subnets(&["10.18.0.0/26"]);
    let found = Ipv4Addr::new(10, 18, 0, 5);
    assert!(addresses.reserve(found));
    assert!(!addresses.reserve(found), "only once");
    assert_eq!(addresses.free(), 60);
    let given: Vec<_> = std::iter::from_fn(|| addresses.allocate().ok())
        .map(|both| both.v4)
        .collect();
    assert_eq!((given.len(), given.contains(&found)), (60, false));
    for foreign in [[10, 18, 0, 0], [10, 18, 0, 1], [10, 18, 0, 63], [10, 18, 1, 5]] {
        assert!(!addresses.reserve(foreign.into()), "{foreign:?}");
    }
}

#[test]
fn subnets_of_another_size_are_refused() {
    let mut addresses = Addresses::default();
    let large = "10.18.0.0/24".parse().expect("a network");
    assert_eq!(addresses.add_subnet(large, None), Err(SubnetError::Size(large)));
    let large_v6 = "fc00::/64".parse().expect("a network");
    let v4 = "10.18.0.0/26".parse().expect("a network");
    assert_eq!(
        addresses.add_subnet(v4, Some(large_v6)),
        Err(SubnetError::SizeV6(large_v6))
    );
    assert_eq!(addresses, Addresses::default());
}

#[derive(Clone, Debug)]
enum Action {
    Allocate,
    /// The n-th of those in use, counted around.
    Release(usize),
    Reserve(u8, u8),
    AddSubnet,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => Just(Action::Allocate),
        4 => any::<usize>().prop_map(Action::Release),
        1 => (0..2_u8, 0..64_u8).prop_map(|(subnet, number)| Action::Reserve(subnet, number)),
        1 => Just(Action::AddSubnet),
        1 => Just(Action::Restart),
    ]
}

proptest! {
    #[test]
    fn no_address_is_given_out_twice_or_lost(actions in prop::collection::vec(action(), 1..400)) {
        let mut addresses = with_subnets(&["10.19.1.192/26"]);
        let mut used = BTreeSet::new();
        let mut total = 60;
        for action in actions {
            match action {
                Action::Allocate => match addresses.allocate() {
                    Ok(both) => {
                        prop_assert!(is_container(both.v4));
                        prop_assert!(used.insert(both.v4), "{} twice", both.v4);
                    }
                    Err(Exhausted(number)) => prop_assert_eq!(number, total),
                },
                Action::Release(number) => {
                    if let Some(address) = used.iter().copied().nth(number % used.len().max(1)) {
                        prop_assert!(addresses.release(address));
                        used.remove(&address);
                    }
                }
                Action::Reserve(subnet, number) => {
                    let address = numbered(Ipv4Addr::new(10, 19, 1 + subnet, 192), number);
                    if addresses.reserve(address) {
                        prop_assert!(used.insert(address), "{address} twice");
                    }
                }
                Action::AddSubnet => {
                    let subnet = "10.19.2.192/26".parse().expect("a network");
                    addresses.add_subnet(subnet, None).expect("a subnet");
                    total = 121;
                }
                Action::Restart => {
                    let text = serde_json::to_string(&addresses).expect("serialises");
                    addresses = serde_json::from_str(&text).expect("parses");
                }
            }
            prop_assert!(addresses.used().eq(used.iter().copied()));
            prop_assert_eq!(addresses.free() + used.len(), total);
        }
    }
}

fn with_subnets(subnets: &[&str]) -> Addresses {
    let mut addresses = Addresses::default();
    for subnet in subnets {
        addresses
            .add_subnet(subnet.parse().expect("a network"), None)
            .expect("a subnet");
    }
    addresses
}
