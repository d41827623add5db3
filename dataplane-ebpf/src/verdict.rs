//! What can happen to a packet, where, and under which name it is counted.

/// Where a packet met the data plane.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It left an endpoint: tc ingress of the host's end.
    FromEndpoint = 0,
    /// It was written back by NetManager, or is for the node itself: tc ingress of `oak0`.
    FromOak0 = 1,
    /// The node itself sent it: tc egress of `oak0`.
    FromHost = 2,
    /// It came from the wire: tc ingress of an uplink.
    FromUplink = 3,
    /// The node itself sent it to itself: tc egress of `lo`.
    FromLoopback = 4,
}

impl Hook {
    pub const ALL: [Self; 5] = [
        Self::FromEndpoint,
        Self::FromOak0,
        Self::FromHost,
        Self::FromUplink,
        Self::FromLoopback,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from_endpoint",
            Self::FromOak0 => "from_oak0",
            Self::FromHost => "from_host",
            Self::FromUplink => "from_uplink",
            Self::FromLoopback => "from_loopback",
        }
    }
}

/// Declares an enum whose variants are counted: the number, the name that people see, and what it means stand
/// in one place.
macro_rules! counted {
    (
        $(#[$outer:meta])* $type:ident from $first:literal {
            $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$outer])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// Number of variants.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The variant with this number.
            #[inline(always)]
            pub const fn from_number(number: u8) -> Option<Self> {
                $(if number == Self::$variant as u8 {
                    return Some(Self::$variant);
                })+
                None
            }

            /// The name under which it is counted.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }

            /// Its row in `COUNTERS` within a hook.
            #[inline(always)]
            pub const fn row(self) -> u32 { $first + self as u32 }
        }
    };
}

counted! {
    /// What is done with a packet that is not dropped.
    Action from 0 {
        /// not ours: on to the next program, unchanged
        Pass = "PASS",
        /// delivered to an endpoint on this node
        Deliver = "DELIVER",
        /// delivered to the node itself
        DeliverHost = "DELIVER_HOST",
        /// sent to another node through the tunnel
        Tunnel = "TUNNEL",
        /// handed to NetManager until its destination, or its datagram's first fragment, is known
        Park = "PARK",
        /// answered with a TCP reset: no flow, and only a SYN may begin one
        Reset = "RESET",
        /// from an unknown outer source, handed to NetManager
        Stranger = "STRANGER",
        /// to a published port, delivered to its endpoint
        Publish = "PUBLISH",
        /// from an endpoint, back to a client of a port that it has published
        PublishAnswer = "PUBLISH_ANSWER",
        /// an endpoint asked where its gateway is (ARP), and was told
        AnswerGateway = "ANSWER_GATEWAY",
        /// answered with "fragmentation needed": larger than the way to the node can carry
        IcmpTooBig = "ICMP_TOO_BIG",
        /// answered with "host unreachable": no instance, no such address, or no way to the node
        IcmpUnreachable = "ICMP_UNREACHABLE",
        /// a probe of another node, turned around
        ProbeAnswered = "PROBE_ANSWERED",
        /// the answer to a probe of this node, its arrival noted
        ProbeReceived = "PROBE_RECEIVED",
    }
}

