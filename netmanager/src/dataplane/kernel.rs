//! What this kernel offers for the data plane, and what is used instead of what it does not.

use std::str::FromStr;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use aya::util::KernelVersion;
use dataplane_ebpf::tables::decapsulation;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// By links, in order with the programs of others, each exchanged in one step (Linux 6.6).
    Tcx,
    /// As filters of a `clsact` queueing discipline, which older kernels have.
    Clsact,
}

impl Attachment {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// The better of the two that this kernel has.
    pub fn detect() -> Self {
        // Asked by the loopback interface, which every network namespace has.
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_unknown) => Self::Clsact,
        }
    }
}

impl FromStr for Attachment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tcx, Self::Clsact]
            .into_iter()
            .find(|candidate| candidate.as_str() == text)
            .ok_or_else(|| "`tcx` or `clsact`".to_owned())
    }
}

/// The flags with which the outer headers are taken off: a kernel before 6.3 (commit d219df60a70e) knows none that say
/// which headers those are, and does without.
pub fn decapsulation_flags() -> u64 {
    let knows_headers = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 3, 0));
    if knows_headers {
        decapsulation::NAMED
    } else {
        decapsulation::UNNAMED
    }
}
