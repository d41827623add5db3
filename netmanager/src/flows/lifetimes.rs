//! How long a flow may rest, by its protocol and by how it stands.

use std::time::Duration;

use dataplane_ebpf::header::{PROTOCOL_ICMP, PROTOCOL_TCP};
use dataplane_ebpf::tables::{Flow, state};

/// The unit of [`Flow::last_seen`].
pub const UNIT: Duration = Duration::from_nanos(1 << 30);

/// How long a flow may rest before it is taken for ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// TCP, before the server has answered.
    pub tcp_opening: Duration,
    /// TCP, established or closed by one side.
    pub tcp_established: Duration,
    /// TCP, closed by both sides.
    pub tcp_closed: Duration,
    /// TCP, reset by one side, or ended with its instance.
    pub tcp_reset: Duration,
    /// UDP, before the server has answered.
    pub udp_one_way: Duration,
    /// UDP, answered.
    pub udp_answered: Duration,
    pub icmp: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(20),
            tcp_established: Duration::from_secs(3_600),
            tcp_closed: Duration::from_secs(30),
            tcp_reset: Duration::from_secs(40),
            udp_one_way: Duration::from_secs(30),
            udp_answered: Duration::from_secs(180),
            icmp: Duration::from_secs(5),
        }
    }
}

impl Lifetimes {
    /// The lifetime of an entry of this protocol, from what it says itself.
    ///
    /// A connection that is answered and could not move to `FLOWS`, because that is full, counts as established: it is
    /// in a table that makes room by itself.
    pub fn of(&self, protocol: u8, flow: &Flow) -> Duration {
        let has = |bits| flow.state & bits == bits;
        match protocol {
            PROTOCOL_TCP if has(state::RESET) => self.tcp_reset,
            PROTOCOL_TCP if has(state::FIN_FORWARD | state::FIN_REVERSE) => self.tcp_closed,
            PROTOCOL_TCP if has(state::ANSWERED) => self.tcp_established,
            PROTOCOL_TCP => self.tcp_opening,
            PROTOCOL_ICMP => self.icmp,
            _ if has(state::ANSWERED) => self.udp_answered,
            _ => self.udp_one_way,
        }
    }
}

/// How long an entry has rested at least at monotonic time `now`, in ns: the time of its last packet is only known to
/// one [`UNIT`].
pub fn rested(now: u64, last_seen: u32) -> Duration {
    let unit = UNIT.as_nanos() as u64;
    let last = (u64::from(last_seen) + 1).saturating_mul(unit);
    Duration::from_nanos(now.saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use dataplane_ebpf::header::PROTOCOL_UDP;

    use super::*;

    #[test]
    fn n68_each_state_has_its_lifetime() {
        let lifetimes = Lifetimes::default();
        let of = |protocol, state| {
            let flow = Flow {
                state,
                ..Flow::default()
            };
            lifetimes.of(protocol, &flow).as_secs()
        };
        let answered = state::ANSWERED;
        let cases = [
            (PROTOCOL_TCP, 0, 20),
            (PROTOCOL_TCP, answered, 3_600),
            (PROTOCOL_TCP, answered | state::FIN_FORWARD, 3_600),
            (PROTOCOL_TCP, answered | state::FIN_REVERSE, 3_600),
            (
                PROTOCOL_TCP,
                answered | state::FIN_FORWARD | state::FIN_REVERSE,
                30,
            ),
            (PROTOCOL_TCP, answered | state::RESET, 40),
            (
                PROTOCOL_TCP,
                state::RESET | state::FIN_FORWARD | state::FIN_REVERSE,
                40,
            ),
            (PROTOCOL_TCP, state::RESET, 40),
            (PROTOCOL_TCP, answered | state::PUBLISHED, 3_600),
            (PROTOCOL_UDP, 0, 30),
            (PROTOCOL_UDP, answered, 180),
            (PROTOCOL_UDP, answered | state::PUBLISHED, 180),
            (PROTOCOL_ICMP, 0, 5),
            (PROTOCOL_ICMP, answered, 5),
        ];
        for (protocol, state, seconds) in cases {
            assert_eq!(of(protocol, state), seconds, "{protocol} {state:#04x}");
        }
    }

    #[test]
    fn n68_a_flow_never_rests_longer_than_it_does() {
        let unit = UNIT.as_nanos() as u64;
        // Used at the very end of a unit, which is all that the entry says.
        let last_packet = 7 * unit + unit - 1;
        let last_seen = u32::try_from(last_packet / unit).expect("small");
        assert_eq!(rested(last_packet, last_seen), Duration::ZERO);
        assert_eq!(rested(last_packet + 1_000, last_seen), Duration::from_nanos(999));
        assert_eq!(rested(0, u32::MAX), Duration::ZERO, "a clock that is behind");
    }
}
