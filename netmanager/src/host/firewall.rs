//! The nftables table of this node: masquerade for what containers send to the world, the guard that keeps
//! everybody but NetManager from sending to a tunnel port, and the walls that keep out of the overlay what the
//! data plane has not admitted.
//!
//! ```text
//! table inet oakestra_<node id>
//!   counter tunnel_from_host, unencapsulated
//!   set tunnel_ports        ipv4_addr . inet_service: where tunnels listen
//!   chain tunnel_guard      postrouting, raw:   without the mark, to the own tunnel's port anywhere
//!                                               or to @tunnel_ports                -> counted, dropped
//!   chain overlay_forwarded forward, mangle:    to the overlay, no reply           -> counted, dropped
//!   chain overlay_received  input, mangle:      to the overlay, not through oak0   -> counted, dropped
//!   chain to_world          postrouting, srcnat: from the node's subnets to outside the overlay -> masqueraded,
//!                                               from a published port's number -> under another one
//! ```
//!
//! The guard sits after routing, so that one rule sees what processes of the host send and what the host
//! forwards for others, with the destination they have in the end. It knows peers by the port and not only by
//! their addresses, because a peer may know this node before this node knows the peer.
//!
//! The walls stand behind the programs on the uplinks, for the interfaces that have none: those without an
//! address, or without Ethernet. What the data plane sends never passes any of these chains. Every change is
//! one transaction: there is no moment without the rules, and the counters go on.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use ipnetwork::Ipv4Network;
use nftables::batch::Batch;
use nftables::expr::{Expression, NamedExpression};
use nftables::schema::{
    Chain, Counter, Element, FlushObject, NfCmd, NfListObject, Rule, Set, SetType, Table,
};
use nftables::schema::{SetTypeValue, SetTypeValue::Concatenated};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use protocol::ports::TransportProtocol;

use super::Result;

pub(super) mod nft;
mod rules;

/// Name of the counter of what was dropped on its way to a tunnel port.
pub const TUNNEL_FROM_HOST: &str = "tunnel_from_host";
/// Name of the counter of what was dropped on its way into the overlay.
pub const UNENCAPSULATED: &str = "unencapsulated";

/// None of these is a word of nft's language, else nft could not read what it has listed.
const TUNNELS: &str = "tunnel_ports";
const GUARD: Base = Base {
    name: "tunnel_guard",
    kind: NfChainType::Filter,
    hook: NfHook::Postrouting,
    // Before every other tool's chain at this hook, so that none can set the mark first.
    priority: -300,
};
const FORWARDED: Base = Base {
    name: "overlay_forwarded",
    kind: NfChainType::Filter,
    hook: NfHook::Forward,
    // Mangle: connections are known, and no other tool has accepted anything for good yet.
    priority: -150,
};
const RECEIVED: Base = Base {
    name: "overlay_received",
    hook: NfHook::Input,
    ..FORWARDED
};
const TO_WORLD: Base = Base {
    name: "to_world",
    kind: NfChainType::NAT,
    hook: NfHook::Postrouting,
    // Where source addresses are translated.
    priority: 100,
};
const CHAINS: [Base; 4] = [GUARD, FORWARDED, RECEIVED, TO_WORLD];

/// As many tunnels as the data plane has nodes.
const TUNNELS_SIZE: u32 = dataplane_ebpf::tables::capacity::NODES;

/// A chain and the place where the kernel calls it.
struct Base {
    name: &'static str,
    kind: NfChainType,
    hook: NfHook,
    priority: i32,
}

/// What the table should say.
#[derive(Clone, Debug, Default)]
pub struct FirewallOptions {
    /// Whose table it is.
    pub node_id: String,
    /// The subnets of this node's containers.
    pub subnets: Vec<Ipv4Network>,
    /// UDP port of this node's own tunnel. Other nodes use the same one unless they are configured otherwise,
    /// so it is guarded at every destination.
    pub listen_port: u16,
    /// Where tunnels listen: every known peer's, and this node's own.
    pub tunnels: BTreeSet<SocketAddrV4>,
    /// Published ports, which nothing that is masqueraded is sent from.
    pub published: BTreeSet<(TransportProtocol, u16)>,
}

/// A counter of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCounter {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Makes the table what it should be, in one transaction. Other tables are not looked at.
///
/// # Errors
/// `nft` cannot be run or refuses.
pub async fn apply(options: &FirewallOptions) -> Result<()> {
    let owner = Owner::of(&options.node_id);
    let mut batch = Batch::new();
    batch.add(owner.table());
    for counter in [TUNNEL_FROM_HOST, UNENCAPSULATED] {
        batch.add(owner.counter(counter));
    }
    batch.add(owner.tunnels());
    for chain in &CHAINS {
        batch.add(owner.chain(chain));
        batch.add_cmd(NfCmd::Flush(FlushObject::Chain(owner.chain_reference(chain))));
    }
    batch.add_cmd(NfCmd::Flush(FlushObject::Set(Box::new(
        owner.tunnels_reference(),
    ))));
    if !options.tunnels.is_empty() {
        batch.add(owner.elements(&options.tunnels));
    }
    batch.add(owner.rule(&GUARD, rules::guard_port(options.listen_port)));
    batch.add(owner.rule(&GUARD, rules::guard_tunnels()));
    batch.add(owner.rule(&FORWARDED, rules::refuse_forwarded()));
    batch.add(owner.rule(&RECEIVED, rules::refuse_received()));
    if !options.subnets.is_empty() {
        for protocol in [TransportProtocol::Tcp, TransportProtocol::Udp] {
            let from = options.published.iter().filter(|(other, _)| *other == protocol);
            let from: BTreeSet<u16> = from.map(|(_, port)| *port).collect();
            if !from.is_empty() {
                let rule = rules::masquerade_ports(&options.subnets, protocol, &from);
                batch.add(owner.rule(&TO_WORLD, rule));
            }
        }
        batch.add(owner.rule(&TO_WORLD, rules::masquerade(&options.subnets)));
    }
    nft::apply("set up", &owner.name, batch).await
}

