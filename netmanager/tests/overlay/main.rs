//! Two hosts on one wire, each with a NetManager that is fed through its ordinary API: real programs, real links,
//! real sockets.
//!
//! The answers about services take 50 ms, so that first packets really wait.

mod back_doors;
mod changes;
mod clsact;
mod docker;
mod endings;
mod errors;
mod first_packet;
mod fixture;
mod foreign_program;
mod fragments;
mod hostile;
mod lifecycle;
mod look;
mod own_processes;
mod probes;
mod published;
mod registration;
mod restart;
mod tagged;
mod transfer;
mod watch;
