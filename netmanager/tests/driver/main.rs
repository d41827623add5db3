//! Docker's network driver: a container has its network before its first instruction, and nothing is left of it
//! afterwards, whoever is killed when.
//!
//! `containers` runs a real Docker; `calls` speaks as Docker does, to stop in the middle and to repeat itself.

mod calls;
mod containers;
mod docker;
mod fixture;
mod published;
