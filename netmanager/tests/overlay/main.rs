//! Two hosts on one wire, each with a NetManager that is fed through its ordinary API: real programs, real links,
//! real sockets.
//!
//! The answers about services take 50 ms, so that first packets really wait.

mod first_packet;
mod fixture;
mod hostile;
mod lifecycle;
mod restart;
mod transfer;
