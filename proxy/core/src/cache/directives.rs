//! Cache-Control, of requests and of answers (RFC 9111 section 5.2).
//!
//! What cannot be read is read in the way that stores and reuses less: a number that is none is 0, directives
//! that contradict each other are 0 too (section 4.2.1), a quote without an end forbids storing. `no-cache`
//! and `private` that name fields count as those without (section 5.2.2.4 allows it).

use http::{HeaderMap, header};

/// Section 1.2.2: what is larger than a cache can count.
const MANY_SECONDS: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) only_if_cached: bool,
    /// Seconds, these and the following.
    pub(super) max_age: Option<u32>,
    pub(super) s_maxage: Option<u32>,
    pub(super) stale_if_error: Option<u32>,
    /// `max-stale` without a number is the largest.
    pub(super) max_stale: Option<u32>,
    pub(super) min_fresh: Option<u32>,
}

impl Directives {
    pub(super) fn of_request(headers: &HeaderMap) -> Self {
        let mut directives = Self::of(headers);
        // Section 5.4: what HTTP/1.0 clients say instead.
        if !headers.contains_key(header::CACHE_CONTROL) {
            directives.no_cache = headers
                .get_all(header::PRAGMA)
                .iter()
                .any(|value| value.as_bytes().eq_ignore_ascii_case(b"no-cache"));
        }
        directives
    }

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for line in headers.get_all(header::CACHE_CONTROL) {
            directives.line(line.as_bytes());
        }
        directives
    }

    fn line(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let (directive, after) = match end_of_element(rest) {
                Some(end) => (&rest[..end], rest.get(end + 1..).unwrap_or_default()),
                None => {
                    self.no_store = true;
                    return;
                }
            };
            let (name, argument) = match directive.iter().position(|byte| *byte == b'=') {
                Some(at) => (&directive[..at], Some(unquoted(directive[at + 1..].trim_ascii()))),
                None => (directive, None),
            };
            self.directive(name.trim_ascii(), argument);
            rest = after;
        }
    }

    fn directive(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-age") {
            once(&mut self.max_age, seconds(argument));
        } else if is("s-maxage") {
            once(&mut self.s_maxage, seconds(argument));
        } else if is("stale-if-error") {
            once(&mut self.stale_if_error, seconds(argument));
        } else if is("max-stale") {
            once(&mut self.max_stale, argument.map_or(MANY_SECONDS, |argument| seconds(Some(argument))));
        } else if is("min-fresh") {
            self.min_fresh = self.min_fresh.max(Some(seconds(argument)));
        }
    }

    /// Section 5.2.2: whether the answer may be used without its origin's consent after its time, as far as a
    /// request (`max-stale`) can decide it. `s-maxage` implies `proxy-revalidate`.
    pub(super) fn allows_stale(&self) -> bool {
        self.allows_stale_on_error() && self.s_maxage.is_none()
    }

    /// The same for when there is no consent to be had. An answer with both `s-maxage` and `stale-if-error`
    /// asks for it in so many words.
    pub(super) fn allows_stale_on_error(&self) -> bool {
        let forbidden = self.must_revalidate || self.proxy_revalidate || self.no_cache;
        !forbidden && (self.s_maxage.is_none() || self.stale_if_error.is_some())
    }
}

fn once(value: &mut Option<u32>, seconds: u32) {
    *value = Some(match *value {
        Some(before) if before != seconds => 0,
        _ => seconds,
    });
}

/// The next comma outside of quotes, or the end; nothing if a quote is left open.
fn end_of_element(list: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return Some(at),
            _ => {}
        }
    }
    (!quoted).then_some(list.len())
}

fn unquoted(argument: &[u8]) -> &[u8] {
    argument.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(argument)
}

fn seconds(argument: Option<&[u8]>) -> u32 {
    let digits = argument.unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let value = digits.iter().fold(0_u64, |value, digit| {
        value.saturating_mul(10).saturating_add(u64::from(digit - b'0')).min(u64::from(MANY_SECONDS))
    });
    u32::try_from(value).unwrap_or(MANY_SECONDS)
}
