use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Ipv4Addr;

use dataplane_ebpf::header::{PROTOCOL_ICMP, PROTOCOL_UDP};
use dataplane_ebpf::tables::Place;

use super::*;
use crate::flows::UNIT;

const CLIENT: [u8; 4] = [10, 18, 0, 2];
const SERVICE: [u8; 4] = [10, 30, 55, 55];
const INSTANCE: [u8; 4] = [10, 30, 2, 2];
const INDEX: u32 = 7;
/// When all flows of a test were used last, in units.
const LAST_SEEN: u32 = 1_000;

#[test]
fn n68_a_flow_stays_up_to_its_lifetime_and_goes_after_it_with_both_entries() {
    let lifetimes = Lifetimes::default();
    for (protocol, state, table, lifetime) in [
        (PROTOCOL_TCP, 0, Table::Unanswered, lifetimes.tcp_opening),
        (
            PROTOCOL_TCP,
            state::ANSWERED,
            Table::Flows,
            lifetimes.tcp_established,
        ),
        (
            PROTOCOL_TCP,
            state::ANSWERED | state::FIN_FORWARD | state::FIN_REVERSE,
            Table::Flows,
            lifetimes.tcp_closed,
        ),
        (
            PROTOCOL_TCP,
            state::ANSWERED | state::RESET,
            Table::Flows,
            lifetimes.tcp_reset,
        ),
        (PROTOCOL_UDP, 0, Table::Unanswered, lifetimes.udp_one_way),
        (
            PROTOCOL_UDP,
            state::ANSWERED,
            Table::Flows,
            lifetimes.udp_answered,
        ),
        (PROTOCOL_ICMP, state::ANSWERED, Table::Unanswered, lifetimes.icmp),
    ] {
        let store = Fake::with_flow(table, protocol, state);
        let removed = |now| {
            let sweep = sweep(&store, now, &lifetimes, Scope::All).expect("swept");
            sweep.removed
        };
        assert_eq!(removed(end_of(lifetime) - 1), 0, "{protocol} {state:#x}");
        assert_eq!(store.entries(), 2);
        assert_eq!(removed(end_of(lifetime)), 2, "{protocol} {state:#x}");
        assert_eq!(store.entries(), 0);
    }
}

#[test]
fn n68_the_later_use_of_both_entries_counts() {
    for used in [forward_key_of(PROTOCOL_UDP), answers_of(PROTOCOL_UDP)] {
        let store = Fake::with_flow(Table::Flows, PROTOCOL_UDP, state::ANSWERED);
        store.touch(&used, LAST_SEEN + 100);
        let lifetimes = Lifetimes::default();
        let now = end_of(lifetimes.udp_answered);
        let swept = sweep(&store, now, &lifetimes, Scope::All).expect("swept");
        assert_eq!((swept.removed, store.entries()), (0, 2), "{used:?}");
        let now = now + 100 * UNIT.as_nanos() as u64;
        let swept = sweep(&store, now, &lifetimes, Scope::All).expect("swept");
        assert_eq!((swept.removed, store.entries()), (2, 0), "{used:?}");
    }
}

#[test]
fn n68_a_flow_that_is_used_while_the_tables_are_read_stays() {
    for used in [forward_key_of(PROTOCOL_UDP), answers_of(PROTOCOL_UDP)] {
        let store = Fake::with_flow(Table::Flows, PROTOCOL_UDP, state::ANSWERED);
        let lifetimes = Lifetimes::default();
        let now = end_of(lifetimes.udp_answered);
        *store.used_after_reading.borrow_mut() = Some((used, LAST_SEEN + 170));
        let swept = sweep(&store, now, &lifetimes, Scope::All).expect("swept");
        assert_eq!((swept.removed, store.entries()), (0, 2), "{used:?}");
    }
}

#[test]
fn n68_an_entry_that_has_lost_its_other_goes_in_its_own_time() {
    let lifetimes = Lifetimes::default();
    for key in [forward_key_of(PROTOCOL_UDP), answers_of(PROTOCOL_UDP)] {
        let store = Fake::with_flow(Table::Flows, PROTOCOL_UDP, state::ANSWERED);
        store.flows.borrow_mut().remove(&key);
        let now = end_of(lifetimes.udp_answered);
        let swept = |now| sweep(&store, now, &lifetimes, Scope::All).expect("swept").removed;
        assert_eq!(swept(now - 1), 0);
        assert_eq!(swept(now), 1, "{key:?}");
    }
}

