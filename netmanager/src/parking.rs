//! Packets that wait for their destination to be known.
//!
//! Bounded in every direction: one destination that nobody answers for takes nothing from the others, one
//! source that scans leaves room for the other sources, and a flood of unknown destinations takes a fixed amount
//! of memory. The clock is handed in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane_ebpf::header::ETHERNET_LENGTH;

/// Bytes of the header that the tap puts before each frame.
const VIRTIO_HEADER: usize = 10;

/// Bytes that wait for one destination.
pub const BYTES_PER_DESTINATION: usize = 4 << 20;
/// Bytes that wait in all.
pub const BYTES: usize = 32 << 20;
/// Destinations that are waited for at once.
pub const DESTINATIONS: usize = 4_096;
/// Bytes of one source that wait, wherever they go: no container takes the room of all others.
pub const BYTES_PER_SOURCE: usize = BYTES / 4;
/// Destinations that are waited for at once because one source was the first to send there.
pub const DESTINATIONS_PER_SOURCE: usize = 256;
/// Destinations that are refused at once: as many as there are service and instance addresses, so that no flood
/// of them makes one be asked for again before its time.
pub const REFUSED: usize = 65_536;
/// How long an address that does not exist is not asked for again.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// How long an address is not asked for again after the question failed.
pub const FAILED_FOR: Duration = Duration::from_millis(500);
/// Packets to addresses that do not exist that go back to the data plane in a second, which answers them with "host
/// unreachable". A flood of them is dropped without an answer.
pub const ANSWERS: u32 = 100;
/// The same, of one source.
pub const ANSWERS_PER_SOURCE: u32 = 10;
/// What [`ANSWERS`] and [`ANSWERS_PER_SOURCE`] are counted over.
const ANSWERS_IN: Duration = Duration::from_secs(1);

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// The first for its destination: somebody has to ask.
    First,
    /// It waits with others.
    Waiting,
    /// Dropped: no room.
    Full,
    /// Dropped: the destination was asked for a moment ago, in vain.
    Refused,
    /// Nobody has this address, and the sender is to be told so.
    Absent,
}

/// Counts of packets that did not wait, or waited in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub full: u64,
    pub refused: u64,
    pub unanswered: u64,
}

/// The source address of a packet; 0.0.0.0 where it is too short to have one.
type Source = Ipv4Addr;

/// The packets that wait for one destination.
#[derive(Debug)]
struct Queue {
    packets: Vec<Vec<u8>>,
    bytes: usize,
    /// The source of the first packet.
    opener: Source,
}

/// What one source has waiting.
#[derive(Debug, Default)]
struct Share {
    destinations: usize,
    bytes: usize,
}

/// A destination that is not asked for again.
#[derive(Debug)]
struct Refusal {
    until: Instant,
    /// Nobody has the address; otherwise nobody could say.
    is_absent: bool,
}

/// The senders that were told in this second that nobody has an address.
#[derive(Debug, Default)]
struct Answers {
    since: Option<Instant>,
    all: u32,
    by_source: HashMap<Source, u32>,
}

impl Answers {
    /// Whether one more packet of this source may be answered.
    fn may(&mut self, source: Source, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + ANSWERS_IN) {
            *self = Self {
                since: Some(now),
                ..Self::default()
            };
        }
        if self.all >= ANSWERS {
            return false;
        }
        let answered = self.by_source.entry(source).or_default();
        if *answered >= ANSWERS_PER_SOURCE {
            return false;
        }
        *answered += 1;
        self.all += 1;
        true
    }
}

/// The waiting packets by destination.
#[derive(Debug, Default)]
pub struct Parking {
    waiting: HashMap<Ipv4Addr, Queue>,
    bytes: usize,
    shares: HashMap<Source, Share>,
    refused: HashMap<Ipv4Addr, Refusal>,
    answers: Answers,
    dropped: Dropped,
}

impl Parking {
    /// Takes a packet in.
    pub fn park(&mut self, destination: Ipv4Addr, packet: &[u8], now: Instant) -> Parked {
        let source = source(packet);
        if let Some(refusal) = self.refused.get(&destination) {
            if now < refusal.until {
                if refusal.is_absent && self.answers.may(source, now) {
                    return Parked::Absent;
                }
                self.dropped.refused += 1;
                return Parked::Refused;
            }
            self.refused.remove(&destination);
        }
        let is_first = !self.waiting.contains_key(&destination);
        if !self.has_room(destination, source, packet.len()) {
            self.dropped.full += 1;
            return Parked::Full;
        }
        let queue = self.waiting.entry(destination).or_insert_with(|| Queue {
            packets: Vec::new(),
            bytes: 0,
            opener: source,
        });
        queue.packets.push(packet.to_vec());
        queue.bytes += packet.len();
        self.bytes += packet.len();
        let share = self.shares.entry(source).or_default();
        share.bytes += packet.len();
        share.destinations += usize::from(is_first);
        if is_first { Parked::First } else { Parked::Waiting }
    }

