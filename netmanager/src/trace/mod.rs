//! What the data plane would do with a packet, and why: its walk once more, with the tables as they are, but without a
//! packet and without a change.
//!
//! It follows `dataplane-ebpf/src/programs` step by step and names the outcome as it would be counted. A test holds the
//! two together. What depends on more than addresses and ports (lengths, options, fragments, checksums) is taken to be
//! in order.

mod inbound;
mod outbound;
mod published;
mod view;

use std::net::Ipv4Addr;

use dataplane_ebpf::address::in_overlay;
use dataplane_ebpf::header::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{FlowKey, delivery};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};
use serde::{Deserialize, Serialize};

use crate::dataplane::{DataplaneError, Tables};
use view::View;

/// The source port of a packet for which none is given: one that no flow is likely to have.
const SOURCE_PORT: u16 = 47_806;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    /// Its number in the IPv4 header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
            Self::Icmp => PROTOCOL_ICMP,
        }
    }
}

/// The packet that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: Protocol,
    /// The destination port; of an echo reply the identifier.
    #[serde(default)]
    pub port: u16,
    /// The source port; of an echo request the identifier. One that is not in use where it is not given.
    pub source_port: Option<u16>,
    /// Whether the packet goes on with a conversation: TCP with ACK, an echo reply. Else it begins one.
    #[serde(default)]
    pub reply: bool,
}

/// What the node that is asked is, beside its tables.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// UDP port of its tunnel.
    pub tunnel_port: u16,
    /// Its own namespace address.
    pub host_address: Ipv4Addr,
}

/// What would become of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Where the packet would meet the data plane.
    pub hook: String,
    pub steps: Vec<Step>,
    /// The name under which it would be counted.
    pub verdict: String,
    pub dropped: bool,
    pub meaning: String,
}

/// One look into the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is looked at.
    pub what: String,
    /// What is found.
    pub finding: String,
}

/// How a walk ends.
type Outcome = Result<Action, DropReason>;
/// A walk, unless the kernel refuses to show its tables.
type Walked = Result<Outcome, DataplaneError>;

/// Says what the data plane would do with the packet. `name` gives the name of the service at an address.
///
/// # Errors
/// When the kernel refuses to read a table.
pub fn trace(
    tables: &Tables,
    site: Site,
    name: &dyn Fn(Ipv4Addr) -> Option<String>,
    question: &Question,
) -> Result<Trace, DataplaneError> {
    let mut walk = Walk {
        view: View { tables, site, name },
        packet: Packet::of(question),
        steps: Vec::new(),
    };
    let hook = walk.enter(question)?;
    let outcome = match hook {
        Hook::FromEndpoint | Hook::FromHost | Hook::FromOak0 => walk.outbound(hook)?,
        Hook::FromUplink => walk.inbound()?,
        Hook::FromLoopback => walk.publish(hook)?.unwrap_or(Ok(Action::Pass)),
    };
    let (verdict, meaning, dropped) = match outcome {
        Ok(action) => (action.as_str(), action.meaning(), matches!(action, Action::Reset)),
        Err(reason) => (reason.as_str(), reason.meaning(), true),
    };
    Ok(Trace {
        hook: hook.as_str().to_owned(),
        steps: walk.steps,
        verdict: verdict.to_owned(),
        dropped,
        meaning: meaning.to_owned(),
    })
}

/// The packet, as the programs know it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    key: FlowKey,
    /// Whether it may begin a flow.
    begins: bool,
}

impl Packet {
    fn of(question: &Question) -> Self {
        let Question {
            source,
            destination,
            protocol,
            port,
            source_port,
            reply,
        } = *question;
        let (source_port, port) = match (protocol, reply) {
            (Protocol::Icmp, false) => (source_port.unwrap_or(SOURCE_PORT), 0),
            (Protocol::Icmp, true) => (0, port),
            (Protocol::Tcp | Protocol::Udp, _) => (source_port.unwrap_or(SOURCE_PORT), port),
        };
        let key = FlowKey {
            source: source.octets(),
            destination: destination.octets(),
            source_port: source_port.to_be_bytes(),
            destination_port: port.to_be_bytes(),
            protocol: protocol.number(),
            zero: [0; 3],
        };
        Self {
            key,
            begins: protocol == Protocol::Udp || !reply,
        }
    }

    fn is_tcp(&self) -> bool {
        self.key.protocol == PROTOCOL_TCP
    }
}

/// A walk under way.
struct Walk<'a> {
    view: View<'a>,
    packet: Packet,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn note(&mut self, what: &str, finding: impl Into<String>) {
        self.steps.push(Step {
            what: what.to_owned(),
            finding: finding.into(),
        });
    }

    /// Where the packet meets the data plane. An endpoint may be named by the address that it shows to others.
    fn enter(&mut self, question: &Question) -> Result<Hook, DataplaneError> {
        let Question {
            source, destination, ..
        } = *question;
        let mut sender = source;
        if self.view.endpoint(sender.octets())?.is_none()
            && let Some(instance) = self.view.instance_at(sender.octets())?
            && instance.place.node() == dataplane_ebpf::tables::THIS_NODE
        {
            sender = instance.place.address().into();
            self.note(
                "source",
                format!("{source} is an instance of this node, which sends from {sender}"),
            );
        }
        let is_own = sender.is_loopback() || self.view.is_local(sender.octets())?;
        if is_own && in_overlay(destination.octets()) {
            sender = self.view.site.host_address;
            self.note(
                "source",
                format!("the node itself, which speaks to the overlay as {sender}"),
            );
        }
        self.packet.key.source = sender.octets();
        match self.view.endpoint(sender.octets())? {
            Some(endpoint) if endpoint.delivery == delivery::HOST => {
                self.note("source", format!("{sender}: the node itself"));
                Ok(Hook::FromHost)
            }
            Some(endpoint) => {
                let shown = Ipv4Addr::from(endpoint.instance_address);
                let interface = crate::node::interface_name(endpoint.interface);
                self.note(
                    "source",
                    format!("{sender}: an endpoint of this node, by {interface}, shown to others as {shown}"),
                );
                Ok(Hook::FromEndpoint)
            }
            None if is_own => {
                self.note("source", format!("{sender}: an address of the node itself"));
                Ok(Hook::FromLoopback)
            }
            None => {
                self.note("source", format!("{sender}: not of this node; comes from a wire"));
                Ok(Hook::FromUplink)
            }
        }
    }
}
