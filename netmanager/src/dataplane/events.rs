//! The ring in which the programs tell what happens now, and the word that makes them tell it.

use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError, PerCpuArray, RingBuf};
use dataplane_ebpf::tables::{Event, EventRate, Settings};

use super::DataplaneError;
use super::tables::take;

/// Events that each processor tells in about a second.
pub const EVENTS_PER_WINDOW: u32 = 1_000;

/// The ring and what goes with it.
pub struct Events {
    pub ring: EventRing,
    pub settings: EventSettings,
}

/// Whether the programs tell anything, and what they left out.
pub struct EventSettings {
    settings: Array<MapData, Settings>,
    rate: PerCpuArray<MapData, EventRate>,
}

impl Events {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            ring: EventRing(take(programs, "EVENTS")?),
            settings: EventSettings {
                settings: take(programs, "SETTINGS")?,
                rate: take(programs, "EVENT_RATE")?,
            },
        })
    }
}

/// The ring; its descriptor is readable when there are events.
pub struct EventRing(RingBuf<MapData>);

/// The events, in the order in which they happened; none while nothing has.
impl Iterator for EventRing {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            let bytes: &[u8] = &item;
            if bytes.len() >= size_of::<Event>() {
                // SAFETY: the bytes are as many as an event has, and any bytes are a valid event.
                return Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) });
            }
        }
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl EventSettings {
    /// Makes the programs tell events, at most so many per processor and window of 2^30 ns; with zero they tell none.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn tell(&mut self, events_per_window: u32) -> Result<(), DataplaneError> {
        let settings = Settings {
            watching: u32::from(events_per_window > 0),
            events_per_window,
        };
        self.settings
            .set(0, settings, 0)
            .map_err(failed("SETTINGS", "writing"))
    }

    /// Events that were left out since the maps were made.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn left_out(&self) -> Result<u64, DataplaneError> {
        let rates = self.rate.get(&0, 0).map_err(failed("EVENT_RATE", "reading"))?;
        Ok(rates.iter().map(|rate| rate.left_out).sum())
    }
}

fn failed(name: &'static str, operation: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        name,
        operation,
        source,
    }
}
