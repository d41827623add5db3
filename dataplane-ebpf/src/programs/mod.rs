//! The walk of a packet: one entry point per hook, each step a function in its own file.
//!
//! ```text
//! from_endpoint ─ parse ─ source ─ flow ─┬─ known ──────────────┬─ translate ─┬─ deliver (here)
//! from_oak0      │                       └─ open ─ balance ─────┘             └─ encapsulate (elsewhere)
//! from_host ─────┘                             └─ unknown: to oak0, where NetManager parks it
//!
//! from_uplink ─── outer ─┬ probe
//!                        ├ admit ─ inner ─ flow ─ translate ─ decapsulate ─ deliver
//! from_loopback ─────────┴ published ─ flow ─ translate ─ deliver, and back from from_endpoint
//! ```
//!
//! A fragment that comes before its datagram's first goes to oak0 from every hook, and comes back behind the first.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_ebpf::verdict::{Action, DropReason, Hook, index};

mod admit;
mod arp;
mod balance;
mod deliver;
mod encap;
mod events;
mod flow;
mod fragment;
mod icmp;
mod maps;
mod outbound;
mod packet;
mod parse;
mod probe;
mod published;
mod published_error;
mod redirect;
mod reset;
mod segment;
mod trace;
mod translate;
mod unreachable;

// The entry points are inlined into what the macro makes of them, and call the walks: so what comes after a walk has the
// stack that the walk had. There are 512 bytes of it for all functions that are waiting for each other.

/// What becomes of a packet.
type Outcome = Result<Action, DropReason>;

/// What a walk ends in.
type Walked = Result<Action, Stop>;

/// Why a walk does not carry the packet on.
enum Stop {
    Dropped(DropReason),
    /// It is an ICMP error: what it quotes decides.
    IcmpError,
    /// The same, in a tunnel datagram.
    InnerIcmpError,
    /// It is not for the overlay.
    Elsewhere,
}

impl From<DropReason> for Stop {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        match reason {
            DropReason::IcmpError => Self::IcmpError,
            reason => Self::Dropped(reason),
        }
    }
}

/// An outcome as one number, for functions that are not inlined: they return what fits a register.
#[derive(Clone, Copy)]
struct Packed(u32);

impl Packed {
    const DROPPED: u32 = 0x100;
    const ICMP_ERROR: u32 = 0x200;
    const INNER_ICMP_ERROR: u32 = 0x300;
    const ELSEWHERE: u32 = 0x400;

    #[inline(always)]
    fn of_walk(walked: Walked) -> Self {
        match walked {
            Ok(action) => Self(action as u32),
            Err(Stop::Dropped(reason)) => Self(reason as u32 | Self::DROPPED),
            Err(Stop::IcmpError) => Self(Self::ICMP_ERROR),
            Err(Stop::InnerIcmpError) => Self(Self::INNER_ICMP_ERROR),
            Err(Stop::Elsewhere) => Self(Self::ELSEWHERE),
        }
    }

    #[inline(always)]
    fn new(outcome: Outcome) -> Self {
        match outcome {
            Ok(action) => Self(action as u32),
            Err(reason) => Self(reason as u32 | Self::DROPPED),
        }
    }

    #[inline(always)]
    fn unpack(self) -> Outcome {
        if self.0 & Self::DROPPED == 0 {
            Action::from_number(self.0 as u8).ok_or(DropReason::KernelRefused)
        } else {
            Err(DropReason::from_number(self.0 as u8).unwrap_or(DropReason::KernelRefused))
        }
    }
}

/// A frame that an endpoint sent: tc ingress of the host's end of its link.
#[classifier]
#[inline(always)]
pub fn from_endpoint(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound(&ctx, Hook::FromEndpoint, walk_from_endpoint(&ctx));
    conclude(&ctx, Hook::FromEndpoint, outcome)
}

#[inline(never)]
fn walk_from_endpoint(ctx: &TcContext) -> Packed {
    Packed::of_walk(outbound::walk(ctx, Hook::FromEndpoint))
}

/// A frame that NetManager wrote back, or one for the node itself: tc ingress of `oak0`.
#[classifier]
#[inline(always)]
pub fn from_oak0(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound(&ctx, Hook::FromOak0, walk_from_oak0(&ctx));
    conclude(&ctx, Hook::FromOak0, outcome)
}

#[inline(never)]
fn walk_from_oak0(ctx: &TcContext) -> Packed {
    Packed::of_walk(outbound::walk(ctx, Hook::FromOak0))
}

/// A frame that the node itself sent: tc egress of `oak0`.
#[classifier]
#[inline(always)]
pub fn from_host(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound(&ctx, Hook::FromHost, walk_from_host(&ctx));
    conclude(&ctx, Hook::FromHost, outcome)
}

#[inline(never)]
fn walk_from_host(ctx: &TcContext) -> Packed {
    Packed::of_walk(outbound::walk(ctx, Hook::FromHost))
}

