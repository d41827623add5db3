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
mod flow;
mod fragment;
mod maps;
mod outbound;
mod packet;
mod parse;
mod probe;
mod published;
mod redirect;
mod reset;
mod trace;
mod translate;

// The entry points are inlined into what the macro makes of them: a call would take 32 of the 512 bytes of stack.

/// What a walk ends in.
type Outcome = Result<Action, DropReason>;

/// A frame that an endpoint sent: tc ingress of the host's end of its link.
#[classifier]
#[inline(always)]
pub fn from_endpoint(mut ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound::walk(&mut ctx, Hook::FromEndpoint);
    conclude(&ctx, Hook::FromEndpoint, outcome)
}

/// A frame that NetManager wrote back, or one for the node itself: tc ingress of `oak0`.
#[classifier]
#[inline(always)]
pub fn from_oak0(mut ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound::walk(&mut ctx, Hook::FromOak0);
    conclude(&ctx, Hook::FromOak0, outcome)
}

/// A frame that the node itself sent: tc egress of `oak0`.
#[classifier]
#[inline(always)]
pub fn from_host(mut ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = outbound::walk(&mut ctx, Hook::FromHost);
    conclude(&ctx, Hook::FromHost, outcome)
}

/// A frame from the wire: tc ingress of an uplink.
#[classifier]
#[inline(always)]
pub fn from_uplink(mut ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = admit::walk(&mut ctx);
    conclude(&ctx, Hook::FromUplink, outcome)
}

/// A frame that the node itself sent to itself: tc egress of `lo`.
#[classifier]
#[inline(always)]
pub fn from_loopback(ctx: TcContext) -> i32 {
    trace::begin();
    let outcome = published::from_loopback(&ctx);
    conclude(&ctx, Hook::FromLoopback, outcome)
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
