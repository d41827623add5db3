//! The walk of a packet that an endpoint or the node itself sends.

use std::net::Ipv4Addr;

use dataplane_ebpf::address::{in_overlay, is_service_or_instance};
use dataplane_ebpf::header::PROTOCOL_UDP;
use dataplane_ebpf::tables::{
    BackendKey, Endpoint, Flow, FlowKey, Instance, Service, THIS_NODE, delivery, endpoint_flags,
    instance_flags, node_flags, state,
};
use dataplane_ebpf::verdict::{Action, DropReason, Hook};

use super::{Outcome, Walk, Walked};
use crate::clock::monotonic_nanoseconds;
use crate::dataplane::DataplaneError;

/// Where a packet goes that is not dropped on the spot.
enum Destination {
    /// To this instance, from the source port that it sees.
    Instance(Instance, [u8; 2]),
    Ends(Outcome),
}

impl Walk<'_> {
    pub(super) fn outbound(&mut self, hook: Hook) -> Walked {
        let key = self.packet.key;
        let destination = Ipv4Addr::from(key.destination);
        let Some(endpoint) = self.view.endpoint(key.source)? else {
            return Ok(Err(DropReason::Spoofed));
        };
        if !is_service_or_instance(key.destination) {
            return self.not_a_service(hook, &endpoint);
        }
        let class = match (self.view.name)(destination) {
            Some(name) => format!("{destination}: a service or instance address, of {name}"),
            None => format!("{destination}: a service or instance address"),
        };
        self.note("destination", class);
        let outcome = match self.destination()? {
            Destination::Ends(outcome) => outcome,
            Destination::Instance(instance, port) => self.forward(&endpoint, &instance, port)?,
        };
        match outcome {
            Err(reason @ (DropReason::NoBackend | DropReason::NodeUnknown)) => {
                self.note(
                    "answer",
                    format!("{}: the sender is told that nobody is there", reason.meaning()),
                );
                Ok(Ok(Action::IcmpUnreachable))
            }
            outcome => Ok(outcome),
        }
    }

    fn not_a_service(&mut self, hook: Hook, endpoint: &Endpoint) -> Walked {
        let key = self.packet.key;
        let destination = Ipv4Addr::from(key.destination);
        let is_endpoint = matches!(hook, Hook::FromEndpoint);
        if is_endpoint
            && endpoint.flags & endpoint_flags::PUBLISHES != 0
            && let Some(outcome) = self.publish_answer()?
        {
            return Ok(outcome);
        }
        if in_overlay(key.destination) {
            self.note(
                "destination",
                format!("{destination}: of the overlay, but neither a service nor an instance"),
            );
            return Ok(Err(DropReason::NotAService));
        }
        if is_endpoint && let Some(outcome) = self.publish(hook)? {
            return Ok(outcome);
        }
        if key.protocol == PROTOCOL_UDP && self.view.is_any_tunnel(key.destination, key.destination_port)? {
            self.note("destination", format!("{destination}: a tunnel"));
            return Ok(Err(DropReason::TunnelFromEndpoint));
        }
        self.note("destination", format!("{destination}: outside the overlay"));
        Ok(Ok(Action::Pass))
    }

    /// The flow's decision, or the one that would be entered.
    fn destination(&mut self) -> Result<Destination, DataplaneError> {
        let key = self.packet.key;
        let mut has_ended = false;
        if let Some(known) = self.view.flow(&key)? {
            let instance = self.current(&known.flow)?;
            let restarts =
                self.packet.begins && self.packet.is_tcp() && known.flow.state & state::CLOSING != 0;
            let table = if known.is_settled { "settled" } else { "unanswered" };
            match instance {
                Some(instance) if !restarts => {
                    let address = Ipv4Addr::from(instance.address);
                    self.note("flow", format!("known, {table}: goes to {address}"));
                    return Ok(Destination::Instance(instance, known.flow.port));
                }
                Some(_) => self.note("flow", "known, closing: a SYN begins anew"),
                None => self.note("flow", "known, but its instance is gone: it has ended"),
            }
            has_ended = true;
        } else {
            self.note("flow", "not known");
        }
        if has_ended && !self.packet.begins {
            return Ok(self.refused());
        }
        let (index, to_service) = match self.view.service(key.destination)? {
            Some(_) if !self.packet.begins => return Ok(self.refused()),
            Some(service) => match self.choose(&service)? {
                Some(index) => (index, true),
                None => return Ok(Destination::Ends(Err(DropReason::NoBackend))),
            },
            None => match self.view.instance_index(key.destination)? {
                Some(index) => (index, false),
                None => {
                    self.note("service", "the address is not known here: NetManager asks for it");
                    return Ok(Destination::Ends(Ok(Action::Park)));
                }
            },
        };
        let Some(instance) = self.view.instance(index)? else {
            self.note("instance", "vacant");
            return Ok(Destination::Ends(Err(DropReason::NoBackend)));
        };
        self.open(&instance, to_service || self.packet.begins)
    }

    /// The instance that a flow's entry names, while it is the one that was meant.
    pub(super) fn current(&self, flow: &Flow) -> Result<Option<Instance>, DataplaneError> {
        let instance = self.view.instance(flow.instance)?;
        Ok(instance.filter(|instance| instance.incarnation == flow.incarnation))
    }

    fn refused(&mut self) -> Destination {
        self.note("flow", "only a SYN, a datagram or an echo request may begin one");
        Destination::Ends(if self.packet.is_tcp() {
            Ok(Action::Reset)
        } else {
            Err(DropReason::NoFlow)
        })
    }

    /// The instance that has the next turn; none where the service has none.
    fn choose(&mut self, service: &Service) -> Result<Option<u32>, DataplaneError> {
        let backends = u64::from(service.set.backends());
        if backends == 0 {
            self.note("service", "known, without instances");
            return Ok(None);
        }
        let turn = self.view.turn(service.id)? % backends;
        let mut chosen = None;
        let mut shown = Vec::new();
        for slot in 0..backends {
            let key = BackendKey {
                service: service.id,
                generation: service.set.generation(),
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
            };
            let index = self.view.backend(key)?;
            let instance = match index {
                Some(index) => self.view.instance(index)?,
                None => None,
            };
            let text = match instance {
                Some(instance) => {
                    let draining = instance.flags & instance_flags::DRAINING != 0;
                    let note = if draining { " (draining)" } else { "" };
                    format!("{}{note}", Ipv4Addr::from(instance.address))
                }
                None => "vacant".to_owned(),
            };
            if slot == turn {
                chosen = index;
                shown.push(format!("{text} (next)"));
            } else {
                shown.push(text);
            }
        }
        let generation = service.set.generation();
        self.note(
            "service",
            format!("set {generation}, each in turn: {}", shown.join(", ")),
        );
        Ok(chosen)
    }

    /// Whether a flow to the instance could be entered.
    fn open(&mut self, instance: &Instance, may_change_port: bool) -> Result<Destination, DataplaneError> {
        let key = self.packet.key;
        let answers = FlowKey {
            source: instance.address,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            protocol: key.protocol,
            zero: [0; 3],
        };
        if let Some(other) = self.view.flow(&answers)? {
            let is_own = other.flow.shown == key.destination
                && other.flow.port == key.source_port
                && other.flow.incarnation == instance.incarnation;
            let has_ended = self.current(&other.flow)?.is_none();
            if !is_own && !has_ended {
                if !may_change_port {
                    self.note("source port", "another flow to the instance has it");
                    return Ok(Destination::Ends(Err(DropReason::PortCollision)));
                }
                self.note(
                    "source port",
                    "another flow to the instance has it: the instance sees another one",
                );
            }
        }
        Ok(Destination::Instance(*instance, key.source_port))
    }

    /// The way to the instance.
    fn forward(&mut self, endpoint: &Endpoint, instance: &Instance, port: [u8; 2]) -> Walked {
        let place = instance.place;
        let sent = FlowKey {
            source: endpoint.instance_address,
            destination: place.address(),
            source_port: port,
            ..self.packet.key
        };
        let address = Ipv4Addr::from(instance.address);
        let namespace = Ipv4Addr::from(place.address());
        if place.node() == THIS_NODE {
            self.note("instance", format!("{address}, at {namespace} on this node"));
            return self.deliver(&sent);
        }
        let node = self.view.node(place.node())?;
        let remote = Ipv4Addr::from(node.remote);
        self.note(
            "instance",
            format!("{address}, at {namespace} on the node at {remote}"),
        );
        if node.interface == 0 || node.flags & node_flags::UNREACHABLE != 0 {
            self.note("path", "the node is not known or does not answer");
            return Ok(Err(DropReason::NodeUnknown));
        }
        let interface = crate::node::interface_name(node.interface);
        let neighbour = if monotonic_nanoseconds() < node.valid_until {
            "with the Ethernet header kept"
        } else {
            "by way of the kernel's neighbour table"
        };
        self.note(
            "path",
            format!(
                "UDP from {} to {remote}:{}, by {interface}, at most {} B, {neighbour}",
                Ipv4Addr::from(node.local),
                u16::from_be_bytes(node.port),
                node.mtu,
            ),
        );
        Ok(Ok(Action::Tunnel))
    }

    /// Into an endpoint of this node, as `sent`.
    pub(super) fn deliver(&mut self, sent: &FlowKey) -> Walked {
        let Some(receiver) = self.view.endpoint(sent.destination)? else {
            self.note("delivery", "no endpoint has the address");
            return Ok(Err(DropReason::EndpointGone));
        };
        let is_host = receiver.delivery == delivery::HOST;
        if is_host
            && sent.protocol == PROTOCOL_UDP
            && u16::from_be_bytes(sent.destination_port) == self.view.site.tunnel_port
        {
            self.note("delivery", "the tunnel port of the node itself");
            return Ok(Err(DropReason::TunnelFromEndpoint));
        }
        if let Some(known) = self.view.flow(sent)? {
            if self.current(&known.flow)?.is_some() {
                let shown = Ipv4Addr::from(known.flow.shown);
                self.note(
                    "answer",
                    format!("of a flow: the client is shown {shown} as source"),
                );
            } else if !self.packet.begins {
                self.note("answer", "of a flow whose instance is gone");
                return Ok(Err(DropReason::InstanceGone));
            }
        }
        let interface = crate::node::interface_name(receiver.interface);
        let kind = match receiver.delivery {
            delivery::PEER => "into the namespace at its other end",
            delivery::REDIRECT => "out of it",
            _ => "up the node's own stack",
        };
        self.note("delivery", format!("by {interface}, {kind}"));
        Ok(Ok(if is_host {
            Action::DeliverHost
        } else {
            Action::Deliver
        }))
    }
}
