use std::num::NonZeroU16;

use outrigger_certs::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::*;

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), namespace, account).unwrap()
}

fn rule(identities: &[(&str, &str)], namespaces: &[&str], ports: &[u16]) -> AuthorizationRule {
    AuthorizationRule {
        identities: identities.iter().map(|(namespace, account)| id(namespace, account)).collect(),
        namespaces: namespaces.iter().map(|namespace| (*namespace).into()).collect(),
        ports: ports.iter().map(|port| NonZeroU16::new(*port).unwrap()).collect(),
    }
}

fn policy(name: &str, action: Action, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { name: name.into(), action, rules }
}

/// The verdict as one word: `+` allowed or `-` denied, then by whom.
fn decide(policies: &[AuthorizationPolicy], peer: &Peer, port: u16, mtls: MtlsMode) -> String {
    match Policies::compile(policies).connection(peer, port, mtls) {
        Verdict::Allow { policy } => format!("+{}", policy.map_or("default", |name| name)),
        Verdict::Deny(denial) => format!("-{} {}", denial.policy(), denial.reason()),
    }
}

#[test]
fn the_order_is_strict_deny_allow_default() {
    let web = Peer::Mutual(id("shop", "web"));
    let other = Peer::Mutual(id("lab", "probe"));
    let allow_web = policy("shop/allow-web", Action::Allow, vec![rule(&[("shop", "web")], &[], &[8080])]);
    let allow_shop = policy("shop/allow-shop", Action::Allow, vec![rule(&[], &["shop"], &[])]);
    let deny_web = policy("shop/deny-web", Action::Deny, vec![rule(&[("shop", "web")], &[], &[])]);
    let deny_port = policy("shop/close", Action::Deny, vec![rule(&[], &[], &[8080])]);
    let allow_any = policy("shop/any", Action::Allow, vec![rule(&[], &[], &[8080])]);
    let deny_all = policy("shop/nothing", Action::Allow, vec![]);
    let audit = policy("shop/audit", Action::Audit, vec![rule(&[], &[], &[])]);
    use MtlsMode::{Permissive, Strict};
    for (policies, peer, port, mtls, want) in [
        // no policy
        (vec![], &web, 8080, Strict, "+default"),
        (vec![], &Peer::Plain, 8080, Strict, "-default mtls-required"),
        (vec![], &Peer::Plain, 8080, Permissive, "+default"),
        // allow by identity, on one port
        (vec![&allow_web], &web, 8080, Strict, "+shop/allow-web"),
        (vec![&allow_web], &other, 8080, Strict, "-default denied"),
        (vec![&allow_web], &other, 9090, Strict, "+default"),
        (vec![&allow_web], &Peer::Plain, 8080, Permissive, "-default denied"),
        (vec![&allow_web], &Peer::Plain, 9090, Permissive, "+default"),
        // allow by namespace, on every port
        (vec![&allow_shop], &web, 1, Strict, "+shop/allow-shop"),
        (vec![&allow_shop], &other, 1, Strict, "-default denied"),
        // everyone authenticated is not everyone
        (vec![&allow_any], &other, 8080, Strict, "+shop/any"),
        (vec![&allow_any], &Peer::Plain, 8080, Permissive, "-default denied"),
        // deny goes first
        (vec![&allow_web, &deny_web], &web, 8080, Strict, "-shop/deny-web denied"),
        (vec![&deny_web], &other, 8080, Strict, "+default"),
        (vec![&deny_web], &Peer::Plain, 8080, Permissive, "+default"),
        (vec![&deny_port], &Peer::Plain, 8080, Permissive, "-shop/close denied"),
        (vec![&deny_port], &web, 9090, Strict, "+default"),
        // a policy without rules covers everything and lets nobody in; others may still
        (vec![&deny_all], &web, 8080, Strict, "-default denied"),
        (vec![&deny_all, &allow_web], &web, 8080, Strict, "+shop/allow-web"),
        // audit decides nothing
        (vec![&audit], &web, 8080, Strict, "+default"),
        (vec![&audit], &Peer::Plain, 8080, Strict, "-default mtls-required"),
    ] {
        let policies: Vec<_> = policies.into_iter().cloned().collect();
        let names: Vec<_> = policies.iter().map(|policy| &policy.name).collect();
        assert_eq!(decide(&policies, peer, port, mtls), want, "{names:?} {peer:?} {port} {mtls:?}");
    }
}

