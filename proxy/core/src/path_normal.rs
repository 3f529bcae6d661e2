//! One spelling of a path, used for matching *and* forwarding, so that a rule and an application never see two.
//!
//! The normal form of RFC 3986 section 6.2.2, made stricter where servers are known to disagree:
//!
//! - `%XX` of a letter, digit, `-`, `.`, `_` or `~` is decoded; the others get upper-case digits; what must be encoded
//!   and is not (`"<>[]^{|}` and a backtick, bytes above 127) is encoded.
//! - `.` and `..` are resolved, at the root `..` stays there; `//` becomes `/`.
//! - Refused: `%2F`, `%5C`, `\`, `%00`, a broken `%`, overlong UTF-8 (`%C0%AF`), a dot segment with parameters (`..;x`,
//!   which servlet containers resolve and others do not), control characters, spaces.
//!
//! A path in normal form is its own normal form. Decoding happens once: `%252F` stays what it is.
//!
//! The query is none of its business, nor is letter case (`/A` is not `/a`), nor `;` parameters of ordinary segments.

use std::borrow::Cow;

use http::{
    Uri,
    uri::{Parts, PathAndQuery},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path does not begin with /")]
    NotAbsolute,
    #[error("path has an encoded slash, backslash or NUL")]
    Escaped,
    #[error("path has a character that is not allowed")]
    Illegal,
    #[error("path has a broken % sequence")]
    BadEscape,
    #[error("path has an overlong encoding")]
    Overlong,
    #[error("path has a dot segment with parameters")]
    DotParameters,
}

/// The normal form of a path without query; borrowed if it already is, which is the usual case.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    let mut before = 0;
    for byte in bytes {
        // Only after a slash can a slash or dot need work.
        if CLASSES[*byte as usize] != PLAIN || (before == b'/' && matches!(byte, b'/' | b'.')) {
            return rewrite(bytes).map(Cow::Owned);
        }
        before = *byte;
    }
    Ok(Cow::Borrowed(path))
}

/// Brings the target of a request into normal form in place; `true`: that changed it. `*` and the authority form of
/// CONNECT have no path and pass.
pub fn normalise_uri(uri: &mut Uri) -> Result<bool, PathError> {
    let Some(target) = uri.path_and_query() else { return Ok(false) };
    if target.as_str() == "*" {
        return Ok(false);
    }
    let Cow::Owned(mut path) = normalise(target.path())? else { return Ok(false) };
    if path == target.path() {
        return Ok(false);
    }
    if let Some(query) = target.query() {
        path.push('?');
        path.push_str(query);
    }
    let target = PathAndQuery::try_from(path).map_err(|_| PathError::Illegal)?;
    let mut parts = Parts::from(std::mem::take(uri));
    parts.path_and_query = Some(target);
    *uri = Uri::from_parts(parts).map_err(|_| PathError::Illegal)?;
    Ok(true)
}

const PLAIN: u8 = 0;
/// `%`.
const ESCAPE: u8 = 1;
/// Legal in no path, harmless when encoded.
const ENCODE: u8 = 2;
const REFUSE: u8 = 3;

/// What each byte of a path is.
const CLASSES: [u8; 256] = {
    let mut classes = [REFUSE; 256];
    let mut byte = 0x21;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'%' => ESCAPE,
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => ENCODE,
            b'#' | b'?' | b'\\' | 0x7f => REFUSE,
            _ => PLAIN,
        };
        byte += 1;
    }
    classes
};

fn rewrite(path: &[u8]) -> Result<String, PathError> {
    resolve_dots(&respell(path)?)
}

/// Settles the spelling of each character.
fn respell(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match CLASSES[byte as usize] {
            PLAIN => out.push(byte),
            ENCODE => push_encoded(&mut out, byte),
            ESCAPE => {
                let decoded = escaped(rest).ok_or(PathError::BadEscape)?;
                rest = &rest[2..];
                match decoded {
                    b'/' | b'\\' | 0 => return Err(PathError::Escaped),
                    b'-' | b'.' | b'_' | b'~' => out.push(decoded),
                    _ if decoded.is_ascii_alphanumeric() => out.push(decoded),
                    _ if is_overlong(decoded, rest) => return Err(PathError::Overlong),
                    _ => push_encoded(&mut out, decoded),
                }
            }
            _ => return Err(PathError::Illegal),
        }
    }
    Ok(out)
}

/// The byte that two hex digits stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |place: usize| char::from(*digits.get(place)?).to_digit(16);
    Some((digit(0)? * 16 + digit(1)?) as u8)
}

/// The byte begins a UTF-8 sequence that is longer than its character needs: another spelling of `/` or `.` to lax
/// decoders, and never written by honest ones.
fn is_overlong(first: u8, rest: &[u8]) -> bool {
    let second = || rest.strip_prefix(b"%").and_then(escaped);
    match first {
        0xc0 | 0xc1 => true,
        0xe0 => second().is_some_and(|byte| (0x80..0xa0).contains(&byte)),
        0xf0 => second().is_some_and(|byte| (0x80..0x90).contains(&byte)),
        _ => false,
    }
}

