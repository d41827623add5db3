//! The orchestrators: a root that people talk to, and clusters that place what it hands them on their nodes.

pub mod cluster;
pub mod limits;
pub mod root;
pub mod scheduler;
pub mod session;
pub mod store;
