//! The maps, and the few ways in which the programs use them. Sizes and meaning: `dataplane_ebpf::tables`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use dataplane_ebpf::tables::{
    BackendKey, Counter, EARLY_FRAGMENTS_PER_WINDOW, Endpoint, EventRate, Flow, FlowKey, Fragment,
    FragmentKey, Instance, Node, Opening, Peer, Published, PublishedKey, RateWindow, SENT_ERRORS_PER_WINDOW,
    SentProbe, Service, ServiceCounter, Settings, Trace, TunnelKey, UNKNOWN_PEERS_PER_WINDOW, capacity,
};
use dataplane_ebpf::verdict;

#[map]
pub static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(capacity::FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub static UNANSWERED: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(capacity::UNANSWERED, 0);
#[map]
pub static INSTANCES: Array<Instance> = Array::with_max_entries(capacity::INSTANCES, 0);
#[map]
pub static INSTANCE_INDEX: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(capacity::INSTANCES, BPF_F_NO_PREALLOC);
#[map]
pub static NODES: Array<Node> = Array::with_max_entries(capacity::NODES, 0);
#[map]
pub static PEERS: HashMap<[u8; 4], Peer> = HashMap::with_max_entries(capacity::NODES, BPF_F_NO_PREALLOC);
#[map]
pub static TUNNELS: HashMap<TunnelKey, u32> = HashMap::with_max_entries(capacity::NODES, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: HashMap<[u8; 4], Endpoint> =
    HashMap::with_max_entries(capacity::ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<[u8; 4], Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<BackendKey, u32> =
    HashMap::with_max_entries(capacity::BACKENDS, BPF_F_NO_PREALLOC);
#[map]
pub static CURSORS: Array<u64> = Array::with_max_entries(capacity::SERVICES, 0);
#[map]
pub static LOCAL_ADDRESSES: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(capacity::LOCAL_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
pub static PUBLISHED: HashMap<PublishedKey, Published> =
    HashMap::with_max_entries(capacity::PUBLISHED, BPF_F_NO_PREALLOC);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map]
pub static EARLY_FRAGMENTS: PerCpuArray<RateWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
static OPENING: PerCpuArray<Opening> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static UNKNOWN_PEERS: PerCpuArray<RateWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SENT_ERRORS: PerCpuArray<RateWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static PROBES: Array<SentProbe> = Array::with_max_entries(capacity::PROBES, 0);
#[map]
pub static PROBE_RATE: PerCpuArray<RateWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TRACE: PerCpuArray<Trace> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(verdict::COUNTERS, 0);
#[map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounter> =
    PerCpuArray::with_max_entries(capacity::SERVICE_COUNTERS, 0);

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENT_BYTES, 0);
#[map]
pub static EVENT_RATE: PerCpuArray<EventRate> = PerCpuArray::with_max_entries(1, 0);

/// Index of `oak0`, set when the programs are loaded.
#[unsafe(no_mangle)]
static OAK0_INTERFACE: u32 = 0;
/// The UDP port on which this node takes tunnel datagrams, set when the programs are loaded.
#[unsafe(no_mangle)]
static TUNNEL_PORT: u16 = dataplane_ebpf::address::TUNNEL_PORT;

/// The node's own namespace address, set when the programs are loaded.
#[unsafe(no_mangle)]
static HOST_ADDRESS: [u8; 4] = [0; 4];

/// Probes that each CPU answers in a window of 2^30 ns, set when the programs are loaded.
#[unsafe(no_mangle)]
static PROBES_PER_WINDOW: u32 = dataplane_ebpf::probe::ANSWERED_PER_SECOND;

/// How the outer headers are taken off, set when the programs are loaded.
#[unsafe(no_mangle)]
static DECAPSULATION_FLAGS: u64 = dataplane_ebpf::tables::decapsulation::NAMED;

/// One of `tables::decapsulation`.
#[inline(always)]
pub fn decapsulation_flags() -> u64 {
    // SAFETY: as in `oak0_interface`.
    unsafe { core::ptr::read_volatile(&raw const DECAPSULATION_FLAGS) }
}

#[inline(always)]
pub fn oak0_interface() -> u32 {
    // SAFETY: a valid static; volatile, because its value is set between compilation and loading.
    unsafe { core::ptr::read_volatile(&raw const OAK0_INTERFACE) }
}

/// In network byte order.
#[inline(always)]
pub fn tunnel_port() -> [u8; 2] {
    // SAFETY: as in `oak0_interface`.
    unsafe { core::ptr::read_volatile(&raw const TUNNEL_PORT) }.to_be_bytes()
}

#[inline(always)]
pub fn host_address() -> [u8; 4] {
    // SAFETY: as in `oak0_interface`.
    unsafe { core::ptr::read_volatile(&raw const HOST_ADDRESS) }
}

/// The clock of `last_seen`, `last_used` and rate windows: units of 2^30 ns, cheap to read.
#[inline(always)]
pub fn coarse_time() -> u32 {
    // SAFETY: the helper takes no argument and only reads the clock.
    (unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() } >> 30) as u32
}

/// A copy of a map's value: the map may replace or recycle it at any moment, so nothing holds on to it.
#[inline(always)]
pub fn endpoint(address: [u8; 4]) -> Option<Endpoint> {
    // SAFETY: the value is copied at once; a concurrent update may be seen in part only for fields that are
    // each meaningful alone.
    unsafe { ENDPOINTS.get(address) }.copied()
}

/// The instance in a slot, unless the slot is vacant.
#[inline(always)]
pub fn instance(index: u32) -> Option<&'static Instance> {
    INSTANCES.get(index).filter(|instance| instance.incarnation != 0)
}