    fn has_room(&self, destination: Ipv4Addr, source: Source, length: usize) -> bool {
        let empty = Share::default();
        let share = self.shares.get(&source).unwrap_or(&empty);
        let room_in_queue = match self.waiting.get(&destination) {
            Some(queue) => queue.bytes + length <= BYTES_PER_DESTINATION,
            None => {
                length <= BYTES_PER_DESTINATION
                    && self.waiting.len() < DESTINATIONS
                    && share.destinations < DESTINATIONS_PER_SOURCE
            }
        };
        room_in_queue && self.bytes + length <= BYTES && share.bytes + length <= BYTES_PER_SOURCE
    }

    /// Hands out what waits for a destination that is known now, in the order of arrival.
    pub fn release(&mut self, destination: Ipv4Addr) -> Vec<Vec<u8>> {
        let Some(queue) = self.waiting.remove(&destination) else {
            return Vec::new();
        };
        self.bytes -= queue.bytes;
        self.give_back(queue.opener, 1, 0);
        for packet in &queue.packets {
            self.give_back(source(packet), 0, packet.len());
        }
        queue.packets
    }

    fn give_back(&mut self, source: Source, destinations: usize, bytes: usize) {
        if let Entry::Occupied(mut entry) = self.shares.entry(source) {
            let share = entry.get_mut();
            share.destinations -= destinations;
            share.bytes -= bytes;
            // One entry per source that has something waiting, else sources would be collected for ever.
            if share.destinations == 0 && share.bytes == 0 {
                entry.remove();
            }
        }
    }

    /// Drops what waits for a destination about which nobody could say anything, and refuses it for a while.
    pub fn refuse(&mut self, destination: Ipv4Addr, now: Instant, period: Duration) {
        self.dropped.unanswered += self.release(destination).len() as u64;
        self.remember(destination, now, period, false);
    }

    /// Refuses a destination that nobody has for a while. What waited for it is handed out as far as its senders may
    /// be told, and dropped otherwise.
    pub fn deny(&mut self, destination: Ipv4Addr, now: Instant) -> Vec<Vec<u8>> {
        let mut packets = self.release(destination);
        let waiting = packets.len();
        packets.retain(|packet| self.answers.may(source(packet), now));
        self.dropped.unanswered += (waiting - packets.len()) as u64;
        self.remember(destination, now, UNKNOWN_FOR, true);
        packets
    }

    fn remember(&mut self, destination: Ipv4Addr, now: Instant, period: Duration, is_absent: bool) {
        if self.refused.len() >= REFUSED {
            self.refused.retain(|_, refusal| now < refusal.until);
        }
        if self.refused.len() < REFUSED {
            let until = now + period;
            self.refused.insert(destination, Refusal { until, is_absent });
        }
    }

    /// Lets a destination be asked for at once: something was said about it.
    pub fn forgive(&mut self, destination: Ipv4Addr) {
        self.refused.remove(&destination);
    }

    /// Packets that were dropped here so far.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// How many destinations are waited for, and how many bytes wait.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.bytes)
    }

    /// Whether something waits for the destination.
    pub fn is_waiting(&self, destination: Ipv4Addr) -> bool {
        self.waiting.contains_key(&destination)
    }
}

