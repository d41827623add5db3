//! The instances of this node, as the cluster is to know them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use protocol::network::{AnnouncementStatus, ServiceAnnouncement, ServiceName};

use crate::resolver::Deployed;

/// What the cluster is to know of each instance. A cluster that has forgotten everything is told again what
/// is here.
#[derive(Default)]
pub(super) struct Announcements(BTreeMap<(ServiceName, u32), Announcement>);

struct Announcement {
    message: ServiceAnnouncement,
    sent: bool,
}

impl Announcements {
    /// An instance is here, or not any more; the message is returned when it can be `sent` now.
    pub(super) fn set(
        &mut self,
        instance: &Deployed,
        status: AnnouncementStatus,
        sent: bool,
    ) -> Option<ServiceAnnouncement> {
        let message = ServiceAnnouncement {
            appname: instance.service.clone(),
            status,
            instance_number: instance.number,
            nsip: Some(instance.namespace_address),
            nsipv6: instance.namespace_address_v6,
            host_port: Some(instance.node_port),
            host_ip: Some(IpAddr::V4(instance.node_address)),
            incarnation: instance.incarnation,
        };
        let key = (instance.service.clone(), instance.number);
        if sent && status == AnnouncementStatus::Undeployed {
            self.0.remove(&key);
        } else {
            self.0.insert(
                key,
                Announcement {
                    message: message.clone(),
                    sent,
                },
            );
        }
        sent.then_some(message)
    }

    /// A message that was sent may not have arrived. What is true by then is sent when the cluster is back,
    /// instead of the message: it could overtake a newer one about the same instance.
    pub(super) fn take_back(&mut self, message: ServiceAnnouncement) {
        let key = (message.appname.clone(), message.instance_number);
        match self.0.get_mut(&key) {
            Some(announcement) => announcement.sent = false,
            None if message.status == AnnouncementStatus::Undeployed => {
                self.0.insert(key, Announcement { message, sent: false });
            }
            None => {}
        }
    }

    /// What has to be sent when the cluster is back: what could not be sent before, and everything to one
    /// that has `forgotten`.
    pub(super) fn due(&mut self, forgotten: bool) -> Vec<ServiceAnnouncement> {
        let mut due = Vec::new();
        self.0.retain(|_, announcement| {
            if forgotten || !announcement.sent {
                due.push(announcement.message.clone());
                announcement.sent = true;
            }
            announcement.message.status != AnnouncementStatus::Undeployed
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn what_is_here_is_announced_until_it_leaves() {
        let mut announcements = Announcements::default();
        let here = AnnouncementStatus::Deployed;
        let left = AnnouncementStatus::Undeployed;
        assert!(
            announcements.set(&instance(0), here, false).is_none(),
            "nobody to tell"
        );
        assert!(announcements.set(&instance(1), here, true).is_some());
        assert_eq!(numbers(&announcements.due(false)), [0]);
        assert!(announcements.due(false).is_empty());
        assert_eq!(numbers(&announcements.due(true)), [0, 1]);

        assert!(announcements.set(&instance(0), left, true).is_some());
        assert!(announcements.set(&instance(1), left, false).is_none());
        let due = announcements.due(false);
        assert_eq!((numbers(&due), due[0].status), (vec![1], left));
        assert!(announcements.due(true).is_empty());
    }

    #[test]
    fn what_may_not_have_arrived_is_said_again_as_it_is_by_then() {
        let mut announcements = Announcements::default();
        let here = AnnouncementStatus::Deployed;
        let left = AnnouncementStatus::Undeployed;
        let deployed = announcements.set(&instance(0), here, true).expect("sent");
        announcements.take_back(deployed.clone());
        assert_eq!(statuses(&mut announcements), [here]);
        announcements.take_back(deployed.clone());
        assert!(announcements.set(&instance(0), left, false).is_none());
        assert_eq!(statuses(&mut announcements), [left], "not the older one");

        announcements.take_back(deployed);
        assert_eq!(statuses(&mut announcements), [], "it has left");
        let undeployed = announcements.set(&instance(0), left, true).expect("sent");
        announcements.take_back(undeployed);
        assert_eq!(statuses(&mut announcements), [left]);
    }

    fn statuses(announcements: &mut Announcements) -> Vec<AnnouncementStatus> {
        announcements
            .due(false)
            .iter()
            .map(|message| message.status)
            .collect()
    }

    fn numbers(messages: &[ServiceAnnouncement]) -> Vec<u32> {
        messages.iter().map(|message| message.instance_number).collect()
    }

    fn instance(number: u32) -> Deployed {
        Deployed {
            service: "a.b.c.d".parse().expect("name"),
            number,
            namespace_address: Ipv4Addr::new(10, 18, 0, 2),
            namespace_address_v6: None,
            node_address: Ipv4Addr::new(192, 0, 2, 10),
            node_port: 50103,
            incarnation: None,
        }
    }
}
