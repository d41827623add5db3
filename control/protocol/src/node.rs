//! The wires between a node engine and its cluster: registration over HTTP, the rest over MQTT.

mod messages;
mod registration;
pub mod topic;

pub use messages::{
    Acknowledgement, Command, DeleteCommand, ErrorMessage, JobReport, ResourcesReport, ServiceUsage,
};
pub use registration::{NodeInformation, Registered};

use crate::network::ServiceName;

/// The name under which a node stands in translation tables: it is an instance too, number 0 of a service of its own.
/// `None` when `id` is not what ids are made of. No application of a person has this first part.
pub fn overlay_name(id: &str) -> Option<ServiceName> {
    format!("{OVERLAY_APPLICATION}.system.{id}.node").parse().ok()
}

/// The application that the nodes themselves belong to.
pub const OVERLAY_APPLICATION: &str = "oakestra";

/// The node that a name made by [`overlay_name`] is of.
pub fn of_overlay_name(name: &ServiceName) -> Option<&str> {
    name.as_str()
        .strip_prefix(OVERLAY_APPLICATION)?
        .strip_prefix(".system.")?
        .strip_suffix(".node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_lead_back_to_their_ids() {
        let id = "0123456789abcdef01234567";
        let name = overlay_name(id).expect("name");
        assert_eq!(of_overlay_name(&name), Some(id));
        assert_eq!(overlay_name("no id"), None);
        assert_eq!(of_overlay_name(&"a.b.c.d".parse().expect("name")), None);
    }
}
