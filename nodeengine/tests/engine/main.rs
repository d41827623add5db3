//! The daemon with a real Docker and a real broker, and with the test in the place of the cluster.
//!
//! Needs root, `dockerd`, `docker`, `mosquitto`, `busybox-static` and a loopback interface.

mod broker;
mod cluster;
mod crash;
mod docker;
mod drain;
mod failures;
mod interface;
mod life;
mod network;
mod node;
mod stage;
