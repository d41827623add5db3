//! Published ports: packets to them, and answers from behind them.

use std::net::Ipv4Addr;

use dataplane_ebpf::address::in_overlay;
use dataplane_ebpf::header::{PROTOCOL_TCP, PROTOCOL_UDP};
use dataplane_ebpf::tables::{FlowKey, Instance, THIS_NODE, state};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::{Outcome, Walk};
use crate::dataplane::DataplaneError;

impl Walk<'_> {
    /// What becomes of a packet to a published port; `None` for every other one, which passes unchanged.
    pub(super) fn publish(&mut self, hook: Hook) -> Result<Option<Outcome>, DataplaneError> {
        let key = self.packet.key;
        if !matches!(key.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
            return Ok(None);
        }
        let port = u16::from_be_bytes(key.destination_port);
        let destination = Ipv4Addr::from(key.destination);
        let from_loopback = matches!(hook, Hook::FromLoopback);
        let is_own =
            self.view.is_local(key.destination)? || from_loopback && destination == Ipv4Addr::LOCALHOST;
        let published = self.view.published(key.protocol, key.destination_port)?;
        let Some(published) = published.filter(|_| is_own) else {
            self.note("destination", format!("{destination}: not a published port"));
            return Ok(None);
        };
        if matches!(hook, Hook::FromUplink) && !may_be_client(key.source) {
            self.note("source", "no client has such an address");
            return Ok(None);
        }
        self.note("destination", format!("{destination}: port {port} is published"));
        let Some(instance) = self.known_publication(from_loopback)? else {
            if !self.packet.begins {
                self.note("flow", "not known, and this packet does not begin one");
                return Ok(None);
            }
            let current = self.view.instance(published.instance)?.filter(|instance| {
                instance.incarnation == published.incarnation && instance.place.node() == THIS_NODE
            });
            let Some(instance) = current else {
                self.note("instance", "the one that had published the port is gone");
                return Ok(None);
            };
            if matches!(hook, Hook::FromUplink) && self.view.is_local(key.source)? {
                self.note("source", "an address of this node, from a wire");
                return Ok(None);
            }
            self.note("flow", "not known: begins");
            return self.deliver_published(&instance).map(Some);
        };
        self.note("flow", "known");
        self.deliver_published(&instance).map(Some)
    }

    /// The instance of the packet's flow to a published port, if there is one and it goes on.
    fn known_publication(&self, from_loopback: bool) -> Result<Option<Instance>, DataplaneError> {
        let Some(known) = self.view.flow(&self.packet.key)? else {
            return Ok(None);
        };
        let flow = known.flow;
        let from_node = flow.state & state::FROM_NODE != 0;
        let restarts = self.packet.begins && self.packet.is_tcp() && flow.state & state::CLOSING != 0;
        if flow.state & state::PUBLISHED == 0 || from_node != from_loopback || restarts {
            return Ok(None);
        }
        self.current(&flow)
    }

    fn deliver_published(&mut self, instance: &Instance) -> Result<Outcome, DataplaneError> {
        let address = instance.place.address();
        let shown = Ipv4Addr::from(instance.address);
        self.note(
            "instance",
            format!("{shown}, at {} on this node", Ipv4Addr::from(address)),
        );
        Ok(match self.view.endpoint(address)? {
            Some(_) => Ok(Action::Publish),
            None => Err(DropReason::EndpointGone),
        })
    }

    /// What becomes of an answer to a client of a published port; `None` for every other packet.
    pub(super) fn publish_answer(&mut self) -> Result<Option<Outcome>, DataplaneError> {
        let key: FlowKey = self.packet.key;
        if !matches!(key.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
            return Ok(None);
        }
        let Some(known) = self.view.flow(&key)? else {
            return Ok(None);
        };
        let flow = known.flow;
        let is_answer = flow.state & state::PUBLISHED != 0 && flow.state & state::REVERSE != 0;
        if !is_answer || self.current(&flow)?.is_none() {
            return Ok(None);
        }
        let client = Ipv4Addr::from(flow.address);
        self.note(
            "flow",
            format!("the answer to {client}, a client of a published port"),
        );
        if key.protocol == PROTOCOL_UDP && self.view.is_any_tunnel(flow.address, flow.port)? {
            return Ok(Some(Err(DropReason::TunnelFromEndpoint)));
        }
        let from_node = flow.state & state::FROM_NODE != 0;
        if !from_node && in_overlay(flow.address) && self.view.endpoint(flow.address)?.is_none() {
            return Ok(Some(Err(DropReason::EndpointGone)));
        }
        Ok(Some(Ok(Action::PublishAnswer)))
    }
}

fn may_be_client(source: [u8; 4]) -> bool {
    !in_overlay(source) && source[0] != 0 && source[0] != 127 && source[0] < 224
}
