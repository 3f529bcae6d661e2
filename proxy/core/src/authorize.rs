//! Who may call: authorization policies, compiled once and asked on each connection and each request.
//!
//! In this order:
//!
//! 1. Plaintext on a strict port: denied (`mtls-required`).
//! 2. A deny policy matches: denied, by its name.
//! 3. Allow policies cover the port: one of them must match, otherwise denied.
//! 4. None covers it: every caller that proved an identity is allowed (the verifier admits one trust domain only), and
//!    on a permissive port plaintext callers too.
//!
//! A policy *covers* a port when one of its rules names it or names no port; a policy without rules covers every port
//! and matches nobody. A rule that names no caller means every authenticated one in an allow or audit policy, and
//! everybody in a deny policy: a rule that closes a port closes it to plaintext too.
//!
//! It verifies no certificate (a [`Peer::Mutual`] has been verified), and knows nothing of methods and paths yet.

use std::sync::Arc;

use hashbrown::HashSet;
use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Action, AuthorizationPolicy, AuthorizationRule, MtlsMode};
use smallvec::SmallVec;

use crate::{identity::Peer, verdict::Reason};

/// The policies of one workload, by action.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    deny: Vec<Policy>,
    allow: Vec<Policy>,
    audit: Vec<Policy>,
}

/// The decision. Names are those of policies, `NAMESPACE/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// `policy`: the allow policy that matched; `None`: none covers the port.
    Allow {
        policy: Option<&'a Arc<str>>,
    },
    Deny(Denial<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial<'a> {
    /// By a deny policy.
    Policy(&'a Arc<str>),
    /// Allow policies cover the port and none lets this caller in.
    NoAllowMatches,
    /// Plaintext on a strict port.
    MtlsRequired,
}

#[derive(Clone, Debug)]
struct Policy {
    name: Arc<str>,
    rules: Vec<Rule>,
}

/// Sets, so that a rule with a thousand identities costs as much as one with two.
#[derive(Clone, Debug)]
struct Rule {
    identities: HashSet<SpiffeId>,
    namespaces: HashSet<Arc<str>>,
    ports: Box<[u16]>,
}

/// What a rule without callers means.
#[derive(Clone, Copy)]
enum Unnamed {
    Authenticated,
    Everybody,
}

impl Policies {
    pub fn compile(policies: &[AuthorizationPolicy]) -> Self {
        let mut compiled = Self::default();
        for policy in policies {
            let list = match policy.action {
                Action::Allow => &mut compiled.allow,
                Action::Deny => &mut compiled.deny,
                Action::Audit => &mut compiled.audit,
            };
            let rules = policy.rules.iter().map(Rule::compile).collect();
            list.push(Policy { name: Arc::clone(&policy.name), rules });
        }
        compiled
    }

    /// Asked on connect, and again for live connections when the configuration has changed. Allocates nothing.
    pub fn connection(&self, peer: &Peer, port: u16, mtls: MtlsMode) -> Verdict<'_> {
        if *peer == Peer::Plain && mtls == MtlsMode::Strict {
            return Verdict::Deny(Denial::MtlsRequired);
        }
        if let Some(policy) = self.deny.iter().find(|policy| policy.matches(peer, port, Unnamed::Everybody)) {
            return Verdict::Deny(Denial::Policy(&policy.name));
        }
        if let Some(policy) =
            self.allow.iter().find(|policy| policy.matches(peer, port, Unnamed::Authenticated))
        {
            return Verdict::Allow { policy: Some(&policy.name) };
        }
        if self.allow.iter().any(|policy| policy.covers(port)) {
            return Verdict::Deny(Denial::NoAllowMatches);
        }
        Verdict::Allow { policy: None }
    }

    /// Asked for each request, because the configuration may have changed since the connection was let in.
    pub fn request(&self, peer: &Peer, port: u16, mtls: MtlsMode) -> Verdict<'_> {
        self.connection(peer, port, mtls)
    }

    /// Names of the audit policies that match; they decide nothing.
    pub fn audits(&self, peer: &Peer, port: u16) -> SmallVec<[&Arc<str>; 4]> {
        let hits = self.audit.iter().filter(|policy| policy.matches(peer, port, Unnamed::Authenticated));
        hits.map(|policy| &policy.name).collect()
    }
}

impl Policy {
    fn covers(&self, port: u16) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|rule| rule.names_port(port))
    }

    fn matches(&self, peer: &Peer, port: u16, unnamed: Unnamed) -> bool {
        self.rules.iter().any(|rule| rule.names_port(port) && rule.names_caller(peer, unnamed))
    }
}

impl Rule {
    fn compile(rule: &AuthorizationRule) -> Self {
        let identities = rule.identities.iter().cloned().collect();
        let namespaces = rule.namespaces.iter().cloned().collect();
        let mut ports: Box<[u16]> = rule.ports.iter().map(|port| port.get()).collect();
        ports.sort_unstable();
        Self { identities, namespaces, ports }
    }

    fn names_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.binary_search(&port).is_ok()
    }

    fn names_caller(&self, peer: &Peer, unnamed: Unnamed) -> bool {
        let anybody = self.identities.is_empty() && self.namespaces.is_empty();
        match (peer, unnamed) {
            (Peer::Plain, Unnamed::Authenticated) => false,
            (Peer::Plain, Unnamed::Everybody) => anybody,
            (Peer::Mutual(identity), Unnamed::Authenticated | Unnamed::Everybody) => {
                anybody
                    || self.identities.contains(identity)
                    || (!self.namespaces.is_empty() && self.namespaces.contains(identity.namespace()))
            }
        }
    }
}

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

impl<'a> Denial<'a> {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Policy(_) | Self::NoAllowMatches => Reason::Denied,
            Self::MtlsRequired => Reason::MtlsRequired,
        }
    }

    /// What the answer and the log name: the policy, or `default` where no policy let the caller in.
    pub fn policy(&self) -> &'a str {
        match self {
            Self::Policy(name) => name,
            Self::NoAllowMatches | Self::MtlsRequired => "default",
        }
    }
}

#[cfg(test)]
mod tests;
