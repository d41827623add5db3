//! Following the kernel: links, addresses, routes and neighbours come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::paths::{self, Confirm, Hop};
use super::{Node, lock};
use crate::dataplane::Program;
use crate::host::changes::{Change, Changes};
use crate::host::ruleset::RulesetChanges;
use crate::host::{docker_user, offload, uplink};

/// Changes come in bursts; one round follows a whole burst, as soon as there is none for so long, and after a while
/// even if there is.
const SETTLE: Duration = Duration::from_millis(20);
const SETTLED_WITHIN: Duration = Duration::from_millis(200);
/// How long to wait before the stream of changes is opened again, when the kernel refused it.
const REOPEN: Duration = Duration::from_secs(1);

/// How often the rules of others are looked through at most.
const RULES_EVERY: Duration = Duration::from_secs(1);

/// What a round of upkeep is about.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// It is time to look at everything, whether something changed or not.
    tick: bool,
    /// Links, addresses or routes have changed.
    host: bool,
    /// Something was learnt that paths and firewall are to follow.
    learnt: bool,
    /// Changes were lost.
    lost: bool,
    /// Links that are gone.
    gone: BTreeSet<u32>,
    /// Neighbours that have changed.
    neighbours: BTreeSet<Hop>,
}

impl Round {
    /// The round of a process that has just put everything in place.
    pub fn first() -> Self {
        Self {
            learnt: true,
            ..Self::default()
        }
    }

    fn note(&mut self, change: &Change) {
        match *change {
            Change::Link { interface, removed } => {
                self.host = true;
                if removed {
                    self.gone.insert(interface);
                }
            }
            Change::Address { .. } | Change::Route => self.host = true,
            Change::Neighbour {
                interface, address, ..
            } => {
                self.neighbours.insert((interface, address));
            }
            Change::Overflow => self.lose(),
        }
    }

    fn lose(&mut self) {
        (self.host, self.lost) = (true, true);
    }
}

