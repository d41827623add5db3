//! Who may say and hear what at the broker: a node only what is its own.

use protocol::network::topic as network;
use protocol::node::topic as node_topic;

/// Topics below a node's own that only the cluster publishes on.
const OF_THE_CLUSTER: [&str; 6] = [
    "control/deploy",
    "control/delete",
    "control/error",
    "net/subnetwork/result",
    "net/tablequery/result",
    "net/peers",
];

/// Whether the client id belongs to the user: it is the node's id, or that followed by `-` and more.
pub fn is_client_of(client: &str, node: &str) -> bool {
    client
        .strip_prefix(node)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Whether a node may publish on a topic.
pub fn may_publish(node: &str, topic: &str) -> bool {
    match node_topic::node_of(topic) {
        Some((owner, rest)) => {
            owner == node
                && !topic.contains(['+', '#', '\0'])
                && !rest.is_empty()
                && !OF_THE_CLUSTER.contains(&rest)
        }
        None => false,
    }
}

/// Whether a node may subscribe to a filter.
pub fn may_subscribe(node: &str, filter: &str) -> bool {
    // Wildcards in the place of the id would not be equal to it.
    let own = node_topic::node_of(filter).is_some_and(|(owner, _)| owner == node);
    own || network::service_of_updates(filter).is_some()
}

/// Whether every message on `topic` reaches whoever subscribed to `filter`.
pub fn covers(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for pattern in filter.split('/') {
        match (pattern, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (pattern, Some(level)) if pattern == level => {}
            (_, _) => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_only_what_is_its_own_to_say() {
        let allowed = [
            "nodes/n1/information",
            "nodes/n1/job",
            "nodes/n1/jobs/resources",
            "nodes/n1/control/ack",
            "nodes/n1/net/subnet",
            "nodes/n1/net/service/deployed",
            "nodes/n1/net/tablequery/request",
            "nodes/n1/net/interest/remove",
            "nodes/n1/net/peers/ack",
        ];
        for topic in allowed {
            assert!(may_publish("n1", topic), "{topic}");
        }
        let refused = [
            "nodes/n1/control/deploy",
            "nodes/n1/control/delete",
            "nodes/n1/control/error",
            "nodes/n1/net/subnetwork/result",
            "nodes/n1/net/tablequery/result",
            "nodes/n1/net/peers",
            "nodes/n1/",
            "nodes/n1",
            "nodes/n2/job",
            "nodes/n1-x/job",
            "nodes//job",
            "jobs/a.b.c.d/updates_available",
            "$SYS/brokers",
            "",
        ];
        for topic in refused {
            assert!(!may_publish("n1", topic), "{topic}");
        }
    }

    #[test]
    fn a_node_hears_only_what_is_for_it() {
        for filter in [
            "nodes/n1/control/deploy",
            "nodes/n1/control/#",
            "nodes/n1/#",
            "nodes/n1/net/+/result",
            "jobs/a.b.c.d/updates_available",
        ] {
            assert!(may_subscribe("n1", filter), "{filter}");
        }
        for filter in [
            "#",
            "+/n1/control/deploy",
            "nodes/#",
            "nodes/+/control/deploy",
            "nodes/n2/control/deploy",
            "jobs/+/updates_available",
            "jobs/#",
            "jobs/a.b.c.d/#",
            "$SYS/#",
            "$share/g/nodes/n1/job",
            "",
        ] {
            assert!(!may_subscribe("n1", filter), "{filter}");
        }
    }

    #[test]
    fn clients_are_of_the_node_whose_id_they_begin_with() {
        assert!(is_client_of("n1", "n1") && is_client_of("n1-ne", "n1"));
        assert!(!is_client_of("n2", "n1") && !is_client_of("n11", "n1") && !is_client_of("", "n1"));
    }

    #[test]
    fn filters_cover_what_mqtt_says_they_do() {
        for filter in ["a/b", "a/+", "a/#", "#", "+/b", "a/b/#"] {
            assert!(covers(filter, "a/b"), "{filter}");
        }
        for filter in ["a", "a/b/c", "a/+/c", "b/#", "+", ""] {
            assert!(!covers(filter, "a/b"), "{filter}");
        }
    }
}
