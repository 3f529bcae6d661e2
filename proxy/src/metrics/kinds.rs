//! What is counted and timed under a name: circuits, bulkheads, retries, limits, fallbacks, caches, handshakes, connections.
//!
//! The name is one that a policy or the configuration gives (a service, a limit), the words beside it are our own; nothing
//! that a caller chooses. Each kind is a family of its own.

use super::{
    families::{Labels, Unit},
    governor::Tier,
};

/// What services, routes and names without room of their own are called.
pub(super) const OTHER: &str = "other";

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// Of one endpoint, as one worker sees it; words: to what, and the cause.
    CircuitTransition,
    /// A bulkhead has refused; word: the reason.
    Shed,
    /// An attempt after the first; word: what became of the request.
    Retry,
    RetryBudgetExhausted,
    /// A second attempt beside the first; word: what became of it.
    Hedge,
    /// A rate limit has refused, or would have; word: whether it only would have.
    RateLimited,
    /// Something else was answered in place of a failure; word: what.
    Fallback,
    /// A cache was asked; word: what it had.
    Cache,
    /// TLS of the mesh hop; the name is the direction, word: the cause.
    HandshakeFailed,
    /// An HTTP connection to an endpoint could not be made; word: the reason.
    ConnectFailed,
    /// A request was sent on a connection that was there.
    Reused,
    /// An HTTP connection to an endpoint is no more; word: the cause.
    Closed,
}

/// Something that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Timed {
    /// A request waited for bulkheads; word: the direction.
    Queue,
    /// An HTTP connection to an endpoint was made, TLS included.
    Connect,
}

pub(super) const EVENTS: usize = Event::ALL.len();
pub(super) const TIMINGS: usize = Timed::ALL.len();

/// A family as its page has it.
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
    /// Of the name and the words.
    labels: [&'static str; 3],
}

// === impl Event ===

impl Event {
    pub const ALL: [Self; 12] = [
        Self::CircuitTransition,
        Self::Shed,
        Self::Retry,
        Self::RetryBudgetExhausted,
        Self::Hedge,
        Self::RateLimited,
        Self::Fallback,
        Self::Cache,
        Self::HandshakeFailed,
        Self::ConnectFailed,
        Self::Reused,
        Self::Closed,
    ];

    pub(super) fn about(self) -> About {
        let (name, help, labels) = match self {
            Self::CircuitTransition => (
                "outrigger_circuit_transitions",
                "Circuits of endpoints that opened, half-opened or closed, in each worker.",
                ["service", "to", "cause"],
            ),
            Self::Shed => ("outrigger_bulkhead_shed", "What a bulkhead has refused.", ["name", "reason", ""]),
            Self::Retry => ("outrigger_retries", "Attempts after the first.", ["service", "outcome", ""]),
            Self::RetryBudgetExhausted => (
                "outrigger_retry_budget_exhausted",
                "Requests not sent again because the budget was spent.",
                ["service", "", ""],
            ),
            Self::Hedge => {
                ("outrigger_hedges", "Second attempts beside the first.", ["service", "outcome", ""])
            }
            Self::RateLimited => (
                "outrigger_rate_limited",
                "What a rate limit has refused, or would have.",
                ["limit", "dry_run", ""],
            ),
            Self::Fallback => {
                ("outrigger_fallbacks", "Answers in place of a failure.", ["service", "to", ""])
            }
            Self::Cache => ("outrigger_cache", "Requests that asked a cache.", ["service", "result", ""]),
            Self::HandshakeFailed => (
                "outrigger_handshake_failures",
                "TLS handshakes of the mesh that failed, by cause.",
                ["direction", "cause", ""],
            ),
            Self::ConnectFailed => (
                "outrigger_upstream_connect_failures",
                "HTTP connections to endpoints that could not be made.",
                ["service", "reason", ""],
            ),
            Self::Reused => (
                "outrigger_upstream_reused",
                "Requests sent on a connection that was there.",
                ["service", "", ""],
            ),
            Self::Closed => (
                "outrigger_upstream_closed",
                "HTTP connections to endpoints that ended, by cause.",
                ["service", "cause", ""],
            ),
        };
        About { name, unit: Unit::None, help, labels }
    }
}

// === impl Timed ===

impl Timed {
    pub const ALL: [Self; 2] = [Self::Queue, Self::Connect];

    pub(super) fn about(self) -> About {
        let (name, help, labels) = match self {
            Self::Queue => (
                "outrigger_request_queue_seconds",
                "How long requests waited for bulkheads, of those that had to.",
                ["service", "direction", ""],
            ),
            Self::Connect => (
                "outrigger_upstream_connect_seconds",
                "How long HTTP connections to endpoints took to make, TLS included.",
                ["service", "", ""],
            ),
        };
        About { name, unit: Unit::Seconds, help, labels }
    }
}

// === impl About ===

impl About {
    pub(super) fn labels(&self, tier: Tier, name: &str, words: [&'static str; 2]) -> Labels {
        let [of_name, first, second] = self.labels;
        let (name, [one, two]) = match tier {
            Tier::Own => (name, words),
            Tier::Other => (OTHER, words),
            Tier::Sink => (OTHER, ["", ""]),
        };
        Labels::new(&[(of_name, name), (first, one), (second, two)])
    }
}
