//! First packets: what the data plane hands up because it does not know the destination, and fragments of which it
//! does not know the ports yet.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane_ebpf::address::is_service_or_instance;
use dataplane_ebpf::header::{ETHERNET_LENGTH, ETHERTYPE_IPV4};
use tokio::sync::mpsc;

use super::{Node, lock};
use crate::fragments::{Fragment, Fragments, Taken};
use crate::host::oak0::FRAME_CAPACITY;
use crate::parking::{FAILED_FOR, Parked, UNKNOWN_FOR};
use crate::resolver::ResolveError;

/// Bytes of the header that the tap puts before each frame.
const VIRTIO_HEADER: usize = 10;
/// How long to wait before oak0 is read again after it refused: it may be gone, and nothing tells when it is back.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How often an address is asked for when each answer is outdated when it comes.
const ASKED_AT_MOST: usize = 3;

impl Node {
    /// Reads what comes up, parks it, and writes it back once its destination is known. One task does both, so
    /// that what waited goes before what comes later.
    pub(super) async fn serve_upcalls(self: Arc<Self>) {
        let mut buffer = vec![0; FRAME_CAPACITY];
        let (answered, mut answers) = mpsc::unbounded_channel();
        let mut fragments = Fragments::default();
        loop {
            tokio::select! {
                // Answers first: what waits is older than what comes.
                biased;
                Some(destination) = answers.recv() => self.release(destination).await,
                () = reached(fragments.next_end()) => {
                    for frame in fragments.expire(Instant::now()) {
                        // In vain: the data plane drops it, and counts it.
                        self.write_back(&frame).await;
                    }
                }
                received = self.oak0.receive(&mut buffer) => match received {
                    Ok(length) => {
                        self.note_upcalls(None);
                        self.take(&buffer[..length], &mut fragments, &answered).await;
                    }
                    Err(error) => {
                        self.note_upcalls(Some(format!("oak0 cannot be read: {error}")));
                        tokio::time::sleep(READ_AGAIN).await;
                    }
                },
            }
        }
    }

    /// Notes why first packets do not get here, and says it when that changes.
    fn note_upcalls(&self, broken: Option<String>) {
        let mut before = lock(&self.upcalls_broken);
        if *before == broken {
            return;
        }
        match &broken {
            Some(reason) => tracing::error!(reason, "unknown destinations stay unknown"),
            None => tracing::info!("first packets arrive again"),
        }
        *before = broken;
    }

    /// Lets a fragment wait for the first of its datagram, and everything else go on.
    async fn take(
        self: &Arc<Self>,
        frame: &[u8],
        fragments: &mut Fragments,
        answered: &mpsc::UnboundedSender<Ipv4Addr>,
    ) {
        let Some(fragment) = Fragment::of(frame, self.config.listen_port) else {
            return self.carry(frame, answered).await;
        };
        match fragments.take(fragment, frame, Instant::now()) {
            Taken::Go(frames) => {
                for frame in frames {
                    if fragment.key.tunnelled {
                        self.write_back(&frame).await;
                    } else {
                        self.carry(&frame, answered).await;
                    }
                }
            }
            Taken::Held => {}
            Taken::Full => self.write_back(frame).await,
        }
    }

    /// Writes a packet back whose destination is known, and parks any other.
    async fn carry(self: &Arc<Self>, frame: &[u8], answered: &mpsc::UnboundedSender<Ipv4Addr>) {
        let Some(destination) = destination(frame) else {
            return;
        };
        let waits = lock(&self.parking).is_waiting(destination);
        if !waits && self.directory().knows(destination) {
            // It was on its way up while the answer was entered.
            return self.write_back(frame).await;
        }
        if lock(&self.parking).park(destination, frame, Instant::now()) == Parked::First {
            let answered = answered.clone();
            self.spawn(|node| async move {
                node.ask(destination).await;
                // The receiver ends with the node.
                if answered.send(destination).is_err() {
                    tracing::debug!(%destination, "answered too late");
                }
            });
        }
    }

    /// Asks who is behind an address and enters the answer.
    async fn ask(&self, destination: Ipv4Addr) {
        let refuse = |period| lock(&self.parking).refuse(destination, Instant::now(), period);
        for _ in 0..ASKED_AT_MOST {
            let asked = lock(&self.ledger).ask();
            match self.resolver.resolve(destination).await {
                Ok(Some(record)) => {
                    let is_left_out = record
                        .instances
                        .iter()
                        .any(|instance| instance.address == destination);
                    let outcome = self.install_answer(record, asked).await;
                    if self.directory().knows(destination) {
                        return;
                    }
                    match outcome {
                        Ok(true) if is_left_out => {
                            tracing::debug!(%destination, "its node cannot be reached");
                            return refuse(FAILED_FOR);
                        }
                        Ok(true) => {
                            tracing::warn!(%destination, "the answer does not contain the address that was asked for");
                            return refuse(UNKNOWN_FOR);
                        }
                        // What was said in the meantime does not lead there.
                        Ok(false) => {}
                        Err(error) => {
                            tracing::error!(%error, %destination, "cannot enter a service");
                            return refuse(FAILED_FOR);
                        }
                    }
                }
                Ok(None) => return refuse(UNKNOWN_FOR),
                Err(error @ (ResolveError::Away(_) | ResolveError::Late { .. })) => {
                    tracing::debug!(%error, %destination, "no answer");
                    return refuse(FAILED_FOR);
                }
                Err(error @ (ResolveError::Refused(_) | ResolveError::Contradictory(_))) => {
                    tracing::warn!(%error, %destination, "no usable answer");
                    return refuse(UNKNOWN_FOR);
                }
            }
        }
        refuse(FAILED_FOR);
    }

    async fn release(&self, destination: Ipv4Addr) {
        let packets = lock(&self.parking).release(destination);
        for packet in packets {
            self.write_back(&packet).await;
        }
    }

    pub(super) async fn write_back(&self, frame: &[u8]) {
        if let Err(error) = self.oak0.send(frame).await {
            tracing::warn!(%error, "a packet that waited cannot be written back");
        }
    }
}

/// Waits for an instant, or for ever.
async fn reached(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Where an IPv4 frame to the overlay goes; nothing else is waited for.
fn destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let frame = frame.get(VIRTIO_HEADER..)?;
    if frame.get(ETHERNET_LENGTH - 2..ETHERNET_LENGTH)? != ETHERTYPE_IPV4 {
        return None;
    }
    let destination: [u8; 4] = frame
        .get(ETHERNET_LENGTH + 16..ETHERNET_LENGTH + 20)?
        .try_into()
        .ok()?;
    is_service_or_instance(destination).then(|| Ipv4Addr::from(destination))
}
