//! What proxy and control plane mean, as validated plain data.
//!
//! The wire types (`pb`) exist only inside this crate's conversions; everybody else holds these. A value of one of these
//! types is legal by construction of its parts: ports are not 0, addresses are parsed, weights are at least 1,
//! identities are [`SpiffeId`]s. Parts are behind `Arc` where snapshots share them between versions.
//!
//! It decides nothing (that is `outrigger-core`) and reads no files (that is the control plane).

pub mod backend;
pub mod destination;
pub mod inbound;
pub mod key;
pub mod update;

pub use backend::{Backend, Endpoint, LoadBalancer, Timeouts};
pub use destination::{
    Destination, HeaderMatch, HeaderValueMatch, PathMatch, Route, RouteMatch, ServicePort, WeightedBackend,
    Workload,
};
pub use inbound::{
    Action, AuthorizationPolicy, AuthorizationRule, EgressPolicy, Inbound, InboundPort, MtlsMode, Protocol,
};
pub use key::{Authority, BackendKey, DestinationKey, Key, KeyError};
pub use update::{Body, FieldError, Held, Hello, Resource, Serve, State, Trust, Update};
