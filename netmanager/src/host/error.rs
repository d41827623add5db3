use std::fmt;
use std::io;

/// What went wrong on the host, with the object it happened to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation.
    #[error("{operation} {object}: {source}")]
    Kernel {
        operation: &'static str,
        object: String,
        source: io::Error,
    },
    /// The tap is open in another process.
    #[error("another NetManager is running: it holds {0}")]
    AlreadyRunning(&'static str),
    /// A link of this name exists and is something else.
    #[error("{0} exists and is not a tap of NetManager")]
    ForeignLink(String),
    /// Somebody else routes this destination.
    #[error("route {0} exists and is not NetManager's")]
    ForeignRoute(String),
    /// `nft` refused the transaction.
    #[error("nft: {operation} {object}: {message}")]
    Nft {
        operation: &'static str,
        object: String,
        message: String,
    },
    /// `iptables` refused a command.
    #[error("{program}: {operation}: {message}")]
    Iptables {
        program: &'static str,
        operation: String,
        message: String,
    },
    /// `nft` answered something that is no JSON of the expected form.
    #[error("nft: answer about {object}: {source}")]
    NftAnswer {
        object: String,
        source: serde_json::Error,
    },
    /// The destination is an address of this host itself.
    #[error("{0} is an address of this host")]
    LocalDestination(std::net::Ipv4Addr),
    /// The route to the destination leads out of an interface without Ethernet addresses.
    #[error("{interface} towards {destination} is no Ethernet interface")]
    NotEthernet {
        interface: String,
        destination: std::net::Ipv4Addr,
    },
    /// The kernel's answer lacks something that it always has.
    #[error("{operation} {object}: the answer has no {missing}")]
    Incomplete {
        operation: &'static str,
        object: String,
        missing: &'static str,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn kernel(operation: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel {
            operation,
            object: object.into(),
            source,
        }
    }

    /// The kernel's error number, when the kernel was the one to refuse.
    pub fn errno(&self) -> Option<i32> {
        if let Self::Kernel { source, .. } = self {
            source.raw_os_error()
        } else {
            None
        }
    }
}

/// Everything that failed while something was taken down: taking down goes on after a failure.
#[derive(Debug, Default)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Keeps the error of `outcome`, if it has one.
    pub fn collect<T>(&mut self, outcome: Result<T>) {
        if let Err(error) = outcome {
            self.0.push(error);
        }
    }

    /// # Errors
    /// Itself, unless nothing was collected.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// What was collected, oldest first.
    pub fn all(&self) -> &[Error] {
        &self.0
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("; ")?;
            }
            write!(formatter, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
