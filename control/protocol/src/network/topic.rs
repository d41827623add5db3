//! The topics of the cluster's broker. All messages are sent with QoS 1 and not retained.
//!
//! `node` is the node's id, which is also its client id at the broker.

use super::ServiceName;

/// Node to cluster: [`SubnetRequest`](super::SubnetRequest).
pub fn subnet_request(node: &str) -> String {
    format!("nodes/{node}/net/subnet")
}

/// Cluster to node: [`SubnetResult`](super::SubnetResult).
pub fn subnet_result(node: &str) -> String {
    format!("nodes/{node}/net/subnetwork/result")
}

/// Node to cluster: [`ServiceAnnouncement`](super::ServiceAnnouncement) of an instance that is attached.
pub fn service_deployed(node: &str) -> String {
    format!("nodes/{node}/net/service/deployed")
}

/// Node to cluster: [`ServiceAnnouncement`](super::ServiceAnnouncement) of an instance that is detached.
pub fn service_undeployed(node: &str) -> String {
    format!("nodes/{node}/net/service/undeployed")
}

/// Node to cluster: [`ServiceAnnouncement`](super::ServiceAnnouncement) with the node's new tunnel address.
pub fn service_address_changed(node: &str) -> String {
    format!("nodes/{node}/net/service/address-changed")
}

/// Node to cluster: [`TableQuery`](super::TableQuery).
pub fn table_query_request(node: &str) -> String {
    format!("nodes/{node}/net/tablequery/request")
}

/// Cluster to node: [`TableResult`](super::TableResult).
pub fn table_query_result(node: &str) -> String {
    format!("nodes/{node}/net/tablequery/result")
}

/// Node to cluster: [`InterestRemoval`](super::InterestRemoval).
pub fn interest_remove(node: &str) -> String {
    format!("nodes/{node}/net/interest/remove")
}

/// Cluster to node: [`Peers`](super::Peers).
pub fn peers(node: &str) -> String {
    format!("nodes/{node}/net/peers")
}

/// Node to cluster: [`PeersAcknowledgement`](super::PeersAcknowledgement).
pub fn peers_acknowledgement(node: &str) -> String {
    format!("nodes/{node}/net/peers/ack")
}

/// What a cluster subscribes to in order to hear every node's network.
pub fn of_all_nodes() -> &'static str {
    "nodes/+/net/#"
}

/// Cluster to every interested node: [`UpdatesAvailable`](super::UpdatesAvailable) of one service.
pub fn updates_available(service: &ServiceName) -> String {
    format!("jobs/{service}/updates_available")
}

/// The service that a topic made by [`updates_available`] is about; `None` for every other topic.
pub fn service_of_updates(topic: &str) -> Option<ServiceName> {
    topic
        .strip_prefix("jobs/")?
        .strip_suffix("/updates_available")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_those_of_the_wire() {
        let service: ServiceName = "a.b.c.d".parse().expect("name");
        let cases = [
            (subnet_request("n1"), "nodes/n1/net/subnet"),
            (subnet_result("n1"), "nodes/n1/net/subnetwork/result"),
            (service_deployed("n1"), "nodes/n1/net/service/deployed"),
            (service_undeployed("n1"), "nodes/n1/net/service/undeployed"),
            (
                service_address_changed("n1"),
                "nodes/n1/net/service/address-changed",
            ),
            (table_query_request("n1"), "nodes/n1/net/tablequery/request"),
            (table_query_result("n1"), "nodes/n1/net/tablequery/result"),
            (interest_remove("n1"), "nodes/n1/net/interest/remove"),
            (peers("n1"), "nodes/n1/net/peers"),
            (peers_acknowledgement("n1"), "nodes/n1/net/peers/ack"),
            (updates_available(&service), "jobs/a.b.c.d/updates_available"),
        ];
        for (topic, expected) in cases {
            assert_eq!(topic, expected);
        }
    }

    #[test]
    fn only_a_topic_of_updates_names_a_service() {
        let service: ServiceName = "a.b.c.d".parse().expect("name");
        assert_eq!(service_of_updates(&updates_available(&service)), Some(service));
        for topic in [
            "jobs//updates_available",
            "jobs/a.b.c.d",
            "nodes/n1/net/peers",
            "jobs/a.b.c.d/x",
        ] {
            assert_eq!(service_of_updates(topic), None, "{topic}");
        }
    }
}
