//! Every answer the proxy makes itself: one table from [`Reason`] to what callers, logs and retries see of it.
//!
//! The code of a reason is a promise: it stands in the header `outrigger-reason`, in the access log and in metric
//! labels, and is never reused for something else. All matches are exhaustive without wildcards, so a new reason does
//! not compile before it has a status, someone to blame and a sentence that helps.
//!
//! It does not build responses (`path/respond.rs` in the proxy) and never describes what an application answered.

use std::fmt;

use http::StatusCode;
use serde::{Serialize, Serializer};

/// Why the proxy answered, refused or closed instead of passing on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// An authorization policy, or the default, does not let this caller in.
    Denied,
    /// Plaintext to a port that wants mutual TLS.
    MtlsRequired,
    /// The caller's TLS handshake failed or took too long.
    HandshakeFailed,
    /// The request breaks a rule of HTTP that others could read in another way.
    BadRequest,
    HeadersTooLarge,
    UriTooLong,
    /// The caller did not send its headers or its body in time.
    CallerTimeout,
    /// Something this proxy does not do unless told to, such as CONNECT.
    Unsupported,
    /// The connection leads back to this very proxy.
    Loop,
    /// The service has routes and none takes this request.
    NoRoute,
    /// The backend has no endpoint at all.
    NoEndpoints,
    /// The destination is outside the mesh and the egress policy lets nothing out.
    EgressDenied,
    /// Nobody could say in time what the destination is.
    Unresolved,
    /// The proxy has no certificate or no configuration yet.
    NotReady,
    /// The proxy is about to end.
    Draining,
    /// A limit of the proxy itself is reached.
    Overloaded,
    ConnectFailed,
    ConnectTimeout,
    /// The endpoint proved another identity than the configured one.
    IdentityMismatch,
    /// The endpoint's TLS handshake failed for another cause.
    UpstreamHandshake,
    /// The upstream broke off before its answer was complete.
    UpstreamReset,
    /// The upstream's answer is not legal HTTP, or over the limits.
    UpstreamProtocol,
    /// No answer within the request timeout.
    RequestTimeout,
    /// Every endpoint of the upstream is ejected, so none is asked.
    AllEjected,
    /// The limit of a bulkhead is reached and its queue, if it has one, is full.
    BulkheadFull,
    /// A bulkhead's queue did not admit it in time.
    QueueTimeout,
    /// A rate limit admits no more for now.
    RateLimited,
    /// The time that the caller itself gave is over.
    DeadlineExceeded,
    /// The timeout of an attempt ran out and no attempt was left.
    ResponseTimeout,
    /// Nothing moved in either direction for the stream's idle time.
    StreamIdle,
    /// The caller wants an answer from the cache alone (`only-if-cached`), and there is none.
    NotCached,
    /// A fault in the proxy itself.
    Internal,
}

/// Who has to look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// The caller.
    Downstream,
    /// The called workload or the way to it.
    Upstream,
    /// The configuration says so.
    Policy,
    /// This proxy, or the load it is under.
    Proxy,
}

/// What may be done about it by sending the request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Another attempt gets the same answer.
    Never,
    /// The application got nothing of it, so another endpoint may get any request.
    IfUnsent,
    /// The application may have acted on it, or has too much to do: only a request that is harmless to repeat may go
    /// again, and only within the budget.
    IfIdempotent,
}

/// A status code of gRPC, as it stands in `grpc-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus(u8);

