//! What proxy and control plane mean, as validated plain data.
//!
//! The wire types (`pb`) exist only inside this crate's conversions; everybody else holds these. A value of one of these
//! types is legal by construction of its parts: ports are not 0, addresses are parsed, weights are at least 1,
//! identities are [`SpiffeId`]s. Parts are behind `Arc` where snapshots share them between versions.
//!
//! It decides nothing (that is `outrigger-core`) and reads no files (that is the control plane).

pub mod backend;
pub mod destination;
pub mod durations;
pub mod inbound;
pub mod key;
pub mod observe;
pub mod rate_limit;
pub mod report;
pub mod status;
pub mod traffic;
pub mod update;

pub use backend::{Backend, Endpoint};
pub use destination::{
    Destination, HeaderMatch, HeaderValueMatch, PathMatch, Route, RouteMatch, ServicePort, WeightedBackend,
    Workload,
};
pub use durations::Durations;
pub use inbound::{
    Action, AuthorizationPolicy, AuthorizationRule, EgressPolicy, Inbound, InboundPort, MtlsMode, PortLimits,
    Protocol, ServerBulkhead,
};
pub use key::{Authority, BackendKey, DestinationKey, Key, KeyError};
pub use observe::{Cause, Circuit, Demand, Fleet, Guidance, Observations, Outcome, Share, Transition};
pub use rate_limit::{RateAlgorithm, RateKey, RateLimit, Scope};
pub use report::{
    CUT_SHORT, EdgeKey, EdgeTraffic, OutcomeCount, ProxyEvent, ProxyEventKind, Side, TrafficReport,
    is_failure, is_grpc_failure,
};
pub use status::StatusRange;
pub use traffic::{
    Adaptive, Algorithm, Answer, Backoff, Bulkhead, Cache, CheckKind, Ejection, FailurePercentage, Failures,
    Fallback, FallbackOn, FallbackTo, HashOn, HealthCheck, HedgeDelay, Hedging, LatencyOutlier, Limits,
    LoadBalancer, LoneOpinion, OutlierEjection, Queue, Retries, RetryBudget, RetryOn, Subset, SuccessRate,
    Table, Timeouts, Traffic, ZonePreference,
};
pub use update::{Body, FieldError, Held, Hello, Resource, Serve, State, Trust, Update};
