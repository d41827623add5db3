//! What the data plane may need of the kernel: V-71, and the memory of the maps.
//!
//! A budget is what was needed when it was written down, and a fifth more. It is raised on purpose, not by accident: that
//! is all it is for. Object and running kernel are asked, so that nothing here depends on how fast this machine is.

use std::fs;
use std::sync::LazyLock;

use aya::util::KernelVersion;
use netmanager::dataplane::{MapReport, OBJECT, Program, Report, verify};
use object::{File, Object as _, ObjectSection as _};

/// Of a million instructions that every verifier walks at most, so many stay free on each kernel: another kernel counts
/// otherwise.
const VERIFIED_ANYWHERE: u32 = 750_000;

/// Instructions that the verifier of Linux 6.18 walks.
const fn verified(program: Program) -> u32 {
    match program {
        Program::FromEndpoint => 223_000,
        Program::FromOak0 => 209_000,
        Program::FromHost => 133_000,
        Program::FromUplink => 87_600,
        Program::FromLoopback => 67_200,
    }
}

/// Bytes that all maps take when they are empty: those that every processor has once, and for each processor.
const EMPTY: u64 = 29_800_000;
const EMPTY_PER_PROCESSOR: u64 = 716_000;
/// Bytes that entries add which are made when they are needed, when all these maps are full.
const FULL: u64 = 70_000_000;
/// What the kernel's hash adds to the key and the value of an entry (`struct htab_elem`).
const ENTRY: u64 = 48;

/// Bytes of the instructions, and of the whole object with what describes it, which is part of the binary.
const CODE: u64 = 167_000;
const WHOLE_OBJECT: usize = 2_000_000;

/// Asked once, since it is always the same.
static REPORT: LazyLock<Report> = LazyLock::new(|| verify().expect("the kernel takes the programs"));

#[test]
fn v71_the_verifier_walks_no_more_of_a_program_than_its_budget() {
    let kernel = KernelVersion::current().expect("a version");
    let budgeted = kernel >= KernelVersion::new(6, 18, 0);
    let programs = &REPORT.programs;
    assert_eq!(programs.len(), Program::ALL.len());
    for (program, found) in Program::ALL.into_iter().zip(programs) {
        assert_eq!(found.name, program.name());
        let needed = found.verified_instructions;
        assert!(needed > 0, "{}: the kernel tells nothing", found.name);
        let budget = if budgeted {
            verified(program)
        } else {
            VERIFIED_ANYWHERE
        };
        assert!(needed <= budget, "{}: {needed} of {budget}", found.name);
    }
}

#[test]
fn v71_the_maps_take_no_more_memory_than_their_budget() {
    let maps = &REPORT.maps;
    let bytes = |map: &MapReport| {
        assert!(map.memory_bytes > 0, "{}: the kernel tells nothing", map.name);
        map.memory_bytes
    };
    // An older kernel does not say what a map takes, but what its entries would take (commit 90a5527d7686).
    let knows_memory = KernelVersion::current().expect("a version") >= KernelVersion::new(6, 4, 0);
    if knows_memory {
        let empty: u64 = maps.iter().map(bytes).sum();
        let processors = u64::try_from(processors()).expect("a few");
        let budget = EMPTY + EMPTY_PER_PROCESSOR * processors;
        assert!(empty <= budget, "empty: {empty} of {budget} bytes");
    }
    let on_demand = maps.iter().filter(|map| map.kind == "Hash");
    let full: u64 = on_demand
        .map(|map| {
            let rounded = |bytes: u32| u64::from(bytes.next_multiple_of(8));
            u64::from(map.max_entries) * (ENTRY + rounded(map.key_bytes) + rounded(map.value_bytes))
        })
        .sum();
    assert!(full > 0 && full <= FULL, "full: {full} of {FULL} bytes more");
}

/// Those that the kernel has memory for, which may be more than there are.
fn processors() -> usize {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").expect("a list of processors");
    let (_, last) = possible.trim().rsplit_once(['-', ',']).unwrap_or(("", "0"));
    last.parse::<usize>().expect("a number") + 1
}

#[test]
fn v71_the_object_is_no_larger_than_its_budget() {
    let object = File::parse(OBJECT).expect("an object file");
    let code: u64 = [".text", "classifier"]
        .map(|name| {
            object
                .section_by_name(name)
                .expect("a section of the object")
                .size()
        })
        .iter()
        .sum();
    assert!(code <= CODE, "instructions: {code} of {CODE} bytes");
    assert!(
        OBJECT.len() <= WHOLE_OBJECT,
        "object: {} of {WHOLE_OBJECT} bytes",
        OBJECT.len()
    );
}