counted! {
    /// Why a packet was dropped.
    DropReason from 14 {
        /// an endpoint sent a frame with a VLAN tag
        VlanTagged = "VLAN_TAGGED",
        /// the source is not the endpoint's own address
        Spoofed = "SPOOFED",
        /// an endpoint sent to the tunnel port of a node
        TunnelFromEndpoint = "TUNNEL_FROM_ENDPOINT",
        /// the frame ends before its headers do
        Short = "SHORT",
        /// lengths or versions in the headers contradict each other
        Malformed = "MALFORMED",
        /// IPv4 options that choose the way (source routing)
        IpOptions = "IP_OPTIONS",
        /// a later fragment, and the first did not come in time
        Fragment = "FRAGMENT",
        /// an ICMP error about a packet that its receiver has not sent, or about another error
        IcmpError = "ICMP_ERROR",
        /// an ICMP message other than echo and the errors that are translated
        IcmpType = "ICMP_TYPE",
        /// neither TCP nor UDP nor ICMP
        Protocol = "PROTOCOL",
        /// addressed to the overlay, but neither to a service nor to an instance
        NotAService = "NOT_A_SERVICE",
        /// written back by NetManager, and still unknown
        Unresolved = "UNRESOLVED",
        /// belongs to no flow, and may not begin one
        NoFlow = "NO_FLOW",
        /// the service has no instance
        NoBackend = "NO_BACKEND",
        /// no free source port towards the instance
        PortCollision = "PORT_COLLISION",
        /// the flow table took no further entry
        FlowTableFull = "FLOW_TABLE_FULL",
        /// the instance is gone, and with it the flow
        InstanceGone = "INSTANCE_GONE",
        /// the instance's node is not known or not reachable
        NodeUnknown = "NODE_UNKNOWN",
        /// the instance should be on this node, but is not
        EndpointGone = "ENDPOINT_GONE",
        /// larger than the way to the node can carry
        TooBig = "TOO_BIG",
        /// the kernel refused to change or redirect the packet
        KernelRefused = "KERNEL_REFUSED",
        /// overlay addresses on the wire, without a tunnel
        Unencapsulated = "UNENCAPSULATED",
        /// a tunnel datagram whose outer headers contradict each other
        OuterMalformed = "OUTER_MALFORMED",
        /// a fragment of a tunnel datagram that comes from no peer
        OuterFragment = "OUTER_FRAGMENT",
        /// a tunnel datagram that claims to come from a peer, but arrived at another interface
        WrongInterface = "WRONG_INTERFACE",
        /// a tunnel datagram from an unknown outer source, beyond the rate let up to NetManager
        UnknownPeer = "UNKNOWN_PEER",
        /// the inner packet ends before its headers do
        InnerShort = "INNER_SHORT",
        /// the inner packet is of no version that this node knows
        InnerVersion = "INNER_VERSION",
        /// the inner packet's headers contradict each other
        InnerMalformed = "INNER_MALFORMED",
        /// the inner source is neither a service nor an instance
        SourceNotOverlay = "SOURCE_NOT_OVERLAY",
        /// the inner source lives on another node than the one that sent it
        SourceNotOnNode = "SOURCE_NOT_ON_NODE",
        /// the inner destination is no endpoint of this node
        DestinationNotLocal = "DESTINATION_NOT_LOCAL",
        /// a probe of another length, version or kind than this node knows
        ProbeMalformed = "PROBE_MALFORMED",
        /// an answer to no probe that is under way to that peer
        ProbeUnexpected = "PROBE_UNEXPECTED",
        /// a probe beyond the rate that this node answers
        ProbeRate = "PROBE_RATE",
    }
}

/// Rows of `COUNTERS` per hook.
pub const ROWS: u32 = Action::COUNT + DropReason::COUNT;
/// Rows of `COUNTERS` in all.
pub const COUNTERS: u32 = ROWS * Hook::ALL.len() as u32;

const _: () = assert!(DropReason::VlanTagged.row() == Action::COUNT);

/// Index in `COUNTERS`.
#[inline(always)]
pub const fn index(hook: Hook, row: u32) -> u32 {
    hook as u32 * ROWS + row
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_row_of_its_own() {
        let rows: Vec<u32> = Action::ALL
            .iter()
            .map(|action| action.row())
            .chain(DropReason::ALL.iter().map(|reason| reason.row()))
            .collect();
        assert_eq!(rows, (0..ROWS).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_give_back_their_variants() {
        for number in 0..=u8::MAX {
            let action = Action::ALL.get(usize::from(number)).copied();
            let reason = DropReason::ALL.get(usize::from(number)).copied();
            assert_eq!(
                (Action::from_number(number), DropReason::from_number(number)),
                (action, reason)
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let names: HashSet<&str> = Action::ALL
            .iter()
            .map(|action| action.as_str())
            .chain(DropReason::ALL.iter().map(|reason| reason.as_str()))
            .collect();
        assert_eq!(names.len() as u32, ROWS);
    }
}