/// Who sent a packet, as the tap hands it up: its own header, Ethernet, IPv4.
fn source(packet: &[u8]) -> Source {
    const SOURCE: usize = VIRTIO_HEADER + ETHERNET_LENGTH + 12;
    let octets: Option<[u8; 4]> = packet
        .get(SOURCE..SOURCE + 4)
        .and_then(|octets| octets.try_into().ok());
    octets.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 2);

    #[test]
    fn packets_leave_in_the_order_of_their_arrival() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        assert_eq!(parking.park(A, b"1", now), Parked::First);
        assert_eq!(parking.park(B, b"other", now), Parked::First);
        assert_eq!(parking.park(A, b"2", now), Parked::Waiting);
        assert_eq!(parking.release(A), [b"1".to_vec(), b"2".to_vec()]);
        assert_eq!(parking.release(A), Vec::<Vec<u8>>::new());
        assert_eq!(
            parking.park(A, b"3", now),
            Parked::First,
            "somebody has to ask again"
        );
    }

    #[test]
    fn one_destination_leaves_room_for_the_others() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        let packet = vec![0; BYTES_PER_DESTINATION / 4];
        let outcomes: Vec<_> = (0..5).map(|_| parking.park(A, &packet, now)).collect();
        assert_eq!(outcomes[4], Parked::Full);
        assert_eq!(parking.park(B, &packet, now), Parked::First);
        assert_eq!(parking.dropped().full, 1);
    }

    #[test]
    fn many_unknown_destinations_take_a_fixed_amount_of_memory() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        for index in 0..DESTINATIONS as u32 + 10 {
            let source = 0x0a12_0000 + index / DESTINATIONS_PER_SOURCE as u32;
            parking.park(Ipv4Addr::from(0x0a1e_0000 + index), &frame(source, 60), now);
        }
        assert_eq!(
            (parking.waiting.len(), parking.dropped().full),
            (DESTINATIONS, 10)
        );
    }

    #[test]
    fn one_source_leaves_room_for_the_others() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        let (scanner, other) = (frame(0x0a12_0002, 60), frame(0x0a12_0003, 60));
        let destinations: Vec<Ipv4Addr> = (0..DESTINATIONS_PER_SOURCE as u32 + 1)
            .map(|index| Ipv4Addr::from(0x0a1e_0000 + index))
            .collect();
        let outcomes: Vec<_> = destinations
            .iter()
            .map(|destination| parking.park(*destination, &scanner, now))
            .collect();
        assert_eq!(outcomes[0], Parked::First);
        assert_eq!(outcomes[DESTINATIONS_PER_SOURCE], Parked::Full);
        let last = destinations[DESTINATIONS_PER_SOURCE];
        assert_eq!(parking.park(last, &other, now), Parked::First);
        assert_eq!(
            parking.park(last, &scanner, now),
            Parked::Waiting,
            "it waits where another waits"
        );
        for destination in destinations {
            parking.refuse(destination, now, UNKNOWN_FOR);
        }
        assert_eq!((parking.bytes, parking.shares.len()), (0, 0), "all is given back");
    }

    #[test]
    fn one_source_does_not_take_all_bytes() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        let large = frame(0x0a12_0002, BYTES_PER_DESTINATION);
        let outcomes = [1, 2, 3].map(|last| parking.park(Ipv4Addr::new(10, 30, 1, last), &large, now));
        assert_eq!(outcomes, [Parked::First, Parked::First, Parked::Full]);
        let other = frame(0x0a12_0003, BYTES_PER_DESTINATION);
        assert_eq!(parking.park(A, &other, now), Parked::First);
    }

    #[test]
    fn every_address_can_be_refused() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        for index in 0..REFUSED as u32 {
            parking.refuse(Ipv4Addr::from(0x0a1e_0000 + index), now, UNKNOWN_FOR);
        }
        let last = Ipv4Addr::new(10, 30, 255, 255);
        assert_eq!(parking.park(last, b"syn", now), Parked::Refused);
    }

    #[test]
    fn senders_to_an_address_that_nobody_has_are_told_at_a_limited_rate() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        let (scanner, other) = (frame(0x0a12_0002, 60), frame(0x0a12_0003, 60));
        let limit = ANSWERS_PER_SOURCE as usize;
        for _ in 0..limit + 5 {
            parking.park(A, &scanner, now);
        }
        assert_eq!(parking.deny(A, now).len(), limit);
        assert_eq!(parking.dropped().unanswered, 5);
        assert_eq!(parking.park(A, &scanner, now), Parked::Refused);
        assert_eq!(parking.park(A, &other, now), Parked::Absent, "of another source");
        let next = now + ANSWERS_IN;
        assert_eq!(
            parking.park(A, &scanner, next),
            Parked::Absent,
            "in another second"
        );
        parking.refuse(B, next, FAILED_FOR);
        assert_eq!(
            parking.park(B, &scanner, next),
            Parked::Refused,
            "nobody knows whether it exists"
        );
        let told = (0..2 * ANSWERS).filter(|index| {
            let frame = frame(0x0a12_0100 + index, 60);
            parking.park(A, &frame, next + ANSWERS_IN) == Parked::Absent
        });
        assert_eq!(told.count(), ANSWERS as usize, "of all sources together");
    }

    /// A frame of the tap from an address.
    fn frame(source: u32, length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        frame[26 + 10..26 + 14].copy_from_slice(&source.to_be_bytes());
        frame
    }

    #[test]
    fn a_refused_destination_is_asked_for_again_after_its_period() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        parking.park(A, b"1", now);
        parking.refuse(A, now, UNKNOWN_FOR);
        assert_eq!(parking.dropped().unanswered, 1);
        let just_before = now + UNKNOWN_FOR - Duration::from_millis(1);
        assert_eq!(parking.park(A, b"2", just_before), Parked::Refused);
        assert_eq!(parking.park(A, b"3", now + UNKNOWN_FOR), Parked::First);
        parking.refuse(A, now, UNKNOWN_FOR);
        parking.forgive(A);
        assert_eq!(parking.park(A, b"4", now), Parked::First);
    }
}
