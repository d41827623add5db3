//! The network plane: subnets, where instances are attached, and who is interested in what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use protocol::cluster::Lease;
use protocol::job::InstanceKey;
use protocol::network::{
    AnnouncementStatus, ServiceAnnouncement, ServiceName, SubnetResult, TableQuery, TableResult, UpdateKind,
    UpdatesAvailable, topic,
};
use protocol::node::overlay_name;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::super::bounds;
use super::super::records::{Attached, Tunnel};
use super::Core;
use super::peers::PeersState;
use super::placements::name;

/// Prefix length of a node's subnet.
const SUBNET_BITS: u32 = 26;

/// What only the network plane needs. Nothing of it is stored: nodes notice a restart and ask anew.
#[derive(Default)]
pub(super) struct Network {
    /// Who wants to hear of changes of a service.
    pub(super) interests: BTreeMap<ServiceName, BTreeSet<String>>,
    /// What the root has said of a service.
    pub(super) remote: BTreeMap<ServiceName, TableResult>,
    /// Questions that the root has not answered yet, and who waits.
    pub(super) lookups: BTreeMap<(String, String), Vec<oneshot::Sender<()>>>,
    /// Who waits for the addresses of a node.
    pub(super) leases: BTreeMap<String, Vec<oneshot::Sender<Result<Lease, String>>>>,
    /// Nodes that wait for their subnet over the broker.
    pub(super) subnets_wanted: BTreeSet<String>,
    pub(super) peers: PeersState,
}

impl Core {
    /// A node asks for its subnet. Without a lease it is answered when there is one.
    pub fn subnet(&mut self, node: &str) {
        match self.lease_of(node).cloned() {
            Some(lease) => self.send_subnet(node, &lease),
            None => {
                self.network.subnets_wanted.insert(node.to_owned());
                self.ask_lease(node);
            }
        }
    }

    pub(super) fn send_subnet(&mut self, node: &str, lease: &Lease) {
        let result = SubnetResult {
            address: lease.subnet,
            addressv6: lease.subnet_v6,
            instance_ip: Some(lease.instance_ip),
            instance_ip_v6: lease.instance_ip_v6,
            app_id: None,
        };
        self.publish(topic::subnet_result(node), &result);
    }

    /// A node says where one of its instances is, was, or where its own tunnel ends.
    pub fn announced(&mut self, node: &str, announcement: &ServiceAnnouncement) {
        let key = InstanceKey {
            job_name: announcement.appname.clone(),
            instance_number: announcement.instance_number,
        };
        if announcement.status == AnnouncementStatus::Undeployed {
            self.end_drain(node, &key, announcement.incarnation);
        }
        let itself = overlay_name(node).is_some_and(|own| own == announcement.appname);
        if !itself && !self.is_placed(node, &key, announcement.incarnation) {
            debug!(node, instance = %name(&key), incarnation = ?announcement.incarnation, "announced by a node where it is not placed");
            return;
        }
        match announcement.status {
            AnnouncementStatus::Deployed => {
                self.tunnel(node, announcement);
                if !itself {
                    self.attached(node, &key, announcement);
                }
            }
            AnnouncementStatus::Undeployed => self.detached(&key),
            AnnouncementStatus::Unchanged => self.tunnel(node, announcement),
        }
    }

    fn tunnel(&mut self, id: &str, announcement: &ServiceAnnouncement) {
        let (Some(address @ IpAddr::V4(outer)), Some(port)) = (announcement.host_ip, announcement.host_port)
        else {
            return;
        };
        if !bounds::is_outer(address) || port == 0 {
            warn!(node = id, %outer, port, "not the end of a tunnel");
            return;
        }
        let tunnel = Some(Tunnel { address, port });
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if node.record.tunnel == tunnel {
            return;
        }
        node.record.tunnel = tunnel;
        self.dirty.nodes.insert(id.to_owned());
        self.moved(id);
    }

