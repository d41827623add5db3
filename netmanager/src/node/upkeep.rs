//! Following the kernel: links, addresses, routes and neighbours come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::{Node, lock, paths};
use crate::dataplane::Program;
use crate::host::changes::{Change, Changes};
use crate::host::{firewall, offload, uplink};

/// Changes come in bursts; one round follows a whole burst.
const SETTLE: Duration = Duration::from_millis(20);
/// An address of the Internet, to see which way leads there; nothing is sent to it.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// How long to wait before the stream of changes is opened again, when the kernel refused it.
const REOPEN: Duration = Duration::from_secs(1);

impl Node {
    /// Follows changes, and confirms the ways to other nodes at intervals.
    pub(super) async fn serve_changes(self: Arc<Self>, mut changes: Changes) {
        let mut confirm = tokio::time::interval(paths::CONFIRM_EVERY);
        confirm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut gone = BTreeSet::new();
            let mut everything = false;
            tokio::select! {
                _ = confirm.tick() => {}
                () = self.upkeep_due.notified() => {}
                change = changes.next() => match change {
                    Ok(change) => everything = note(&change, &mut gone),
                    Err(error) => {
                        tracing::error!(%error, "the kernel's changes cannot be read");
                        tokio::time::sleep(REOPEN).await;
                        everything = true;
                        match Changes::open() {
                            Ok(reopened) => changes = reopened,
                            Err(error) => tracing::error!(%error, "nor subscribed to again"),
                        }
                    }
                },
            }
            while let Ok(Ok(change)) = tokio::time::timeout(SETTLE, changes.next()).await {
                everything |= note(&change, &mut gone);
            }
            self.drop_vanished(&gone, everything).await;
            if let Err(error) = self.upkeep().await {
                tracing::error!(%error, "cannot follow the host's changes");
            }
        }
    }

    /// Brings uplinks, own addresses, ways to nodes and the firewall up to date. Doing it twice changes nothing.
    pub(super) async fn upkeep(&self) -> anyhow::Result<()> {
        let own = uplink::local_addresses(&self.netlink).await?;
        let addresses: Vec<Ipv4Addr> = own.iter().map(|(_, address)| *address).collect();
        self.directory().set_local_addresses(&addresses)?;
        *lock(&self.local_addresses) = addresses;

        self.find_announced(&own).await;

        let links = self.netlink.links().await?;
        let names: BTreeMap<u32, String> = links.into_iter().map(|link| (link.index, link.name)).collect();
        let uplinks: BTreeSet<u32> = own.iter().map(|(interface, _)| *interface).collect();
        for index in &uplinks {
            if let Some(name) = names.get(index) {
                self.tend_uplink(*index, name).await;
            }
        }
        let attached = lock(&self.dataplane).attachments()?;
        for (program, index) in attached {
            if program == Program::FromUplink && !uplinks.contains(&index) {
                lock(&self.dataplane).detach(program, index)?;
            }
        }
        self.directory().forget_unused_nodes()?;
        self.refresh_paths().await;
        self.guard_tunnels().await
    }

    /// Finds out which address peers are to send to: the configured one, that of the configured interface, that
    /// towards the cluster or the Internet, any. Tells the cluster when it is another one than before.
    async fn find_announced(&self, own: &[(u32, Ipv4Addr)]) {
        let found = match (self.config.announced_address, &self.config.default_interface) {
            (Some(address), _) => Some(address),
            (None, Some(name)) => match self.netlink.link_by_name(name).await {
                Ok(Some(link)) => own
                    .iter()
                    .find(|(interface, _)| *interface == link.index)
                    .map(|(_, address)| *address),
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(%error, interface = name, "cannot look at the configured interface");
                    None
                }
            },
            (None, None) => self
                .address_towards_others()
                .await
                .or_else(|| own.first().map(|(_, address)| *address)),
        };
        let before = std::mem::replace(&mut *lock(&self.announced), found);
        if found.is_none() {
            tracing::warn!("no address to announce: other nodes do not find this one");
        } else if before.is_some() && before != found {
            self.announce_all().await;
        }
    }

    async fn address_towards_others(&self) -> Option<Ipv4Addr> {
        let cluster = self.registration.cluster_address.parse().ok();
        for target in cluster.into_iter().chain([SOMEWHERE]) {
            if let Ok(route) = uplink::route_to(&self.netlink, target).await {
                return Some(route.source);
            }
        }
        None
    }

    /// One uplink that cannot be attached to must not keep the others from it.
    async fn tend_uplink(&self, index: u32, name: &str) {
        if let Err(error) = lock(&self.dataplane).attach(Program::FromUplink, name, index) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                interface = name,
                "cannot attach to an uplink"
            );
        }
        match offload::set_feature(name, offload::UDP_SEGMENTATION, false) {
            Ok(offload::Outcome::Changed) => {
                let mut kept = self.kept.lock().await;
                kept.state.offloads.push(name.to_owned());
                if let Err(error) = kept.save() {
                    tracing::error!(%error, "cannot note a changed offload");
                }
            }
            Ok(offload::Outcome::AsWanted | offload::Outcome::Unknown) => {}
            Ok(offload::Outcome::Fixed) => {
                tracing::warn!(
                    interface = name,
                    "UDP segmentation stays on: large UDP sends may be lost"
                );
            }
            Err(error) => tracing::warn!(%error, interface = name, "cannot switch UDP segmentation off"),
        }
    }

    async fn guard_tunnels(&self) -> anyhow::Result<()> {
        let wanted = self.wanted_tunnels();
        if *lock(&self.tunnels) != wanted {
            firewall::set_tunnels(&self.registration.node_id, &wanted).await?;
            *lock(&self.tunnels) = wanted;
        }
        Ok(())
    }
}

/// Notes which links are gone; whether anything else may have changed unseen.
fn note(change: &Change, gone: &mut BTreeSet<u32>) -> bool {
    match change {
        Change::Link {
            interface,
            removed: true,
        } => {
            gone.insert(*interface);
            false
        }
        Change::Overflow => true,
        Change::Link { removed: false, .. }
        | Change::Address { .. }
        | Change::Route
        | Change::Neighbour { .. } => false,
    }
}
