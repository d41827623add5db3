//! What the node and its containers use, out of files of the kernel.

pub(crate) mod cgroup;
pub(crate) mod host;
pub(crate) mod logs;
