//! The rules of the table.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use dataplane_ebpf::address;
use ipnetwork::Ipv4Network;
use nftables::expr::{
    CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range, SetItem,
};
use nftables::stmt::{Counter, Match, NAT, Operator, Statement};
use protocol::ports::TransportProtocol;

use super::{TUNNEL_FROM_HOST, TUNNELS, UNENCAPSULATED};
use crate::host::{TUNNEL_MARK, oak0};

/// `meta mark != MARK udp dport PORT counter name tunnel_from_host drop`.
pub(super) fn guard_port(port: u16) -> Vec<Statement<'static>> {
    let destination = matching(
        field("udp", "dport"),
        Operator::EQ,
        Expression::Number(port.into()),
    );
    refuse(TUNNEL_FROM_HOST, [unmarked(), destination])
}

/// `meta mark != MARK ip daddr . udp dport @tunnel_ports counter name tunnel_from_host drop`.
pub(super) fn guard_tunnels() -> Vec<Statement<'static>> {
    let destination = vec![field("ip", "daddr"), field("udp", "dport")];
    let destination = matching(
        Expression::Named(NamedExpression::Concat(destination)),
        Operator::EQ,
        text(format!("@{TUNNELS}")),
    );
    refuse(TUNNEL_FROM_HOST, [unmarked(), destination])
}

/// `ip daddr 10.16.0.0/12 ct state invalid,new,untracked counter name unencapsulated drop`: of all that the
/// host routes there, only replies to what was masqueraded belong there, and those have the address of a
/// container again when they get here.
pub(super) fn refuse_forwarded() -> Vec<Statement<'static>> {
    let state = CT {
        key: "state".into(),
        family: None,
        dir: None,
    };
    let no_reply = ["invalid", "new", "untracked"].map(|state| text(state.to_owned()));
    let no_reply = matching(
        Expression::Named(NamedExpression::CT(state)),
        Operator::IN,
        Expression::List(no_reply.to_vec()),
    );
    refuse(UNENCAPSULATED, [to_overlay(Operator::EQ), no_reply])
}

/// `ip daddr 10.16.0.0/12 iifname != { "oak0", "lo" } counter name unencapsulated drop`: the node's own
/// address, which others reach through `oak0` and the host itself through `lo`.
pub(super) fn refuse_received() -> Vec<Statement<'static>> {
    let ways = [oak0::NAME, "lo"].map(|name| SetItem::Element(text(name.to_owned())));
    let another_way = matching(
        meta(MetaKey::Iifname),
        Operator::NEQ,
        Expression::Named(NamedExpression::Set(ways.to_vec())),
    );
    refuse(UNENCAPSULATED, [to_overlay(Operator::EQ), another_way])
}

/// `ip saddr { SUBNETS } ip daddr != 10.16.0.0/12 oifname != "oak0" masquerade`.
pub(super) fn masquerade(subnets: &[Ipv4Network]) -> Vec<Statement<'static>> {
    to_world(subnets)
        .into_iter()
        .chain([Statement::Masquerade(None)])
        .collect()
}

/// `ip saddr { SUBNETS } ip daddr != 10.16.0.0/12 oifname != "oak0" udp sport { PORTS } masquerade to :FREE`: the
/// kernel keeps a source port where it can, and what is sent from the number of a published port has its answers
/// taken for what somebody sends to that port.
pub(super) fn masquerade_ports(
    subnets: &[Ipv4Network],
    protocol: TransportProtocol,
    published: &BTreeSet<u16>,
) -> Vec<Statement<'static>> {
    let ports = published
        .iter()
        .map(|port| SetItem::Element(Expression::Number((*port).into())));
    let ports = Expression::Named(NamedExpression::Set(ports.collect()));
    let free = free_ports(published);
    let free = [free.start(), free.end()].map(|port| Expression::Number((*port).into()));
    let under_another = NAT {
        addr: None,
        family: None,
        port: Some(Expression::Range(Box::new(Range { range: free }))),
        flags: None,
    };
    let rest = [
        matching(field(protocol.as_str(), "sport"), Operator::IN, ports),
        Statement::Masquerade(Some(under_another)),
    ];
    to_world(subnets).into_iter().chain(rest).collect()
}

/// The longest stretch of the upper half of all ports without a published one.
fn free_ports(published: &BTreeSet<u16>) -> RangeInclusive<u16> {
    let mut longest = u16::MAX..=u16::MAX;
    let mut first = 0x8000_u16;
    for end in published.range(first..).map(|port| port - 1).chain([u16::MAX]) {
        if end >= first && end - first >= longest.end() - longest.start() {
            longest = first..=end;
        }
        first = end.saturating_add(2);
    }
    longest
}

fn to_world(subnets: &[Ipv4Network]) -> Vec<Statement<'static>> {
    let sources = subnets
        .iter()
        .map(|subnet| SetItem::Element(prefix(subnet.network(), subnet.prefix())));
    let sources = Expression::Named(NamedExpression::Set(sources.collect()));
    vec![
        matching(field("ip", "saddr"), Operator::EQ, sources),
        to_overlay(Operator::NEQ),
        matching(meta(MetaKey::Oifname), Operator::NEQ, text(oak0::NAME.to_owned())),
    ]
}

fn refuse(counter: &'static str, conditions: [Statement<'static>; 2]) -> Vec<Statement<'static>> {
    let verdict = [
        Statement::Counter(Counter::Named(counter.into())),
        Statement::Drop(None),
    ];
    conditions.into_iter().chain(verdict).collect()
}

fn unmarked() -> Statement<'static> {
    matching(
        meta(MetaKey::Mark),
        Operator::NEQ,
        Expression::Number(TUNNEL_MARK),
    )
}

fn to_overlay(operator: Operator) -> Statement<'static> {
    let overlay = prefix(address::OVERLAY.into(), address::OVERLAY_PREFIX_LENGTH);
    matching(field("ip", "daddr"), operator, overlay)
}

fn matching<'a>(left: Expression<'a>, op: Operator, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left, right, op })
}

fn text(text: String) -> Expression<'static> {
    Expression::String(text.into())
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
    let addr = Box::new(text(network.to_string()));
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr,
        len: length.into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stretch_without_a_published_port_is_free() {
        let cases: [(&[u16], RangeInclusive<u16>); 5] = [
            (&[80], 32_768..=65_535),
            (&[32_768], 32_769..=65_535),
            (&[60_000], 32_768..=59_999),
            (&[40_000, 65_535], 40_001..=65_534),
            (&[40_000, 40_001, 64_000], 40_002..=63_999),
        ];
        for (published, expected) in cases {
            assert_eq!(
                free_ports(&published.iter().copied().collect()),
                expected,
                "{published:?}"
            );
        }
    }

    /// Two of them; the others are read back from nft by the tests that have a kernel.
    #[test]
    fn the_rules_are_what_the_comments_say() {
        let subnets = [
            "10.18.0.0/26".parse().expect("a network"),
            "10.18.4.0/26".parse().expect("a network"),
        ];
        let text = |statements| serde_json::to_string(&statements).expect("serialises");
        assert_eq!(
            text(guard_tunnels()),
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