#[test]
fn n68_the_entries_of_a_published_port_find_each_other() {
    let store = Fake::default();
    let outside = [192, 0, 2, 99];
    let [server_port, translated, client_port, published] =
        [80_u16, 40_001, 50_000, 8_080].map(u16::to_be_bytes);
    let forward = FlowKey {
        source: outside,
        destination: [192, 0, 2, 1],
        source_port: client_port,
        destination_port: published,
        protocol: PROTOCOL_TCP,
        zero: [0; 3],
    };
    let server = [10, 18, 0, 9];
    let instance = Instance {
        place: Place::new(server, 0),
        ..store.instance(INDEX).expect("there")
    };
    store.instances.borrow_mut().insert(INDEX, instance);
    let common = Flow {
        incarnation: 1,
        instance: INDEX,
        last_seen: LAST_SEEN,
        shown: forward.destination,
        state: state::PUBLISHED | state::ANSWERED,
        ..Flow::default()
    };
    store.enter(
        Table::Flows,
        forward,
        Flow {
            address: outside,
            port: translated,
            other_port: server_port,
            ..common
        },
    );
    store.enter(
        Table::Flows,
        FlowKey {
            source: server,
            destination: outside,
            source_port: server_port,
            destination_port: translated,
            protocol: PROTOCOL_TCP,
            zero: [0; 3],
        },
        Flow {
            address: outside,
            port: client_port,
            other_port: published,
            state: common.state | state::REVERSE,
            // Used after the forward entry.
            last_seen: LAST_SEEN + 10,
            ..common
        },
    );
    let lifetimes = Lifetimes::default();
    let now = end_of(lifetimes.tcp_established);
    let removed = |now| sweep(&store, now, &lifetimes, Scope::All).expect("swept").removed;
    assert_eq!(removed(now), 0);
    assert_eq!(removed(now + 10 * UNIT.as_nanos() as u64), 2);
}

#[test]
fn p24_of_an_instance_that_is_gone_datagrams_flow_anew_and_clients_of_connections_are_reminded() {
    for successor in [None, Some(2)] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
            let store = Fake::with_flow(Table::Flows, protocol, state::ANSWERED);
            store.replace_instance(successor);
            let lifetimes = Lifetimes::default();
            // A moment after their last packets, and before the first full sync.
            let now = end_of(Duration::ZERO);
            let swept = sweep(&store, now, &lifetimes, Scope::OfGoneInstances).expect("swept");
            if protocol == PROTOCOL_TCP {
                assert_eq!(swept.unaware, [forward_key_of(protocol)]);
                assert_eq!(store.entries(), 2, "for its client to be told");
                let now = end_of(lifetimes.tcp_reset);
                sweep(&store, now, &lifetimes, Scope::OfGoneInstances).expect("swept");
            } else {
                assert!(swept.unaware.is_empty());
            }
            assert_eq!(store.entries(), 0, "{protocol}");
        }
    }
}

#[test]
fn clients_that_know_that_their_connection_is_over_are_not_reminded() {
    for state in [
        0,
        state::ANSWERED | state::RESET,
        state::ANSWERED | state::FIN_FORWARD | state::FIN_REVERSE,
        state::ANSWERED | state::PUBLISHED,
    ] {
        let store = Fake::with_flow(Table::Flows, PROTOCOL_TCP, state);
        store.replace_instance(None);
        let swept = sweep(&store, end_of(Duration::ZERO), &Lifetimes::default(), Scope::All).expect("swept");
        assert!(swept.unaware.is_empty(), "{state:#x}");
    }
}

#[test]
fn n64_before_the_first_full_sync_no_flow_of_a_present_instance_goes() {
    let store = Fake::with_flow(Table::Flows, PROTOCOL_UDP, state::ANSWERED);
    let now = end_of(Duration::from_secs(100_000));
    let lifetimes = Lifetimes::default();
    let swept = sweep(&store, now, &lifetimes, Scope::OfGoneInstances).expect("swept");
    assert_eq!((swept.removed, store.entries()), (0, 2));
}

#[test]
fn an_instance_that_comes_while_the_tables_are_read_keeps_its_flows() {
    let store = Fake::with_flow(Table::Flows, PROTOCOL_UDP, state::ANSWERED);
    let mut key = forward_key_of(PROTOCOL_UDP);
    key.source_port = [0x99, 0x99];
    let flow = Flow {
        incarnation: 2,
        instance: INDEX,
        last_seen: LAST_SEEN,
        shown: SERVICE,
        ..Flow::default()
    };
    store.enter(Table::Flows, key, flow);
    // Read for the first flows, replaced before the last one is looked at.
    *store.next_incarnation.borrow_mut() = Some(2);
    let swept = sweep(&store, end_of(Duration::ZERO), &Lifetimes::default(), Scope::All);
    swept.expect("swept");
    assert!(store.get(Table::Flows, &key).expect("read").is_some());
}

