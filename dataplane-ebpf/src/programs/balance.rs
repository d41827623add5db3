//! Which instance a new flow to a service goes to.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use dataplane_ebpf::tables::{BackendKey, Service};
use dataplane_ebpf::verdict::DropReason;

use super::maps::{self, BACKENDS, CURSORS, SERVICES};

/// The service at this address, if one is known.
#[inline(always)]
pub fn service(address: [u8; 4]) -> Option<*mut Service> {
    SERVICES.get_ptr_mut(address)
}

/// Index of the next instance of `service`, which is the one at `address`, and that of the service in `CURSORS`.
///
/// Every new flow takes the next slot, so that k·n flows go to n backends exactly k times each while the set
/// does not change. A set is exchanged by one store; a reader that holds the previous one and misses a slot of
/// it reads the service once more.
#[inline(always)]
pub fn next(service: *mut Service, address: [u8; 4]) -> Result<(u32, u32), DropReason> {
    match slot(service) {
        Some(chosen) => Ok(chosen),
        None => match SERVICES.get_ptr_mut(address).and_then(slot) {
            Some(chosen) => Ok(chosen),
            None => Err(DropReason::NoBackend),
        },
    }
}

#[inline(always)]
fn slot(service: *mut Service) -> Option<(u32, u32)> {
    // SAFETY: callers pass a pointer that the verifier has seen checked. `set` is one word, so its generation
    // and number belong together.
    let (set, id) = unsafe {
        let now = maps::coarse_time();
        if (*service).last_used != now {
            (*service).last_used = now;
        }
        (core::ptr::read_volatile(&raw const (*service).set), (*service).id)
    };
    let backends = u64::from(set.backends());
    if backends == 0 {
        return None;
    }
    let cursor = CURSORS.get_ptr_mut(id)?;
    // SAFETY: a checked pointer to an aligned word. Weaker orderings are compiled to an addition whose result
    // is the addend (LLVM issue 210280).
    let turn = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(cursor, 1) };
    let key = BackendKey {
        service: id,
        generation: set.generation(),
        slot: (turn % backends) as u32,
    };
    // SAFETY: the value is copied at once.
    let instance = unsafe { BACKENDS.get(key) }.copied()?;
    Some((instance, id))
}