    /// The tunnel of a node ends somewhere else.
    pub(super) fn moved(&mut self, id: &str) {
        let there = self.instances.iter().filter(|(_, instance)| instance.is_on(id));
        let there = there.filter(|(_, instance)| instance.record.attached.is_some());
        let there: Vec<InstanceKey> = there.map(|(key, _)| key.clone()).collect();
        for key in there {
            self.changed(&key.job_name, UpdateKind::Deployment);
            self.tell_instance(&key);
        }
        if let Some(own) = overlay_name(id) {
            self.changed(&own, UpdateKind::Deployment);
        }
        self.tell_reach(id);
    }

    fn attached(&mut self, node: &str, key: &InstanceKey, announcement: &ServiceAnnouncement) {
        let Some(namespace_ip) = announcement.nsip else {
            warn!(node, instance = %name(key), "announced without an address");
            return;
        };
        if !self
            .lease_of(node)
            .is_some_and(|lease| is_in(lease.subnet, namespace_ip))
        {
            warn!(node, instance = %name(key), %namespace_ip, "announced with an address that is not the node's");
            return;
        }
        let attached = Some(Attached {
            namespace_ip,
            namespace_ip_v6: announcement.nsipv6,
        });
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        if instance.record.attached == attached {
            return;
        }
        instance.record.attached = attached;
        self.dirty.instances.insert(key.clone());
        self.tell_instance(key);
        // Whoever its node talks to hears of it before it talks.
        self.tell_reach(node);
        self.changed(&key.job_name, UpdateKind::Deployment);
    }

    fn detached(&mut self, key: &InstanceKey) {
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        if instance.record.attached.take().is_none() {
            return;
        }
        self.dirty.instances.insert(key.clone());
        self.tell_instance(key);
        self.changed(&key.job_name, UpdateKind::Undeployment);
    }

    /// The rows of a service have changed: whoever is interested asks again.
    pub(super) fn changed(&mut self, service: &ServiceName, kind: UpdateKind) {
        if self.network.interests.contains_key(service) {
            self.publish(topic::updates_available(service), &UpdatesAvailable { kind });
        }
    }

    /// A node no longer wants to hear of a service.
    pub fn uninterested(&mut self, node: &str, service: &str) {
        // Other makes of nodes name addresses here that they asked for once; those are no services.
        let Ok(service) = service.parse::<ServiceName>() else {
            return;
        };
        let Some(interested) = self.network.interests.get_mut(&service) else {
            return;
        };
        interested.remove(node);
        if interested.is_empty() {
            self.network.interests.remove(&service);
            self.network.remote.remove(&service);
        }
        self.peers_part(node, &service);
    }

    /// What has to be known before a question is answered: `None` when the answer can be given, else something that
    /// comes when the root has spoken.
    pub fn begin_query(&mut self, query: &TableQuery) -> Option<oneshot::Receiver<()>> {
        let service = self.find(query);
        let known_here = service.as_ref().is_some_and(|service| self.is_known(service));
        if let Some(service) = &service
            && (self.network.remote.contains_key(service) || self.node_of_name(service).is_some())
        {
            return None;
        }
        let is_question = if query.sip.is_empty() {
            query.sname.parse::<ServiceName>().is_ok()
        } else {
            query.sip.parse::<IpAddr>().is_ok()
        };
        if !self.connected || !is_question {
            return None;
        }
        // What other clusters have of a service that is here too comes later, as a change.
        let query = match service {
            Some(service) => TableQuery::by_name(&service),
            None => query.clone(),
        };
        let receiver = self.lookup(query);
        (!known_here).then_some(receiver)
    }

    /// Answers a question with what is known now, and notes the interest.
    pub fn answer(&mut self, node: &str, query: &TableQuery) {
        let query_key = if query.sip.is_empty() {
            &query.sname
        } else {
            &query.sip
        };
        let mut result = self
            .find(query)
            .and_then(|service| self.table(&service))
            .unwrap_or_default();
        result.query_key.clone_from(query_key);
        if let Some(service) = &result.app_name {
            self.network
                .interests
                .entry(service.clone())
                .or_default()
                .insert(node.to_owned());
        }
        self.publish(topic::table_query_result(node), &result);
    }
}

fn is_in(subnet: Ipv4Addr, address: Ipv4Addr) -> bool {
    let mask = u32::MAX << (32 - SUBNET_BITS);
    address.to_bits() & mask == subnet.to_bits() & mask
}
