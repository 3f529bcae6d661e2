//! From the first bytes of a connection to what it speaks.
//!
//! Decided as soon as the bytes allow: a mismatch with everything known is [`Detection::Opaque`] at its first byte, so a
//! binary protocol never waits. HTTP/1 wants a whole request line up to its version, because `GET key` is also Redis.
//!
//! It waits for nothing (deadlines and server-first protocols are [`crate::race`]) and parses no TLS
//! ([`crate::client_hello`]).

use crate::limits::MAX_DETECT_BYTES;

/// What every HTTP/2 connection with prior knowledge begins with.
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method looked for; the longest registered one has 17 letters.
const MAX_METHOD_BYTES: usize = 32;

/// What a connection speaks, as far as its first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// Not decided: give the same prefix again, longer.
    NeedMore,
    /// A TLS ClientHello.
    Tls,
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Opaque,
}

/// Looks at everything received so far, from the first byte on. A longer prefix never changes a decision.
pub fn detect(prefix: &[u8]) -> Detection {
    match prefix.first() {
        None => Detection::NeedMore,
        Some(0x16) => tls(prefix),
        Some(_) => match agrees(prefix, HTTP2_PREFACE) {
            Some(true) => Detection::Http2,
            None => Detection::NeedMore,
            Some(false) => http1(prefix),
        },
    }
}

/// Whether the bytes begin with `wanted`; `None` while they are too few and agree so far.
fn agrees(bytes: &[u8], wanted: &[u8]) -> Option<bool> {
    let common = bytes.len().min(wanted.len());
    if bytes[..common] != wanted[..common] {
        return Some(false);
    }
    (common == wanted.len()).then_some(true)
}

/// A handshake record of TLS 1.x whose first message is a ClientHello: `16 03 0V LL LL 01`.
fn tls(prefix: &[u8]) -> Detection {
    let legal = |place: usize, byte: u8| match place {
        0 => byte == 0x16,
        1 => byte == 3,
        2 => byte <= 4,
        5 => byte == 1,
        _ => true,
    };
    let head = &prefix[..prefix.len().min(6)];
    if !head.iter().enumerate().all(|(place, byte)| legal(place, *byte)) {
        return Detection::Opaque;
    }
    if head.len() == 6 { Detection::Tls } else { Detection::NeedMore }
}

/// `METHOD SP TARGET SP "HTTP/1."`, letter by letter.
fn http1(prefix: &[u8]) -> Detection {
    let method = prefix.iter().take_while(|byte| matches!(byte, b'A'..=b'Z' | b'-' | b'_')).count();
    match prefix.get(method) {
        Some(b' ') if (1..=MAX_METHOD_BYTES).contains(&method) => {}
        None if method <= MAX_METHOD_BYTES => return Detection::NeedMore,
        Some(_) | None => return Detection::Opaque,
    }
    let rest = &prefix[method + 1..];
    let target = rest.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    match rest.get(target) {
        Some(b' ') if target > 0 => match agrees(&rest[target + 1..], b"HTTP/1.") {
            Some(true) => Detection::Http1,
            Some(false) => Detection::Opaque,
            None => Detection::NeedMore,
        },
        Some(_) => Detection::Opaque,
        // Longer than any target we take: the HTTP/1 parser answers `uri-too-long`.
        None if prefix.len() >= MAX_DETECT_BYTES => Detection::Http1,
        None => Detection::NeedMore,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes_tell() {
        let long = [b"GET /", &[b'a'; MAX_DETECT_BYTES][..]].concat();
        for (bytes, want) in [
            (&b""[..], Detection::NeedMore),
            (b"GET / HTTP/1.1\r\n", Detection::Http1),
            (b"GET / HTTP/1.", Detection::Http1),
            (b"GET / HTTP/1", Detection::NeedMore),
            (b"G", Detection::NeedMore),
            (b"GET", Detection::NeedMore),
            (b"GET /long/pa", Detection::NeedMore),
            (b"OPTIONS * HTTP/1.1", Detection::Http1),
            (b"GET http://a/ HTTP/1.0", Detection::Http1),
            (b"CONNECT a:80 HTTP/1.1", Detection::Http1),
            (b"M-SEARCH * HTTP/1.1", Detection::Http1),
            (b"VERSION-CONTROL /a HTTP/1.1", Detection::Http1),
            (b"POST /b HTTP/1.1\n", Detection::Http1),
            (&long, Detection::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detection::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", Detection::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Detection::Opaque),
            (b"PRI", Detection::NeedMore),
            (b"PROPFIND /a HTTP/1.1", Detection::Http1),
            (b"\x16\x03\x01\x02\x00\x01", Detection::Tls),
            (b"\x16\x03\x01\x02", Detection::NeedMore),
            (b"\x16\x03\x01\x02\x00\x02", Detection::Opaque),
            (b"\x16\x02\x01", Detection::Opaque),
            (b"\x16\x03\x05", Detection::Opaque),
            (b"get / HTTP/1.1", Detection::Opaque),
            (b"GET / HTTP/3", Detection::Opaque),
            (b"GET /\r\n", Detection::Opaque),
            (b"GET  / HTTP/1.1", Detection::Opaque),
            (b"\r\nGET / HTTP/1.1", Detection::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detection::Opaque),
            (b"SET key value\r\n", Detection::Opaque),
            (b"GET key\r\n", Detection::Opaque),
            (b"PING\r\n", Detection::Opaque),
            (b"EHLO client.example\r\n", Detection::Opaque),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Detection::Opaque),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Detection::Opaque),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG", Detection::Opaque),
        ] {
            assert_eq!(detect(bytes), want, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
    }

    fn prefix() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            "[A-Z]{0,8} ?[!-~]{0,8} ?(HTTP/1\\.1)?".prop_map(String::into_bytes),
            (0..=HTTP2_PREFACE.len()).prop_map(|end| HTTP2_PREFACE[..end].to_vec()),
            prop::collection::vec(0..5_u8, 0..8).prop_map(|rest| [&[0x16][..], &rest].concat()),
        ]
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_decision(prefix in prefix(), more in prop::collection::vec(any::<u8>(), 0..40)) {
            let decided = detect(&prefix);
            if decided != Detection::NeedMore {
                prop_assert_eq!(detect(&[&prefix[..], &more].concat()), decided);
            }
        }
    }
}