/// Index of the instance with this instance address.
#[inline(always)]
pub fn instance_index(address: [u8; 4]) -> Option<u32> {
    // SAFETY: the value is copied at once.
    unsafe { INSTANCE_INDEX.get(address) }.copied()
}

/// Whether `address` is one of this node's own.
#[inline(always)]
pub fn is_local(address: [u8; 4]) -> bool {
    // SAFETY: only the presence is used.
    unsafe { LOCAL_ADDRESSES.get(address) }.is_some()
}

/// Which endpoint has published this port.
#[inline(always)]
pub fn published(protocol: u8, port: [u8; 2]) -> Option<Published> {
    let key = PublishedKey {
        port,
        protocol,
        zero: 0,
    };
    // SAFETY: the value is copied at once.
    unsafe { PUBLISHED.get(key) }.copied()
}

/// Who sends from this outer address.
#[inline(always)]
pub fn peer(address: [u8; 4]) -> Option<Peer> {
    // SAFETY: the value is copied at once.
    unsafe { PEERS.get(address) }.copied()
}

/// Whether a tunnel listens at this address and port.
#[inline(always)]
fn is_tunnel(address: [u8; 4], port: [u8; 2]) -> bool {
    // SAFETY: only the presence is used.
    unsafe {
        TUNNELS.get(TunnelKey {
            address,
            port,
            zero: [0; 2],
        })
    }
    .is_some()
}

/// Whether a tunnel may listen there: at the port of this node's own tunnel, which is that of most, or at a known one.
#[inline(always)]
pub fn is_any_tunnel(address: [u8; 4], port: [u8; 2]) -> bool {
    port == tunnel_port() || is_tunnel(address, port)
}

/// Room for the flow that is being opened on this CPU.
#[inline(always)]
pub fn opening() -> Option<&'static mut Opening> {
    // SAFETY: a value of this CPU alone, used by one walk at a time, since walks on one CPU do not interrupt each other;
    // each walk asks once.
    OPENING.get_ptr_mut(0).map(|opening| unsafe { &mut *opening })
}

/// Whether another packet from an unknown outer source may be handed up in this window.
#[inline(always)]
pub fn may_hand_up_stranger() -> bool {
    may_pass(&UNKNOWN_PEERS, UNKNOWN_PEERS_PER_WINDOW)
}

/// Whether another fragment may be handed up in this window to wait for its first.
#[inline(always)]
pub fn may_hand_up_fragment() -> bool {
    may_pass(&EARLY_FRAGMENTS, EARLY_FRAGMENTS_PER_WINDOW)
}

/// Whether another ICMP error may be sent in this window.
#[inline(always)]
pub fn may_send_error() -> bool {
    may_pass(&SENT_ERRORS, SENT_ERRORS_PER_WINDOW)
}

/// Whether another probe may be answered in this window.
#[inline(always)]
pub fn may_answer_probe() -> bool {
    // SAFETY: as in `oak0_interface`.
    let most = unsafe { core::ptr::read_volatile(&raw const PROBES_PER_WINDOW) };
    may_pass(&PROBE_RATE, most)
}

/// Counts one more in this window, unless there were `limit` already.
#[inline(always)]
fn may_pass(windows: &PerCpuArray<RateWindow>, limit: u32) -> bool {
    let Some(rate) = windows.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a value of this CPU alone, and a program is not preempted by another on the same map's CPU.
    let rate = unsafe { &mut *rate };
    let window = coarse_time();
    if rate.window != window {
        *rate = RateWindow { window, passed: 0 };
    }
    let allowed = rate.passed < limit;
    if allowed {
        rate.passed += 1;
    }
    allowed
}

/// Adds one packet to a row of `COUNTERS`.
#[inline(always)]
pub fn count(index: u32, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a value of this CPU alone; the verifier has seen the null check.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// Which way a packet of a service goes, as seen by the client.
#[derive(Clone, Copy)]
pub enum Direction {
    Sent,
    Received,
}

/// Adds one packet to the row of a flow's service; `service` as in [`Flow::service`].
#[inline(always)]
pub fn count_service(service: u32, direction: Direction, bytes: u64) {
    if service == 0 {
        return;
    }
    let row = (service - 1).min(capacity::SERVICE_COUNTERS - 1);
    if let Some(counter) = SERVICE_COUNTERS.get_ptr_mut(row) {
        // SAFETY: as in `count`.
        unsafe {
            let counter = match direction {
                Direction::Sent => &mut (*counter).sent,
                Direction::Received => &mut (*counter).received,
            };
            counter.packets += 1;
            counter.bytes += bytes;
        }
    }
}
