//! Keys and values of the maps, as kernel and user lay them out in memory.
//!
//! Addresses and ports are in network byte order, everything else in the host's. There is no padding that the
//! compiler chose: every byte is named, because a key is compared byte by byte. No field is a `bool`, an enum
//! or an `Option`, because the other side may hold any bits.
//!
//! | map | kind | entries | answers | when full |
//! |---|---|---|---|---|
//! | `FLOWS` | hash | 262,144 | where does this 5-tuple go: flows that both sides have spoken in | flows stay in `UNANSWERED` |
//! | `UNANSWERED` | LRU hash | 65,536 | the same, for all others | the least recently used go |
//! | `INSTANCES` | array | 65,536 | where is instance *i* | user space refuses the next |
//! | `INSTANCE_INDEX` | hash | 65,536 | which *i* has this instance address | user space refuses the next |
//! | `NODES` | array | 16,384 | how is node *n* reached | user space refuses the next |
//! | `PEERS` | hash | 16,384 | who sends from this address, and where it arrives | user space refuses the next |
//! | `TUNNELS` | hash | 16,384 | is this address and port a tunnel | user space refuses the next |
//! | `ENDPOINTS` | hash | 1,024 | who is behind this local namespace address | the attach fails |
//! | `SERVICES` | hash | 65,536 | which backends has this service address | user space refuses the next |
//! | `BACKENDS` | hash | 262,144 | which instance is in this slot | user space refuses the service |
//! | `CURSORS` | array | 65,536 | which slot is next | goes with `SERVICES` |
//! | `LOCAL_ADDRESSES` | hash | 256 | is this address mine | user space refuses the next |
//! | `PUBLISHED` | hash | 16,384 | which endpoint has published this port | the attach fails |
//! | `FRAGMENTS` | LRU hash | 8,192 | which ports has the first fragment of this datagram | the least recently used go |
//! | `OPENING` | array per CPU | 1 | room for the flow that is being opened | – |
//! | `UNKNOWN_PEERS` | array per CPU | 1 | how many strangers were let up this second | – |
//! | `PROBES` | array | 65,536 | which probe of node *n* is under way in this slot | goes with `NODES` |
//! | `PROBE_RATE` | array per CPU | 1 | how many probes were answered this second | – |
//! | `EARLY_FRAGMENTS` | array per CPU | 1 | how many fragments were handed up this second to wait | – |
//! | `SENT_ERRORS` | array per CPU | 1 | how many ICMP errors were sent this second | – |
//! | `COUNTERS` | array per CPU | hooks × reasons | what happened to packets | – |
//! | `TRACE` | array per CPU | 1 | what the last walk did, where programs are loaded to say so | – |
//! | `SERVICE_COUNTERS` | array per CPU | 16,384 | what goes to and comes from service *i* | the last row is shared |
//! | `SETTINGS` | array | 1 | does anybody watch | – |
//! | `EVENTS` | ring | 256 KiB | what happens now | the event is left out and counted |
//! | `EVENT_RATE` | array per CPU | 1 | how many events were told this second, and left out | – |

/// Version of the layout of everything in this file. It names the folder of the pins: a process never takes
/// over maps of another layout. Raise it with every change to a size, an offset or a meaning.
pub const LAYOUT: u32 = 3;

/// Entries of each map, as in the table above.
pub mod capacity {
    pub const FLOWS: u32 = 262_144;
    pub const UNANSWERED: u32 = 65_536;
    pub const INSTANCES: u32 = 65_536;
    pub const NODES: u32 = 16_384;
    pub const ENDPOINTS: u32 = 1_024;
    pub const SERVICES: u32 = 65_536;
    pub const BACKENDS: u32 = 262_144;
    pub const LOCAL_ADDRESSES: u32 = 256;
    pub const PUBLISHED: u32 = 16_384;
    /// [`crate::probe::SLOTS`] for each node.
    pub const PROBES: u32 = NODES * crate::probe::SLOTS;
    pub const FRAGMENTS: u32 = 8_192;
    pub const SERVICE_COUNTERS: u32 = 16_384;
    /// Bytes of the ring `EVENTS`.
    pub const EVENT_BYTES: u32 = 256 * 1024;
}

