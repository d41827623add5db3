//! Names of the services that the tables know and this process does not, because the one that knew them is gone.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Node, lock};

/// Pauses between two rounds of questions.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How long a cluster has to deny a service before it is believed: one that has just started may not know yet what
/// it has.
const DOUBT: Duration = Duration::from_secs(3);

impl Node {
    /// Asks for them until all names are known or denied, and again whenever the connection comes back.
    pub(super) async fn serve_names(self: Arc<Self>) {
        loop {
            self.names_due.notified().await;
            let mut denied = Denials::default();
            let mut pause = FIRST_PAUSE;
            while lock(&self.connection).0 {
                let unnamed = self.directory().unnamed_services();
                if unnamed.is_empty() {
                    self.flows.note_synced();
                    break;
                }
                for address in unnamed {
                    self.learn_name(address, &mut denied).await;
                }
                tokio::select! {
                    // The back-off is what is wanted: nobody tells when the cluster knows more.
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
                    () = self.names_due.notified() => pause = FIRST_PAUSE,
                }
            }
        }
    }

    async fn learn_name(&self, address: Ipv4Addr, denied: &mut Denials) {
        let asked = lock(&self.ledger).ask();
        match self.resolver.resolve(address).await {
            Ok(Some(record)) if record.addresses().any(|other| *other == address) => {
                denied.withdraw(address);
                if let Err(error) = self.install_answer(record, asked).await {
                    tracing::error!(%error, %address, "cannot enter a service");
                }
            }
            // What is known stays until it is certain that it is gone.
            Ok(_) => {
                if lock(&self.connection).0 && denied.deny(address, Instant::now()) {
                    tracing::info!(%address, "the cluster does not know a service of the tables: removed");
                    if let Err(error) = self.directory().remove_unnamed_service(address) {
                        tracing::error!(%error, %address, "cannot take a service out");
                    }
                    self.upkeep_due.notify_one();
                }
            }
            Err(error) => {
                denied.withdraw(address);
                tracing::debug!(%error, %address, "no answer about a service of the tables");
            }
        }
    }
}

/// Since when services have been denied.
#[derive(Default)]
struct Denials(HashMap<Ipv4Addr, Instant>);

impl Denials {
    /// Notes that a service was denied; whether that is to be believed.
    fn deny(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        let first = *self.0.entry(address).or_insert(now);
        now.duration_since(first) >= DOUBT
    }

    fn withdraw(&mut self, address: Ipv4Addr) {
        self.0.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_believed_to_be_gone_when_it_is_denied_for_a_while() {
        let (address, now) = (Ipv4Addr::new(10, 30, 0, 1), Instant::now());
        let mut denied = Denials::default();
        assert!(!denied.deny(address, now));
        assert!(!denied.deny(address, now + DOUBT / 2));
        denied.withdraw(address);
        assert!(!denied.deny(address, now + DOUBT));
        assert!(denied.deny(address, now + DOUBT * 2));
    }
}
