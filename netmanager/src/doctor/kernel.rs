//! What the kernel can do.

use std::fs;
use std::path::Path;

use aya::programs::tc::{SchedClassifier, TcAttachType};
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::facts::version;
use super::{Check, State};
use crate::dataplane::{OBJECT, verify};

/// The oldest kernel that the programs are made for.
const OLDEST: (u32, u32) = (6, 1);
/// The first kernel that takes the outer header off with `BPF_F_ADJ_ROOM_DECAP_L3_IPV4`.
const DECAPSULATES: (u32, u32) = (6, 3);
/// The first kernel with tcx.
const TCX: (u32, u32) = (6, 6);

const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";
const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// The less common helpers that the programs call.
const HELPERS: [(&str, BpfHelper); 7] = [
    ("bpf_skb_adjust_room", BpfHelper::BPF_FUNC_skb_adjust_room),
    ("bpf_redirect_peer", BpfHelper::BPF_FUNC_redirect_peer),
    ("bpf_redirect_neigh", BpfHelper::BPF_FUNC_redirect_neigh),
    ("bpf_skb_change_type", BpfHelper::BPF_FUNC_skb_change_type),
    ("bpf_l4_csum_replace", BpfHelper::BPF_FUNC_l4_csum_replace),
    ("bpf_ktime_get_coarse_ns", BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
    ("bpf_ringbuf_reserve", BpfHelper::BPF_FUNC_ringbuf_reserve),
];

pub fn checks() -> Vec<Check> {
    let release = nix::sys::utsname::uname()
        .ok()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let found = version(&release);
    vec![
        kernel(&release, found),
        bpf_file_system(),
        type_format(),
        compiler(),
        tcx(found),
        helpers(),
        decapsulation(found),
        programs(),
    ]
}

fn kernel(release: &str, found: Option<(u32, u32)>) -> Check {
    let state = match found {
        Some(found) if found >= OLDEST => State::Open,
        Some(_) => State::Missing,
        None => State::Unknown,
    };
    let (major, minor) = OLDEST;
    Check::new(
        "kernel",
        state,
        format!("Linux {release}; {major}.{minor} or newer is needed"),
    )
    .advise("install a newer kernel")
}

fn bpf_file_system() -> Check {
    let name = "bpffs";
    let check = match statfs(BPF_FILE_SYSTEM).map(|found| found.filesystem_type()) {
        Ok(BPF_FS_MAGIC) => Check::new(name, State::Open, format!("mounted at {BPF_FILE_SYSTEM}")),
        Ok(_) => Check::new(name, State::Missing, format!("not mounted at {BPF_FILE_SYSTEM}")),
        Err(error) => {
            let missing = Check::new(name, State::Missing, format!("{BPF_FILE_SYSTEM}: {error}"));
            return missing.advise("mount sysfs at /sys, in a kernel with CONFIG_BPF_SYSCALL");
        }
    };
    check
        .advise("mount -t bpf bpf /sys/fs/bpf, at every start of the machine")
        .instead("NetManager mounts it when it starts")
}

fn type_format() -> Check {
    let check = if Path::new(BTF).exists() {
        Check::new("BTF", State::Open, BTF)
    } else {
        Check::new(
            "BTF",
            State::Missing,
            format!("{BTF} is not there (CONFIG_DEBUG_INFO_BTF)"),
        )
    };
    check.instead("nothing is missing: the programs depend on none of the kernel's own types")
}

fn compiler() -> Check {
    let check = match fs::read_to_string(JIT) {
        Ok(text) if text.trim() == "0" => Check::new(
            "JIT",
            State::Missing,
            format!("{JIT} is 0: programs are interpreted"),
        ),
        Ok(text) => Check::new("JIT", State::Open, format!("{JIT} is {}", text.trim())),
        // A kernel that always compiles may not show the switch, and only the first network namespace has it.
        Err(error) => Check::new("JIT", State::Unknown, format!("{JIT}: {error}")),
    };
    check
        .advise("sysctl net.core.bpf_jit_enable=1")
        .instead("the kernel's interpreter, several times slower")
}

/// Asking who is attached is refused by a kernel that knows no such place.
fn tcx(found: Option<(u32, u32)>) -> Check {
    let name = "tcx";
    let check = match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok((_, programs)) => Check::new(
            name,
            State::Open,
            format!(
                "programs are attached in an order, by links; {} at lo",
                programs.len()
            ),
        ),
        Err(error) => {
            let state = match found {
                Some(found) if found < TCX => State::Missing,
                Some(_) | None if is_refused(&error) => State::Unknown,
                Some(_) | None => State::Missing,
            };
            Check::new(
                name,
                state,
                format!("asking for the programs at lo: {}", told(&error)),
            )
        }
    };
    check
        .advise("install Linux 6.6 or newer")
        .instead("filters of a clsact queueing discipline")
}

fn helpers() -> Check {
    let mut missing = Vec::new();
    let mut unknown = Vec::new();
    for (name, helper) in HELPERS {
        match is_helper_supported(ProgramType::SchedClassifier, helper) {
            Ok(true) => {}
            Ok(false) => missing.push(name.to_owned()),
            Err(error) => unknown.push(format!("{name} ({})", told(&error))),
        }
    }
    let (state, detail) = if !missing.is_empty() {
        (State::Missing, missing.join(", "))
    } else if !unknown.is_empty() {
        (State::Unknown, unknown.join(", "))
    } else {
        (State::Open, "all that the programs call".to_owned())
    };
    Check::new("helpers", state, detail).advise("install a newer kernel")
}

fn decapsulation(found: Option<(u32, u32)>) -> Check {
    let state = match found {
        Some(found) if found >= DECAPSULATES => State::Open,
        Some(_) => State::Missing,
        None => State::Unknown,
    };
    let (major, minor) = DECAPSULATES;
    Check::new(
        "decapsulation",
        state,
        format!("BPF_F_ADJ_ROOM_DECAP_L3_IPV4, of Linux {major}.{minor}"),
    )
    .instead("the outer headers are taken off without naming them")
}

/// The surest check: the programs as they are, shown to this kernel's verifier.
fn programs() -> Check {
    let name = "programs";
    if OBJECT.is_empty() {
        return Check::new(name, State::Missing, "this NetManager was built without them")
            .advise("build it with `cargo xtask build-ebpf`, or with DATAPLANE_OBJECT set");
    }
    let is_mounted = statfs(BPF_FILE_SYSTEM).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_mounted {
        return Check::new(
            name,
            State::Unknown,
            "not shown to the verifier: that needs bpffs",
        )
        .advise("mount -t bpf bpf /sys/fs/bpf");
    }
    match verify() {
        Ok(report) => {
            let most = report
                .programs
                .iter()
                .map(|program| program.verified_instructions)
                .max();
            Check::new(
                name,
                State::Open,
                format!(
                    "the verifier takes all {}, with {} steps at most",
                    report.programs.len(),
                    most.unwrap_or_default()
                ),
            )
        }
        Err(error) => Check::new(name, State::Missing, crate::api::chain(&error))
            .advise("`NetManager verify` shows the whole message of the kernel"),
    }
}

/// Whether the kernel did not even look, for want of rights.
fn is_refused(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    matches!(error.io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

fn told(error: &(dyn std::error::Error + 'static)) -> String {
    crate::api::chain(error)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
