//! The programs of the data plane, packet by packet: the real object in the running kernel, run on crafted frames
//! by `BPF_PROG_TEST_RUN`. Names of tests begin with their number in the catalogue.
//!
//! Each test loads an object of its own, with maps of its own, neither attached nor pinned. What such a run cannot
//! show, because the kernel makes up the packet and ends with the verdict: where a redirect arrives, unfinished
//! checksums, neighbours. The tests on real interfaces do.

mod admission;
mod balance;
mod budget;
mod choice;
mod connection;
mod conversation;
mod destinations;
mod encapsulation;
mod endings;
mod events;
mod flow_table;
mod foreign;
mod fragments;
mod frame;
mod gateway;
mod host;
mod icmp;
mod lengths;
mod lifetimes;
mod malformed;
mod object;
mod options;
mod oracle;
mod origin;
mod outcomes;
mod outsiders;
mod ports;
mod probe;
mod published;
mod random;
mod same_node;
mod segment;
mod settling;
mod source;
mod topology;
mod traced;
mod translation;
mod unreachable;