/// Flags of `bpf_skb_adjust_room` for taking the outer headers off (`linux/bpf.h`).
pub mod decapsulation {
    /// Segments of a superframe stay as large as they are.
    pub const UNNAMED: u64 = 1 << 0;
    /// The same, and the headers that go are IPv4: what the kernel notes of the packet changes with them.
    pub const NAMED: u64 = UNNAMED | 1 << 7;
}

/// Index in `NODES` of this node itself.
pub const THIS_NODE: u32 = 0;
/// Index of the loopback interface, the same in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Key of `FLOWS` and `UNANSWERED`. Forward entries run from a namespace address to a service or instance address, reverse
/// entries from an instance address to a namespace address, so the two kinds never meet. Those of published ports
/// run from any address to one of the node's own outside the overlay, and back from a namespace address to one that
/// is neither a service nor an instance, so they meet neither.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    /// The identifier for ICMP echo requests, zero for replies.
    pub source_port: [u8; 2],
    /// Zero for ICMP echo requests, the identifier for replies.
    pub destination_port: [u8; 2],
    pub protocol: u8,
    pub zero: [u8; 3],
}

impl FlowKey {
    /// The key of the packets that answer this one, when neither side is translated.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }
}

/// Value of `FLOWS` and `UNANSWERED`: a decision. Place and path are looked up per packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flow {
    /// Incarnation of the instance when the decision was made; the flow ends when it differs.
    pub incarnation: u64,
    /// Index in `INSTANCES` of the far end.
    pub instance: u32,
    /// When a packet was last seen, in units of 2^30 ns of the monotonic clock.
    pub last_seen: u32,
    /// Forward: the destination the client chose. Reverse: the same, shown to the client as source.
    pub shown: [u8; 4],
    /// Published ports only. Forward: the source address the server sees. Reverse: the client's address.
    pub address: [u8; 4],
    /// Forward: the source port the server sees. Reverse: the source port the client chose.
    pub port: [u8; 2],
    /// Published ports only. Forward: the port of the server. Reverse: the port the client chose, shown to it as
    /// source.
    pub other_port: [u8; 2],
    /// Published ports only: index of the interface at which the client's packets come in.
    pub interface: u32,
    /// The service that the client chose: its index in `CURSORS` plus one; zero where it chose none.
    pub service: u32,
    /// Bits of [`state`].
    pub state: u8,
    pub zero: [u8; 3],
}

/// Value of `OPENING`: both entries of a flow that is being opened, which would take too much of the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Opening {
    /// What the forward entry says, but for its port until that is known.
    pub forward: Flow,
    /// What the reverse entry says.
    pub reverse: Flow,
    /// The key of the answers, under the source port that is being tried.
    pub answers: FlowKey,
}

/// Bits of [`Flow::state`]. How a flow stands (all but [`REVERSE`](state::REVERSE)) is noted in its forward entry, from
/// which user space tells how long it may rest; the reverse entry only knows that it was answered.
pub mod state {
    /// This entry carries the answers of a flow.
    pub const REVERSE: u8 = 0x01;
    /// An answer was seen.
    pub const ANSWERED: u8 = 0x02;
    /// The client has sent its FIN.
    pub const FIN_FORWARD: u8 = 0x04;
    /// The server has sent its FIN.
    pub const FIN_REVERSE: u8 = 0x08;
    /// One side has reset the connection.
    pub const RESET: u8 = 0x10;
    /// One side has ended the connection: the next SYN may choose anew.
    pub const CLOSING: u8 = FIN_FORWARD | FIN_REVERSE | RESET;
    /// The flow goes to a published port.
    pub const PUBLISHED: u8 = 0x20;
    /// The client of the published port is the node itself.
    pub const FROM_NODE: u8 = 0x40;
}

