//! The programs in the kernel: loaded, pinned, attached, and fed through typed tables.
//!
//! ```text
//! /sys/fs/bpf/oakestra/<node id>/v<layout>/
//!   maps/<NAME>                     every map
//!   links/<program>-<interface>     every attachment, by index of the interface: a link (tcx), or an empty folder that
//!                                   stands for a filter (clsact)
//! ```
//!
//! Pins outlive the process: what is established goes on without it, and the next process finds maps and links
//! here, puts its programs in place of the old ones in one step per link, and never detaches anything.

mod attach;
mod counters;
mod events;
mod kernel;
mod object;
mod pins;
mod tables;
mod verify;

use std::collections::BTreeSet;
use std::path::PathBuf;

use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

pub use attach::Program;
pub use counters::{CounterRow, read as read_counters, read_all as read_all_counters};
pub use events::{EVENTS_PER_WINDOW, EventRing, EventSettings, Events};
pub use kernel::Attachment;
pub use object::OBJECT;
pub use pins::{PINS, Pins};
pub use tables::Tables;
pub use verify::{MapReport, ProgramReport, Report, verify};

/// Names of all maps of the object.
pub const MAPS: [&str; 26] = [
    "FLOWS",
    "UNANSWERED",
    "INSTANCES",
    "INSTANCE_INDEX",
    "NODES",
    "PEERS",
    "TUNNELS",
    "ENDPOINTS",
    "SERVICES",
    "BACKENDS",
    "CURSORS",
    "LOCAL_ADDRESSES",
    "PUBLISHED",
    "FRAGMENTS",
    "EARLY_FRAGMENTS",
    "OPENING",
    "UNKNOWN_PEERS",
    "SENT_ERRORS",
    "PROBES",
    "PROBE_RATE",
    "COUNTERS",
    "SERVICE_COUNTERS",
    "TRACE",
    "SETTINGS",
    "EVENTS",
    "EVENT_RATE",
];

/// Why the data plane could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error(
        "this NetManager was built without the programs of the data plane; build it with `cargo xtask build-ebpf`, \
         or set DATAPLANE_OBJECT to the object when building"
    )]
    NoObject,
    #[error(
        "the pinned map {name} is not of this layout (found key {key} B, value {value} B, {entries} entries); \
         remove it with `NetManager reset`"
    )]
    ForeignPin {
        name: String,
        key: u32,
        value: u32,
        entries: u32,
    },
    #[error("{operation} {path}")]
    Pin {
        operation: &'static str,
        path: String,
        source: std::io::Error,
    },
    #[error("loading the object of the data plane")]
    Load(#[from] aya::EbpfError),
    #[error("the object of the data plane has no program {program}")]
    MissingProgram { program: &'static str },
    #[error("the kernel's verifier refused {program}")]
    Verifier {
        program: &'static str,
        source: ProgramError,
    },
    #[error("attaching {program} to {interface}")]
    Attach {
        program: &'static str,
        interface: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("map {name}: {operation}")]
    Map {
        name: &'static str,
        operation: &'static str,
        source: aya::maps::MapError,
    },
    #[error("map {name} is full ({entries} entries)")]
    Full { name: &'static str, entries: u32 },
}

/// What the programs are told when they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    /// Index of `oak0`.
    pub oak0_interface: u32,
    /// The UDP port on which this node takes tunnel datagrams.
    pub tunnel_port: u16,
    /// The node's own namespace address.
    pub host_address: std::net::Ipv4Addr,
    /// Probes of other nodes that each CPU answers in a second.
    pub probes_answered: u32,
    /// Whether walks note in `TRACE` what they did. For tests.
    pub trace_walks: bool,
}

/// The loaded programs and their attachments.
pub struct Dataplane {
    programs: Ebpf,
    pins: Pins,
    attachment: Attachment,
    /// Where this process' programs are in place already.
    attached: BTreeSet<(Program, u32)>,
}

impl Dataplane {
    /// Loads the programs, taking over the maps pinned below `pins` or pinning new ones there.
    ///
    /// # Errors
    /// When the object is missing, a pin is of another layout, or the kernel refuses a program; the verifier's
    /// log is in the error then.
    pub fn open(
        pins: Pins,
        globals: Globals,
        attachment: Attachment,
    ) -> Result<(Self, Tables), DataplaneError> {
        pins.create()?;
        pins.check_maps()?;
        let paths: Vec<_> = MAPS.iter().map(|name| (*name, pins.map(name))).collect();
        let (programs, tables) = load(globals, &paths)?;
        Ok((
            Self {
                programs,
                pins,
                attachment,
                attached: BTreeSet::new(),
            },
            tables,
        ))
    }

    /// Attaches a program to an interface, or puts it in place of the one that a previous process attached.
    pub fn attach(&mut self, program: Program, interface: &str, index: u32) -> Result<(), DataplaneError> {
        if self.attached.contains(&(program, index)) {
            return Ok(());
        }
        let path = self.pins.link(program, index);
        let classifier = classifier(&mut self.programs, program)?;
        attach::attach(self.attachment, classifier, program, interface, &path)?;
        self.attached.insert((program, index));
        Ok(())
    }

    /// Detaches a program from an interface, if it is attached.
    pub fn detach(&mut self, program: Program, index: u32) -> Result<(), DataplaneError> {
        self.attached.remove(&(program, index));
        attach::detach(program, index, &self.pins.link(program, index))
    }

    /// Ends what another version of the programs has in place. To be called when these are in place themselves.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn remove_other_layouts(&self) -> Result<(), DataplaneError> {
        self.pins.remove_other_layouts()
    }

    /// How programs are attached.
    pub const fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// The attachments that pins stand for: program and index of the interface.
    pub fn attachments(&self) -> Result<Vec<(Program, u32)>, DataplaneError> {
        self.pins.links()
    }
}

