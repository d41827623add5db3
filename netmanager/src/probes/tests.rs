use std::net::Ipv4Addr;

use super::*;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;

fn key(last: u8) -> NodeKey {
    NodeKey {
        address: Ipv4Addr::new(192, 0, 2, last),
        port: 50_103,
    }
}

fn target(last: u8) -> Target {
    Target {
        key: key(last),
        index: last.into(),
        metered: false,
        has_answered: false,
    }
}

/// What the network does with a probe that leaves at this time for this node: how long it takes, if it comes back.
type Network = fn(u64, NodeKey) -> Option<u64>;

/// Probes in a world of their own.
struct World {
    probes: Probes,
    now: u64,
    chance: u64,
    /// Node, index, nonce and arrival of the answers that are noted and not looked up yet.
    noted: BTreeMap<(NodeKey, u32), (u64, u64)>,
    /// Departures.
    left: Vec<(u64, NodeKey)>,
}

impl World {
    fn new(settings: Settings, targets: &[Target]) -> Self {
        let mut probes = Probes::new(settings);
        probes.follow(targets, SECOND);
        Self {
            probes,
            now: SECOND,
            chance: 1,
            noted: BTreeMap::new(),
            left: Vec::new(),
        }
    }

    /// Lets time go by; what happened, with the time.
    fn run(&mut self, duration: u64, network: Network) -> Vec<(u64, Event)> {
        let end = self.now + duration;
        let mut happened = Vec::new();
        while let Some(next) = self.probes.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            for key in self.probes.due(self.now) {
                let mut events = Vec::new();
                for (index, nonce) in self.probes.under_way(key) {
                    if let Some((noted, at)) = self.noted.get(&(key, index)).copied()
                        && noted == nonce
                        && at <= self.now
                    {
                        self.probes.answered(key, index, at, &mut events);
                    }
                }
                self.chance = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(99);
                if let Some(request) = self.probes.advance(key, self.now, self.chance, &mut events) {
                    self.left.push((self.now, key));
                    self.probes.sent(&request, self.now);
                    if let Some(took) = network(self.now, key) {
                        self.noted
                            .insert((key, request.index), (request.nonce, self.now + took));
                    }
                }
                happened.extend(events.into_iter().map(|event| (self.now, event)));
            }
        }
        self.now = end;
        happened
    }

    fn events(&mut self, duration: u64, network: Network) -> Vec<Event> {
        self.run(duration, network)
            .into_iter()
            .map(|(_, event)| event)
            .collect()
    }
}

fn one() -> World {
    World::new(Settings::default(), &[target(1)])
}

#[test]
fn the_distance_of_a_new_node_is_known_within_an_interval() {
    let mut world = one();
    let happened = world.run(SECOND, |_, _| Some(2 * MILLISECOND));
    let [(at, Event::Distance(node, 2_000))] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(node, key(1));
    assert!(at - SECOND < 250 * MILLISECOND, "{at}");
    let opinion = world.probes.opinion(key(1)).expect("known");
    let (round_trip, deviation) = opinion.round_trip.expect("measured");
    assert_eq!(round_trip, Duration::from_millis(2));
    assert!(deviation < Duration::from_millis(1));
    assert!(opinion.alive && opinion.loss == 0.0);
    // From then on at the interval, a tenth more or less.
    world.left.clear();
    world.run(10 * SECOND, |_, _| Some(2 * MILLISECOND));
    assert!((36..=45).contains(&world.left.len()), "{}", world.left.len());
}

#[test]
fn a_node_that_misses_probes_for_a_second_is_silent_until_it_answers_twice() {
    let mut world = one();
    world.run(5 * SECOND, |_, _| Some(MILLISECOND));
    let down = world.now;
    let happened = world.run(5 * SECOND, |_, _| None);
    let [(at, Event::Silent(node))] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(node, key(1));
    assert!(
        (SECOND..1_300 * MILLISECOND).contains(&(at - down)),
        "{}",
        at - down
    );
    assert!(!world.probes.opinion(key(1)).expect("known").alive);

    let up = world.now;
    let happened = world.run(5 * SECOND, |_, _| Some(MILLISECOND));
    let [(at, Event::There(node))] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(node, key(1));
    assert!(
        (250 * MILLISECOND..900 * MILLISECOND).contains(&(at - up)),
        "{}",
        at - up
    );
}

#[test]
fn single_losses_and_single_answers_change_nothing() {
    let mut world = one();
    world.run(5 * SECOND, |_, _| Some(MILLISECOND));
    // Every other is lost.
    let lossy: Network = |now, _| (now % (600 * MILLISECOND) < 300 * MILLISECOND).then_some(MILLISECOND);
    assert_eq!(world.events(60 * SECOND, lossy), []);
    assert!(world.probes.opinion(key(1)).expect("known").loss > 0.3);

    world.run(5 * SECOND, |_, _| None);
    // One answer in two seconds does not bring it back.
    let rare: Network = |now, _| (now % (2 * SECOND) < 200 * MILLISECOND).then_some(MILLISECOND);
    assert_eq!(world.events(60 * SECOND, rare), []);
}

