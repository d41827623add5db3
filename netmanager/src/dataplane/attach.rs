//! Attaching a program to an interface, so that the attachment outlives the process.

use std::fs;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle,
    qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, TcError};
use nix::net::if_::if_indextoname;

use super::kernel::Attachment;
use super::{DataplaneError, pins};

/// The programs of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    FromEndpoint,
    FromOak0,
    FromHost,
    FromUplink,
    FromLoopback,
}

impl Program {
    pub const ALL: [Self; 5] = [
        Self::FromEndpoint,
        Self::FromOak0,
        Self::FromHost,
        Self::FromUplink,
        Self::FromLoopback,
    ];

    /// Name in the object and in pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from_endpoint",
            Self::FromOak0 => "from_oak0",
            Self::FromHost => "from_host",
            Self::FromUplink => "from_uplink",
            Self::FromLoopback => "from_loopback",
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::FromEndpoint | Self::FromOak0 | Self::FromUplink => TcAttachType::Ingress,
            Self::FromHost | Self::FromLoopback => TcAttachType::Egress,
        }
    }
}

/// What stands at the place of a filter among those of others, and which one of them it is: always the same, so that a
/// program is put in place of its predecessor and never beside it.
const PRIORITY: u16 = 0x6f6b;
const HANDLE: TcHandle = TcHandle::new(0, 1);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Puts `program` in place of the one behind the pin at `path`, in one step; attaches and pins it when there is
/// none.
pub fn attach(
    attachment: Attachment,
    classifier: &mut SchedClassifier,
    program: Program,
    interface: &str,
    path: &Path,
) -> Result<(), DataplaneError> {
    let attached = match attachment {
        Attachment::Tcx => attach_link(classifier, program, interface, path),
        Attachment::Clsact => attach_filter(classifier, program, interface, path),
    };
    attached.map_err(|source| DataplaneError::Attach {
        program: program.name(),
        interface: interface.to_owned(),
        source,
    })
}

/// By a link. That of an interface that is gone is cut off for good and gives way to a new one.
fn attach_link(
    classifier: &mut SchedClassifier,
    program: Program,
    interface: &str,
    path: &Path,
) -> Result<(), Failure> {
    // Where another version, or an older kernel, has left a filter.
    if path.is_dir() {
        detach_filter(program, interface)?;
        fs::remove_dir(path)?;
    }
    if path.exists() {
        match replace(classifier, path) {
            Ok(()) => return Ok(()),
            Err(error) if is_severed(error.as_ref()) => pins::unpin(path)?,
            Err(error) => return Err(error),
        }
    }
    // Before the programs of others: what is ours they need not see, what is not passes on to them.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = classifier.attach_with_options(interface, program.direction(), options)?;
    let link = FdLink::try_from(classifier.take_link(id)?)?;
    link.pin(path)?;
    Ok(())
}

/// As a filter, which stays when this process ends.
fn attach_filter(
    classifier: &mut SchedClassifier,
    program: Program,
    interface: &str,
    path: &Path,
) -> Result<(), Failure> {
    if path.is_file() {
        pins::unpin(path)?;
    }
    // Before the filter is there: who finds the folder takes off a filter that may not be there yet, never the reverse.
    if !path.is_dir() {
        fs::create_dir(path)?;
    }
    match qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let existing = SchedClassifierLink::attached(interface, program.direction(), PRIORITY, HANDLE, None)?;
    let id = match classifier.attach_to_link(existing) {
        Ok(id) => id,
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::ENOENT) =>
        {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            });
            classifier.attach_with_options(interface, program.direction(), options)?
        }
        Err(error) => return Err(error.into()),
    };
    // Letting go of the link would take the filter off.
    std::mem::forget(classifier.take_link(id)?);
    Ok(())
}

/// Takes a program off an interface, where it is attached: ends the link, or removes the filter, that `path` stands for.
pub fn detach(program: Program, index: u32, path: &Path) -> Result<(), DataplaneError> {
    if !path.is_dir() {
        return pins::unpin(path);
    }
    if let Ok(interface) = if_indextoname(index) {
        let interface = interface.to_string_lossy().into_owned();
        detach_filter(program, &interface).map_err(|source| DataplaneError::Attach {
            program: program.name(),
            interface,
            source,
        })?;
    }
    fs::remove_dir(path).map_err(|source| pins::pin_error("removing", path, source))
}

fn detach_filter(program: Program, interface: &str) -> Result<(), Failure> {
    use aya::programs::links::Link as _;
    let link = match SchedClassifierLink::attached(interface, program.direction(), PRIORITY, HANDLE, None) {
        Ok(link) => link,
        // Gone with its interface.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match link.detach() {
        Ok(()) => Ok(()),
        Err(ProgramError::NetlinkError(error))
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn replace(classifier: &mut SchedClassifier, path: &Path) -> Result<(), Failure> {
    let link = FdLink::from(PinnedLink::from_pin(path)?);
    let id = classifier.attach_to_link(SchedClassifierLink::try_from(link)?)?;
    // The pin keeps the attachment; this process' own reference may go.
    drop(classifier.take_link(id)?);
    Ok(())
}

fn is_severed(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let code = match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error(),
        _ => match error.downcast_ref::<LinkError>() {
            Some(LinkError::SyscallError(error)) => error.io_error.raw_os_error(),
            _ => None,
        },
    };
    code == Some(libc::ENOLINK)
}
