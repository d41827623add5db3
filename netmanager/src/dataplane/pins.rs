//! Pins in the BPF file system: names, what is there, and whether it may be taken over.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::maps::MapInfo;
use dataplane_ebpf::tables::{
    BackendKey, Counter, Endpoint, EventRate, Flow, FlowKey, Fragment, FragmentKey, Instance, LAYOUT, Node,
    Opening, Peer, Published, PublishedKey, RateWindow, SentProbe, Service, ServiceCounter, Settings, Trace,
    TunnelKey,
};

use super::{DataplaneError, MAPS, Program, attach};

/// Where the folders of all nodes lie.
pub const PINS: &str = "/sys/fs/bpf/oakestra";

/// The pins of one node.
#[derive(Clone, Debug)]
pub struct Pins {
    node: PathBuf,
}

impl Pins {
    /// The pins of the node with this id.
    pub fn of(node_id: &str) -> Self {
        Self {
            node: Path::new(PINS).join(node_id),
        }
    }

    fn root(&self) -> PathBuf {
        self.node.join(format!("v{LAYOUT}"))
    }

    /// Path of a map's pin.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root().join("maps").join(name)
    }

    /// Path of an attachment's pin.
    pub fn link(&self, program: Program, interface: u32) -> PathBuf {
        self.root()
            .join("links")
            .join(format!("{}-{interface}", program.name()))
    }

    /// Makes the folders.
    pub(super) fn create(&self) -> Result<(), DataplaneError> {
        for folder in ["maps", "links"] {
            let path = self.root().join(folder);
            fs::create_dir_all(&path).map_err(|source| pin_error("creating", &path, source))?;
        }
        Ok(())
    }

    /// Refuses pinned maps whose keys or values have other sizes than this process would use.
    pub(super) fn check_maps(&self) -> Result<(), DataplaneError> {
        for name in MAPS {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path).map_err(|source| DataplaneError::Map {
                name,
                operation: "reading the pin",
                source,
            })?;
            let (key, value) = sizes(name);
            if (info.key_size() as usize, info.value_size() as usize) != (key, value) {
                return Err(DataplaneError::ForeignPin {
                    name: name.to_owned(),
                    key: info.key_size(),
                    value: info.value_size(),
                    entries: info.max_entries(),
                });
            }
        }
        Ok(())
    }

    /// The pinned attachments; files with other names are not ours and are left out.
    pub(super) fn links(&self) -> Result<Vec<(Program, u32)>, DataplaneError> {
        let folder = self.root().join("links");
        let entries = fs::read_dir(&folder).map_err(|source| pin_error("reading", &folder, source))?;
        let mut links = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| pin_error("reading", &folder, source))?;
            links.extend(entry.file_name().to_str().and_then(parse_link));
        }
        Ok(links)
    }

    /// Removes the pins of other layouts, with the attachments that they stand for: what another version has left,
    /// whose flows nobody can take over.
    pub(super) fn remove_other_layouts(&self) -> Result<(), DataplaneError> {
        let entries = fs::read_dir(&self.node).map_err(|source| pin_error("reading", &self.node, source))?;
        for entry in entries {
            let path = entry
                .map_err(|source| pin_error("reading", &self.node, source))?
                .path();
            if path != self.root() {
                detach_filters(&path)?;
                fs::remove_dir_all(&path).map_err(|source| pin_error("removing", &path, source))?;
            }
        }
        Ok(())
    }

    /// Removes every pin of the node, of all layouts, and the folder of all nodes if it is empty then.
    /// Attachments end with their pins.
    ///
    /// # Errors
    /// When the BPF file system refuses; nothing to remove is no error.
    pub fn remove(&self) -> Result<(), DataplaneError> {
        if let Ok(layouts) = fs::read_dir(&self.node) {
            for layout in layouts.flatten() {
                detach_filters(&layout.path())?;
            }
        }
        match fs::remove_dir_all(&self.node) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(pin_error("removing", &self.node, error));
            }
            _ => {}
        }
        match fs::remove_dir(PINS) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(pin_error("removing", Path::new(PINS), error))
            }
            _ => Ok(()),
        }
    }
}

/// Takes off what filters the folder of a layout stands for; links end with their pins.
fn detach_filters(layout: &Path) -> Result<(), DataplaneError> {
    let folder = layout.join("links");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(|source| pin_error("reading", &folder, source))?;
        let is_filter = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_filter && let Some((program, index)) = entry.file_name().to_str().and_then(parse_link) {
            attach::detach(program, index, &entry.path())?;
        }
    }
    Ok(())
}

/// Removes a pin, if it is there.
pub(super) fn unpin(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error("removing", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn pin_error(operation: &'static str, path: &Path, source: io::Error) -> DataplaneError {
    DataplaneError::Pin {
        operation,
        path: path.display().to_string(),
        source,
    }
}

fn parse_link(name: &str) -> Option<(Program, u32)> {
    let (program, interface) = name.rsplit_once('-')?;
    let program = Program::ALL
        .into_iter()
        .find(|candidate| OsStr::new(candidate.name()) == program)?;
    Some((program, interface.parse().ok()?))
}

/// Bytes of a map's key and value.
fn sizes(name: &str) -> (usize, usize) {
    const INDEX: usize = size_of::<u32>();
    const ADDRESS: usize = size_of::<[u8; 4]>();
    match name {
        "FLOWS" | "UNANSWERED" => (size_of::<FlowKey>(), size_of::<Flow>()),
        "INSTANCES" => (INDEX, size_of::<Instance>()),
        "NODES" => (INDEX, size_of::<Node>()),
        "TUNNELS" => (size_of::<TunnelKey>(), INDEX),
        "ENDPOINTS" => (ADDRESS, size_of::<Endpoint>()),
        "PEERS" => (ADDRESS, size_of::<Peer>()),
        "PUBLISHED" => (size_of::<PublishedKey>(), size_of::<Published>()),
        "SERVICES" => (ADDRESS, size_of::<Service>()),
        "BACKENDS" => (size_of::<BackendKey>(), INDEX),
        "CURSORS" => (INDEX, size_of::<u64>()),
        "FRAGMENTS" => (size_of::<FragmentKey>(), size_of::<Fragment>()),
        "PROBES" => (INDEX, size_of::<SentProbe>()),
        "EARLY_FRAGMENTS" | "UNKNOWN_PEERS" | "SENT_ERRORS" | "PROBE_RATE" => {
            (INDEX, size_of::<RateWindow>())
        }
        "OPENING" => (INDEX, size_of::<Opening>()),
        "TRACE" => (INDEX, size_of::<Trace>()),
        "COUNTERS" => (INDEX, size_of::<Counter>()),
        "SETTINGS" => (INDEX, size_of::<Settings>()),
        // A ring has entries of any size.
        "EVENTS" => (0, 0),
        "EVENT_RATE" => (INDEX, size_of::<EventRate>()),
        "SERVICE_COUNTERS" => (INDEX, size_of::<ServiceCounter>()),
        // INSTANCE_INDEX, LOCAL_ADDRESSES: an address to an index or a mark.
        _ => (ADDRESS, INDEX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_read_back() {
        let pins = Pins::of("node");
        let path = pins.link(Program::FromUplink, 17);
        let name = path.file_name().and_then(OsStr::to_str).expect("a name");
        assert_eq!(parse_link(name), Some((Program::FromUplink, 17)));
        assert_eq!(parse_link("from_nowhere-17"), None);
        assert_eq!(parse_link("from_uplink"), None);
    }
}
