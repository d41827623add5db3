//! The whole system: root, cluster and workers as processes on hosts of their own, a real Docker, the real nginx and
//! curl.
//!
//! `cargo xtask test` builds the daemons and the images and says where they are.
#![cfg(test)]

mod drain;
mod egress;
mod ends;
mod kills;
mod malformed;
mod stage;
mod walk;
