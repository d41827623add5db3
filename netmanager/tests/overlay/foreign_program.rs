//! Somebody else's program on the same uplink keeps its place and its verdict, whatever NetManager does.

use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use aya::programs::tc::{SchedClassifier, TcAttachType};
use lab::worker::Worker;
use lab::{Host, Lab, UPLINK};

use crate::fixture::{DEADLINE, bind, lone_answers, lone_instance, program};

/// Commands of `bpf(2)`.
const PROGRAM_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// Types of programs and attachments (`linux/bpf.h`).
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

/// Payload of the datagrams that the foreign program drops, and of others.
const REFUSED: usize = 555;
const PASSED: usize = 556;

/// A program that drops frames of one length and leaves all others to the next program.
///
/// ```text
/// r2 = skb->len
/// r0 = TCX_NEXT
/// if r2 != length goto exit
/// r0 = TCX_DROP
/// exit
/// ```
fn load(length: u32) -> OwnedFd {
    let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
        let mut bytes = [0; 8];
        bytes[0] = code;
        bytes[1] = registers;
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let code = [
        instruction(0x61, 0x12, 0, 0),
        instruction(0xb7, 0, 0, -1),
        instruction(0x55, 2, 1, length.cast_signed()),
        instruction(0xb7, 0, 0, 2),
        instruction(0x95, 0, 0, 0),
    ]
    .concat();
    let licence = c"GPL";
    let mut attributes = [0; 128];
    attributes[..4].copy_from_slice(&SCHED_CLS.to_ne_bytes());
    attributes[4..8].copy_from_slice(&5u32.to_ne_bytes());
    attributes[8..16].copy_from_slice(&(code.as_ptr() as u64).to_ne_bytes());
    attributes[16..24].copy_from_slice(&(licence.as_ptr() as u64).to_ne_bytes());
    bpf(PROGRAM_LOAD, &attributes)
}

/// Attaches it to the ingress of an interface of the calling thread's namespace, for as long as the link is held.
fn attach(program: &OwnedFd, interface: u32) -> OwnedFd {
    let mut attributes = [0; 128];
    attributes[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attributes[4..8].copy_from_slice(&interface.to_ne_bytes());
    attributes[8..12].copy_from_slice(&TCX_INGRESS.to_ne_bytes());
    bpf(LINK_CREATE, &attributes)
}

fn bpf(command: libc::c_long, attributes: &[u8; 128]) -> OwnedFd {
    // SAFETY: the attributes are as many bytes as is said, and what they point to outlives the call.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    assert!(code >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that the kernel has just made for this process.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(code).expect("a descriptor")) }
}

/// The programs at the ingress of the uplink, in their order.
fn programs(host: &Host) -> Vec<u32> {
    let query = || SchedClassifier::query_tcx(UPLINK, TcAttachType::Ingress);
    let (_, programs) = host.enter(query).expect("entered").expect("asked");
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

/// Sends a datagram that the foreign program drops and then one that it does not: only the latter arrives.
fn judge(from: &Host, to: &Host, when: &str) {
    let receiver = bind(to, 4_000);
    let sender = bind(from, 4_000);
    for length in [REFUSED, PASSED] {
        sender
            .send_to(&vec![0; length], (to.address(), 4_000))
            .expect("sent");
    }
    let mut buffer = [0; 1_000];
    let length = receiver.recv(&mut buffer).expect("the second arrives");
    assert_eq!(length, PASSED, "{when}");
}

#[test]
fn n62_n65_somebody_else_s_program_keeps_its_place_and_its_verdict() {
    let lab = Lab::new("foreign program").expect("a lab");
    let host = lab.host("near").expect("a host");
    let other = lab.host("other").expect("a host");
    other.ping(host.address(), DEADLINE).expect("the way is known");
    const HEADERS: usize = 14 + 20 + 8;
    let foreign = load(u32::try_from(HEADERS + REFUSED).expect("short"));
    let _link = host
        .enter(|| {
            let index = nix::net::if_::if_nametoindex(UPLINK).expect("the uplink");
            attach(&foreign, index)
        })
        .expect("entered");
    let theirs = programs(&host);
    assert_eq!(theirs.len(), 1);
    judge(&other, &host, "before");

    let mut worker = Worker::start(&lab, &host, program(), &lone_answers()).expect("a NetManager");
    let endpoint = host.endpoint("client").expect("an endpoint");
    worker.deploy(&endpoint, &lone_instance(&host)).expect("attached");
    let both = programs(&host);
    assert_eq!((both.len(), &both[1..]), (2, &theirs[..]), "ours goes first");
    judge(&other, &host, "beside ours");
    worker.restart().expect("started again");
    let after = programs(&host);
    assert_eq!((after.len(), &after[1..]), (2, &theirs[..]), "after a kill");
    judge(&other, &host, "after a kill");

    worker.daemon().kill().expect("killed");
    let output = worker.command_line(&["reset"]).expect("run");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(programs(&host), theirs, "ours is gone, theirs is where it was");
    judge(&other, &host, "afterwards");
}
