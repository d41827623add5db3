//! The programs, as this binary carries them.

/// The object file of the programs, or nothing when the binary was built without it.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane-ebpf.o"));
