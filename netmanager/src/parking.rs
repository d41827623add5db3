//! Packets that wait for their destination to be known.
//!
//! Bounded in every direction: one destination that nobody answers for takes nothing from the others, and a
//! flood of unknown destinations takes a fixed amount of memory. The clock is handed in.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Bytes that wait for one destination.
pub const BYTES_PER_DESTINATION: usize = 4 << 20;
/// Bytes that wait in all.
pub const BYTES: usize = 32 << 20;
/// Destinations that are waited for at once.
pub const DESTINATIONS: usize = 4_096;
/// How long an address that does not exist is not asked for again.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// How long an address is not asked for again after the question failed.
pub const FAILED_FOR: Duration = Duration::from_millis(500);

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
}

/// Counts of packets that did not wait, or waited in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub full: u64,
    pub refused: u64,
    pub unanswered: u64,
}

/// The packets that wait for one destination.
#[derive(Debug, Default)]
struct Queue {
    packets: Vec<Vec<u8>>,
    bytes: usize,
}

/// The waiting packets by destination.
#[derive(Debug, Default)]
pub struct Parking {
    waiting: HashMap<Ipv4Addr, Queue>,
    bytes: usize,
    refused: HashMap<Ipv4Addr, Instant>,
    dropped: Dropped,
}

impl Parking {
    /// Takes a packet in.
    pub fn park(&mut self, destination: Ipv4Addr, packet: &[u8], now: Instant) -> Parked {
        if let Some(until) = self.refused.get(&destination) {
            if now < *until {
                self.dropped.refused += 1;
                return Parked::Refused;
            }
            self.refused.remove(&destination);
        }
        let is_first = !self.waiting.contains_key(&destination);
        if self.bytes + packet.len() > BYTES || (is_first && self.waiting.len() >= DESTINATIONS) {
            self.dropped.full += 1;
            return Parked::Full;
        }
        let queue = self.waiting.entry(destination).or_default();
        if queue.bytes + packet.len() > BYTES_PER_DESTINATION {
            self.dropped.full += 1;
            return Parked::Full;
        }
        queue.packets.push(packet.to_vec());
        queue.bytes += packet.len();
        self.bytes += packet.len();
        if is_first { Parked::First } else { Parked::Waiting }
    }

    /// Hands out what waits for a destination that is known now, in the order of arrival.
    pub fn release(&mut self, destination: Ipv4Addr) -> Vec<Vec<u8>> {
        let queue = self.waiting.remove(&destination).unwrap_or_default();
        self.bytes -= queue.bytes;
        queue.packets
    }

    /// Drops what waits for a destination that nobody knows, and refuses it for a while.
    pub fn refuse(&mut self, destination: Ipv4Addr, now: Instant, period: Duration) {
        self.dropped.unanswered += self.release(destination).len() as u64;
        if self.refused.len() >= DESTINATIONS {
            self.refused.retain(|_, until| now < *until);
        }
        if self.refused.len() < DESTINATIONS {
            self.refused.insert(destination, now + period);
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

    /// Whether something waits for the destination.
    pub fn is_waiting(&self, destination: Ipv4Addr) -> bool {
        self.waiting.contains_key(&destination)
    }
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
            parking.park(Ipv4Addr::from(0x0a1e_0000 + index), b"syn", now);
        }
        assert_eq!(
            (parking.waiting.len(), parking.dropped().full),
            (DESTINATIONS, 10)
        );
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
