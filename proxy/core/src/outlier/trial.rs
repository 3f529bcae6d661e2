//! One request to one endpoint: from its dispatch to its end, and what the end says.

use outrigger_proto::spec::Failures;

use super::evidence::What;

/// A request on its way. It goes back by [`super::Breakers::on_outcome`] exactly once, whatever became of the request: keep it
/// in what rides the answer's body, and hand it back when that is dropped.
#[derive(Debug)]
#[must_use = "a probe that is never handed back keeps its circuit half-open"]
pub struct Trial {
    pub(super) slot: u32,
    pub(super) round: u32,
}

/// How an attempt ended. [`classify`] says which answers are failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Success(What),
    /// A bad answer, or none: that always counts.
    Failure(What),
    /// No connection. Those within a millisecond count once: they had waited for the same one.
    ConnectFailed,
    /// By the caller: says nothing.
    Cancelled,
    /// The answer is a proxy's own, or the request was never tried: says nothing.
    Ignored,
}

impl Ended {
    /// What is kept of it, and whether it is a failure. `None`: it says nothing.
    pub(super) fn told(self) -> Option<(What, bool)> {
        match self {
            Self::Success(what) => Some((what, false)),
            Self::Failure(what) => Some((what, true)),
            Self::ConnectFailed => Some((What::ConnectFailed, true)),
            Self::Cancelled | Self::Ignored => None,
        }
    }
}

/// What an answer says of its endpoint: a gRPC call is judged by its code once that is known, whatever the HTTP status.
/// `made_by_proxy`: the answer carries `outrigger-reason`.
pub fn classify(failures: &Failures, status: u16, grpc: Option<u8>, made_by_proxy: bool) -> Ended {
    let (what, failed) = match grpc {
        // Unknown codes are to be taken as UNKNOWN, says gRPC.
        Some(code) => (What::Grpc(code), failures.grpc.contains(&if code > 16 { 2 } else { code })),
        None => (What::Status(status), failures.statuses.iter().any(|range| range.contains(status))),
    };
    match (made_by_proxy, failed) {
        (true, _) => Ended::Ignored,
        (false, true) => Ended::Failure(what),
        (false, false) => Ended::Success(what),
    }
}