#[test]
fn a_far_node_is_not_silent() {
    let mut world = one();
    let happened = world.events(30 * SECOND, |_, _| Some(600 * MILLISECOND));
    assert_eq!(happened, [Event::Distance(key(1), 600_000)]);
    assert!(world.probes.opinion(key(1)).expect("known").loss < 0.5);
}

#[test]
fn a_node_that_has_never_answered_is_never_silent_and_asked_rarely() {
    let mut world = one();
    assert_eq!(world.events(600 * SECOND, |_, _| None), []);
    assert!(world.probes.opinion(key(1)).expect("known").alive);
    assert!(world.left.len() < 200, "{}", world.left.len());
    // Once it answers, its silence means something.
    world.run(20 * SECOND, |_, _| Some(MILLISECOND));
    assert_eq!(world.events(5 * SECOND, |_, _| None), [Event::Silent(key(1))]);
}

#[test]
fn a_node_that_has_answered_an_earlier_process_may_be_silent_from_the_start() {
    let known = Target {
        has_answered: true,
        ..target(1)
    };
    let mut world = World::new(Settings::default(), &[known]);
    let happened = world.run(5 * SECOND, |_, _| None);
    let [(at, Event::Silent(node))] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(node, key(1));
    assert!(at - SECOND < 1_300 * MILLISECOND, "{at}");
}

#[test]
fn a_process_that_was_held_up_calls_nobody_silent() {
    let mut world = one();
    world.run(5 * SECOND, |_, _| Some(MILLISECOND));
    // The last probe is lost, and nothing is sent for half a minute.
    world.run(200 * MILLISECOND, |_, _| None);
    world.now += 30 * SECOND;
    assert_eq!(world.events(5 * SECOND, |_, _| Some(MILLISECOND)), []);
}

#[test]
fn an_answer_that_came_before_its_probe_left_means_nothing() {
    let mut probes = Probes::new(Settings::default());
    probes.follow(&[target(1)], SECOND);
    let mut events = Vec::new();
    assert_eq!(probes.due(SECOND), [key(1)]);
    let request = probes.advance(key(1), SECOND, 7, &mut events).expect("due");
    probes.sent(&request, SECOND + 10);
    probes.answered(key(1), request.index, SECOND + 9, &mut events);
    assert_eq!((probes.under_way(key(1)), events), (Vec::new(), Vec::new()));
    assert_eq!(probes.opinion(key(1)).expect("known").round_trip, None);
}

#[test]
fn with_many_nodes_the_interval_grows_and_the_rate_does_not() {
    let settings = Settings {
        per_second: 100,
        ..Settings::default()
    };
    let targets: Vec<Target> = (1..=200).map(target).collect();
    let mut world = World::new(settings, &targets);
    world.run(20 * SECOND, |_, _| Some(MILLISECOND));
    for second in 1..20 {
        let within = |time: &&(u64, NodeKey)| time.0 / SECOND == second;
        let number = world.left.iter().filter(within).count();
        assert!(number <= 120, "second {second}: {number}");
    }
    // Two seconds apart, so that four are missed after eight.
    let down = world.now;
    let happened = world.run(20 * SECOND, |_, key| {
        (key.address.octets()[3] != 9).then_some(MILLISECOND)
    });
    let [(at, Event::Silent(node))] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(node, key(9));
    assert!((8 * SECOND..12 * SECOND).contains(&(at - down)), "{}", at - down);
}

#[test]
fn metered_nodes_are_asked_rarely() {
    let metered = Target {
        metered: true,
        ..target(1)
    };
    let mut world = World::new(Settings::default(), &[metered, target(2)]);
    world.run(60 * SECOND, |_, _| Some(MILLISECOND));
    world.left.clear();
    world.run(100 * SECOND, |_, _| Some(MILLISECOND));
    let number = |key| world.left.iter().filter(|(_, left)| *left == key).count();
    assert!((18..=23).contains(&number(key(1))), "{}", number(key(1)));
    assert!((360..=450).contains(&number(key(2))), "{}", number(key(2)));
}

#[test]
fn nodes_come_and_go() {
    let mut world = World::new(Settings::default(), &[target(1), target(2)]);
    world.run(2 * SECOND, |_, _| Some(MILLISECOND));
    world.probes.follow(&[target(2), target(3)], world.now);
    world.left.clear();
    world.run(2 * SECOND, |_, _| Some(MILLISECOND));
    let asked: BTreeSet<NodeKey> = world.left.iter().map(|(_, key)| *key).collect();
    assert_eq!(asked, BTreeSet::from([key(2), key(3)]));
    assert_eq!(world.probes.opinion(key(1)), None);
    // Another index is another entry of the table.
    let moved = Target {
        index: 77,
        ..target(2)
    };
    world.probes.follow(&[moved], world.now);
    assert_eq!(world.probes.opinion(key(2)).expect("new").round_trip, None);
    world.probes.follow(&[], world.now);
    assert_eq!(world.probes.next(), None);
}
