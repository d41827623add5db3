use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::root::live::Live;
use crate::root::state::State;

fn service(id: u32) -> Holder {
    Holder::Service {
        id: id.to_string(),
        name: format!("a.b.s{id}.d"),
    }
}

/// Makes a change and carries it out in memory.
fn change<T>(state: &mut State, make: impl FnOnce(&mut Draft<'_>) -> T) -> T {
    let mut live = Live::default();
    let mut draft = Draft::new(state, &mut live);
    let made = make(&mut draft);
    let finished = draft.finish().expect("finish");
    state.apply(finished.batch);
    made
}

#[test]
fn addresses_are_given_in_turn_and_come_back_last() {
    let mut state = State::default();
    let holder = service(1);
    let (first, first_v6) = change(&mut state, |draft| take(draft, &holder).expect("first"));
    assert_eq!(
        (first.to_string(), first_v6.to_string()),
        ("10.30.0.1".to_owned(), "fdff::1".to_owned())
    );
    change(&mut state, |draft| give_back(draft, first, first_v6));
    assert!(state.holdings.is_empty());
    let second = change(&mut state, |draft| take(draft, &holder).expect("second").0);
    assert_eq!(second.to_string(), "10.30.0.2");
}

#[test]
fn the_pool_can_be_used_up_and_is_full_then() {
    let mut state = State::default();
    let given = change(&mut state, |draft| {
        let mut given = BTreeSet::new();
        while let Ok((address, _)) = take(draft, &service(1)) {
            assert!(given.insert(address), "{address} is given twice");
        }
        given
    });
    assert_eq!(given.len(), 65_534);
    assert!(
        !given.contains(&Ipv4Addr::new(10, 30, 0, 0)) && !given.contains(&Ipv4Addr::new(10, 30, 255, 255))
    );
    let freed = Ipv4Addr::new(10, 30, 7, 7);
    change(&mut state, |draft| {
        give_back(draft, freed, Ipv6Addr::new(0xfdff, 0, 0, 0, 0, 0, 0, 0x0707))
    });
    let again = change(&mut state, |draft| {
        take(draft, &service(2)).expect("the one that is free")
    });
    assert_eq!(again.0, freed);
}

#[test]
fn a_wish_that_is_taken_names_its_holder() {
    let mut state = State::default();
    let wish = Ipv4Addr::new(10, 30, 55, 55);
    let wished = (Some(wish), None);
    let given = change(&mut state, |draft| {
        take_for_service(draft, &service(1), wished, "x").expect("free")
    });
    assert_eq!(given.1.to_string(), "fdff:2000::3737");
    let problem = change(&mut state, |draft| {
        take_for_service(draft, &service(2), wished, "x").expect_err("taken")
    });
    assert_eq!(problem.path, "x.addresses.rr_ip");
    assert_eq!(problem.message, "10.30.55.55 belongs to service a.b.s1.d already");
}

#[test]
fn an_ipv6_address_that_somebody_chose_is_avoided() {
    let mut state = State::default();
    let chosen: Ipv6Addr = "fdff:2000::2".parse().expect("address");
    change(&mut state, |draft| {
        take_for_service(draft, &service(1), (None, Some(chosen)), "x").expect("free");
        let (address, address_v6) = take_for_service(draft, &service(2), (None, None), "x").expect("free");
        assert_eq!(address.to_string(), "10.30.0.2");
        assert_eq!(address_v6.to_string(), "fdff:2000::1:2");
    });
}

#[test]
fn subnets_are_leased_once_and_never_hold_the_tunnel_address() {
    let mut state = State::default();
    let first = change(&mut state, |draft| lease(draft, "n0", None, None).expect("lease"));
    assert_eq!(first.subnet.to_string(), "10.18.0.0");
    assert_eq!(first.subnet_v6.expect("v6").to_string(), "fc00::");
    let leases = change(&mut state, |draft| {
        (0..SUBNET_COUNT - 1)
            .map(|number| lease(draft, &format!("n{number}"), None, None).expect("lease"))
            .collect::<Vec<_>>()
    });
    assert_eq!(leases[0], first, "a node keeps its lease");
    let subnets: BTreeSet<u32> = leases.iter().map(|lease| lease.subnet.into()).collect();
    assert_eq!(subnets.len(), leases.len());
    for subnet in &subnets {
        assert!(!(*subnet..subnet + SUBNET_SIZE).contains(&TUNNEL));
    }
    assert_eq!(leases.last().expect("last").subnet.to_string(), "10.29.255.192");
    change(&mut state, |draft| {
        lease(draft, "one more", None, None).expect_err("all are leased")
    });
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Service(Option<u16>),
    Instance,
    Lease(u8),
    GiveBack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::option::of(0_u16..20).prop_map(Step::Service),
        Just(Step::Instance),
        (0_u8..4).prop_map(Step::Lease),
        any::<usize>().prop_map(Step::GiveBack),
    ]
}

proptest! {
    #[test]
    fn nothing_is_ever_given_twice(steps in prop::collection::vec(step(), 1..200)) {
        let mut state = State::default();
        let mut given: Vec<(Ipv4Addr, Ipv6Addr)> = Vec::new();
        let mut nodes = BTreeSet::new();
        for step in steps {
            let taken = match step {
                Step::Service(wish) => {
                    let wish = wish.map(|last| Ipv4Addr::from(POOL + u32::from(last)));
                    change(&mut state, |draft| take_for_service(draft, &service(1), (wish, None), "x").ok())
                }
                Step::Instance => change(&mut state, |draft| take(draft, &service(2)).ok()),
                Step::Lease(node) => {
                    let lease = change(&mut state, |draft| lease(draft, &node.to_string(), None, None).expect("lease"));
                    let addresses = (lease.instance_ip, lease.instance_ip_v6.expect("v6"));
                    nodes.insert(addresses);
                    None
                }
                Step::GiveBack(index) => {
                    if !given.is_empty() {
                        let (address, address_v6) = given.swap_remove(index % given.len());
                        change(&mut state, |draft| give_back(draft, address, address_v6));
                    }
                    None
                }
            };
            given.extend(taken);
            let all: BTreeSet<IpAddr> = given
                .iter()
                .chain(&nodes)
                .flat_map(|(address, address_v6)| [IpAddr::from(*address), IpAddr::from(*address_v6)])
                .collect();
            prop_assert_eq!(all.len(), 2 * (given.len() + nodes.len()), "an address is given twice");
            let held: BTreeSet<IpAddr> = state.holdings.keys().copied().collect();
            prop_assert_eq!(all, held, "an address leaked");
        }
    }
}
