//! The steps of wiring an endpoint, and the hook that makes one of them fail in a test.

use std::fmt;
use std::str::FromStr;

/// A step of wiring an endpoint. Those before [`Step::OpenNamespace`] and after [`Step::AddHostRoute`] belong
/// to the caller of [`attach`](super::attach).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    AllocateAddress,
    OpenNamespace,
    CreateLink,
    SetAlias,
    DisableIpv6,
    AttachProgram,
    SetHostLinkUp,
    SetLoopbackUp,
    AddAddress,
    SetContainerLinkUp,
    AddGatewayNeighbour,
    AddGatewayRoute,
    AddDefaultRoute,
    AddHostRoute,
    FillTables,
    SaveState,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Self; 16] = [
        Self::AllocateAddress,
        Self::OpenNamespace,
        Self::CreateLink,
        Self::SetAlias,
        Self::DisableIpv6,
        Self::AttachProgram,
        Self::SetHostLinkUp,
        Self::SetLoopbackUp,
        Self::AddAddress,
        Self::SetContainerLinkUp,
        Self::AddGatewayNeighbour,
        Self::AddGatewayRoute,
        Self::AddDefaultRoute,
        Self::AddHostRoute,
        Self::FillTables,
        Self::SaveState,
    ];

    /// The steps of [`attach`](super::attach) in order.
    pub const PLUMBING: [Self; 13] = [
        Self::OpenNamespace,
        Self::CreateLink,
        Self::SetAlias,
        Self::DisableIpv6,
        Self::AttachProgram,
        Self::SetHostLinkUp,
        Self::SetLoopbackUp,
        Self::AddAddress,
        Self::SetContainerLinkUp,
        Self::AddGatewayNeighbour,
        Self::AddGatewayRoute,
        Self::AddDefaultRoute,
        Self::AddHostRoute,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::AllocateAddress => "allocate-address",
            Self::OpenNamespace => "open-namespace",
            Self::CreateLink => "create-link",
            Self::SetAlias => "set-alias",
            Self::DisableIpv6 => "disable-ipv6",
            Self::SetHostLinkUp => "set-host-link-up",
            Self::SetLoopbackUp => "set-loopback-up",
            Self::AddAddress => "add-address",
            Self::SetContainerLinkUp => "set-container-link-up",
            Self::AddGatewayNeighbour => "add-gateway-neighbour",
            Self::AddGatewayRoute => "add-gateway-route",
            Self::AddDefaultRoute => "add-default-route",
            Self::AddHostRoute => "add-host-route",
            Self::AttachProgram => "attach-program",
            Self::FillTables => "fill-tables",
            Self::SaveState => "save-state",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A text that names no step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no step is called {0}")]
pub struct UnknownStep(String);

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|step| step.name() == text);
        found.ok_or_else(|| UnknownStep(text.to_owned()))
    }
}

/// The failure that a test asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("failed at {0}, as asked")]
pub struct Injected(pub Step);

/// Makes one step fail; by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// The step reports a failure, before anything of it is done.
    Fail(Step),
    /// The process is gone at once, as by `kill -9`.
    Crash(Step),
}

impl Fault {
    /// Fails at `step`, before anything of it is done.
    pub const fn at(step: Step) -> Self {
        Self::Fail(step)
    }

    /// To be called before each step.
    ///
    /// # Errors
    /// This is the step that is to fail.
    pub fn check(self, step: Step) -> Result<(), Injected> {
        match self {
            Self::Fail(at) if at == step => Err(Injected(step)),
            Self::Crash(at) if at == step => std::process::abort(),
            Self::None | Self::Fail(_) | Self::Crash(_) => Ok(()),
        }
    }
}

impl From<Option<Step>> for Fault {
    fn from(step: Option<Step>) -> Self {
        step.map_or(Self::None, Self::Fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_steps() {
        for step in Step::ALL {
            assert_eq!(step.to_string().parse(), Ok(step));
        }
        assert_eq!("sleep".parse::<Step>(), Err(UnknownStep("sleep".to_owned())));
    }

    #[test]
    fn the_plumbing_is_a_stretch_of_all_steps() {
        assert_eq!(Step::ALL[1..14], Step::PLUMBING);
    }

    #[test]
    fn a_fault_hits_its_step_only() {
        let fault = Fault::at(Step::AddAddress);
        for step in Step::ALL {
            assert_eq!(fault.check(step).is_err(), step == Step::AddAddress, "{step}");
            assert_eq!(Fault::default().check(step), Ok(()));
        }
    }
}
