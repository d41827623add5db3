//! The wires between a node engine and its cluster: registration over HTTP, the rest over MQTT.

mod messages;
mod registration;
pub mod topic;

pub use messages::{
    Acknowledgement, Command, DeleteCommand, ErrorMessage, JobReport, ResourcesReport, ServiceUsage,
};
pub use registration::{NodeInformation, Registered};
