//! Fragments that wait for the first of their datagram.
//!
//! The data plane hands a fragment up when it does not know the ports of its datagram yet, and the first fragment
//! after it, which brings them. Here the first goes first, the others behind it. Bounded per datagram, per source and
//! in all; what waits in vain is given back too, for the data plane to drop and count. The clock is handed in.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane_ebpf::address::in_overlay;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_FRAGMENT_MASK, IPV4_LENGTH, IPV4_OFFSET_MASK, PROTOCOL_UDP,
    UDP_LENGTH,
};

/// Bytes of the header that the tap puts before each frame.
const VIRTIO_HEADER: usize = 10;

/// How long a fragment waits for the first of its datagram.
pub const HELD_FOR: Duration = Duration::from_secs(1);
/// Bytes that wait for one datagram: the longest, in frames.
pub const BYTES_PER_DATAGRAM: usize = 128 << 10;
/// Bytes that wait in all.
pub const BYTES: usize = 16 << 20;
/// Bytes that wait of one source: no container takes the room of all others.
pub const BYTES_PER_SOURCE: usize = BYTES / 8;
/// Datagrams that are known at once.
pub const DATAGRAMS: usize = 8_192;
/// Datagrams of one source that are known at once.
pub const DATAGRAMS_PER_SOURCE: usize = DATAGRAMS / 8;
/// What a frame takes besides its bytes, about.
const FRAME_OVERHEAD: usize = 64;

/// What all fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// They came through the tunnel: the frame is the outer packet's, everything else here the inner one's.
    pub tunnelled: bool,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub identification: u16,
    pub protocol: u8,
}

/// A fragment, as its headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub key: Key,
    /// It has the transport header.
    pub is_first: bool,
}

impl Fragment {
    /// What the frame carries, if it is a fragment in or through the overlay. A frame begins with the tap's own header.
    #[must_use]
    pub fn of(frame: &[u8], tunnel_port: u16) -> Option<Self> {
        let frame = frame.get(VIRTIO_HEADER..)?;
        if frame.get(ETHERNET_LENGTH - 2..ETHERNET_LENGTH)? != ETHERTYPE_IPV4 {
            return None;
        }
        let packet = frame.get(ETHERNET_LENGTH..)?;
        let destination = packet.get(16..20)?.try_into().ok()?;
        if in_overlay(destination) {
            return Self::of_packet(packet, false);
        }
        // The data plane hands up datagrams for the tunnel without options, and whole.
        let is_tunnel = *packet.first()? == 0x45
            && *packet.get(9)? == PROTOCOL_UDP
            && word(packet, 6)? & IPV4_FRAGMENT_MASK == 0
            && word(packet, IPV4_LENGTH + 2)? == tunnel_port;
        is_tunnel
            .then(|| Self::of_packet(packet.get(IPV4_LENGTH + UDP_LENGTH..)?, true))
            .flatten()
    }

    fn of_packet(packet: &[u8], tunnelled: bool) -> Option<Self> {
        let fragment = word(packet, 6)?;
        if fragment & IPV4_FRAGMENT_MASK == 0 {
            return None;
        }
        Some(Self {
            key: Key {
                tunnelled,
                source: address(packet, 12)?,
                destination: address(packet, 16)?,
                identification: word(packet, 4)?,
                protocol: *packet.get(9)?,
            },
            is_first: fragment & IPV4_OFFSET_MASK == 0,
        })
    }
}

fn word(packet: &[u8], offset: usize) -> Option<u16> {
    let bytes = packet.get(offset..offset + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes))
}

