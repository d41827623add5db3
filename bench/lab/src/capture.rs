//! What a wire carries.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;

/// How often the recording thread looks whether it is to end.
const LOOK_MILLISECONDS: i64 = 50;
/// Enough of a frame for all headers, outer and inner.
const HEADERS: usize = 128;
/// Bytes that wait to be read.
const BUFFER: usize = 8 << 20;
/// The frame is on its way out (`PACKET_OUTGOING`): a bridge shows each frame at both of its ports.
const OUTGOING: u8 = 4;

const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// A UDP datagram as the wire carries it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    /// How its payload begins.
    pub payload: Vec<u8>,
}

/// The addresses, protocol and ports of an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub protocol: u8,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
}

impl Datagram {
    /// The flow of the IPv4 packet that the payload is, where it begins with 0x45: version 4, no options.
    #[must_use]
    pub fn inner(&self) -> Option<Flow> {
        (self.payload.first() == Some(&0x45))
            .then(|| parse_ipv4(&self.payload))?
            .map(|(flow, _)| flow)
    }

    /// Whether the payload is no packet of anybody's, but a word among nodes: neither IPv4 nor IPv6.
    #[must_use]
    pub fn is_among_nodes(&self) -> bool {
        self.payload
            .first()
            .is_some_and(|byte| ![4, 6].contains(&(byte >> 4)))
    }

    fn parse(frame: &[u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        let (flow, payload) = parse_ipv4(&frame[ETHERNET..])?;
        (flow.protocol == UDP).then(|| Self {
            source: flow.source,
            destination: flow.destination,
            payload: payload.get(8..).unwrap_or_default().to_vec(),
        })
    }
}

/// The flow of an IPv4 packet, ports zero where the protocol has none that we know, and what follows its header.
fn parse_ipv4(packet: &[u8]) -> Option<(Flow, &[u8])> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    let protocol = *packet.get(9)?;
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    let payload = packet.get(length..)?;
    let port = |at: usize| match (protocol, payload.get(at..at + 2)) {
        (6 | UDP, Some([high, low])) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    };
    let flow = Flow {
        protocol,
        source: SocketAddrV4::new(address(12)?, port(0)),
        destination: SocketAddrV4::new(address(16)?, port(2)),
    };
    Some((flow, payload))
}

/// Records the UDP datagrams to one port that pass through a namespace, from when it is made until it is ended.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    done: AtomicBool,
    seen: Mutex<Vec<Datagram>>,
}

impl Capture {
    /// Begins. What is sent after this returns is recorded.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let socket = namespace.enter(open)??;
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || record(&socket, port, &told))
            .context("cannot start a thread")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What was seen so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Datagram> {
        self.shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends, and tells what was seen, in order.
    pub fn end(mut self) -> Result<Vec<Datagram>> {
        self.join()?;
        Ok(self.seen())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.done.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("the recording thread panicked")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            eprintln!("{error:#}");
        }
    }
}

/// How many datagrams carried an inner packet of each flow.
#[must_use]
pub fn inner_flows(datagrams: &[Datagram]) -> BTreeMap<Flow, u64> {
    let mut flows = BTreeMap::new();
    for flow in datagrams.iter().filter_map(Datagram::inner) {
        *flows.entry(flow).or_default() += 1;
    }
    flows
}

fn open() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("cannot open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("cannot widen the buffer")?;
    let timeout = TimeVal::milliseconds(LOOK_MILLISECONDS);
    setsockopt(&socket, ReceiveTimeout, &timeout).context("cannot set a timeout")?;
    Ok(socket)
}

fn record(socket: &OwnedFd, port: u16, shared: &Shared) -> Result<()> {
    let Shared { done, seen } = shared;
    let mut frame = [0; HEADERS];
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((length, from)) => {
                if from.is_some_and(|from| from.pkttype() == OUTGOING) {
                    continue;
                }
                let datagram = Datagram::parse(&frame[..length.min(HEADERS)]);
                if let Some(datagram) = datagram.filter(|datagram| datagram.destination.port() == port) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(datagram);
                }
            }
            // Only when nothing waits to be read does it end: what was sent before is complete.
            Err(Errno::EAGAIN) if done.load(Ordering::Acquire) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot read what the wire carries"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        packet
    }

    #[test]
    fn a_tunnelled_packet_is_seen_through() {
        let mut ports = vec![0xc0, 0x01, 0, 80];
        ports.extend([0; 16]);
        let inner = ipv4(6, [10, 30, 0, 1], [10, 30, 55, 55], &ports);
        let mut udp = vec![0xc0, 0x02, 0xc3, 0xb7, 0, 0, 0, 0];
        udp.extend(&inner);
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend(ipv4(17, [192, 0, 2, 3], [192, 0, 2, 4], &udp));

        let datagram = Datagram::parse(&frame).expect("it is a datagram");
        assert_eq!(50103, datagram.destination.port());
        let flow = datagram.inner().expect("it carries a packet");
        assert_eq!(
            (6, "10.30.0.1:49153", "10.30.55.55:80"),
            (
                flow.protocol,
                &*flow.source.to_string(),
                &*flow.destination.to_string()
            )
        );
        for length in 0..frame.len() {
            // Whatever is missing, it does not panic.
            let part = Datagram::parse(&frame[..length]);
            assert!(part.is_none_or(|part| part.inner().is_none_or(|inner| inner.protocol == 6)));
        }
    }

    #[test]
    fn a_payload_that_is_no_packet_has_no_flow() {
        let datagram = Datagram {
            source: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
            destination: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2),
            payload: vec![0x10; 60],
        };
        assert_eq!(None, datagram.inner());
    }
}