/// Value of `INSTANCES`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Instance {
    /// Where the instance is. One word, so that a move is seen whole or not at all.
    pub place: Place,
    /// Never reused; zero marks a vacant slot.
    pub incarnation: u64,
    /// The address that the instance shows to others.
    pub address: [u8; 4],
    /// Which application the instance belongs to; zero when unknown.
    pub application: u32,
    /// Bits of [`instance_flags`].
    pub flags: u32,
    pub zero: u32,
}

/// Bits of [`Instance::flags`].
pub mod instance_flags {
    /// Takes no new flows, keeps those it has.
    pub const DRAINING: u32 = 0x01;
}

/// A namespace address and the index of the node it is on.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place(pub u64);

impl Place {
    #[inline(always)]
    pub const fn new(address: [u8; 4], node: u32) -> Self {
        Self(u32::from_ne_bytes(address) as u64 | (node as u64) << 32)
    }

    #[inline(always)]
    pub const fn address(self) -> [u8; 4] {
        (self.0 as u32).to_ne_bytes()
    }

    /// Index in `NODES`.
    #[inline(always)]
    pub const fn node(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Value of `NODES`: the path to a node.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// Monotonic time in ns up to which `ethernet` may be used; afterwards the kernel resolves the neighbour.
    pub valid_until: u64,
    /// Ethernet header towards the node: next hop, own address, EtherType.
    pub ethernet: [u8; 14],
    /// Bits of [`node_flags`].
    pub flags: u16,
    /// Outer source address.
    pub local: [u8; 4],
    /// Outer destination address.
    pub remote: [u8; 4],
    /// Index of the interface towards the node; zero marks a vacant slot.
    pub interface: u32,
    /// The group of nodes that share the outer address `remote` (see `PEERS`); zero is this node.
    pub group: u32,
    /// UDP port of the tunnel at the node.
    pub port: [u8; 2],
    pub zero: [u8; 2],
    /// Largest outer packet on the way, in bytes.
    pub mtu: u32,
    /// Round-trip time in microseconds, zero when not measured.
    pub round_trip: u32,
    pub zero_end: u32,
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// Send from the tunnel port itself: the peer is behind a NAT that maps by source port.
    pub const FIXED_SOURCE_PORT: u16 = 0x01;
    /// The peer is a node of the original system: no frames of our own.
    pub const LEGACY: u16 = 0x02;
    /// The peer does not answer.
    pub const UNREACHABLE: u16 = 0x04;
}

/// Value of `ENDPOINTS`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// The host's end: of the veth, the tap, or `oak0`.
    pub interface: u32,
    /// Index in `INSTANCES` of the endpoint itself.
    pub instance: u32,
    /// The address that the endpoint shows to others.
    pub instance_address: [u8; 4],
    /// Which application the endpoint belongs to; zero when unknown.
    pub application: u32,
    /// The address of the endpoint's own end of the link.
    pub mac: [u8; 6],
    /// One of [`delivery`].
    pub delivery: u8,
    /// Bits of [`endpoint_flags`].
    pub flags: u8,
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The endpoint has published ports: what it sends may be an answer to a client of one of them.
    pub const PUBLISHES: u8 = 0x01;
}

/// Values of [`Endpoint::delivery`].
pub mod delivery {
    /// Straight into the network namespace at the other end of the veth.
    pub const PEER: u8 = 0;
    /// Out of the interface, as for a tap.
    pub const REDIRECT: u8 = 1;
    /// The node itself, through `oak0`.
    pub const HOST: u8 = 2;
}

