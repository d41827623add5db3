//! The tables of flows, read in batches: one call of the kernel for thousands of entries.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::Pod;
use dataplane_ebpf::tables::{Flow, FlowKey, Instance, capacity};

use super::sweep::{FlowStore, Table};

/// Entries in one batch; a bucket of the kernel's hash must fit.
const BATCH: usize = 4_096;
/// Beyond that a bucket is not waited for to fit.
const LARGEST_BATCH: usize = 1 << 18;

/// Why a table of flows could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {map}")]
pub struct FlowError {
    pub map: &'static str,
    pub operation: &'static str,
    pub source: io::Error,
}

/// The tables of flows, and the instances that flows lead to.
#[derive(Debug)]
pub struct FlowMaps {
    flows: RawMap<FlowKey, Flow>,
    unanswered: RawMap<FlowKey, Flow>,
    instances: RawMap<u32, Instance>,
}

impl FlowMaps {
    /// Takes handles of its own to the maps `FLOWS`, `UNANSWERED` and `INSTANCES`.
    ///
    /// # Errors
    /// When this process has no file descriptors left.
    pub fn new(
        flows: BorrowedFd<'_>,
        unanswered: BorrowedFd<'_>,
        instances: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        Ok(Self {
            flows: RawMap::new("FLOWS", flows, capacity::FLOWS)?,
            unanswered: RawMap::new("UNANSWERED", unanswered, capacity::UNANSWERED)?,
            instances: RawMap::new("INSTANCES", instances, capacity::INSTANCES)?,
        })
    }

    /// Other handles to the same maps.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::new(
            self.flows.descriptor.as_fd(),
            self.unanswered.descriptor.as_fd(),
            self.instances.descriptor.as_fd(),
        )
    }

    fn table(&self, table: Table) -> &RawMap<FlowKey, Flow> {
        match table {
            Table::Flows => &self.flows,
            Table::Unanswered => &self.unanswered,
        }
    }
}

impl FlowStore for FlowMaps {
    fn for_each(&self, table: Table, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), FlowError> {
        self.table(table).for_each(visit)
    }

    fn get(&self, table: Table, key: &FlowKey) -> Result<Option<Flow>, FlowError> {
        self.table(table).get(key)
    }

    fn remove(&self, table: Table, key: &FlowKey) -> Result<bool, FlowError> {
        self.table(table).remove(key)
    }

    fn instance(&self, index: u32) -> Result<Instance, FlowError> {
        Ok(self.instances.get(&index)?.unwrap_or_default())
    }
}

/// A map by its descriptor. Keys and values have the sizes that the map was made with, which is checked when pins are
/// taken over.
#[derive(Debug)]
struct RawMap<K, V> {
    name: &'static str,
    descriptor: OwnedFd,
    capacity: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod + Default, V: Pod + Default> RawMap<K, V> {
    fn new(name: &'static str, descriptor: BorrowedFd<'_>, capacity: u32) -> io::Result<Self> {
        Ok(Self {
            name,
            descriptor: descriptor.try_clone_to_owned()?,
            capacity,
            types: PhantomData,
        })
    }

    fn get(&self, key: &K) -> Result<Option<V>, FlowError> {
        let mut value = V::default();
        let mut attributes = self.element(key, &raw mut value as u64);
        // SAFETY: key and value have the sizes of the map's and outlive the call.
        match unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.failed("reading", error)),
        }
    }

    /// Whether the key was there.
    fn remove(&self, key: &K) -> Result<bool, FlowError> {
        let mut attributes = self.element(key, 0);
        // SAFETY: the key has the size of the map's and outlives the call.
        match unsafe { call(BPF_MAP_DELETE_ELEM, &mut attributes) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed("removing from", error)),
        }
    }

    /// Shows every entry that is there all the time; one that comes or goes meanwhile may be shown or not.
    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), FlowError> {
        let mut keys = vec![K::default(); BATCH];
        let mut values = vec![V::default(); BATCH];
        let mut position = 0_u32;
        let mut is_first = true;
        loop {
            let mut next = 0_u32;
            let mut attributes = Batch {
                position: if is_first { 0 } else { &raw const position as u64 },
                next: &raw mut next as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: keys.len() as u32,
                map: self.number(),
                ..Batch::default()
            };
            // SAFETY: both buffers hold `count` elements of the map's sizes, the positions are words, and all of them
            // outlive the call.
            let result = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
            let is_last = match result {
                Ok(()) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // A bucket does not fit.
                    Some(libc::ENOSPC) if keys.len() < LARGEST_BATCH => {
                        keys.resize(keys.len() * 2, K::default());
                        values.resize(values.len() * 2, V::default());
                        continue;
                    }
                    Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP) if is_first => {
                        return self.for_each_key(visit);
                    }
                    _ => return Err(self.failed("reading", error)),
                },
            };
            let count = attributes.count as usize;
            for (key, value) in keys.iter().zip(&values).take(count) {
                visit(key, value);
            }
            if is_last {
                return Ok(());
            }
            (position, is_first) = (next, false);
        }
    }

    /// The same, one entry at a time, for a kernel that knows no batches. A key that goes while it is passed begins the
    /// walk anew, so its length is bounded.
    fn for_each_key(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), FlowError> {
        let mut key: Option<K> = None;
        for _ in 0..2 * self.capacity {
            let mut next = K::default();
            let mut attributes = Element {
                map: self.number(),
                key: key.as_ref().map_or(0, |key| &raw const *key as u64),
                value: &raw mut next as u64,
                ..Element::default()
            };
            // SAFETY: both keys have the size of the map's and outlive the call.
            match unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(self.failed("reading", error)),
            }
            if let Some(value) = self.get(&next)? {
                visit(&next, &value);
            }
            key = Some(next);
        }
        Ok(())
    }

    fn element(&self, key: &K, value: u64) -> Element {
        Element {
            map: self.number(),
            key: &raw const *key as u64,
            value,
            ..Element::default()
        }
    }

    fn number(&self) -> u32 {
        self.descriptor.as_raw_fd().cast_unsigned()
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> FlowError {
        FlowError {
            map: self.name,
            operation,
            source,
        }
    }
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// What the kernel says of what it does not have, an error of its own that `libc` does not name.
const ENOTSUPP: i32 = 524;

/// The part of the kernel's `union bpf_attr` that is about one element. Addresses are numbers there.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    /// Address of the value, or of the next key.
    value: u64,
    flags: u64,
}

/// The part of the kernel's `union bpf_attr` that is about many elements.
#[repr(C)]
#[derive(Default)]
struct Batch {
    /// Address of where to go on; zero to begin.
    position: u64,
    /// Address of where to put that.
    next: u64,
    keys: u64,
    values: u64,
    /// Room for as many; afterwards, how many there are.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Element>() == 32 && size_of::<Batch>() == 56);

/// # Safety
/// The addresses in `attributes` must be valid for what `command` reads and writes there.
unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes no more than the size that it is given; the caller vouches for the rest.
    let code = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
