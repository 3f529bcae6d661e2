//! Everything that can go wrong between a caller and its answer, and the one table that says what it is called.
//!
//! A step fails with a variant that says what happened in its own words; [`Error::reason`] maps it to the core's reason,
//! which decides status, blame and whether to try again. A caller is told the reason, the access log the detail.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrigger_certs::HandshakeError;
use outrigger_core::{
    authority::HostError, framing::FramingError, headers::HeaderError, path_normal::PathError,
    verdict::Reason,
};

use crate::path::rate_limit::Refusal;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    // ---- the caller's message
    #[error("{0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Header(#[from] HeaderError),
    #[error("{0}")]
    Host(#[from] HostError),
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("the request target is longer than {} bytes", outrigger_core::limits::MAX_URI_BYTES)]
    TargetTooLong,
    #[error("{0}")]
    Malformed(Arc<str>),
    #[error("the head of a request was not complete in time")]
    SlowHead,
    #[error("the caller broke off: {0}")]
    CallerGone(Arc<str>),
    #[error("the caller closed without a word")]
    NoFirstBytes,
    #[error("the caller said nothing for {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Unsupported(&'static str),
    // ---- the caller's connection
    #[error("{0}")]
    Handshake(HandshakeError),
    #[error("the TLS handshake was not complete in {0:?}")]
    HandshakeTimeout(Duration),
    #[error("{0}")]
    Overloaded(&'static str),
    // ---- policy
    #[error("by {policy}")]
    Denied { reason: Reason, policy: Arc<str> },
    #[error("{0} is this proxy itself")]
    Loop(SocketAddr),
    #[error("{0} is not registered")]
    EgressDenied(SocketAddr),
    // ---- where to go
    #[error("{0} is not known, and nobody said in time what it is")]
    Unresolved(Arc<str>),
    #[error("{0}")]
    NotReady(&'static str),
    #[error("no route takes this request")]
    NoRoute,
    #[error("{0} has no endpoints")]
    NoEndpoints(Arc<str>),
    // ---- the upstream
    #[error("{address}: {error}")]
    Connect { address: SocketAddr, error: Arc<str> },
    #[error("{address}: no connection in {within:?}")]
    ConnectTimeout { address: SocketAddr, within: Duration },
    #[error("{address}: {error}")]
    Upstream { address: SocketAddr, error: HandshakeError },
    #[error("{address}: {error}")]
    Identity { address: SocketAddr, error: HandshakeError },
    #[error("{address}: {error}")]
    Reset { address: SocketAddr, error: Arc<str> },
    #[error("{address}: {error}")]
    Protocol { address: SocketAddr, error: Arc<str> },
    #[error("{address}: its proxy answered {reason}")]
    Elsewhere { address: SocketAddr, reason: Reason },
    #[error("no answer in {0:?}")]
    RequestTimeout(Duration),
    #[error("no answer of one attempt in {0:?}")]
    ResponseTimeout(Duration),
    #[error("nothing moved for {0:?}")]
    StreamIdle(Duration),
    // ---- resilience
    #[error("every endpoint of {service} is ejected")]
    AllEjected { service: Arc<str>, retry_after: Option<Duration> },
    #[error("{name} is full")]
    BulkheadFull { name: Arc<str> },
    #[error("{name} had no place in {waited:?}")]
    QueueTimeout { name: Arc<str>, waited: Duration },
    #[error("by {}", .0.name)]
    RateLimited(Arc<Refusal>),
    #[error("the caller's deadline has passed")]
    DeadlineExceeded,
    #[error("the request is only-if-cached, and the cache has no answer for it")]
    NotCached,
    // ---- ourselves
    #[error("{0}")]
    Internal(&'static str),
}

/// An error with its causes; hyper's own words leave out the one that matters.
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Error {
    /// When it is worth asking again, as far as anybody knows.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::AllEjected { retry_after, .. } = self {
            *retry_after
        } else if let Self::RateLimited(refusal) = self {
            Some(refusal.retry_after)
        } else {
            None
        }
    }

    /// Its connection is one too many: a refusal that kept it open would not end that.
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::BulkheadFull { name } if name.ends_with("/connections"))
    }

    /// The bulkhead or rate limit that refused.
    pub fn limit(&self) -> Option<&Arc<str>> {
        if let Self::BulkheadFull { name } | Self::QueueTimeout { name, .. } = self {
            Some(name)
        } else if let Self::RateLimited(refusal) = self {
            Some(&refusal.name)
        } else {
            None
        }
    }

    pub fn reason(&self) -> Reason {
        match self {
            Self::Framing(FramingError::TooLarge(_))
            | Self::Header(HeaderError::TooMany(_) | HeaderError::TooLarge(_)) => Reason::HeadersTooLarge,
            Self::Framing(
                FramingError::BareLf
                | FramingError::Fragment
                | FramingError::BadFirstLine
                | FramingError::Folded
                | FramingError::BadField
                | FramingError::LengthAndEncoding
                | FramingError::SeveralLengths
                | FramingError::BadLength
                | FramingError::BadEncoding
                | FramingError::BadChunk
                | FramingError::Unasked,
            )
            | Self::Header(
                HeaderError::Nominated
                | HeaderError::Connection
                | HeaderError::TransferEncoding
                | HeaderError::LengthAndEncoding
                | HeaderError::ContentLength
                | HeaderError::UpgradeWithBody
                | HeaderError::Upgrade
                | HeaderError::ForbiddenInHttp2,
            )
            | Self::Host(_)
            | Self::Path(_)
            | Self::Malformed(_)
            | Self::CallerGone(_)
            | Self::NoFirstBytes => Reason::BadRequest,
            Self::TargetTooLong | Self::Framing(FramingError::TargetTooLong) => Reason::UriTooLong,
            Self::SlowHead | Self::Silent(_) => Reason::CallerTimeout,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::Handshake(_) | Self::HandshakeTimeout(_) => Reason::HandshakeFailed,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Denied { reason, .. } | Self::Elsewhere { reason, .. } => *reason,
            Self::Loop(_) => Reason::Loop,
            Self::EgressDenied(_) => Reason::EgressDenied,
            Self::Unresolved(_) => Reason::Unresolved,
            Self::NotReady(_) => Reason::NotReady,
            Self::NoRoute => Reason::NoRoute,
            Self::NoEndpoints(_) => Reason::NoEndpoints,
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::ConnectTimeout { .. } => Reason::ConnectTimeout,
            Self::Upstream { .. } => Reason::UpstreamHandshake,
            Self::Identity { .. } => Reason::IdentityMismatch,
            Self::Reset { .. } => Reason::UpstreamReset,
            Self::Protocol { .. } => Reason::UpstreamProtocol,
            Self::RequestTimeout(_) => Reason::RequestTimeout,
            Self::ResponseTimeout(_) => Reason::ResponseTimeout,
            Self::StreamIdle(_) => Reason::StreamIdle,
            Self::AllEjected { .. } => Reason::AllEjected,
            Self::BulkheadFull { .. } => Reason::BulkheadFull,
            Self::QueueTimeout { .. } => Reason::QueueTimeout,
            Self::RateLimited(_) => Reason::RateLimited,
            Self::DeadlineExceeded => Reason::DeadlineExceeded,
            Self::NotCached => Reason::NotCached,
            Self::Internal(_) => Reason::Internal,
        }
    }
}