/// Value of `SERVICES`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Service {
    /// Which backends: one word, so that generation and number always belong together.
    pub set: BackendSet,
    /// Index in `CURSORS`, and first part of the key of `BACKENDS`.
    pub id: u32,
    /// When a flow last chose, in units of 2^30 ns of the monotonic clock.
    pub last_used: u32,
}

/// A generation of backends of a service, their number, and how they were chosen. In the slots behind that number are
/// those that take no new flows at the moment.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BackendSet(pub u64);

impl BackendSet {
    #[inline(always)]
    pub const fn new(generation: u32, backends: u16, policy: u8) -> Self {
        Self(generation as u64 | (backends as u64) << 32 | (policy as u64) << 48)
    }

    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn backends(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// One of [`policy`].
    #[inline(always)]
    pub const fn policy(self) -> u8 {
        (self.0 >> 48) as u8
    }
}

/// Values of [`BackendSet::policy`].
pub mod policy {
    /// Each backend in turn.
    pub const ROUND_ROBIN: u8 = 0;
    /// Each in turn of those backends that are the closest; the others stand in the slots behind them.
    pub const CLOSEST: u8 = 1;
}

/// Key of `BACKENDS`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct BackendKey {
    pub service: u32,
    pub generation: u32,
    pub slot: u32,
}

/// Key of `PUBLISHED`: a port at the node's own addresses.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PublishedKey {
    pub port: [u8; 2],
    pub protocol: u8,
    pub zero: u8,
}

/// Value of `PUBLISHED`: the endpoint that the port leads to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Published {
    /// Incarnation of the instance; the entry means nothing when it differs.
    pub incarnation: u64,
    /// Index in `INSTANCES`.
    pub instance: u32,
    /// The port at the endpoint.
    pub port: [u8; 2],
    pub zero: [u8; 2],
}

/// Key of `TUNNELS`: where a tunnel listens. The value is an index in `NODES`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TunnelKey {
    pub address: [u8; 4],
    pub port: [u8; 2],
    pub zero: [u8; 2],
}

/// Value of `PEERS`: who sends from an outer address, and where it arrives.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Peer {
    /// The group of nodes that share the outer address.
    pub group: u32,
    /// Index of the interface towards it: what claims to come from it arrives there or nowhere. Zero while there is
    /// no way to it.
    pub interface: u32,
}

/// Key of `FRAGMENTS`: what all fragments of a datagram have in common (RFC 791), as they arrive at a hook.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FragmentKey {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub identification: [u8; 2],
    pub protocol: u8,
    pub zero: u8,
}

/// Value of `FRAGMENTS`: what the first fragment says of the others, or that one of these came before it.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fragment {
    /// As in [`FlowKey`].
    pub source_port: [u8; 2],
    /// As in [`FlowKey`].
    pub destination_port: [u8; 2],
    /// When it was written, in units of 2^30 ns of the monotonic clock.
    pub seen: u32,
    /// Not zero: the first fragment has not come yet, and NetManager holds another.
    pub waiting: u32,
}

/// For how many units of [`Fragment::seen`] the ports of a first fragment hold: identifications come again.
pub const FRAGMENT_KEPT: u32 = 4;
/// For how many units of [`Fragment::seen`] a fragment may wait at NetManager, which holds none for longer than 1 s.
pub const FRAGMENT_WAITS: u32 = 1;

/// Fragments before their first that each CPU hands up to NetManager in a window of 2^30 ns.
pub const EARLY_FRAGMENTS_PER_WINDOW: u32 = 4_096;

/// Value of `COUNTERS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Value of `SERVICE_COUNTERS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ServiceCounter {
    /// From clients on this node to the service.
    pub sent: Counter,
    /// From the service to clients on this node.
    pub received: Counter,
}

