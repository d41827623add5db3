//! Shows the programs to the running kernel's verifier, without attaching or pinning anything.

use aya::maps::{MapData, MapInfo};
use serde::Serialize;

use super::{DataplaneError, Globals, MAPS, Program, classifier, load};

/// What the kernel says about a program.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    pub name: &'static str,
    /// Instructions of the program as translated by the kernel.
    pub instructions: u32,
    /// Instructions that the verifier walked through, over all paths.
    pub verified_instructions: u32,
}

/// What the kernel says about a map.
#[derive(Clone, Debug, Serialize)]
pub struct MapReport {
    pub name: &'static str,
    pub kind: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub max_entries: u32,
    /// Kernel memory that the map takes when empty, in bytes.
    pub memory_bytes: u64,
}

/// Programs and maps of the object, as the running kernel takes them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub programs: Vec<ProgramReport>,
    pub maps: Vec<MapReport>,
}

/// Loads the object into the running kernel and lets it go again.
///
/// # Errors
/// When the kernel refuses a program, with the verifier's log.
pub fn verify() -> Result<Report, DataplaneError> {
    let folder = super::Pins::of(&format!("verify-{}", std::process::id()));
    let result = verify_below(&folder);
    folder.remove()?;
    result
}

fn verify_below(folder: &super::Pins) -> Result<Report, DataplaneError> {
    folder.create()?;
    let pins: Vec<_> = MAPS.iter().map(|name| (*name, folder.map(name))).collect();
    let globals = Globals {
        oak0_interface: 1,
        tunnel_port: dataplane_ebpf::address::TUNNEL_PORT,
        host_address: std::net::Ipv4Addr::LOCALHOST,
        probes_answered: dataplane_ebpf::probe::ANSWERED_PER_SECOND,
        trace_walks: false,
    };
    let (mut programs, _tables) = load(globals, &pins)?;
    let mut report = Report {
        programs: Vec::new(),
        maps: Vec::new(),
    };
    for program in Program::ALL {
        let info = classifier(&mut programs, program)?
            .info()
            .map_err(|source| DataplaneError::Verifier {
                program: program.name(),
                source,
            })?;
        report.programs.push(ProgramReport {
            name: program.name(),
            instructions: info.size_translated().unwrap_or_default() / 8,
            verified_instructions: info.verified_instruction_count().unwrap_or_default(),
        });
    }
    for name in MAPS {
        report.maps.push(map(name, folder)?);
    }
    Ok(report)
}

fn map(name: &'static str, folder: &super::Pins) -> Result<MapReport, DataplaneError> {
    let failed = |source| DataplaneError::Map {
        name,
        operation: "reading",
        source,
    };
    let path = folder.map(name);
    let info = MapInfo::from_pin(&path).map_err(failed)?;
    let data = MapData::from_pin(&path).map_err(failed)?;
    Ok(MapReport {
        name,
        kind: info
            .map_type()
            .map(|kind| format!("{kind:?}"))
            .unwrap_or_default(),
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        max_entries: info.max_entries(),
        memory_bytes: memory(&data).unwrap_or_default(),
    })
}

/// The kernel's own figure, which it gives in the descriptor's information.
fn memory(map: &MapData) -> Option<u64> {
    use std::os::fd::{AsFd, AsRawFd};
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