/// Loads the object: its maps at the given pins, or of its own where there is none; its programs not attached.
///
/// # Errors
/// As [`Dataplane::open`].
pub fn load(globals: Globals, pins: &[(&str, PathBuf)]) -> Result<(Ebpf, Tables), DataplaneError> {
    load_object(OBJECT, globals, pins)
}

/// As [`load`], another object than the one that this binary carries.
///
/// # Errors
/// As [`Dataplane::open`].
pub fn load_object(
    object: &[u8],
    globals: Globals,
    pins: &[(&str, PathBuf)],
) -> Result<(Ebpf, Tables), DataplaneError> {
    if object.is_empty() {
        return Err(DataplaneError::NoObject);
    }
    let host_address = globals.host_address.octets();
    let trace_walks = u32::from(globals.trace_walks);
    let decapsulation_flags = kernel::decapsulation_flags();
    let mut loader = EbpfLoader::new();
    // Nothing in the programs depends on the kernel's own types, and reading those takes tens of milliseconds.
    loader
        .btf(None)
        .override_global("OAK0_INTERFACE", &globals.oak0_interface, true)
        .override_global("TUNNEL_PORT", &globals.tunnel_port, true)
        .override_global("HOST_ADDRESS", &host_address, true)
        .override_global("PROBES_PER_WINDOW", &globals.probes_answered, true)
        .override_global("TRACE_WALKS", &trace_walks, true)
        .override_global("DECAPSULATION_FLAGS", &decapsulation_flags, true);
    for (name, path) in pins {
        loader.map_pin_path(name, path.as_path());
    }
    let mut programs = loader.load(object)?;
    for program in Program::ALL {
        classifier(&mut programs, program)?
            .load()
            .map_err(|source| DataplaneError::Verifier {
                program: program.name(),
                source,
            })?;
    }
    let tables = Tables::take(&mut programs)?;
    Ok((programs, tables))
}

/// The loaded program, as one that can be attached and test-run.
///
/// # Errors
/// When the object does not have it.
pub fn classifier(programs: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, DataplaneError> {
    let missing = || DataplaneError::MissingProgram {
        program: program.name(),
    };
    programs
        .program_mut(program.name())
        .ok_or_else(missing)?
        .try_into()
        .map_err(|_not_tc: ProgramError| missing())
}