/// Value of `TRACE`: what the last walk on this CPU did. Written only by programs that are loaded with `TRACE_WALKS` set,
/// which is for tests: on the way a packet costs nothing but what it needs.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Trace {
    /// Row in `COUNTERS`, of all hooks, plus one.
    pub row: u32,
    /// One of [`exit`].
    pub exit: u32,
    /// Index of the interface that the packet leaves by.
    pub interface: u32,
    /// Index in `NODES` of the node that it is tunnelled to.
    pub node: u32,
    /// Flows looked up, in either table.
    pub look_ups: u32,
}

/// Values of [`Trace::exit`]: how a packet leaves the walk.
pub mod exit {
    /// By the verdict alone.
    pub const NONE: u32 = 0;
    /// Into the network namespace at the other end of an interface.
    pub const PEER: u32 = 1;
    /// Out of an interface.
    pub const OUT: u32 = 2;
    /// Out of an interface, by way of the kernel's neighbour table.
    pub const NEIGHBOUR: u32 = 3;
    /// Into an interface, as if it had received the packet.
    pub const INGRESS: u32 = 4;
}

/// Value of `UNKNOWN_PEERS`, `EARLY_FRAGMENTS` and `SENT_ERRORS`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RateWindow {
    /// Which window, in units of 2^30 ns of the monotonic clock.
    pub window: u32,
    /// Packets that passed in it.
    pub passed: u32,
}

/// Value of `PROBES`: a probe that was sent. The index is that of the node times [`crate::probe::SLOTS`], plus the slot.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SentProbe {
    /// Zero when none is under way.
    pub nonce: u64,
    /// When the answer arrived, in ns of the monotonic clock; zero while it has not.
    pub received_at: u64,
}

/// Packets from unknown outer sources that each CPU lets up to NetManager in a window of 2^30 ns.
pub const UNKNOWN_PEERS_PER_WINDOW: u32 = 64;
/// ICMP errors that each CPU sends to endpoints in a window of 2^30 ns.
pub const SENT_ERRORS_PER_WINDOW: u32 = 100;

/// Value of `SETTINGS`: what user space asks of the programs while they run.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Not zero while somebody reads `EVENTS`.
    pub watching: u32,
    /// Events that each CPU tells in a window of 2^30 ns.
    pub events_per_window: u32,
}

/// Value of `EVENT_RATE`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventRate {
    /// Which window, in units of 2^30 ns of the monotonic clock.
    pub window: u32,
    /// Events told in it.
    pub passed: u32,
    /// Events left out since the map was made.
    pub left_out: u64,
}

/// Entry of `EVENTS`: something that happened to a packet or with it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// Monotonic time in ns.
    pub time: u64,
    /// Bytes of the frame as the kernel counts them; zero for a new flow.
    pub length: u32,
    /// Index of the interface at which the program ran; zero for a new flow.
    pub interface: u32,
    /// Addresses, ports and protocol as in [`FlowKey`], of the packet as it was when the walk ended; of a tunnel
    /// datagram those of the inner packet. Zero where the frame does not have them.
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// Outer source address of a tunnel datagram, else zero.
    pub peer: [u8; 4],
    /// New flow: index in `INSTANCES` of the instance that was chosen.
    pub instance: u32,
    /// New flow: the address that this instance shows to others.
    pub instance_address: [u8; 4],
    pub protocol: u8,
    /// One of [`event_kind`].
    pub kind: u8,
    /// End of a walk: the hook, as in [`crate::verdict::Hook`].
    pub hook: u8,
    /// End of a walk: the row of the hook's counters, as in [`crate::verdict`].
    pub row: u8,
    pub zero: [u8; 4],
}

/// Values of [`Event::kind`].
pub mod event_kind {
    /// A walk ended in a drop, a miss or a refusal.
    pub const END: u8 = 1;
    /// A flow has begun.
    pub const FLOW: u8 = 2;
}