impl Reason {
    /// Every reason, in the order of their declaration: `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 32] = [
        Self::Denied,
        Self::MtlsRequired,
        Self::HandshakeFailed,
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::UriTooLong,
        Self::CallerTimeout,
        Self::Unsupported,
        Self::Loop,
        Self::NoRoute,
        Self::NoEndpoints,
        Self::EgressDenied,
        Self::Unresolved,
        Self::NotReady,
        Self::Draining,
        Self::Overloaded,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::IdentityMismatch,
        Self::UpstreamHandshake,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::RequestTimeout,
        Self::AllEjected,
        Self::BulkheadFull,
        Self::QueueTimeout,
        Self::RateLimited,
        Self::DeadlineExceeded,
        Self::ResponseTimeout,
        Self::StreamIdle,
        Self::NotCached,
        Self::Internal,
    ];

    /// The code, as in `outrigger-reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::MtlsRequired => "mtls-required",
            Self::HandshakeFailed => "handshake-failed",
            Self::BadRequest => "bad-request",
            Self::HeadersTooLarge => "headers-too-large",
            Self::UriTooLong => "uri-too-long",
            Self::CallerTimeout => "caller-timeout",
            Self::Unsupported => "unsupported",
            Self::Loop => "loop",
            Self::NoRoute => "no-route",
            Self::NoEndpoints => "no-endpoints",
            Self::EgressDenied => "egress-denied",
            Self::Unresolved => "unresolved",
            Self::NotReady => "not-ready",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::ConnectFailed => "connect-failed",
            Self::ConnectTimeout => "connect-timeout",
            Self::IdentityMismatch => "identity-mismatch",
            Self::UpstreamHandshake => "upstream-handshake",
            Self::UpstreamReset => "upstream-reset",
            Self::UpstreamProtocol => "upstream-protocol",
            Self::RequestTimeout => "request-timeout",
            Self::AllEjected => "all-ejected",
            Self::BulkheadFull => "bulkhead-full",
            Self::QueueTimeout => "queue-timeout",
            Self::RateLimited => "rate-limited",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::ResponseTimeout => "response-timeout",
            Self::StreamIdle => "stream-idle",
            Self::NotCached => "not-cached",
            Self::Internal => "internal",
        }
    }

    /// The reason of a code, such as one read from a header of another proxy.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == code)
    }

    pub const fn http_status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::HandshakeFailed => StatusCode::BAD_REQUEST,
            Self::Denied | Self::MtlsRequired | Self::EgressDenied => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::CallerTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::IdentityMismatch
            | Self::UpstreamHandshake
            | Self::UpstreamReset
            | Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Self::NoEndpoints
            | Self::Unresolved
            | Self::NotReady
            | Self::Draining
            | Self::Overloaded
            | Self::ConnectFailed
            | Self::AllEjected
            | Self::BulkheadFull
            | Self::QueueTimeout => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout
            | Self::RequestTimeout
            | Self::DeadlineExceeded
            | Self::ResponseTimeout
            | Self::StreamIdle
            | Self::NotCached => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// What a gRPC client is told. Only what is safe to repeat is `UNAVAILABLE`, because clients do repeat that.
    pub const fn grpc_status(self) -> GrpcStatus {
        match self {
            Self::Denied | Self::EgressDenied => GrpcStatus::PERMISSION_DENIED,
            Self::MtlsRequired | Self::HandshakeFailed => GrpcStatus::UNAUTHENTICATED,
            Self::NoRoute | Self::Unsupported => GrpcStatus::UNIMPLEMENTED,
            Self::Loop | Self::NotCached => GrpcStatus::FAILED_PRECONDITION,
            Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::Overloaded
            | Self::BulkheadFull
            | Self::QueueTimeout
            | Self::RateLimited => GrpcStatus::RESOURCE_EXHAUSTED,
            Self::CallerTimeout
            | Self::RequestTimeout
            | Self::DeadlineExceeded
            | Self::ResponseTimeout
            | Self::StreamIdle => GrpcStatus::DEADLINE_EXCEEDED,
            Self::BadRequest | Self::UpstreamProtocol | Self::Internal => GrpcStatus::INTERNAL,
            Self::NoEndpoints
            | Self::Unresolved
            | Self::NotReady
            | Self::Draining
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::IdentityMismatch
            | Self::UpstreamHandshake
            | Self::UpstreamReset
            | Self::AllEjected => GrpcStatus::UNAVAILABLE,
        }
    }

    pub const fn blame(self) -> Blame {
        match self {
            Self::HandshakeFailed
            | Self::BadRequest
            | Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::CallerTimeout
            | Self::DeadlineExceeded
            | Self::NotCached => Blame::Downstream,
            Self::Denied
            | Self::MtlsRequired
            | Self::Unsupported
            | Self::Loop
            | Self::NoRoute
            | Self::EgressDenied
            | Self::BulkheadFull
            | Self::QueueTimeout
            | Self::RateLimited => Blame::Policy,
            Self::NoEndpoints
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::IdentityMismatch
            | Self::UpstreamHandshake
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::RequestTimeout
            | Self::AllEjected
            | Self::ResponseTimeout
            | Self::StreamIdle => Blame::Upstream,
            Self::Unresolved | Self::NotReady | Self::Draining | Self::Overloaded | Self::Internal => {
                Blame::Proxy
            }
        }
    }

    /// What a proxy may do with a request that came to this, at an endpoint or at the endpoint's own proxy, before it
    /// passes it on as the answer.
    pub const fn retry(self) -> Retry {
        match self {
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::IdentityMismatch
            | Self::UpstreamHandshake
            | Self::NotReady
            | Self::Draining => Retry::IfUnsent,
            // Nothing acted on what was refused for overload, but repeating it elsewhere is what makes the next one
            // overloaded: under the budget only.
            Self::UpstreamReset | Self::Overloaded | Self::BulkheadFull | Self::QueueTimeout => {
                Retry::IfIdempotent
            }
            // The last six: there is no time or no permission left, or whoever said it has tried elsewhere already.
            Self::Denied
            | Self::MtlsRequired
            | Self::HandshakeFailed
            | Self::BadRequest
            | Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::CallerTimeout
            | Self::Unsupported
            | Self::Loop
            | Self::NoRoute
            | Self::NoEndpoints
            | Self::EgressDenied
            | Self::Unresolved
            | Self::UpstreamProtocol
            | Self::Internal
            | Self::NotCached
            | Self::RateLimited
            | Self::RequestTimeout
            | Self::AllEjected
            | Self::DeadlineExceeded
            | Self::ResponseTimeout
            | Self::StreamIdle => Retry::Never,
        }
    }

    /// What happened and what to do, in a sentence for people: the body of the answer.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Denied => {
                "The authorization policy of the called workload does not allow this caller: add the caller to an \
                 AuthorizationPolicy, or call with the right service account."
            }
            Self::MtlsRequired => {
                "This port accepts mutual TLS only: call from inside the mesh, or declare the port permissive in a \
                 ServerPolicy."
            }
            Self::HandshakeFailed => {
                "The TLS handshake of the caller failed: look at the caller's certificate with `outrigger certs show`."
            }
            Self::BadRequest => {
                "The request is ambiguous or malformed, so different servers could read it differently: correct the \
                 client; the detail names the rule."
            }
            Self::HeadersTooLarge => {
                "The header fields are more or larger than the proxy holds for one request: send fewer or smaller \
                 ones (cookies are the usual cause)."
            }
            Self::UriTooLong => {
                "The request target is longer than the proxy accepts: move the data into the body."
            }
            Self::CallerTimeout => {
                "The caller did not finish sending in time: look at the caller's load and at the network before it."
            }
            Self::Unsupported => {
                "This proxy does not do that without a policy that allows it: see the detail for what was asked."
            }
            Self::Loop => {
                "The connection leads back into the proxy that made it: the destination is the proxy's own port; dial \
                 the service instead."
            }
            Self::NoRoute => {
                "The service has routes and none matches this request: add a rule, or one without matches as the rest."
            }
            Self::NoEndpoints => {
                "The service has no ready endpoint: look at its workloads with `outrigger status`."
            }
            Self::EgressDenied => {
                "The destination is not registered in the mesh and the egress policy is registered-only: add a \
                 MeshService for it."
            }
            Self::Unresolved => {
                "The control plane did not say in time what this destination is: check that it is reachable with \
                 `outrigger status`."
            }
            Self::NotReady => {
                "The proxy has no certificate or configuration yet: `/ready` on the status port says what is missing."
            }
            Self::Draining => {
                "The proxy is shutting down: send the request again, another instance takes it."
            }
            Self::Overloaded => {
                "A limit of the proxy is reached: `/stats` on the admin port shows which; lower the load or raise it."
            }
            Self::ConnectFailed => {
                "No endpoint accepted a connection: check that the application listens on its declared target port."
            }
            Self::ConnectTimeout => {
                "No endpoint answered the connection in time: check the network between the workloads."
            }
            Self::IdentityMismatch => {
                "The endpoint has another identity than the configured one: correct the identity in the MeshService, \
                 or find out who answers at that address."
            }
            Self::UpstreamHandshake => {
                "The TLS handshake with the endpoint failed: look at its certificate with `outrigger certs show`."
            }
            Self::UpstreamReset => {
                "The upstream closed the connection before its answer was complete: look at its log for this moment."
            }
            Self::UpstreamProtocol => {
                "The upstream's answer is not legal HTTP or over the limits: check the port's declared protocol."
            }
            Self::RequestTimeout => {
                "The upstream did not answer within the request timeout: make it faster, or raise \
                 `timeouts.request` in a TrafficPolicy."
            }
            Self::AllEjected => {
                "Every endpoint of the service is ejected for its failures: `/clusters` on the admin port shows the \
                 evidence; look at the service, and send again after Retry-After."
            }
            Self::BulkheadFull => {
                "As many requests as the policy allows are under way: make the service faster, or raise the limit \
                 under `bulkhead`."
            }
            Self::QueueTimeout => {
                "No place became free within the queue's time: make the service faster, or raise the limit or \
                 `queue.timeout` under `bulkhead`."
            }
            Self::RateLimited => {
                "A rate limit is reached: send again after Retry-After, or raise the limit named in the detail."
            }
            Self::DeadlineExceeded => {
                "The deadline that came with the request has passed: give it more time, or find the slow hop."
            }
            Self::ResponseTimeout => {
                "No attempt brought an answer in its time: make the service faster, or raise `timeouts.perTry` or \
                 `timeouts.responseHeader` in a TrafficPolicy."
            }
            Self::StreamIdle => {
                "Nothing was sent either way for too long: send something now and then, or raise \
                 `timeouts.streamIdle` in a TrafficPolicy."
            }
            Self::NotCached => {
                "The request wants an answer from the cache alone and none may be used: leave out \
                 `Cache-Control: only-if-cached` to have the service asked."
            }
            Self::Internal => {
                "A fault in the proxy: please report it with the lines of its log around this id."
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Blame {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Policy => "policy",
            Self::Proxy => "proxy",
        }
    }
}

