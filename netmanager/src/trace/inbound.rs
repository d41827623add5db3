//! The walk of a packet from a wire.

use std::net::Ipv4Addr;

use dataplane_ebpf::address::{in_overlay, is_service_or_instance};
use dataplane_ebpf::tables::{Instance, THIS_NODE};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::{Walk, Walked};
use crate::dataplane::DataplaneError;

impl Walk<'_> {
    /// In a tunnel datagram of the node that the source lives on, where it is of the overlay; plainly else.
    pub(super) fn inbound(&mut self) -> Walked {
        let key = self.packet.key;
        let destination = Ipv4Addr::from(key.destination);
        if !in_overlay(key.source) {
            if in_overlay(key.destination) {
                self.note(
                    "destination",
                    format!("{destination}: of the overlay, without a tunnel"),
                );
                return Ok(Err(DropReason::Unencapsulated));
            }
            return Ok(self.publish(Hook::FromUplink)?.unwrap_or(Ok(Action::Pass)));
        }
        self.note(
            "tunnel",
            "taken to come in a datagram of the node that the source lives on",
        );
        let Some(receiver) = self.view.endpoint(key.destination)? else {
            self.note("destination", format!("{destination}: no endpoint of this node"));
            return Ok(Err(DropReason::DestinationNotLocal));
        };
        let shown = Ipv4Addr::from(receiver.instance_address);
        self.note(
            "destination",
            format!("{destination}: an endpoint of this node, shown to others as {shown}"),
        );
        if !is_service_or_instance(key.source) {
            self.note("source", "neither a service nor an instance");
            return Ok(Err(DropReason::SourceNotOverlay));
        }
        if let Some(refusal) = self.lives_elsewhere()? {
            return Ok(Err(refusal));
        }
        self.deliver(&key)
    }

    /// Why the source may not come through a tunnel, if it may not.
    fn lives_elsewhere(&mut self) -> Result<Option<DropReason>, DataplaneError> {
        let key = self.packet.key;
        let instance: Option<Instance> = match self.view.flow(&key)? {
            Some(known) => self.current(&known.flow)?,
            None => None,
        };
        let instance = match instance {
            Some(instance) => Some(instance),
            None => self.view.instance_at(key.source)?,
        };
        match instance {
            Some(instance) if instance.place.node() == THIS_NODE => {
                self.note("source", "an instance of this node: it does not come from a wire");
                Ok(Some(DropReason::SourceNotOnNode))
            }
            Some(instance) => {
                let node = self.view.node(instance.place.node())?;
                let remote = Ipv4Addr::from(node.remote);
                self.note("source", format!("an instance on the node at {remote}"));
                Ok(None)
            }
            None if self.view.service(key.source)?.is_some() => {
                self.note("source", "a service: its instances show their own addresses");
                Ok(Some(DropReason::SourceNotOnNode))
            }
            None => {
                self.note("source", "not known here: taken from any node that is a peer");
                Ok(None)
            }
        }
    }
}
