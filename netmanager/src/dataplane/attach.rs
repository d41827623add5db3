//! Attaching a program to an interface, so that the attachment outlives the process.

use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifier, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, ProgramError};

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

/// Puts `program` in place of the one behind the pin at `path`, in one step; attaches and pins it when there is
/// none. The link of an interface that is gone is cut off for good and gives way to a new one.
pub fn attach(
    classifier: &mut SchedClassifier,
    program: Program,
    interface: &str,
    path: &Path,
) -> Result<(), DataplaneError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| DataplaneError::Attach {
        program: program.name(),
        interface: interface.to_owned(),
        source,
    };
    if path.exists() {
        match replace(classifier, path) {
            Ok(()) => return Ok(()),
            Err(error) if is_severed(error.as_ref()) => pins::unpin(path)?,
            Err(error) => return Err(failed(error)),
        }
    }
    // Before the programs of others: what is ours they need not see, what is not passes on to them.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = classifier
        .attach_with_options(interface, program.direction(), options)
        .map_err(|error| failed(error.into()))?;
    let link = classifier.take_link(id).map_err(|error| failed(error.into()))?;
    let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
    link.pin(path).map_err(|error| failed(error.into()))?;
    Ok(())
}

fn replace(
    classifier: &mut SchedClassifier,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
