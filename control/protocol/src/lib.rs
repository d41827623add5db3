//! Every message and document that crosses a process, as types that read and write its exact JSON.
//!
//! The types are tolerant in what they read (unknown fields, absent optional ones, numbers as strings) and
//! exact in what they write, so that daemons of other versions and of other makes understand each other.
//! Nothing here knows a socket, a broker or a store.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod descriptor;
pub mod instance;
pub mod job;
pub mod network;
pub mod node;
pub mod ports;
