//! What the kernel programs and their user share: map keys and values, counter names, addresses, headers
//! and checksum arithmetic.
//!
//! `no_std` and without dependencies, so that the same source serves the bpf target and the host, where the
//! arithmetic is tested. Everything here is plain data and pure functions; maps and programs live in the
//! binary, loading and feeding them in `netmanager`.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod address;
pub mod checksum;
pub mod encapsulation;
pub mod header;
pub mod probe;
pub mod tables;
pub mod verdict;
