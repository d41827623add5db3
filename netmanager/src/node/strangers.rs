//! The socket of the tunnel port.
//!
//! The data plane takes every whole datagram of a known peer before it gets here. Those that came in fragments the
//! kernel has put together, and they go back to the data plane. What else gets here comes from an
//! address that is no peer's, a few per second at most. Nothing of it is delivered; but its inner source may name
//! an instance of which the cluster knows the node, and if that node is where the datagram came from, it is a peer
//! from now on.
//!
//! Anybody can send such datagrams, with any inner source. So questions run beside each other, a few at a time,
//! and what the cluster has said of an inner source is not asked again for a while, whoever claims it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use dataplane_ebpf::address::is_service_or_instance;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::reassembled::{self, Datagram};
use super::{Node, lock};
use crate::host::TUNNEL_MARK;
use crate::parking::{FAILED_FOR, UNKNOWN_FOR};

/// Questions that are under way at once. Each may take as long as an answer may.
const QUESTIONS: usize = 16;
/// Inner sources of which the answer is remembered.
const REMEMBERED: usize = 4_096;
/// Longer than any question takes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Opens the socket, which also keeps others from the port.
pub(super) fn listen(port: u16) -> anyhow::Result<UdpSocket> {
    let context = || format!("taking the tunnel port, UDP {port}; does another program have it?");
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(context)?;
    setsockopt(&socket.as_fd(), sockopt::Mark, &TUNNEL_MARK).context("marking the tunnel socket")?;
    setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)
        .context("asking for the interface of what the tunnel socket receives")?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}

impl Node {
    pub(super) async fn serve_strangers(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let questions = Arc::new(Semaphore::new(QUESTIONS));
        let claims = Arc::new(Mutex::new(Claims::default()));
        loop {
            let datagram = match reassembled::receive(&socket, &mut buffer).await {
                Ok(Some(datagram)) => datagram,
                Ok(None) => continue,
                // An ICMP error that belongs to nothing we sent, or a shortage; the socket itself is whole.
                Err(error) => {
                    tracing::debug!(%error, "tunnel socket");
                    continue;
                }
            };
            let Datagram { sender, payload, .. } = datagram;
            let sender = *sender.ip();
            let home = self.directory().peer_interface(sender);
            if let Some(interface) = home {
                if interface == datagram.interface {
                    self.write_back(&datagram.frame(self.config.listen_port)).await;
                }
                continue;
            }
            let Some(source) = inner_source(payload) else {
                continue;
            };
            if !self.may_live_at(source, sender) {
                continue;
            }
            // Without a question to spare the datagram is lost; the stranger sends another.
            let Ok(question) = questions.clone().try_acquire_owned() else {
                continue;
            };
            if !lock(&claims).is_new(source, sender, Instant::now()) {
                continue;
            }
            let claims = claims.clone();
            self.spawn(|node| async move {
                let home = node.meet(sender, source).await;
                let (home, period) = match home {
                    Ok(home) => (home, UNKNOWN_FOR),
                    Err(NoAnswer) => (None, FAILED_FOR),
                };
                lock(&claims).settle(source, home, Instant::now(), period);
                drop(question);
            });
        }
    }

    /// Whether an instance may have come to a node that is not known. Where the instance is known, the cluster
    /// tells unasked when it moves.
    fn may_live_at(&self, source: Ipv4Addr, sender: Ipv4Addr) -> bool {
        let directory = self.directory();
        !directory.is_peer(sender) && !directory.knows(source)
    }

    /// Enters the service of `source` if the cluster says that an instance with this address lives at `sender`.
    /// Where it lives.
    async fn meet(&self, sender: Ipv4Addr, source: Ipv4Addr) -> Result<Option<Ipv4Addr>, NoAnswer> {
        let asked = lock(&self.ledger).ask();
        let Some(record) = self.resolver.resolve(source).await.map_err(|error| {
            tracing::debug!(%error, %source, "no answer about a stranger");
            NoAnswer
        })?
        else {
            return Ok(None);
        };
        let home = record
            .instances
            .iter()
            .find(|instance| instance.address == source)
            .map(|instance| instance.node.address);
        if home == Some(sender)
            && let Err(error) = self.install_answer(record, asked).await
        {
            tracing::error!(%error, "cannot enter a service");
        }
        Ok(home)
    }
}

/// The cluster did not say where an instance lives.
#[derive(Debug)]
struct NoAnswer;

/// What is known of the inner sources that strangers have claimed.
#[derive(Debug, Default)]
struct Claims {
    by_source: HashMap<Ipv4Addr, Claim>,
}

#[derive(Debug)]
struct Claim {
    /// The node where the source lives; none while that is being asked, and when nobody knows it.
    home: Option<Ipv4Addr>,
    until: Instant,
}

impl Claims {
    /// Whether to ask about `source`, which `sender` claims; notes that it is being asked.
    fn is_new(&mut self, source: Ipv4Addr, sender: Ipv4Addr, now: Instant) -> bool {
        if let Some(claim) = self.by_source.get(&source)
            && now < claim.until
            && claim.home != Some(sender)
        {
            return false;
        }
        self.remember(source, None, now, ANSWERED_WITHIN)
    }

    fn settle(&mut self, source: Ipv4Addr, home: Option<Ipv4Addr>, now: Instant, period: Duration) {
        self.remember(source, home, now, period);
    }

    /// Whether there was room.
    fn remember(&mut self, source: Ipv4Addr, home: Option<Ipv4Addr>, now: Instant, period: Duration) -> bool {
        if self.by_source.len() >= REMEMBERED {
            self.by_source.retain(|_, claim| now < claim.until);
        }
        let room = self.by_source.len() < REMEMBERED || self.by_source.contains_key(&source);
        if room {
            let until = now + period;
            self.by_source.insert(source, Claim { home, until });
        }
        room
    }
}

fn inner_source(datagram: &[u8]) -> Option<Ipv4Addr> {
    let source: [u8; 4] = datagram.get(12..16)?.try_into().ok()?;
    (datagram[0] >> 4 == 4 && is_service_or_instance(source)).then(|| Ipv4Addr::from(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);
    const HOME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const FORGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

    #[test]
    fn a_false_claim_is_asked_about_once_and_does_not_silence_the_true_one() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        assert!(claims.is_new(SOURCE, FORGER, now));
        assert!(!claims.is_new(SOURCE, FORGER, now), "it is being asked");
        claims.settle(SOURCE, Some(HOME), now, UNKNOWN_FOR);
        assert!(!claims.is_new(SOURCE, FORGER, now));
        assert!(claims.is_new(SOURCE, HOME, now));
    }

    #[test]
    fn what_nobody_knows_is_asked_about_again_after_a_while() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        assert!(claims.is_new(SOURCE, HOME, now));
        claims.settle(SOURCE, None, now, UNKNOWN_FOR);
        assert!(!claims.is_new(SOURCE, HOME, now));
        assert!(claims.is_new(SOURCE, HOME, now + UNKNOWN_FOR));
    }

    #[test]
    fn a_flood_of_claims_takes_a_fixed_amount_of_memory() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        let source = |index: usize| Ipv4Addr::from(0x0a1e_0000 + index as u32);
        for index in 0..REMEMBERED + 10 {
            let asked = claims.is_new(source(index), FORGER, now);
            assert_eq!(asked, index < REMEMBERED, "{index}");
            claims.settle(source(index), None, now, UNKNOWN_FOR);
        }
        assert_eq!(claims.by_source.len(), REMEMBERED);
        assert!(claims.is_new(source(REMEMBERED), FORGER, now + UNKNOWN_FOR));
    }
}
