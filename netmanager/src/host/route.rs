//! Routes of [`ROUTE_PROTOCOL`] in the main table, made when missing and never at the cost of another's.

use std::fmt;
use std::net::Ipv4Addr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::absent_is_none;
use super::{Error, Netlink, ROUTE_PROTOCOL, Result};

/// An IPv4 route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Addr,
    pub prefix_length: u8,
    pub target: RouteTarget,
}

/// Where a [`Route`] leads. Interfaces are indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// Straight out of the interface, whose neighbours these destinations are (`scope link`).
    Link { interface: u32 },
    /// Out of the interface, from this source unless the sender has chosen one.
    LinkFrom { interface: u32, source: Ipv4Addr },
    /// By way of a gateway that is on the interface whatever other routes say (`onlink`).
    Gateway { interface: u32, gateway: Ipv4Addr },
    /// Nowhere; the sender is told so.
    Unreachable,
}

impl RouteTarget {
    fn interface(self) -> Option<u32> {
        match self {
            Self::Link { interface } | Self::LinkFrom { interface, .. } | Self::Gateway { interface, .. } => {
                Some(interface)
            }
            Self::Unreachable => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.destination, self.prefix_length)
    }
}

impl Netlink {
    /// Makes the route unless it is there; whether it was not.
    ///
    /// # Errors
    /// [`Error::ForeignRoute`] when somebody else routes this destination, or whatever the kernel refuses.
    pub async fn ensure_route(&self, route: &Route) -> Result<bool> {
        let message = RouteNetlinkMessage::NewRoute(message_of(route));
        let object = route.to_string();
        let added = self
            .change("add route", &object, message.clone(), NLM_F_CREATE | NLM_F_EXCL)
            .await;
        if absent_is_none(added, libc::EEXIST)?.is_some() {
            return Ok(true);
        }
        match self.own_route(route.destination, route.prefix_length).await? {
            Some(existing) if existing == *route => Ok(false),
            Some(_) => {
                self.change("replace route", &object, message, NLM_F_REPLACE)
                    .await?;
                Ok(true)
            }
            None => Err(Error::ForeignRoute(object)),
        }
    }

    /// Removes the route if NetManager made it; whether it did.
    ///
    /// # Errors
    /// Whatever the kernel refuses for another reason than that the route is gone.
    pub async fn remove_route(&self, destination: Ipv4Addr, prefix_length: u8) -> Result<bool> {
        let Some(route) = self.own_route(destination, prefix_length).await? else {
            return Ok(false);
        };
        let message = RouteNetlinkMessage::DelRoute(message_of(&route));
        let removed = self.change("delete route", &route.to_string(), message, 0).await;
        Ok(absent_is_none(removed, libc::ESRCH)?.is_some())
    }

    /// The routes that NetManager made.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn own_routes(&self) -> Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        let answers = self
            .dump("list", "routes", RouteNetlinkMessage::GetRoute(message))
            .await?;
        Ok(answers.into_iter().filter_map(route_of).collect())
    }

    async fn own_route(&self, destination: Ipv4Addr, prefix_length: u8) -> Result<Option<Route>> {
        let routes = self.own_routes().await?;
        let same = |route: &Route| (route.destination, route.prefix_length) == (destination, prefix_length);
        Ok(routes.into_iter().find(same))
    }
}

fn message_of(route: &Route) -> RouteMessage {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination, route.prefix_length)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    if let Some(interface) = route.target.interface() {
        message = message.output_interface(interface);
    }
    match route.target {
        RouteTarget::Link { .. } => message.scope(RouteScope::Link),
        RouteTarget::LinkFrom { source, .. } => message.scope(RouteScope::Link).pref_source(source),
        RouteTarget::Gateway { gateway, .. } => message.gateway(gateway).onlink(),
        RouteTarget::Unreachable => message.kind(RouteType::Unreachable),
    }
    .build()
}

fn route_of(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    // The kernel filters by protocol and table; cloned routes (cached exceptions) it adds all the same.
    let own = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        && message.header.table == RouteHeader::RT_TABLE_MAIN
        && !message.header.flags.contains(RouteFlags::Cloned);
    if !own {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut interface, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
            destination = *address;
        } else if let RouteAttribute::Oif(index) = attribute {
            interface = Some(*index);
        } else if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
            gateway = Some(*address);
        } else if let RouteAttribute::PrefSource(RouteAddress::Inet(address)) = attribute {
            source = Some(*address);
        }
    }
    let target = match (message.header.kind, interface, gateway, source) {
        (RouteType::Unreachable, ..) => RouteTarget::Unreachable,
        (_, Some(interface), Some(gateway), _) => RouteTarget::Gateway { interface, gateway },
        (_, Some(interface), None, Some(source)) => RouteTarget::LinkFrom { interface, source },
        (_, Some(interface), None, None) => RouteTarget::Link { interface },
        (_, None, ..) => return None,
    };
    let prefix_length = message.header.destination_prefix_length;
    Some(Route {
        destination,
        prefix_length,
        target,
    })
}

/// The next hop and its interface that the kernel would choose towards `destination`.
pub(crate) struct Lookup {
    pub kind: RouteType,
    pub interface: Option<u32>,
    pub gateway: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    /// Largest packet that is known to pass, in bytes.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Asks the kernel how it would send to `destination`.
    pub(crate) async fn lookup(&self, destination: Ipv4Addr) -> Result<Lookup> {
        use rtnetlink::packet_route::route::RouteMetric;

        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
        let object = destination.to_string();
        let answer = self
            .ask("find route to", &object, RouteNetlinkMessage::GetRoute(message))
            .await?;
        let Some(RouteNetlinkMessage::NewRoute(answer)) = answer else {
            return Err(Error::Incomplete {
                operation: "find route to",
                object,
                missing: "route",
            });
        };
        let mut lookup = Lookup {
            kind: answer.header.kind,
            interface: None,
            gateway: None,
            source: None,
            mtu: None,
        };
        for attribute in &answer.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                lookup.interface = Some(*index);
            } else if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
                lookup.gateway = Some(*address);
            } else if let RouteAttribute::PrefSource(RouteAddress::Inet(address)) = attribute {
                lookup.source = Some(*address);
            } else if let RouteAttribute::Metrics(metrics) = attribute {
                lookup.mtu = metrics.iter().find_map(|metric| {
                    if let RouteMetric::Mtu(mtu) = metric {
                        Some(*mtu)
                    } else {
                        None
                    }
                });
            }
        }
        Ok(lookup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_the_message() {
        let interface = 7;
        let targets = [
            RouteTarget::Link { interface },
            RouteTarget::LinkFrom {
                interface,
                source: Ipv4Addr::new(10, 18, 0, 1),
            },
            RouteTarget::Gateway {
                interface,
                gateway: Ipv4Addr::new(169, 254, 1, 1),
            },
            RouteTarget::Unreachable,
        ];
        for target in targets {
            let route = Route {
                destination: Ipv4Addr::new(10, 30, 0, 0),
                prefix_length: 16,
                target,
            };
            let message = RouteNetlinkMessage::NewRoute(message_of(&route));
            assert_eq!(route_of(message), Some(route), "{target:?}");
        }
    }

    #[test]
    fn a_route_of_another_protocol_is_not_ours() {
        let target = RouteTarget::Unreachable;
        let route = Route {
            destination: Ipv4Addr::new(10, 16, 0, 0),
            prefix_length: 12,
            target,
        };
        let mut message = message_of(&route);
        message.header.protocol = RouteProtocol::Static;
        assert_eq!(route_of(RouteNetlinkMessage::NewRoute(message)), None);
    }
}