#[test]
fn audit_names_what_it_would_have_matched() {
    let policies = Policies::compile(&[
        policy("shop/audit", Action::Audit, vec![rule(&[], &["lab"], &[8080])]),
        policy("shop/all", Action::Audit, vec![rule(&[], &[], &[])]),
        policy("shop/deny", Action::Deny, vec![rule(&[], &["lab"], &[])]),
    ]);
    let probe = Peer::Mutual(id("lab", "probe"));
    let names = |port| policies.audits(&probe, port).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(8080), ["shop/audit", "shop/all"]);
    assert_eq!(names(1), ["shop/all"]);
    assert!(policies.audits(&Peer::Plain, 8080).is_empty());
}

/// The same rules written as one sentence each, with no order, no sorting, no early end.
fn oracle(policies: &[AuthorizationPolicy], peer: &Peer, port: u16, mtls: MtlsMode) -> bool {
    let ports_fit =
        |rule: &AuthorizationRule| rule.ports.is_empty() || rule.ports.iter().any(|p| p.get() == port);
    let nobody_named = |rule: &AuthorizationRule| rule.identities.is_empty() && rule.namespaces.is_empty();
    let caller_named = |rule: &AuthorizationRule| match peer {
        Peer::Plain => false,
        Peer::Mutual(id) => {
            rule.identities.contains(id)
                || rule.namespaces.iter().any(|namespace| **namespace == *id.namespace())
        }
    };
    let authenticated = *peer != Peer::Plain;
    let of = |action| policies.iter().filter(move |policy| policy.action == action);
    let denied = of(Action::Deny)
        .flat_map(|policy| &policy.rules)
        .any(|rule| ports_fit(rule) && (nobody_named(rule) || caller_named(rule)));
    let allowed = of(Action::Allow)
        .flat_map(|policy| &policy.rules)
        .any(|rule| ports_fit(rule) && authenticated && (nobody_named(rule) || caller_named(rule)));
    let covered =
        of(Action::Allow).any(|policy| policy.rules.is_empty() || policy.rules.iter().any(ports_fit));
    (authenticated || mtls == MtlsMode::Permissive) && !denied && (allowed || !covered)
}

fn any_id() -> impl Strategy<Value = SpiffeId> {
    (0..3_usize, 0..4_usize).prop_map(|(n, a)| id(["a", "b", "c"][n], ["w", "x", "y", "z"][a]))
}

fn any_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = (
        prop::collection::vec(any_id(), 0..4),
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..2),
        prop::collection::vec(1..4_u16, 0..3),
    )
        .prop_map(|(identities, namespaces, ports)| AuthorizationRule {
            identities,
            ..rule(&[], &namespaces, &ports)
        });
    let action = prop::sample::select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Audit]);
    (action, prop::collection::vec(rule, 0..3)).prop_map(|(action, rules)| policy("p", action, rules))
}

proptest! {
    #[test]
    fn decides_as_the_sentences_say(
        policies in prop::collection::vec(any_policy(), 0..5),
        peer in prop_oneof![Just(Peer::Plain), any_id().prop_map(Peer::Mutual)],
        port in 1..5_u16,
        permissive: bool,
    ) {
        let mtls = if permissive { MtlsMode::Permissive } else { MtlsMode::Strict };
        let compiled = Policies::compile(&policies);
        let verdict = compiled.connection(&peer, port, mtls);
        prop_assert_eq!(verdict.is_allowed(), oracle(&policies, &peer, port, mtls));
    }
}
