//! What happened to packets, read from the kernel's counters.

use dataplane_ebpf::tables::Counter;
use dataplane_ebpf::verdict::{Action, DropReason, Hook, index};
use serde::{Deserialize, Serialize};

use super::{DataplaneError, Tables};

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRow {
    /// Where: the name of a hook.
    pub hook: String,
    /// The name of an action or of a drop reason.
    pub name: String,
    /// Whether the packets were dropped.
    pub dropped: bool,
    pub packets: u64,
    pub bytes: u64,
    /// What the name means.
    pub meaning: String,
}

/// All counters that are not zero, summed over the CPUs, in the order of hooks and names.
///
/// # Errors
/// When the kernel refuses to read the map.
pub fn read(tables: &Tables) -> Result<Vec<CounterRow>, DataplaneError> {
    let mut rows = read_all(tables)?;
    rows.retain(|row| row.packets > 0);
    Ok(rows)
}

/// As [`read`], with those that are zero.
///
/// # Errors
/// As [`read`].
pub fn read_all(tables: &Tables) -> Result<Vec<CounterRow>, DataplaneError> {
    let mut rows = Vec::new();
    let actions = Action::ALL
        .iter()
        .map(|action| (action.row(), action.as_str(), action.meaning(), false));
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.row(), reason.as_str(), reason.meaning(), true));
    let names: Vec<_> = actions.chain(drops).collect();
    for hook in Hook::ALL {
        for &(row, name, meaning, dropped) in &names {
            let Counter { packets, bytes } = sum(tables, index(hook, row))?;
            // A reset answers a packet that is not carried on.
            let dropped = dropped || name == Action::Reset.as_str();
            rows.push(CounterRow {
                hook: hook.as_str().to_owned(),
                name: name.to_owned(),
                dropped,
                packets,
                bytes,
                meaning: meaning.to_owned(),
            });
        }
    }
    Ok(rows)
}

fn sum(tables: &Tables, index: u32) -> Result<Counter, DataplaneError> {
    let values = tables
        .counters
        .get(&index, 0)
        .map_err(|source| DataplaneError::Map {
            name: "COUNTERS",
            operation: "reading",
            source,
        })?;
    let packets = values.iter().map(|counter| counter.packets).sum();
    let bytes = values.iter().map(|counter| counter.bytes).sum();
    Ok(Counter { packets, bytes })
}
