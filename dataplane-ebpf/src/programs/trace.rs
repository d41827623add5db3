//! What a walk did, for tests that look at more than the verdict. Where it is not asked for, the verifier removes all of
//! it from the programs.

use dataplane_ebpf::tables::Trace;

use super::maps::TRACE;

/// Whether walks are traced, set when the programs are loaded.
#[unsafe(no_mangle)]
static TRACE_WALKS: u32 = 0;

#[inline(always)]
fn entry() -> Option<*mut Trace> {
    // SAFETY: a valid static; volatile, because its value is set between compilation and loading.
    if unsafe { core::ptr::read_volatile(&raw const TRACE_WALKS) } == 0 {
        return None;
    }
    TRACE.get_ptr_mut(0)
}

/// A walk begins.
#[inline(always)]
pub fn begin() {
    if let Some(entry) = entry() {
        // SAFETY: a value of this CPU alone; the verifier has seen the null check. The same below.
        unsafe { *entry = Trace::default() };
    }
}

/// The walk ends under this row of `COUNTERS`.
#[inline(always)]
pub fn conclude(row: u32) {
    if let Some(entry) = entry() {
        // SAFETY: as above.
        unsafe { (*entry).row = row + 1 };
    }
}

/// The packet leaves by an interface, in one of the ways of `tables::exit`.
#[inline(always)]
pub fn leave(exit: u32, interface: u32) {
    if let Some(entry) = entry() {
        // SAFETY: as above.
        unsafe {
            (*entry).exit = exit;
            (*entry).interface = interface;
        }
    }
}

/// The packet goes to the node with this index.
#[inline(always)]
pub fn tunnel(node: u32) {
    if let Some(entry) = entry() {
        // SAFETY: as above.
        unsafe { (*entry).node = node };
    }
}

/// A flow is looked up in one of the tables.
#[inline(always)]
pub fn look_up() {
    if let Some(entry) = entry() {
        // SAFETY: as above.
        unsafe { (*entry).look_ups += 1 };
    }
}