/// Makes the set of tunnels what it should be, by adding and removing what differs. Whether anything did.
///
/// # Errors
/// `nft` cannot be run or refuses, as it does when somebody has removed the table: [`apply`] makes it anew.
pub async fn set_tunnels(node_id: &str, wanted: &BTreeSet<SocketAddrV4>) -> Result<bool> {
    let owner = Owner::of(node_id);
    let present = nft::addresses_and_ports(&owner.name, TUNNELS).await?;
    let added: BTreeSet<_> = wanted.difference(&present).copied().collect();
    let removed: BTreeSet<_> = present.difference(wanted).copied().collect();
    let mut batch = Batch::new();
    if !removed.is_empty() {
        batch.delete(owner.elements(&removed));
    }
    if !added.is_empty() {
        batch.add(owner.elements(&added));
    }
    let different = !added.is_empty() || !removed.is_empty();
    if different {
        nft::apply("change tunnels of", &owner.name, batch).await?;
    }
    Ok(different)
}

/// The counters of the table; none when there is no table.
///
/// # Errors
/// `nft` cannot be run.
pub async fn counters(node_id: &str) -> Result<Vec<NamedCounter>> {
    nft::counters(&Owner::of(node_id).name).await
}

/// Removes the table; success when there is none.
///
/// # Errors
/// `nft` cannot be run or refuses.
pub async fn remove(node_id: &str) -> Result<()> {
    let owner = Owner::of(node_id);
    let mut batch = Batch::new();
    // A table that was just added can be deleted, whether it was there before or not.
    batch.add(owner.table());
    batch.delete(owner.table());
    nft::apply("remove", &owner.name, batch).await
}

/// What a counter of the table has counted.
pub fn meaning(counter: &str) -> &'static str {
    match counter {
        TUNNEL_FROM_HOST => "somebody on this machine, or behind it, sent to the tunnel port of a node",
        UNENCAPSULATED => "to the overlay, through an interface where nobody is admitted to it",
        _ => "a counter that this NetManager does not know",
    }
}

/// The table's name. Characters that `nft` would not read become `_`, and then a hash keeps ids apart that
/// differ only there.
pub fn table_name(node_id: &str) -> String {
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if node_id.chars().all(allowed) {
        return format!("oakestra_{node_id}");
    }
    let readable: String = node_id
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    format!(
        "oakestra_{readable}_{:08x}",
        crate::endpoint::name::hash(&[node_id.as_bytes()]) as u32
    )
}

/// The objects of one node's table.
struct Owner {
    name: String,
}

impl Owner {
    fn of(node_id: &str) -> Self {
        Self {
            name: table_name(node_id),
        }
    }

    fn table(&self) -> NfListObject<'_> {
        let name = self.name.as_str().into();
        NfListObject::Table(Table {
            family: NfFamily::INet,
            name,
            ..Table::default()
        })
    }

    fn counter(&self, name: &'static str) -> NfListObject<'_> {
        NfListObject::Counter(Counter {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: name.into(),
            // Where a new one starts; one that exists goes on.
            packets: Some(0),
            bytes: Some(0),
            ..Counter::default()
        })
    }

    fn tunnels(&self) -> NfListObject<'_> {
        NfListObject::Set(Box::new(Set {
            size: Some(TUNNELS_SIZE),
            ..self.tunnels_reference()
        }))
    }

    fn tunnels_reference(&self) -> Set<'_> {
        let set_type: SetTypeValue<'_> = Concatenated(vec![SetType::Ipv4Addr, SetType::InetService].into());
        Set {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: TUNNELS.into(),
            set_type,
            ..Set::default()
        }
    }

    fn elements(&self, tunnels: &BTreeSet<SocketAddrV4>) -> NfListObject<'_> {
        let element = |tunnel: &SocketAddrV4| {
            Expression::Named(NamedExpression::Concat(vec![
                Expression::String(tunnel.ip().to_string().into()),
                Expression::Number(tunnel.port().into()),
            ]))
        };
        NfListObject::Element(Element {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: TUNNELS.into(),
            elem: tunnels.iter().map(element).collect(),
        })
    }

    fn chain_reference(&self, chain: &Base) -> Chain<'_> {
        let table = self.name.as_str().into();
        Chain {
            family: NfFamily::INet,
            table,
            name: chain.name.into(),
            ..Chain::default()
        }
    }

    fn chain(&self, chain: &Base) -> NfListObject<'_> {
        NfListObject::Chain(Chain {
            _type: Some(chain.kind),
            hook: Some(chain.hook),
            prio: Some(chain.priority),
            policy: Some(NfChainPolicy::Accept),
            ..self.chain_reference(chain)
        })
    }

    fn rule(&self, chain: &Base, statements: Vec<Statement<'static>>) -> NfListObject<'_> {
        NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            chain: chain.name.into(),
            expr: statements.into(),
            ..Rule::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_readable_for_nft_and_differ() {
        assert_eq!(table_name("6f1a-b_2"), "oakestra_6f1a-b_2");
        let names = ["a b", "a.b", "a_b", "a\u{e9}b", "a;flush ruleset"].map(table_name);
        for name in &names {
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'),
                "{name}"
            );
        }
        assert_eq!(BTreeSet::from(names.clone()).len(), names.len(), "{names:?}");
    }
}