#[test]
fn what_flows_lead_to_is_told() {
    let store = Fake::with_flow(Table::Unanswered, PROTOCOL_UDP, 0);
    let swept = sweep(&store, 0, &Lifetimes::default(), Scope::All).expect("swept");
    assert!(swept.leads_to(INDEX) && !swept.leads_to(INDEX + 1));
    assert!(swept.chose(Ipv4Addr::from(SERVICE)));
    assert!(!swept.chose(Ipv4Addr::from(INSTANCE)) && !swept.chose(Ipv4Addr::new(10, 18, 55, 55)));
    assert_eq!((swept.flows, swept.unanswered), (0, 2));
}

/// The first moment in which something has rested for a lifetime.
fn end_of(lifetime: Duration) -> u64 {
    let unit = UNIT.as_nanos() as u64;
    (u64::from(LAST_SEEN) + 1) * unit + lifetime.as_nanos() as u64
}

fn forward_key_of(protocol: u8) -> FlowKey {
    FlowKey {
        source: CLIENT,
        destination: SERVICE,
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol,
        zero: [0; 3],
    }
}

/// As seen under another source port than the client's own.
fn answers_of(protocol: u8) -> FlowKey {
    FlowKey {
        source: INSTANCE,
        destination: CLIENT,
        source_port: 80_u16.to_be_bytes(),
        destination_port: 40_001_u16.to_be_bytes(),
        protocol,
        zero: [0; 3],
    }
}

/// Tables in memory.
struct Fake {
    flows: RefCell<HashMap<FlowKey, (Table, Flow)>>,
    instances: RefCell<HashMap<u32, Instance>>,
    /// Used between the walk and the second look: when.
    used_after_reading: RefCell<Option<(FlowKey, u32)>>,
    /// Takes the place of the instance after it was read for the first time.
    next_incarnation: RefCell<Option<u64>>,
}

impl Default for Fake {
    fn default() -> Self {
        let instance = Instance {
            incarnation: 1,
            address: INSTANCE,
            ..Instance::default()
        };
        Self {
            flows: RefCell::default(),
            instances: RefCell::new(HashMap::from([(INDEX, instance)])),
            used_after_reading: RefCell::default(),
            next_incarnation: RefCell::default(),
        }
    }
}

impl Fake {
    fn with_flow(table: Table, protocol: u8, state: u8) -> Self {
        let fake = Self::default();
        let forward = Flow {
            incarnation: 1,
            instance: INDEX,
            last_seen: LAST_SEEN,
            shown: SERVICE,
            port: 40_001_u16.to_be_bytes(),
            state,
            ..Flow::default()
        };
        let reverse = Flow {
            port: 40_000_u16.to_be_bytes(),
            state: state & (state::ANSWERED | state::PUBLISHED) | state::REVERSE,
            ..forward
        };
        fake.enter(table, forward_key_of(protocol), forward);
        fake.enter(table, answers_of(protocol), reverse);
        fake
    }

    fn enter(&self, table: Table, key: FlowKey, flow: Flow) {
        self.flows.borrow_mut().insert(key, (table, flow));
    }

    fn touch(&self, key: &FlowKey, last_seen: u32) {
        let mut flows = self.flows.borrow_mut();
        let (_, flow) = flows.get_mut(key).expect("an entry");
        flow.last_seen = last_seen;
    }

    fn replace_instance(&self, incarnation: Option<u64>) {
        let instance = Instance {
            incarnation: incarnation.unwrap_or_default(),
            ..Instance::default()
        };
        self.instances.borrow_mut().insert(INDEX, instance);
    }

    fn entries(&self) -> usize {
        self.flows.borrow().len()
    }
}

impl FlowStore for Fake {
    fn for_each(&self, table: Table, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), FlowError> {
        let mut entries: Vec<_> = self
            .flows
            .borrow()
            .iter()
            .map(|(key, value)| (*key, *value))
            .collect();
        entries.sort_by_key(|(key, _)| key.source_port);
        for (key, (of, flow)) in entries {
            if of == table {
                visit(&key, &flow);
            }
        }
        if table == Table::Flows
            && let Some((key, last_seen)) = self.used_after_reading.borrow_mut().take()
        {
            self.touch(&key, last_seen);
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &FlowKey) -> Result<Option<Flow>, FlowError> {
        let flows = self.flows.borrow();
        Ok(flows
            .get(key)
            .filter(|(of, _)| *of == table)
            .map(|(_, flow)| *flow))
    }

    fn remove(&self, table: Table, key: &FlowKey) -> Result<bool, FlowError> {
        let mut flows = self.flows.borrow_mut();
        let is_there = flows.get(key).is_some_and(|(of, _)| *of == table);
        if is_there {
            flows.remove(key);
        }
        Ok(is_there)
    }

    fn instance(&self, index: u32) -> Result<Instance, FlowError> {
        let found = self.instances.borrow().get(&index).copied().unwrap_or_default();
        if let Some(incarnation) = self.next_incarnation.borrow_mut().take() {
            self.replace_instance(Some(incarnation));
        }
        Ok(found)
    }
}
