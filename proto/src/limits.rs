//! How much of anything one side takes from the other, per update.
//!
//! The conversions refuse what is above with the field's name; the control plane checks its sources against the same
//! numbers, so that a user hears of it at the file and not from a proxy. They bound memory and time, they are no policy:
//! each is far above what a mesh needs.

use std::time::Duration;

/// One message on the stream. tonic's own default (4 MiB) is too small for a first answer to a busy gateway.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Any text that has no tighter limit of its own.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Source of a regular expression; what it compiles to is limited where it is compiled.
pub const MAX_REGEX_BYTES: usize = 1024;
/// Part of a resource's name (a DNS subdomain name in Kubernetes).
pub const MAX_NAME_BYTES: usize = 253;
/// A version. Ours have 32 characters.
pub const MAX_VERSION_BYTES: usize = 128;
/// Resources in one update; as many removals; as many keys in one subscription or greeting.
pub const MAX_RESOURCES: usize = 65_536;
pub const MAX_ENDPOINTS: usize = 65_536;
pub const MAX_ROUTES: usize = 4_096;
pub const MAX_MATCHES: usize = 256;
pub const MAX_HEADER_MATCHES: usize = 64;
pub const MAX_WEIGHTED_BACKENDS: usize = 256;
pub const MAX_POLICIES: usize = 4_096;
pub const MAX_RULES: usize = 4_096;
/// Identities or namespaces of one rule.
pub const MAX_CALLERS: usize = 4_096;
pub const MAX_PORTS: usize = 65_535;
pub const MAX_ROOTS: usize = 64;
pub const MAX_ADDRESSES: usize = 256;
/// Longest time any timeout may be set to: clocks can be added to it without overflow.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Refusals listed in one answer; the last one says how many more there are.
pub const MAX_ERRORS: usize = 256;

// === resilience ===

/// Rate limits of one backend or port: each costs every request.
pub const MAX_RATE_LIMITS: usize = 64;
/// Values that make the key of one rate limit.
pub const MAX_RATE_KEYS: usize = 8;
/// Requests of a rate limit, and its burst: arithmetic in thousandths and nanoseconds stays far from overflow.
pub const MAX_RATE: u64 = 1_000_000_000;
/// Counts that one rate limit keeps at a time.
pub const MAX_COUNTED_KEYS: u32 = 10_000_000;
/// Sources of one consistent-hash key.
pub const MAX_HASH_ON: usize = 8;
pub const MAX_STATUS_RANGES: usize = 64;
/// gRPC knows 16 besides OK.
pub const MAX_GRPC_CODES: usize = 16;
pub const MAX_ANSWER_HEADERS: usize = 64;
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Callers that wait at one bulkhead.
pub const MAX_QUEUE: u32 = 1_000_000;
/// Further attempts of one request.
pub const MAX_ATTEMPTS: u32 = 32;
/// Retries of one upstream in each second whatever its traffic.
pub const MAX_RETRIES_PER_SECOND: u32 = 1_000_000;
/// Body of one request that is kept for another attempt.
pub const MAX_BUFFER_BYTES: u32 = 64 * 1024 * 1024;
/// Response cache of one backend.
pub const MAX_CACHE_BYTES: u64 = 64 << 30;
/// A window of observation, or the interval of a health check: below this timers are the load.
pub const MIN_WINDOW: Duration = Duration::from_millis(100);
/// Beyond, what was seen says nothing about now.
pub const MAX_WINDOW: Duration = Duration::from_secs(3600);
/// Per cents that are compared with something that may be far above it (latency, tolerance).
pub const MAX_PERCENT: u32 = 100_000;
/// Standard deviations, in thousandths.
pub const MAX_DEVIATIONS: u32 = 100_000;

// === observations ===

/// Transitions or demands or shares in one message; whoever has more sends another message.
pub const MAX_OBSERVATIONS: usize = 4_096;
/// Backends that one proxy calls; fleets in one message.
pub const MAX_FLEETS: usize = 65_536;
/// Latest outcomes with a transition.
pub const MAX_EVIDENCE: usize = 10;
/// `why` of a transition, `what` of an outcome.
pub const MAX_REMARK_BYTES: usize = 1_024;

/// One message of a proxy's. What it holds grows in memory, so it is far less than what a control plane may say; 1,000 edges
/// with durations of every kind have 3 MiB, and reports become one only as long as they stay below.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

// === reports ===

/// Edges in one report. A proxy tells 500 a second; two reports may have become one.
pub const MAX_REPORT_EDGES: usize = 1_000;
/// Ways in which the requests of one edge ended: 6 classes, 17 gRPC codes and 60 reasons do not all occur together.
pub const MAX_REPORT_OUTCOMES: usize = 128;
pub const MAX_REPORT_EVENTS: usize = 64;
/// A service, a route, the message of an event: a Kubernetes name has 253 characters, and these are made of three.
pub const MAX_REPORT_TEXT_BYTES: usize = 1_024;
/// How the connection to a peer is secured: the longest that TLS 1.3 can say has 60.
pub const MAX_SECURITY_BYTES: usize = 128;
/// A reason is a word of ours.
pub const MAX_REASON_BYTES: usize = 64;
/// Any count or number of bytes in a report: whole in a JSON number, and sums of thousands of them do not overflow.
pub const MAX_REPORT_COUNT: u64 = 1 << 53;
/// The time that one report is about.
pub const MAX_REPORT_LENGTH: Duration = Duration::from_secs(600);