impl GrpcStatus {
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const PERMISSION_DENIED: Self = Self(7);
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    pub const FAILED_PRECONDITION: Self = Self(9);
    pub const UNIMPLEMENTED: Self = Self(12);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
    pub const UNAUTHENTICATED: Self = Self(16);

    pub const fn code(self) -> u8 {
        self.0
    }

    /// The digits of the `grpc-status` header.
    pub const fn as_str(self) -> &'static str {
        match self.0 {
            4 => "4",
            7 => "7",
            8 => "8",
            9 => "9",
            12 => "12",
            14 => "14",
            16 => "16",
            _ => "13",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_lists_every_reason_at_its_own_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason}");
        }
        assert_eq!(Reason::Internal as usize + 1, Reason::ALL.len(), "the last reason is the last of ALL");
    }

    #[test]
    fn codes_are_distinct_labels_and_read_back() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{reason}");
            assert_eq!(Reason::from_code(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::from_code("nonsense"), None);
    }

    /// The rule of what is a failure knows them by their codes.
    #[test]
    fn what_cuts_an_answer_short_is_the_upstreams_fault() {
        for code in outrigger_proto::spec::CUT_SHORT {
            assert_eq!(Reason::from_code(code).map(Reason::blame), Some(Blame::Upstream), "{code}");
        }
    }

    #[test]
    fn statuses_are_errors_of_the_side_that_is_to_blame() {
        for reason in Reason::ALL {
            let status = reason.http_status();
            let client_side = status.is_client_error();
            match reason.blame() {
                // 504 where nothing is wrong with the request: callers with deadlines know DEADLINE_EXCEEDED by it (408
                // would have clients send again), and RFC 9111 section 5.2.1.7 wants it.
                Blame::Downstream => {
                    let blameless = matches!(reason, Reason::DeadlineExceeded | Reason::NotCached);
                    assert!(client_side != blameless, "{reason}");
                }
                Blame::Upstream | Blame::Proxy => assert!(status.is_server_error(), "{reason}"),
                Blame::Policy => assert!(client_side || status.is_server_error(), "{reason}"),
            }
            assert_eq!(reason.grpc_status().as_str(), reason.grpc_status().code().to_string(), "{reason}");
        }
    }

    #[test]
    fn explanations_are_one_sentence_that_says_what_to_do() {
        for reason in Reason::ALL {
            let text = reason.explanation();
            assert!(text.ends_with('.') && text.contains(':') && !text.contains("  "), "{reason}: {text}");
            assert!(text.is_ascii() && text.len() < 200, "{reason}: goes into headers and logs as it is");
        }
    }

    #[test]
    fn what_may_have_been_acted_on_is_never_repeated_blindly() {
        for reason in Reason::ALL {
            let unsent = matches!(
                reason,
                Reason::ConnectFailed
                    | Reason::ConnectTimeout
                    | Reason::IdentityMismatch
                    | Reason::UpstreamHandshake
                    | Reason::NotReady
                    | Reason::Draining
            );
            assert_eq!(reason.retry() == Retry::IfUnsent, unsent, "{reason}");
            if reason.retry() != Retry::Never {
                assert!(
                    reason.http_status().is_server_error(),
                    "{reason}: the caller's own fault stays its own"
                );
            }
        }
    }
}