/// A frame from the wire: tc ingress of an uplink.
#[classifier]
#[inline(always)]
pub fn from_uplink(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = match walk_from_uplink(&ctx) {
        Packed(Packed::ELSEWHERE) => admit::elsewhere(&ctx),
        Packed(Packed::INNER_ICMP_ERROR) => icmp::inbound(&ctx, Hook::FromUplink),
        walked => walked.unpack(),
    };
    conclude(&ctx, Hook::FromUplink, outcome)
}

#[inline(never)]
fn walk_from_uplink(ctx: &TcContext) -> Packed {
    Packed::of_walk(admit::walk(ctx))
}

/// A frame that the node itself sent to itself: tc egress of `lo`.
#[classifier]
#[inline(always)]
pub fn from_loopback(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = published::from_loopback(&ctx);
    conclude(&ctx, Hook::FromLoopback, outcome)
}

/// What comes after the walk of a packet that an endpoint or the node sends.
#[inline(always)]
fn outbound(ctx: &TcContext, hook: Hook, walked: Packed) -> Outcome {
    match walked {
        Packed(Packed::ELSEWHERE) => outbound::elsewhere(ctx),
        Packed(Packed::ICMP_ERROR) => icmp::outbound(ctx, hook),
        // Of what NetManager writes back only.
        Packed(Packed::INNER_ICMP_ERROR) if matches!(hook, Hook::FromOak0) => icmp::inbound(ctx, hook),
        walked => walked.unpack(),
    }
}

/// The only place that turns an outcome into a verdict and a counter.
#[inline(always)]
fn conclude(ctx: &TcContext, hook: Hook, outcome: Outcome) -> i32 {
    let (row, verdict) = match outcome {
        Ok(action @ (Action::Pass | Action::Stranger)) => (action.row(), TC_ACT_UNSPEC),
        Ok(action @ Action::DeliverHost) => match hook {
            // Arrived at the node's own interface: up the stack.
            Hook::FromOak0 => (action.row(), TC_ACT_UNSPEC),
            Hook::FromEndpoint | Hook::FromHost | Hook::FromUplink | Hook::FromLoopback => {
                (action.row(), TC_ACT_REDIRECT)
            }
        },
        Ok(action @ Action::Park) => match hook {
            // On its way out of `oak0` already: NetManager reads it there.
            Hook::FromHost => (action.row(), TC_ACT_UNSPEC),
            Hook::FromEndpoint | Hook::FromOak0 | Hook::FromUplink | Hook::FromLoopback => {
                (action.row(), TC_ACT_REDIRECT)
            }
        },
        Ok(
            action @ (Action::Deliver
            | Action::Tunnel
            | Action::Reset
            | Action::Publish
            | Action::PublishAnswer
            | Action::AnswerGateway
            | Action::IcmpTooBig
            | Action::IcmpUnreachable
            | Action::ProbeAnswered),
        ) => (action.row(), TC_ACT_REDIRECT),
        // Taken in: there is nothing left to pass on.
        Ok(action @ Action::ProbeReceived) => (action.row(), TC_ACT_SHOT),
        Err(
            reason @ (DropReason::VlanTagged
            | DropReason::Spoofed
            | DropReason::TunnelFromEndpoint
            | DropReason::Short
            | DropReason::Malformed
            | DropReason::IpOptions
            | DropReason::Fragment
            | DropReason::IcmpError
            | DropReason::IcmpType
            | DropReason::Protocol
            | DropReason::NotAService
            | DropReason::Unresolved
            | DropReason::NoFlow
            | DropReason::NoBackend
            | DropReason::PortCollision
            | DropReason::FlowTableFull
            | DropReason::InstanceGone
            | DropReason::NodeUnknown
            | DropReason::EndpointGone
            | DropReason::TooBig
            | DropReason::KernelRefused
            | DropReason::Unencapsulated
            | DropReason::OuterMalformed
            | DropReason::OuterFragment
            | DropReason::WrongInterface
            | DropReason::UnknownPeer
            | DropReason::InnerShort
            | DropReason::InnerVersion
            | DropReason::InnerMalformed
            | DropReason::SourceNotOverlay
            | DropReason::SourceNotOnNode
            | DropReason::DestinationNotLocal
            | DropReason::ProbeMalformed
            | DropReason::ProbeUnexpected
            | DropReason::ProbeRate),
        ) => (reason.row(), TC_ACT_SHOT),
    };
    maps::count(index(hook, row), u64::from(ctx.len()));
    trace::conclude(index(hook, row));
    let told = match outcome {
        Ok(
            Action::Park | Action::Reset | Action::Stranger | Action::IcmpTooBig | Action::IcmpUnreachable,
        )
        | Err(_) => true,
        Ok(
            Action::Pass
            | Action::Deliver
            | Action::DeliverHost
            | Action::Tunnel
            | Action::Publish
            | Action::PublishAnswer
            | Action::AnswerGateway
            | Action::ProbeAnswered
            | Action::ProbeReceived,
        ) => false,
    };
    if told {
        events::ended(ctx, hook, row);
    }
    verdict
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing in the programs panics, so this is never reached; the linker still wants it.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
