//! The root orchestrator as a process, over real HTTP and with clusters that speak its WebSocket.

mod accounts;
mod clusters;
mod crash;
mod deployment;
mod errors;
mod fake;
mod fixture;
mod lost;
mod services;
