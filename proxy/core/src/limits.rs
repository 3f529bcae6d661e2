//! The numbers that bound what a stranger may cost, each with where it comes from.
//!
//! Anchors are the defaults of proxies that have been attacked for years: hyper 1.12, h2 0.4, nginx, HAProxy, Envoy,
//! Linkerd, ztunnel. Ours are at least as tight as the tightest that mesh traffic tolerates. Sizes are in bytes.
//!
//! It enforces nothing: the step that meets a limit does, and answers with the [`crate::verdict::Reason`] named here.

use std::time::Duration;

// === headers ===

/// Decoded header fields of one message (names and values; in HTTP/2 plus 32 each). Over: `headers-too-large`.
/// hyper allows 16 KiB (h2) or 408 KiB (h1), ztunnel 64, Envoy 60; JWTs and cookies need more than 16.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Fields of one message: each cookie crumb, each field about to be discarded and each trailer counts, before they are
/// joined or removed, because the memory is spent by then. Envoy 100, hyper h1 100, HAProxy 101, nginx 1,000.
pub const MAX_HEADER_FIELDS: usize = 128;
/// The same of an HTTP/1 message: hyper's own number, because with a larger one it allocates for each head.
pub const MAX_HTTP1_HEADER_FIELDS: usize = 100;
/// What a proxy adds to a request that goes to another one, at most: its place in a trace in every format (5), the time
/// left, the attempt's number, `Host`, and what asks whether a cached answer is still good (2). There is room for it
/// between proxies, or a legal request would be refused for fields that its sender never wrote.
pub const OWN_REQUEST_FIELDS: usize = 10;
/// The same of an answer in HTTP/1: hyper's `Transfer-Encoding` and `Connection`.
pub const OWN_ANSWER_FIELDS: usize = 2;
/// The bytes of those fields, counted likewise, with a host of 255 and an entity tag of 125.
pub const OWN_HEADER_BYTES: usize = 1024;
/// Request target. Over: `uri-too-long`. hyper 64 KiB - 1, nginx 8 KiB; the catalogue's cap is 16 KiB.
pub const MAX_URI_BYTES: usize = 16 * 1024;
/// Read buffer of an HTTP/1 connection: a head of the largest size plus one read. hyper 408 KiB.
pub const HTTP1_BUFFER_BYTES: usize = MAX_HEADER_BYTES + OWN_HEADER_BYTES + 32 * 1024;
/// Unread request body that is drained so that a connection can be used again; more is closed.
pub const MAX_DRAIN_BYTES: u64 = 64 * 1024;

// === HTTP/2 ===

/// Concurrent streams on a connection from an application. nginx 128, hyper and ztunnel 200, HAProxy 100.
pub const MAX_STREAMS: u32 = 128;
/// Concurrent streams on a connection from another proxy, which multiplexes many callers.
pub const MAX_MESH_STREAMS: u32 = 256;
/// Flow-control window of a stream. Linkerd 64 KiB: one stalled stream holds no more.
pub const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Flow-control window of a connection. h2 sizes its budget for tiny DATA frames by it: 1 MiB cut gRPC streams of
/// 5,000 small messages with ENHANCE_YOUR_CALM, 16 MiB carries them.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Largest frame we accept: the least the protocol allows, so that one stream cannot hold the line.
pub const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Bytes buffered for a stream whose peer does not read. hyper 400 KiB.
pub const STREAM_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// HPACK table. The protocol's default; larger ones are what the header bombs grow in.
pub const HPACK_TABLE_BYTES: u32 = 4096;
/// Streams reset by the peer that wait to be accepted. h2 20; the rapid-reset guard.
pub const MAX_PENDING_RESETS: usize = 50;
/// Streams reset by our own protocol checks before the connection is closed. h2 1,024; the MadeYouReset guard.
pub const MAX_LOCAL_RESETS: usize = 128;
/// Premature resets on one connection before their share is looked at. Envoy 500.
pub const RESET_CHECK_AFTER: u32 = 100;
/// Share of premature resets, in per cent, that closes the connection from then on. Envoy 50 %.
pub const MAX_RESET_PERCENT: u32 = 50;
/// A PING is sent on a connection that was silent for so long; HTTP/2 mesh hops and upstreams.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The PING's answer is waited for so long; together a dead peer is found in under 30 s. ztunnel 10 s and 20 s.
pub const PING_TIMEOUT: Duration = Duration::from_secs(15);

