//! The topics between a node engine and its cluster. All messages are sent with QoS 1 and not retained.

/// Cluster to node: [`Placement`](crate::job::Placement).
pub fn deploy(node: &str) -> String {
    format!("nodes/{node}/control/deploy")
}

/// Cluster to node: [`DeleteCommand`](super::DeleteCommand).
pub fn delete(node: &str) -> String {
    format!("nodes/{node}/control/delete")
}

/// Cluster to node: [`ErrorMessage`](super::ErrorMessage); the node is to register again.
pub fn error(node: &str) -> String {
    format!("nodes/{node}/control/error")
}

/// Node to cluster: [`Acknowledgement`](super::Acknowledgement) of a deploy or delete.
pub fn acknowledgement(node: &str) -> String {
    format!("nodes/{node}/control/ack")
}

/// Node to cluster: [`NodeInformation`](super::NodeInformation), what changes only.
pub fn information(node: &str) -> String {
    format!("nodes/{node}/information")
}

/// Node to cluster: [`JobReport`](super::JobReport).
pub fn job(node: &str) -> String {
    format!("nodes/{node}/job")
}

/// Node to cluster: [`ResourcesReport`](super::ResourcesReport).
pub fn resources(node: &str) -> String {
    format!("nodes/{node}/jobs/resources")
}

/// The node that a topic `nodes/<id>/…` is about, and what follows the id.
pub fn node_of(topic: &str) -> Option<(&str, &str)> {
    let (node, rest) = topic.strip_prefix("nodes/")?.split_once('/')?;
    (!node.is_empty()).then_some((node, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_those_of_the_wire() {
        let cases = [
            (deploy("n1"), "control/deploy"),
            (delete("n1"), "control/delete"),
            (error("n1"), "control/error"),
            (acknowledgement("n1"), "control/ack"),
            (information("n1"), "information"),
            (job("n1"), "job"),
            (resources("n1"), "jobs/resources"),
        ];
        for (topic, expected) in cases {
            assert_eq!(node_of(&topic), Some(("n1", expected)));
        }
        for topic in ["nodes//job", "nodes/n1", "jobs/a/b", ""] {
            assert_eq!(node_of(topic), None, "{topic}");
        }
    }
}