impl Node {
    /// Follows changes, and confirms the ways to other nodes at intervals.
    pub(super) async fn serve_changes(self: Arc<Self>, mut changes: Changes) {
        let mut confirm = tokio::time::interval(paths::CONFIRM_EVERY);
        confirm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut round = Round::default();
            tokio::select! {
                _ = confirm.tick() => round.tick = true,
                () = self.upkeep_due.notified() => round.learnt = true,
                change = changes.next() => match change {
                    Ok(change) => round.note(&change),
                    Err(error) => {
                        tracing::error!(%error, "the kernel's changes cannot be read");
                        tokio::time::sleep(REOPEN).await;
                        round.lose();
                        match Changes::open() {
                            Ok(reopened) => changes = reopened,
                            Err(error) => tracing::error!(%error, "nor subscribed to again"),
                        }
                    }
                },
            }
            let latest = Instant::now() + SETTLED_WITHIN;
            let quiet = || latest.min(Instant::now() + SETTLE);
            while let Ok(Ok(change)) = timeout_at(quiet(), changes.next()).await {
                round.note(&change);
                if Instant::now() >= latest {
                    break;
                }
            }
            if round.lost || !round.gone.is_empty() {
                lock(&self.tended).retain(|index| !round.gone.contains(index));
                self.drop_vanished(&round.gone, round.lost).await;
            }
            if round.tick {
                self.tidy_docker().await;
            }
            if let Err(error) = self.upkeep(&round).await {
                tracing::error!(%error, "cannot follow the host's changes");
            }
        }
    }

    /// Follows the rules of others: Docker may be started after this, and whoever empties its chain empties it of
    /// this node's rules.
    pub(super) async fn serve_ruleset(self: Arc<Self>, mut changes: RulesetChanges) {
        loop {
            if let Err(error) = changes.next().await {
                tracing::error!(%error, "the firewall's changes cannot be read");
                tokio::time::sleep(REOPEN).await;
                match RulesetChanges::open() {
                    Ok(reopened) => changes = reopened,
                    Err(error) => tracing::error!(%error, "nor subscribed to again"),
                }
            }
            let latest = Instant::now() + SETTLED_WITHIN;
            let quiet = || latest.min(Instant::now() + SETTLE);
            while let Ok(Ok(())) = timeout_at(quiet(), changes.next()).await {
                if Instant::now() >= latest {
                    break;
                }
            }
            self.open_docker().await;
            // Whoever changes rules all the time is followed at this pace.
            tokio::time::sleep(RULES_EVERY).await;
        }
    }

    /// Brings uplinks, own addresses, ways to nodes and the firewall up to date. Doing it twice changes nothing.
    pub(super) async fn upkeep(&self, round: &Round) -> anyhow::Result<()> {
        if !(round.tick || round.host || round.learnt) {
            // All other neighbours of the host are none of ours.
            let concerned = lock(&self.hops).nodes_behind(&round.neighbours);
            self.refresh_paths(concerned, Confirm::WhenNew).await;
            return Ok(());
        }
        let own = uplink::local_addresses(&self.netlink).await?;
        let addresses: Vec<Ipv4Addr> = own.iter().map(|(_, address)| *address).collect();
        self.directory().set_local_addresses(&addresses)?;
        *lock(&self.local_addresses) = addresses;

        if round.tick || round.host {
            self.reconcile_host().await;
        }
        self.find_announced(&own).await;
        self.tend_uplinks(&own).await?;
        self.directory().forget_unused_nodes()?;
        let confirm = if round.tick {
            Confirm::Always
        } else {
            Confirm::WhenNew
        };
        self.refresh_all_paths(confirm).await;
        // Nodes may have gone, or be reached by another interface.
        self.probes_due.notify_one();
        self.install_rest().await;
        // All other changes of rules are followed as they happen.
        if round.tick && docker_user::may_change_unseen() {
            self.open_docker().await;
        }
        self.guard_tunnels(round.tick || round.host).await
    }

    async fn tend_uplinks(&self, own: &[(u32, Ipv4Addr)]) -> anyhow::Result<()> {
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
        Ok(())
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
        // Once: whoever switches it on again afterwards has a reason.
        if !lock(&self.tended).insert(index) {
            return;
        }
        match self.note_offload(name).await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    interface = name,
                    "UDP segmentation stays on"
                );
                return;
            }
        }
        match offload::set_feature(name, offload::UDP_SEGMENTATION, false) {
            Ok(offload::Outcome::Changed | offload::Outcome::AsWanted | offload::Outcome::Unknown) => {}
            Ok(offload::Outcome::Fixed) => {
                tracing::warn!(
                    interface = name,
                    "UDP segmentation stays on: large UDP sends may be lost"
                );
            }
            Err(error) => tracing::warn!(%error, interface = name, "cannot switch UDP segmentation off"),
        }
    }

    /// Notes that the offload of an interface is about to be switched off, so that a process that is killed right
    /// after it leaves word of it.
    async fn note_offload(&self, name: &str) -> anyhow::Result<()> {
        if !offload::would_change(name, offload::UDP_SEGMENTATION, false)? {
            return Ok(());
        }
        let mut kept = self.kept.lock().await;
        if !kept.state.offloads.iter().any(|noted| noted == name) {
            kept.state.offloads.push(name.to_owned());
            kept.save()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_no_change_of_the_host() {
        let mut round = Round::default();
        let address = Ipv4Addr::new(192, 0, 2, 1);
        round.note(&Change::Neighbour {
            interface: 2,
            address,
            entry: None,
        });
        assert!(!round.host && !round.lost);
        assert_eq!(round.neighbours, BTreeSet::from([(2, address)]));
        round.note(&Change::Link {
            interface: 3,
            removed: true,
        });
        assert!(round.host && !round.lost);
        assert_eq!(round.gone, BTreeSet::from([3]));
        round.note(&Change::Overflow);
        assert!(round.lost);
    }
}