// === times, absolute unless they say idle ===

/// TLS handshake, from the first byte to the last. HAProxy and Envoy hold half a handshake for over 30 s.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// First bytes of a connection with a declared protocol; afterwards it is opaque. Linkerd 10 s.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Complete head of an HTTP/1 request after its first byte. Over: `caller-timeout`. nginx 60 s, hyper 30 s.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream or connection that has work to move and moves nothing for so long. nginx 60 s per write, Envoy 5 min.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle mesh connection, kept for reuse. Envoy 1 h.
pub const MESH_IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Idle connection to an application or from one. Envoy 1 h, nginx 75 s.
pub const PLAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Answer of the control plane to a new destination. Over, or with no control plane to ask: `unresolved`.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

// === connections and queues ===

/// TLS handshakes running in one worker; more wait, see [`MAX_QUEUED_HANDSHAKES`]. A handshake is CPU, not waiting.
pub const MAX_HANDSHAKES: usize = 4;
/// Handshakes waiting in one worker; the next ones are closed. Over: `overloaded`.
pub const MAX_QUEUED_HANDSHAKES: usize = 256;
/// Connections to one endpoint from one worker.
pub const MAX_ENDPOINT_CONNECTIONS: usize = 1024;
/// Idle connections to one endpoint kept by one worker. Go's default of 2 churns, curl's cache is 100 in all.
pub const MAX_IDLE_CONNECTIONS: usize = 64;
/// Requests waiting for a connection to one endpoint in one worker. Over: `overloaded`.
pub const MAX_WAITING_REQUESTS: usize = 1024;
/// A ClientHello, over all its TLS records. Real ones with post-quantum shares are below 2 KiB; many servers stop at 16.
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// First bytes looked at to tell a protocol: one longest request line and its end.
pub const MAX_DETECT_BYTES: usize = MAX_URI_BYTES + 64;

// === retries ===

/// Attempts of a request of which nothing was ever acted on, the first one included. Those of sent requests, and their
/// budget, are a policy's: `spec::Retries`.
pub const MAX_ATTEMPTS: u32 = 5;

// === which of them count ===

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Whoever is no proxy of this mesh.
    Program,
    /// Another proxy, which has added its own to what a program sent.
    Proxy,
}

/// How many header fields a message may have, and how many bytes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub fields: usize,
    pub bytes: usize,
}

impl Sender {
    pub const fn http2(self) -> Room {
        match self {
            Self::Program => Room { fields: MAX_HEADER_FIELDS, bytes: MAX_HEADER_BYTES },
            Self::Proxy => Room {
                fields: MAX_HEADER_FIELDS + OWN_REQUEST_FIELDS,
                bytes: MAX_HEADER_BYTES + OWN_HEADER_BYTES,
            },
        }
    }

    pub const fn http1_request(self) -> Room {
        self.http1(OWN_REQUEST_FIELDS)
    }

    pub const fn http1_answer(self) -> Room {
        self.http1(OWN_ANSWER_FIELDS)
    }

    /// What is added later counts from the start, because there can be no more in the end.
    const fn http1(self, added: usize) -> Room {
        let fields = match self {
            Self::Program => MAX_HTTP1_HEADER_FIELDS - added,
            Self::Proxy => MAX_HTTP1_HEADER_FIELDS,
        };
        Room { fields, bytes: self.http2().bytes }
    }
}
