//! Validators and conditions: what asks the origin for a confirmation, what a 304 confirms and changes, and
//! whether a caller holds an answer already (RFC 9110 section 13, RFC 9111 sections 3.2 and 4.3).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    freshness::date,
    stored::{Stored, is_dropped},
};

/// Makes a request one for confirmation of this answer. The caller's own conditions go: they are judged on
/// what comes back. False, and nothing is changed, if the answer has no validator.
pub(super) fn set(request: &mut HeaderMap, stored: &Stored) -> bool {
    let etag = single(&stored.headers, &header::ETAG);
    let modified = single(&stored.headers, &header::LAST_MODIFIED)
        .filter(|_| date(&stored.headers, &header::LAST_MODIFIED).is_some());
    if etag.is_none() && modified.is_none() {
        return false;
    }
    request.remove(header::IF_NONE_MATCH);
    request.remove(header::IF_MODIFIED_SINCE);
    if let Some(etag) = etag {
        request.insert(header::IF_NONE_MATCH, etag.clone());
    }
    if let Some(modified) = modified {
        request.insert(header::IF_MODIFIED_SINCE, modified.clone());
    }
    true
}

pub(super) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || date(headers, &header::LAST_MODIFIED).is_some()
}

/// Whether a 304 is about this answer (section 4.3.4): not if it names another one.
pub(super) fn confirms(confirmation: &HeaderMap, stored: &Stored) -> bool {
    let Some(named) = confirmation.get(header::ETAG) else { return true };
    let Some(held) = stored.headers.get(header::ETAG) else { return false };
    if is_weak(named.as_bytes()) { weakly_equal(named.as_bytes(), held.as_bytes()) } else { named == held }
}

/// The answer's fields after its confirmation (section 3.2): those of the 304 replace those held, except what
/// describes the body that is kept, and what was for one caller.
pub(super) fn updated(held: &HeaderMap, confirmation: &HeaderMap) -> HeaderMap {
    const OF_THE_BODY: [HeaderName; 5] = [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::SET_COOKIE,
    ];
    let mut headers = held.clone();
    // Without a date it is of the moment it came in.
    headers.remove(header::DATE);
    for name in confirmation.keys() {
        if is_dropped(name) || OF_THE_BODY.contains(name) {
            continue;
        }
        headers.remove(name);
        for value in confirmation.get_all(name) {
            if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.append(name.clone(), copy);
            }
        }
    }
    headers
}

/// The caller's own conditions, judged on a stored answer (section 4.3.2).
pub(super) fn already_held(request: &HeaderMap, stored: &Stored) -> bool {
    if stored.status != StatusCode::OK {
        return false;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let held = stored.headers.get(header::ETAG).map(HeaderValue::as_bytes);
        return request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .any(|line| lists(line.as_bytes().trim_ascii(), held));
    }
    let since = date(request, &header::IF_MODIFIED_SINCE);
    let modified = date(&stored.headers, &header::LAST_MODIFIED);
    since.zip(modified).is_some_and(|(since, modified)| modified <= since)
}

/// Whether a list of entity tags has this one, or is `*`. Tags may hold commas, so it is read from quote to
/// quote.
fn lists(mut list: &[u8], held: Option<&[u8]>) -> bool {
    if list == b"*" {
        return true;
    }
    let Some(held) = held else { return false };
    while let Some(start) = list.iter().position(|byte| *byte == b'"') {
        let Some(length) = list[start + 1..].iter().position(|byte| *byte == b'"') else { return false };
        let end = start + 1 + length + 1;
        if weakly_equal(&list[start..end], held) {
            return true;
        }
        list = &list[end..];
    }
    false
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

fn weakly_equal(one: &[u8], other: &[u8]) -> bool {
    let opaque = |tag| <[u8]>::strip_prefix(tag, b"W/").unwrap_or(tag);
    opaque(one) == opaque(other)
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}
