//! The largest packet on the way to each node, where routers on the way have said that less fits than the route says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::paths::Confirm;
use super::{Node, lock};
use crate::directory::NodeKey;
use crate::host::path_mtu::{PathMtuSocket, TooBig};

/// How long a router's word counts; the way may have become another one (RFC 1191, section 6.3).
const BELIEVED_FOR: Duration = Duration::from_secs(600);
/// How long to wait before the socket is read again after it refused.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What routers have said.
#[derive(Debug, Default)]
pub struct PathMtus {
    of: BTreeMap<NodeKey, (u32, Instant)>,
}

impl PathMtus {
    /// What fits on the way to a node, if anybody has said so lately.
    pub fn get(&mut self, key: NodeKey, now: Instant) -> Option<u32> {
        let (mtu, until) = *self.of.get(&key)?;
        if now < until {
            return Some(mtu);
        }
        self.of.remove(&key);
        None
    }

    fn note(&mut self, key: NodeKey, mtu: u32, now: Instant) {
        self.of.insert(key, (mtu, now + BELIEVED_FOR));
    }

    /// Forgets what is about other nodes than these.
    pub fn retain(&mut self, keys: &[NodeKey]) {
        self.of.retain(|key, _| keys.contains(key));
    }
}

impl Node {
    /// Lowers the packet size of a node's way when a router says that a tunnel datagram did not fit.
    pub(super) async fn serve_path_mtus(self: Arc<Self>, socket: PathMtuSocket) {
        loop {
            match socket.next().await {
                Ok(message) => self.take_path_mtu(message).await,
                Err(error) => {
                    tracing::warn!(%error, "messages about packet sizes cannot be read");
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        }
    }

    async fn take_path_mtu(&self, message: TooBig) {
        let key = NodeKey {
            address: message.destination,
            port: message.port,
        };
        // Anybody can send such messages; only what this node may have sent is listened to, and only once, because
        // nothing larger is sent afterwards.
        if !lock(&self.local_addresses).contains(&message.source) || !self.directory().knows_node(key) {
            return;
        }
        // Before anything is asked of the kernel: what says nothing new costs nothing.
        let known = self.directory().mtu_of(key).ok().flatten();
        if known.is_some_and(|mtu| message.mtu >= mtu) {
            return;
        }
        match self.path_to(key, Confirm::WhenNew).await {
            Ok(path) if message.mtu < path.mtu => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, node = %key.address, "no way to a node whose packets are said not to fit");
                return;
            }
        }
        lock(&self.path_mtus).note(key, message.mtu, Instant::now());
        tracing::info!(node = %key.address, mtu = message.mtu, "less fits on the way to a node");
        self.refresh_paths(vec![key], Confirm::WhenNew).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_router_s_word_counts_for_a_while_and_for_one_node() {
        let key = |last| NodeKey {
            address: Ipv4Addr::new(192, 0, 2, last),
            port: 50_103,
        };
        let (mut mtus, now) = (PathMtus::default(), Instant::now());
        mtus.note(key(1), 1400, now);
        mtus.note(key(2), 1300, now);
        assert_eq!(mtus.get(key(1), now), Some(1400));
        assert_eq!(mtus.get(key(3), now), None);
        let just_before = now + BELIEVED_FOR - Duration::from_millis(1);
        assert_eq!(mtus.get(key(1), just_before), Some(1400));
        assert_eq!(mtus.get(key(1), now + BELIEVED_FOR), None);
        mtus.retain(&[key(1)]);
        assert_eq!(mtus.get(key(2), now), None);
    }
}
