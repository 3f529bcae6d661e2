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
