//! The programs of the data plane. Built for the bpf target only; on the host this is an empty program, so that
//! checks and tests of the workspace need no BPF toolchain.
#![cfg_attr(
    target_arch = "bpf",
    no_std,
    no_main,
    feature(core_intrinsics),
    expect(internal_features, reason = "the only atomic addition for bpf")
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs;
