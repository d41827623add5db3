//! The maps, typed.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use dataplane_ebpf::tables::{
    BackendKey, Counter, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Instance, Node, Peer, Published,
    PublishedKey, SentProbe, Service, ServiceCounter, Trace, TunnelKey,
};

use super::{DataplaneError, Events};
use crate::flows::FlowMaps;

/// An address as a key, in network byte order.
pub type Address = [u8; 4];

/// Handles to the maps of the data plane. Dropping them closes the handles; pinned maps stay.
pub struct Tables {
    /// Flows that both sides have spoken in.
    pub flows: HashMap<MapData, FlowKey, Flow>,
    /// All others.
    pub unanswered: HashMap<MapData, FlowKey, Flow>,
    /// The same two for whoever looks at all flows.
    pub flow_maps: FlowMaps,
    pub instances: Array<MapData, Instance>,
    pub instance_index: HashMap<MapData, Address, u32>,
    pub nodes: Array<MapData, Node>,
    pub peers: HashMap<MapData, Address, Peer>,
    pub tunnels: HashMap<MapData, TunnelKey, u32>,
    pub endpoints: HashMap<MapData, Address, Endpoint>,
    pub services: HashMap<MapData, Address, Service>,
    pub backends: HashMap<MapData, BackendKey, u32>,
    pub cursors: Array<MapData, u64>,
    pub local_addresses: HashMap<MapData, Address, u32>,
    pub published: HashMap<MapData, PublishedKey, Published>,
    pub probes: Array<MapData, SentProbe>,
    pub fragments: HashMap<MapData, FragmentKey, Fragment>,
    pub counters: PerCpuArray<MapData, Counter>,
    /// What happens now; taken by whoever reads it.
    pub events: Option<Events>,
    pub service_counters: PerCpuArray<MapData, ServiceCounter>,
    pub trace: PerCpuArray<MapData, Trace>,
}

impl Tables {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            flow_maps: flow_maps(programs)?,
            flows: take(programs, "FLOWS")?,
            unanswered: take(programs, "UNANSWERED")?,
            instances: take(programs, "INSTANCES")?,
            instance_index: take(programs, "INSTANCE_INDEX")?,
            nodes: take(programs, "NODES")?,
            peers: take(programs, "PEERS")?,
            tunnels: take(programs, "TUNNELS")?,
            endpoints: take(programs, "ENDPOINTS")?,
            services: take(programs, "SERVICES")?,
            backends: take(programs, "BACKENDS")?,
            cursors: take(programs, "CURSORS")?,
            local_addresses: take(programs, "LOCAL_ADDRESSES")?,
            published: take(programs, "PUBLISHED")?,
            probes: take(programs, "PROBES")?,
            fragments: take(programs, "FRAGMENTS")?,
            counters: take(programs, "COUNTERS")?,
            events: Some(Events::take(programs)?),
            service_counters: take(programs, "SERVICE_COUNTERS")?,
            trace: take(programs, "TRACE")?,
        })
    }
}

/// To be called before the maps are taken.
fn flow_maps(programs: &Ebpf) -> Result<FlowMaps, DataplaneError> {
    let failed = |name| {
        move |source| DataplaneError::Map {
            name,
            operation: "opening",
            source,
        }
    };
    let descriptor = |name| descriptor(programs, name).map_err(failed(name));
    let maps = FlowMaps::new(
        descriptor("FLOWS")?,
        descriptor("UNANSWERED")?,
        descriptor("INSTANCES")?,
    );
    maps.map_err(|error| failed("FLOWS")(aya::maps::MapError::IoError(error)))
}

fn descriptor<'a>(programs: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, aya::maps::MapError> {
    let Some(Map::HashMap(map) | Map::LruHashMap(map) | Map::Array(map)) = programs.map(name) else {
        let name = name.to_owned();
        return Err(aya::maps::MapError::InvalidName { name });
    };
    Ok(map.fd().as_fd())
}

pub(super) fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let operation = "opening";
    let missing = || aya::maps::MapError::InvalidName {
        name: name.to_owned(),
    };
    let map = programs.take_map(name).ok_or_else(missing);
    map.and_then(T::try_from).map_err(|source| DataplaneError::Map {
        name,
        operation,
        source,
    })
}
