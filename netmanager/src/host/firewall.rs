//! The nftables table of this node: masquerade for what containers send to the world, and the guard that
//! keeps everybody but NetManager from sending to a tunnel port.
//!
//! ```text
//! table inet oakestra_<node id>
//!   counter tunnel_from_host
//!   set tunnel_ports     ipv4_addr . inet_service: where a tunnel listens
//!   chain tunnel_guard   postrouting, raw:    to @tunnel_ports without the mark -> counted, dropped
//!   chain to_world       postrouting, srcnat: from the node's subnets to outside the overlay -> masqueraded
//! ```
//!
//! The guard sits after routing, so that one rule sees what processes of the host send and what the host
//! forwards for others, with the destination they have in the end. What the data plane sends never passes
//! here. Every change is one transaction: there is no moment without the rules, and the counter goes on.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane_ebpf::address;
use ipnetwork::Ipv4Network;
use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem};
use nftables::schema::{
    Chain, Counter, Element, FlushObject, NfCmd, NfListObject, Rule, Set, SetType, Table,
};
use nftables::schema::{SetTypeValue, SetTypeValue::Concatenated};
use nftables::stmt::{Counter as Count, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::{Result, TUNNEL_MARK, oak0};

mod nft;

/// Name of the counter of what was dropped on its way to a tunnel port.
pub const TUNNEL_FROM_HOST: &str = "tunnel_from_host";

/// None of these is a word of nft's language, else nft could not read what it has listed.
const TUNNELS: &str = "tunnel_ports";
const GUARD: &str = "tunnel_guard";
const TO_WORLD: &str = "to_world";

/// Before every other tool's chain at this hook, so that none can set the mark first.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_SOURCE_NAT: i32 = 100;

/// As many tunnels as the data plane has nodes.
const TUNNELS_SIZE: u32 = dataplane_ebpf::tables::capacity::NODES;

/// What the table should say.
#[derive(Clone, Debug, Default)]
pub struct FirewallOptions {
    /// Whose table it is.
    pub node_id: String,
    /// The subnets of this node's containers.
    pub subnets: Vec<Ipv4Network>,
    /// Where tunnels listen: every known peer's, and this node's own.
    pub tunnels: BTreeSet<SocketAddrV4>,
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
    batch.add(owner.counter());
    batch.add(owner.tunnels());
    batch.add(owner.chain(GUARD, NfChainType::Filter, PRIORITY_RAW));
    batch.add(owner.chain(TO_WORLD, NfChainType::NAT, PRIORITY_SOURCE_NAT));
    for chain in [GUARD, TO_WORLD] {
        batch.add_cmd(NfCmd::Flush(FlushObject::Chain(owner.chain_reference(chain))));
    }
    batch.add_cmd(NfCmd::Flush(FlushObject::Set(Box::new(
        owner.tunnels_reference(),
    ))));
    if !options.tunnels.is_empty() {
        batch.add(owner.elements(&options.tunnels));
    }
    batch.add(owner.rule(GUARD, guard()));
    if !options.subnets.is_empty() {
        batch.add(owner.rule(TO_WORLD, masquerade(&options.subnets)));
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

/// What the guard does: `meta mark != MARK ip daddr . udp dport @tunnel_ports counter name tunnel_from_host drop`.
fn guard() -> Vec<Statement<'static>> {
    let destination = vec![field("ip", "daddr"), field("udp", "dport")];
    let destination = Expression::Named(NamedExpression::Concat(destination));
    vec![
        matching(
            meta(MetaKey::Mark),
            Operator::NEQ,
            Expression::Number(TUNNEL_MARK),
        ),
        matching(
            destination,
            Operator::EQ,
            Expression::String(format!("@{TUNNELS}").into()),
        ),
        Statement::Counter(Count::Named(TUNNEL_FROM_HOST.into())),
        Statement::Drop(None),
    ]
}

/// `ip saddr { SUBNETS } ip daddr != 10.16.0.0/12 oifname != "oak0" masquerade`.
fn masquerade(subnets: &[Ipv4Network]) -> Vec<Statement<'static>> {
    let sources = subnets
        .iter()
        .map(|subnet| SetItem::Element(prefix(subnet.network(), subnet.prefix())));
    let sources = Expression::Named(NamedExpression::Set(sources.collect()));
    let overlay = prefix(address::OVERLAY.into(), address::OVERLAY_PREFIX_LENGTH);
    vec![
        matching(field("ip", "saddr"), Operator::EQ, sources),
        matching(field("ip", "daddr"), Operator::NEQ, overlay),
        matching(
            meta(MetaKey::Oifname),
            Operator::NEQ,
            Expression::String(oak0::NAME.into()),
        ),
        Statement::Masquerade(None),
    ]
}

fn matching<'a>(left: Expression<'a>, op: Operator, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left, right, op })
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn prefix(network: Ipv4Addr, length: u8) -> Expression<'static> {
    let addr = Box::new(Expression::String(network.to_string().into()));
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr,
        len: length.into(),
    }))
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

    fn counter(&self) -> NfListObject<'_> {
        NfListObject::Counter(Counter {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: TUNNEL_FROM_HOST.into(),
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

    fn chain_reference(&self, name: &'static str) -> Chain<'_> {
        let table = self.name.as_str().into();
        Chain {
            family: NfFamily::INet,
            table,
            name: name.into(),
            ..Chain::default()
        }
    }

    fn chain(&self, name: &'static str, kind: NfChainType, priority: i32) -> NfListObject<'_> {
        NfListObject::Chain(Chain {
            _type: Some(kind),
            hook: Some(NfHook::Postrouting),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..self.chain_reference(name)
        })
    }

    fn rule(&self, chain: &'static str, statements: Vec<Statement<'static>>) -> NfListObject<'_> {
        NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            chain: chain.into(),
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

    #[test]
    fn the_rules_are_what_the_comments_say() {
        let subnets = [
            "10.18.0.0/26".parse().expect("a network"),
            "10.18.4.0/26".parse().expect("a network"),
        ];
        let text = |statements| serde_json::to_string(&statements).expect("serialises");
        assert_eq!(
            text(guard()),
            concat!(
                r#"[{"match":{"left":{"meta":{"key":"mark"}},"right":1868655461,"op":"!="}},"#,
                r#"{"match":{"left":{"concat":[{"payload":{"protocol":"ip","field":"daddr"}},"#,
                r#"{"payload":{"protocol":"udp","field":"dport"}}]},"right":"@tunnel_ports","op":"=="}},"#,
                r#"{"counter":"tunnel_from_host"},{"drop":null}]"#,
            )
        );
        assert_eq!(
            text(masquerade(&subnets)),
            concat!(
                r#"[{"match":{"left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"set":["#,
                r#"{"prefix":{"addr":"10.18.0.0","len":26}},"#,
                r#"{"prefix":{"addr":"10.18.4.0","len":26}}]},"op":"=="}},"#,
                r#"{"match":{"left":{"payload":{"protocol":"ip","field":"daddr"}},"#,
                r#""right":{"prefix":{"addr":"10.16.0.0","len":12}},"op":"!="}},"#,
                r#"{"match":{"left":{"meta":{"key":"oifname"}},"right":"oak0","op":"!="}},"#,
                r#"{"masquerade":null}]"#,
            )
        );
    }
}
