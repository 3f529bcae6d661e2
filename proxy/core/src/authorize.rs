//! Who may call: compiled authorization policies.

use std::sync::Arc;

use outrigger_proto::spec;
use serde::Serialize;
use smallvec::SmallVec;

use crate::identity::Peer;

/// The policies of one workload, compiled.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Policies {
    _private: (),
}

/// The decision. Names are those of policies, `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// `policy`: the allow policy that matched; `None`: none covers the port, so the default let it in.
    Allow { policy: Option<&'a Arc<str>> },
    Deny(Denial<'a>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial<'a> {
    /// By a deny policy.
    Policy(&'a Arc<str>),
    /// Allow policies cover the port and none lets this caller in.
    NoAllowMatches,
    /// Plaintext on a strict port.
    MtlsRequired,
}

impl Policies {
    pub fn compile(_policies: &[spec::AuthorizationPolicy]) -> Self {
        unimplemented!()
    }
    /// On connect, and to look again at live connections when the configuration changed. Allocates nothing.
    pub fn connection(&self, _peer: &Peer, _port: u16, _mtls: spec::MtlsMode) -> Verdict<'_> {
        unimplemented!()
    }
    /// For each request.
    pub fn request(&self, _peer: &Peer, _port: u16, _mtls: spec::MtlsMode, _request: &http::request::Parts) -> Verdict<'_> {
        unimplemented!()
    }
    /// Names of the audit policies that match; they decide nothing.
    pub fn audits(&self, _peer: &Peer, _port: u16) -> SmallVec<[&Arc<str>; 4]> {
        unimplemented!()
    }
}

impl Denial<'_> {
    pub fn reason(&self) -> crate::verdict::Reason {
        unimplemented!()
    }
    /// What stands in the answer and in the log: the policy's name, or `default`.
    pub fn policy(&self) -> &str {
        unimplemented!()
    }
}
