//! NetManager.
pub mod api;
pub mod config;
pub mod dataplane;
pub mod directory;
pub mod endpoint;
pub mod host;
pub mod manager;
pub mod node;
pub mod parking;
pub mod resolver;
pub mod state;