// U-73: sizes and the offsets that the programs' single-word loads rely on, for host and bpf alike.
const _: () = {
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Flow>() == 40);
    assert!(size_of::<Opening>() == 96);
    assert!(size_of::<Instance>() == 32 && core::mem::offset_of!(Instance, place) == 0);
    assert!(size_of::<Node>() == 56 && core::mem::offset_of!(Node, ethernet) == 8);
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<Service>() == 16 && core::mem::offset_of!(Service, set) == 0);
    assert!(size_of::<BackendKey>() == 12);
    assert!(size_of::<TunnelKey>() == 8);
    assert!(size_of::<PublishedKey>() == 4);
    assert!(size_of::<Published>() == 16);
    assert!(size_of::<Peer>() == 8);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<ServiceCounter>() == 32);
    assert!(size_of::<RateWindow>() == 8);
    assert!(size_of::<SentProbe>() == 16);
    assert!(capacity::PROBES == 65_536);
    assert!(size_of::<FragmentKey>() == 12);
    assert!(size_of::<Fragment>() == 12);
    assert!(size_of::<Trace>() == 20);
    assert!(size_of::<Settings>() == 8);
    assert!(size_of::<EventRate>() == 16);
    assert!(size_of::<Event>() == 48);
};

#[cfg(feature = "user")]
mod plain_data {
    use super::*;

    macro_rules! plain_data {
        ($($type:ty),+ $(,)?) => {
            // SAFETY: every type listed consists of integers and byte arrays without padding (the sizes are
            // asserted above), so that any bytes are a valid value and all its bytes are initialised.
            $(unsafe impl aya::Pod for $type {})+
        };
    }

    plain_data!(
        FlowKey,
        Flow,
        Instance,
        Node,
        Endpoint,
        Service,
        BackendKey,
        PublishedKey,
        Published,
        TunnelKey,
        Peer,
        Counter,
        ServiceCounter,
        RateWindow,
        SentProbe,
        Trace,
        FragmentKey,
        Fragment,
        Settings,
        EventRate,
        Event
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// U-73: no type has padding: the sizes of the fields add up.
    #[test]
    fn u73_fields_fill_the_types() {
        assert_eq!(size_of::<FlowKey>(), 4 + 4 + 2 + 2 + 1 + 3);
        assert_eq!(size_of::<Flow>(), 8 + 4 + 4 + 4 + 4 + 2 + 2 + 4 + 4 + 1 + 3);
        assert_eq!(size_of::<Instance>(), 8 + 8 + 4 + 4 + 4 + 4);
        assert_eq!(size_of::<Node>(), 8 + 14 + 2 + 4 + 4 + 4 + 4 + 2 + 2 + 4 + 4 + 4);
        assert_eq!(size_of::<Endpoint>(), 4 + 4 + 4 + 4 + 6 + 1 + 1);
        assert_eq!(size_of::<Service>(), 8 + 4 + 4);
        assert_eq!(size_of::<TunnelKey>(), 4 + 2 + 2);
        assert_eq!(size_of::<PublishedKey>(), 2 + 1 + 1);
        assert_eq!(size_of::<Published>(), 8 + 4 + 2 + 2);
        assert_eq!(size_of::<FragmentKey>(), 4 + 4 + 2 + 1 + 1);
        assert_eq!(size_of::<Fragment>(), 2 + 2 + 4 + 4);
        assert_eq!(
            size_of::<Event>(),
            8 + 4 + 4 + 4 + 4 + 2 + 2 + 4 + 4 + 4 + 1 + 1 + 1 + 1 + 4
        );
        assert_eq!(size_of::<EventRate>(), 4 + 4 + 8);
    }

    #[test]
    fn words_give_back_what_went_in() {
        let place = Place::new([10, 18, 0, 66], 16_383);
        assert_eq!((place.address(), place.node()), ([10, 18, 0, 66], 16_383));
        let set = BackendSet::new(u32::MAX, 1_000, policy::ROUND_ROBIN);
        assert_eq!(
            (set.generation(), set.backends(), set.policy()),
            (u32::MAX, 1_000, policy::ROUND_ROBIN)
        );
    }
}