fn address(packet: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(offset..offset + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

/// What became of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The first has come: these frames go on, in this order.
    Go(Vec<Vec<u8>>),
    /// It waits for the first.
    Held,
    /// No room. The data plane drops it, and counts it.
    Full,
}

/// The fragments of one datagram.
#[derive(Debug)]
struct Datagram {
    frames: Vec<Vec<u8>>,
    bytes: usize,
    /// The first has come: what else was on its way up goes on behind it.
    has_begun: bool,
    until: Instant,
}

/// What one source has here.
#[derive(Debug, Default)]
struct Share {
    datagrams: usize,
    bytes: usize,
}

/// The fragments that wait.
#[derive(Debug, Default)]
pub struct Fragments {
    datagrams: HashMap<Key, Datagram>,
    /// When each ends, in order. A datagram that has begun is in it twice, and only the later one counts.
    ends: VecDeque<(Instant, Key)>,
    bytes: usize,
    shares: HashMap<Ipv4Addr, Share>,
}

impl Fragments {
    /// Takes a fragment in.
    pub fn take(&mut self, fragment: Fragment, frame: &[u8], now: Instant) -> Taken {
        let Fragment { key, is_first } = fragment;
        if is_first {
            return Taken::Go(self.begin(key, frame, now));
        }
        let known = self.datagrams.get(&key);
        if known.is_some_and(|datagram| datagram.has_begun) {
            return Taken::Go(vec![frame.to_vec()]);
        }
        let cost = cost(frame);
        let room_in_datagram = match known {
            Some(datagram) => datagram.bytes + cost <= BYTES_PER_DATAGRAM,
            None => cost <= BYTES_PER_DATAGRAM && self.has_room_for_datagram(key),
        };
        let of_source = self.shares.get(&key.source).map_or(0, |share| share.bytes);
        if !room_in_datagram || self.bytes + cost > BYTES || of_source + cost > BYTES_PER_SOURCE {
            return Taken::Full;
        }
        let datagram = self.datagram(key, now);
        datagram.frames.push(frame.to_vec());
        datagram.bytes += cost;
        self.bytes += cost;
        self.shares.entry(key.source).or_default().bytes += cost;
        Taken::Held
    }

    /// The first fragment, and what has waited for it.
    fn begin(&mut self, key: Key, frame: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let mut frames = vec![frame.to_vec()];
        if !self.datagrams.contains_key(&key) && !self.has_room_for_datagram(key) {
            // What comes behind it is full as well, and comes back to ports that are known by then.
            return frames;
        }
        let until = now + HELD_FOR;
        let datagram = self.datagram(key, now);
        let bytes = std::mem::take(&mut datagram.bytes);
        frames.append(&mut datagram.frames);
        if !datagram.has_begun {
            datagram.has_begun = true;
            if datagram.until != until {
                datagram.until = until;
                self.ends.push_back((until, key));
            }
        }
        self.give_back(key.source, 0, bytes);
        frames
    }

    fn datagram(&mut self, key: Key, now: Instant) -> &mut Datagram {
        match self.datagrams.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let until = now + HELD_FOR;
                self.ends.push_back((until, key));
                self.shares.entry(key.source).or_default().datagrams += 1;
                entry.insert(Datagram {
                    frames: Vec::new(),
                    bytes: 0,
                    has_begun: false,
                    until,
                })
            }
        }
    }

    fn has_room_for_datagram(&self, key: Key) -> bool {
        let of_source = self.shares.get(&key.source).map_or(0, |share| share.datagrams);
        self.datagrams.len() < DATAGRAMS && of_source < DATAGRAMS_PER_SOURCE
    }

    fn give_back(&mut self, source: Ipv4Addr, datagrams: usize, bytes: usize) {
        self.bytes -= bytes;
        if let Entry::Occupied(mut entry) = self.shares.entry(source) {
            let share = entry.get_mut();
            share.datagrams -= datagrams;
            share.bytes -= bytes;
            // One entry per source that has something here, else sources would be collected for ever.
            if share.datagrams == 0 && share.bytes == 0 {
                entry.remove();
            }
        }
    }

    /// When [`Self::expire`] has something to do next.
    #[must_use]
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(until, _)| *until)
    }

    /// Forgets the datagrams whose time is over: the frames that waited in vain.
    pub fn expire(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut in_vain = Vec::new();
        while let Some((until, key)) = self.ends.front().copied()
            && until <= now
        {
            self.ends.pop_front();
            if let Entry::Occupied(entry) = self.datagrams.entry(key)
                && entry.get().until == until
            {
                let mut datagram = entry.remove();
                in_vain.append(&mut datagram.frames);
                self.give_back(key.source, 1, datagram.bytes);
            }
        }
        in_vain
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + FRAME_OVERHEAD
}

#[cfg(test)]
mod tests;
