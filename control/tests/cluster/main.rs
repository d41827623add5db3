//! The cluster orchestrator as a process, between a root and nodes that the tests play.

mod both;
mod commands;
mod network;
mod node;
mod nodes;
mod stage;
