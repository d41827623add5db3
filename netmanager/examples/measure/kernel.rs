//! Running programs in the kernel, and the two smallest of them.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;

/// Commands of `bpf(2)` (`linux/bpf.h`).
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;

/// Offset of the addresses and ports in a frame with an IPv4 header without options: the first twelve bytes of the
/// key of its flow, in its order.
const ADDRESSES: i32 = 26;
const TCP: i32 = 6;

/// Helpers by number.
const MAP_LOOK_UP: i32 = 1;
const LOAD_BYTES: i32 = 26;

/// A program that can be run.
pub struct Runner(OwnedFd);

/// How a run ended.
pub struct Ran {
    pub verdict: i32,
    /// What the kernel says that it took, its clock and the call included.
    pub nanoseconds: u32,
}

/// The part of `union bpf_attr` for loading a program; the kernel takes what is not there for zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The same for running one.
#[repr(C)]
struct TestRun {
    program: u32,
    verdict: u32,
    in_size: u32,
    out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl Runner {
    pub fn of(program: &SchedClassifier) -> Result<Self> {
        let descriptor = program.fd().context("the program is not loaded")?.as_fd();
        let descriptor = descriptor.try_clone_to_owned();
        Ok(Self(descriptor.context("cannot keep the program")?))
    }

    /// A program that does nothing: what its run takes is the measuring.
    pub fn nothing() -> Result<Self> {
        load(&[move_number(0, -1), EXIT])
    }

    /// A program that only looks the flow of its TCP packet up.
    pub fn look_up(flows: BorrowedFd<'_>) -> Result<Self> {
        let [low, high] = map_in_register(1, flows);
        load(&[
            // The key lies on the stack: addresses and ports out of the frame, then the protocol and zeros.
            move_register(3, 10),
            add(3, -16),
            move_number(2, ADDRESSES),
            move_number(4, 12),
            call(LOAD_BYTES),
            store_word(10, -4, i32::from_ne_bytes(TCP.to_le_bytes())),
            low,
            high,
            move_register(2, 10),
            add(2, -16),
            call(MAP_LOOK_UP),
            // Whether it was found is the verdict.
            skip_if_zero(0),
            move_number(0, 1),
            EXIT,
        ])
    }

    /// Runs it once on a frame.
    pub fn run(&self, frame: &[u8]) -> Result<Ran> {
        let mut attribute = TestRun {
            program: descriptor(self.0.as_raw_fd()),
            verdict: 0,
            in_size: u32::try_from(frame.len()).context("a frame")?,
            out_size: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: the attribute is what the kernel expects for this command, of the size that it is told; the frame
        // outlives the call, and the kernel only reads it.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_TEST_RUN,
                &raw mut attribute,
                size_of::<TestRun>(),
            )
        };
        if status < 0 {
            return Err(io::Error::last_os_error()).context("the kernel does not run the program");
        }
        Ok(Ran {
            verdict: attribute.verdict.cast_signed(),
            nanoseconds: attribute.duration,
        })
    }
}

fn load(code: &[u64]) -> Result<Runner> {
    let attribute = Load {
        kind: SCHED_CLS,
        instructions: u32::try_from(code.len()).context("a short program")?,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: as in `run`; code and licence outlive the call.
    let status = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attribute, size_of::<Load>()) };
    let number = i32::try_from(status).context("a file descriptor")?;
    if number < 0 {
        return Err(io::Error::last_os_error())
            .context("the kernel does not take the program to compare with");
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Runner(unsafe { OwnedFd::from_raw_fd(number) }))
}

fn descriptor(number: i32) -> u32 {
    number.cast_unsigned()
}

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// `struct bpf_insn` of a little-endian machine.
const fn instruction(code: u8, destination: u8, source: u8, offset: i16, number: i32) -> u64 {
    (code as u64)
        | ((source << 4 | destination) as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (number.cast_unsigned() as u64) << 32
}

const fn move_number(register: u8, number: i32) -> u64 {
    instruction(0xb7, register, 0, 0, number)
}

const fn move_register(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

const fn add(register: u8, number: i32) -> u64 {
    instruction(0x07, register, 0, 0, number)
}

const fn store_word(register: u8, offset: i16, number: i32) -> u64 {
    instruction(0x62, register, 0, offset, number)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// Leaves the next instruction out when the register is zero.
const fn skip_if_zero(register: u8) -> u64 {
    instruction(0x15, register, 0, 1, 0)
}

/// A load of 64 bits that the kernel reads as a map (`BPF_PSEUDO_MAP_FD`).
fn map_in_register(register: u8, map: BorrowedFd<'_>) -> [u64; 2] {
    [instruction(0x18, register, 1, 0, map.as_raw_fd()), 0]
}