fn push_encoded(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

/// Resolves dot segments and empty ones (RFC 3986 section 5.2.4, with `//` as `/`).
fn resolve_dots(path: &[u8]) -> Result<String, PathError> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => {
                if has_dot_parameters(segment) {
                    return Err(PathError::DotParameters);
                }
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    // All bytes are ASCII by now.
    String::from_utf8(out).map_err(|_| PathError::Illegal)
}

fn has_dot_parameters(segment: &[u8]) -> bool {
    let rest = segment.strip_prefix(b"..").or_else(|| segment.strip_prefix(b"."));
    rest.is_some_and(|rest| rest.starts_with(b";") || rest.starts_with(b"%3B"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_path_has_one_spelling() {
        for (path, want) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/%61", "/a"),
            ("/%7Euser/%2D%2e%5f", "/~user/-._"),
            ("/a%3a%40", "/a%3A%40"),
            ("/a%20b", "/a%20b"),
            ("/a/../admin", "/admin"),
            ("/a/%2e%2E/admin", "/admin"),
            ("/a/./b", "/a/b"),
            ("//admin", "/admin"),
            ("/admin//", "/admin/"),
            ("/a//../b", "/b"),
            ("/../../x", "/x"),
            ("/..", "/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a/...", "/a/..."),
            ("/.hidden", "/.hidden"),
            ("/a.b", "/a.b"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/%252f", "/%252f"),
            ("/%25%32%66", "/%252f"),
            ("/{id}|x", "/%7Bid%7D%7Cx"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%e9", "/%E9"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (path, want) in [
            ("", PathError::NotAbsolute),
            ("a", PathError::NotAbsolute),
            ("http://x/", PathError::NotAbsolute),
            ("/a%2fb", PathError::Escaped),
            ("/a%2Fb", PathError::Escaped),
            ("/..%5cadmin", PathError::Escaped),
            ("/admin%00.png", PathError::Escaped),
            ("/a\\b", PathError::Illegal),
            ("/a b", PathError::Illegal),
            ("/a\tb", PathError::Illegal),
            ("/a#b", PathError::Illegal),
            ("/a?b", PathError::Illegal),
            ("/a\u{7f}", PathError::Illegal),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
            ("/%c0%af", PathError::Overlong),
            ("/%C1%81", PathError::Overlong),
            ("/%e0%80%af", PathError::Overlong),
            ("/%f0%80%80%af", PathError::Overlong),
            ("/a/..;/admin", PathError::DotParameters),
            ("/a/.;x=1/admin", PathError::DotParameters),
            ("/a/%2e%2e%3bx/admin", PathError::DotParameters),
        ] {
            assert_eq!(normalise(path), Err(want), "{path}");
        }
    }

    #[test]
    fn normal_paths_are_borrowed() {
        for path in ["/", "/api/v1/orders/17", "/shop.Orders/Get", "/a;b=c,d/$1+2@x:y!*'()"] {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn targets_keep_everything_but_the_path() {
        for (target, want) in [
            ("/a/../b?x=%2F..//", Some("/b?x=%2F..//")),
            ("http://orders.shop:80/./a?q", Some("http://orders.shop:80/a?q")),
            ("/a?b=//", None),
            ("http://orders.shop", None),
            ("*", None),
            ("orders.shop:80", None),
        ] {
            let mut uri: Uri = target.parse().unwrap();
            let changed = normalise_uri(&mut uri);
            assert_eq!(changed, Ok(want.is_some()), "{target}");
            if let Some(want) = want {
                assert_eq!(uri.to_string(), want);
            }
        }
        assert_eq!(normalise_uri(&mut "/%2f".parse().unwrap()), Err(PathError::Escaped));
    }

    fn decode(segment: &str) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::new(), segment.as_bytes());
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            match escaped(rest) {
                Some(decoded) if byte == b'%' => {
                    out.push(decoded);
                    rest = &rest[2..];
                }
                Some(_) | None => out.push(byte),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn idempotent(path in "/([a-c./%\\\\;{é]|%2[eEfF5]|%[46]1|%25|\\.\\.|//|%C[03]%A[9F]){0,12}") {
            if let Ok(once) = normalise(&path) {
                prop_assert_eq!(normalise(&once), Ok(Cow::Borrowed(&*once)));
                prop_assert!(once.starts_with('/') && once.is_ascii() && !once.contains("//"));
                prop_assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")));
            }
        }

        /// Applications that decode after they split, or before, see the same elements.
        #[test]
        fn nobody_who_decodes_once_more_reaches_another_place(path in "/([a-c./;{é]|%2[eE5]|%[46]1|%3b|\\.\\.|//){0,12}") {
            if let Ok(normal) = normalise(&path) {
                for segment in normal.split('/').map(decode) {
                    prop_assert!(!segment.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0)), "{path} -> {normal}");
                    prop_assert!(!matches!(&segment[..], b"." | b".."), "{path} -> {normal}");
                }
            }
        }

        #[test]
        fn no_input_panics(path in "\\PC{0,60}") {
            let _ = normalise(&path);
        }
    }
}
