//! Instances that are to be stopped and still serve what they have begun to.
//!
//! Where anybody follows a service, the end of one of its instances is told in two steps: first that it takes nothing
//! new, while its node lets it go on for a moment; then that it is gone. Both are part of the order to stop it, which is
//! stored, so whatever ends meanwhile, it is stopped.

use std::net::IpAddr;

use protocol::job::InstanceKey;
use protocol::network::{InstanceRow, ServiceName, UpdateKind};

use super::super::records::{Draining, InstanceRecord, StopKey, StopRecord};
use super::Core;
use super::table::leads_to;

impl Core {
    /// What others see of an instance that is about to be stopped: none where nobody follows its service, or where
    /// something else takes its place at once.
    pub(super) fn draining(
        &self,
        key: &InstanceKey,
        record: &InstanceRecord,
        is_last: bool,
    ) -> Option<Box<Draining>> {
        let is_followed = self
            .network
            .interests
            .get(&key.job_name)
            .is_some_and(|nodes| !nodes.is_empty());
        let is_reachable = record
            .node
            .as_ref()
            .and_then(|id| self.nodes.get(id))
            .is_some_and(super::Node::is_active);
        if !is_last || !is_followed || !is_reachable || self.patience.drain.is_zero() {
            return None;
        }
        Some(Box::new(Draining {
            placement: record.placement.clone(),
            attached: record.attached?,
        }))
    }

    /// Placements of a service that still serve what they have begun to.
    pub(super) fn draining_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a StopRecord, &'a Draining)> {
        self.all_draining()
            .filter(move |(stop, _)| stop.key.job_name == *service)
    }

    /// The service of a draining placement to which an address leads.
    pub(super) fn draining_at(&self, address: IpAddr) -> Option<&ServiceName> {
        let found = self
            .all_draining()
            .find(|(_, draining)| leads_to(&draining.placement, address));
        found.map(|(stop, _)| &stop.key.job_name)
    }

    pub(super) fn draining_row(&self, stop: &StopRecord, draining: &Draining) -> InstanceRow {
        let incarnation = stop.incarnation.unwrap_or(draining.placement.incarnation);
        let row = self.row_of(
            &draining.placement,
            incarnation,
            Some(&stop.node),
            Some(draining.attached),
        );
        InstanceRow {
            draining: true,
            ..row
        }
    }

    /// A node has taken an instance off its network: nobody is served there any more.
    pub(super) fn end_drain(&mut self, node: &str, key: &InstanceKey, incarnation: Option<u64>) {
        let drains = |stop: &StopRecord| {
            let same = incarnation.is_none() || stop.incarnation == incarnation;
            stop.node == node && stop.key == *key && same
        };
        self.end_drains(drains);
    }

    /// Nobody is served by a node that does not answer.
    pub(super) fn end_drains_of_silent_nodes(&mut self) {
        let silent: Vec<String> = self
            .all_draining()
            .map(|(stop, _)| &stop.node)
            .filter(|id| !self.nodes.get(*id).is_some_and(super::Node::is_active))
            .cloned()
            .collect();
        self.end_drains(|stop| silent.contains(&stop.node));
    }

    fn end_drains(&mut self, which: impl Fn(&StopRecord) -> bool) {
        let stops = self.all_draining().filter(|(stop, _)| which(stop));
        let ended: Vec<StopKey> = stops.map(|(stop, _)| stop.stop_key()).collect();
        for key in ended {
            if let Some(stop) = self.stops.get_mut(&key) {
                stop.record.draining = None;
            }
            self.changed(&key.1.job_name, UpdateKind::Undeployment);
            self.dirty.stops.insert(key);
        }
    }

    fn all_draining(&self) -> impl Iterator<Item = (&StopRecord, &Draining)> {
        let records = self.stops.values().map(|stop| &stop.record);
        records.filter_map(|stop| Some((stop, stop.draining.as_deref()?)))
    }
}
