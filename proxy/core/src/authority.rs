//! One spelling of the host a request is for, used for every decision *and* forwarded.
//!
//! A request names its host in up to two places, the target (absolute form, `:authority`) and the Host field. They must
//! agree, there must be one, and it must be a plain `HOST` or `HOST:PORT`: letters in lower case, no trailing dot, no
//! userinfo, IPv6 in brackets and without zone. [`settle`] leaves a request with exactly that.
//!
//! It resolves nothing, and no policy is chosen by a host alone: the destination is where the connection went.

use std::{borrow::Cow, fmt, net::Ipv6Addr, num::NonZeroU16};

use http::{
    HeaderValue, Method, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

/// A host in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    pub name: Cow<'a, str>,
    pub port: Option<NonZeroU16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("no Host")]
    Missing,
    #[error("more than one Host")]
    Several,
    #[error("Host and request target name different hosts")]
    Mismatch,
    #[error("Host is not HOST or HOST:PORT")]
    Illegal,
}

/// Parses `HOST` or `HOST:PORT`; borrows if it is spelled right already.
pub fn parse(text: &str) -> Result<Host<'_>, HostError> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(HostError::Illegal)?;
            let port = if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':').ok_or(HostError::Illegal)?)
            };
            let parsed: Ipv6Addr = address.parse().map_err(|_| HostError::Illegal)?;
            let canonical = format!("[{parsed}]");
            let spelled = &text[..address.len() + 2];
            (if spelled == canonical { Cow::Borrowed(spelled) } else { Cow::Owned(canonical) }, port)
        }
        None => {
            let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
            (host_name(name)?, port)
        }
    };
    let port = match port {
        None => None,
        // A leading zero, a sign or an empty port are other spellings of something else.
        Some(digits) if digits.starts_with(|first: char| ('1'..='9').contains(&first)) => {
            Some(digits.parse().map_err(|_| HostError::Illegal)?)
        }
        Some(_) => return Err(HostError::Illegal),
    };
    Ok(Host { name, port })
}

fn host_name(name: &str) -> Result<Cow<'_, str>, HostError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut upper = false;
    // A label must not be empty, so neither the beginning nor the end of the name stands beside a dot.
    let mut before = b'.';
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => upper = true,
            b'.' if before != b'.' => {}
            _ => return Err(HostError::Illegal),
        }
        before = byte;
    }
    if before == b'.' || name.len() > 253 {
        return Err(HostError::Illegal);
    }
    Ok(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// The one host of a request as it was received (`None`: HTTP/1.0 without one), and the text of its Host field.
fn named(request: &Parts) -> Result<(Option<Host<'_>>, Option<&str>), HostError> {
    let mut lines = request.headers.get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(HostError::Several);
    }
    let line =
        line.map(|line| std::str::from_utf8(line.as_bytes()).map_err(|_| HostError::Illegal)).transpose()?;
    let from_line = line.map(parse).transpose()?;
    let target = request.uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    let host = match (target, from_line) {
        (Some(target), Some(from_line)) => {
            let default = if request.uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
            let port = |host: &Host<'_>| host.port.map_or(default, NonZeroU16::get);
            if target.name != from_line.name || port(&target) != port(&from_line) {
                return Err(HostError::Mismatch);
            }
            Some(target)
        }
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) if request.version <= Version::HTTP_10 => None,
        (None, None) => return Err(HostError::Missing),
    };
    Ok((host, line))
}

/// Brings a request into the form that is forwarded: HTTP/1 with the target in origin form and one Host field, HTTP/2
/// with `:authority` and none, both in the one spelling. Nothing is changed, and nothing allocated, when it is so
/// already, which is the usual case. The target of CONNECT stays.
pub fn settle(request: &mut Parts) -> Result<(), HostError> {
    let (Some(host), line) = named(request)? else { return Ok(()) };
    let http2 = request.version == Version::HTTP_2;
    let has_line = line.is_some();
    let carrier = if http2 { request.uri.authority().map(Authority::as_str) } else { line };
    let settled = carrier.is_some_and(|text| host.is(text));
    let text = (!settled).then(|| host.to_string());
    if http2 {
        if let Some(text) = text {
            let mut parts = std::mem::take(&mut request.uri).into_parts();
            parts.authority = Some(Authority::try_from(text).map_err(|_| HostError::Illegal)?);
            // A target of HTTP/2 that names its host must name scheme and path too, except with CONNECT.
            if request.method != Method::CONNECT {
                parts.scheme.get_or_insert(Scheme::HTTP);
                parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
            }
            request.uri = Uri::from_parts(parts).map_err(|_| HostError::Illegal)?;
        }
        if has_line {
            request.headers.remove(HOST);
        }
        return Ok(());
    }
    if let Some(text) = text {
        request.headers.insert(HOST, HeaderValue::try_from(text).map_err(|_| HostError::Illegal)?);
    }
    if request.uri.scheme().is_some() {
        let target = std::mem::take(&mut request.uri).into_parts().path_and_query;
        request.uri = target.map_or_else(Uri::default, Uri::from);
    }
    Ok(())
}

impl Host<'_> {
    /// The text is this very spelling. It is known to name this host.
    fn is(&self, text: &str) -> bool {
        let name_is = matches!(self.name, Cow::Borrowed(_)) && text.starts_with(&*self.name);
        let after = text.get(self.name.len()..).unwrap_or_default();
        name_is && if self.port.is_some() { after.starts_with(':') } else { after.is_empty() }
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_per_host() {
        for (text, want) in [
            ("orders.shop", "orders.shop"),
            ("Orders.SHOP.:80", "orders.shop:80"),
            ("orders_1.shop", "orders_1.shop"),
            ("10.0.0.1:8080", "10.0.0.1:8080"),
            ("[fd00::1]", "[fd00::1]"),
            ("[FD00:0::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(parse(text).map(|host| host.to_string()).as_deref(), Ok(want), "{text}");
        }
        for text in [
            "",
            ".",
            "..",
            ".a",
            "a..b",
            "a..",
            "a b",
            "a/b",
            "user@a",
            "a:b@c",
            "a:",
            "a:0",
            "a:080",
            "a:+80",
            "a:65536",
            "a:80:80",
            "fd00::1",
            "[fd00::1",
            "[fd00::1]80",
            "[fd00::1%eth0]",
            "[::g]",
            "[10.0.0.1]",
            "a,b",
            "a%20b",
            "caf\u{e9}",
            "a\t",
            " a",
        ] {
            assert_eq!(parse(text), Err(HostError::Illegal), "{text:?}");
        }
    }

    fn request(version: Version, target: &str, hosts: &[&str]) -> Parts {
        let mut builder = Request::builder().version(version).uri(target);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).unwrap().into_parts().0
    }

    /// Target and Host lines after settling.
    fn settled(version: Version, target: &str, hosts: &[&str]) -> Result<String, HostError> {
        let mut parts = request(version, target, hosts);
        settle(&mut parts)?;
        let lines: Vec<_> = parts.headers.get_all(HOST).iter().map(|line| line.to_str().unwrap()).collect();
        Ok(format!("{} {}", parts.uri, lines.join(" ")).trim_end().to_owned())
    }

    #[test]
    fn http1_carries_one_host_field_and_an_origin_form() {
        for (target, hosts, want) in [
            ("/a?b", &["orders.shop"][..], Ok("/a?b orders.shop")),
            ("/a", &["Orders.shop.:80"], Ok("/a orders.shop:80")),
            ("/a", &["orders.shop."], Ok("/a orders.shop")),
            ("http://orders.shop/a?b", &["orders.shop"], Ok("/a?b orders.shop")),
            ("http://orders.shop:80/a", &["orders.shop"], Ok("/a orders.shop:80")),
            ("http://orders.shop", &["orders.shop"], Ok("/ orders.shop")),
            ("http://orders.shop/a", &[], Ok("/a orders.shop")),
            ("http://orders.shop/a", &["other.shop"], Err(HostError::Mismatch)),
            ("http://orders.shop:81/a", &["orders.shop"], Err(HostError::Mismatch)),
            ("http://user@orders.shop/a", &["orders.shop"], Err(HostError::Illegal)),
            ("*", &["orders.shop"], Ok("* orders.shop")),
            ("/a", &[], Err(HostError::Missing)),
            ("/a", &["a", "a"], Err(HostError::Several)),
            ("/a", &["a", "b"], Err(HostError::Several)),
            ("/a", &["a/b"], Err(HostError::Illegal)),
        ] {
            assert_eq!(
                settled(Version::HTTP_11, target, hosts).as_deref(),
                want.as_deref(),
                "{target} {hosts:?}"
            );
        }
        assert_eq!(settled(Version::HTTP_10, "/a", &[]).as_deref(), Ok("/a"));
    }

    #[test]
    fn http2_carries_an_authority_and_no_host_field() {
        for (target, hosts, want) in [
            ("http://orders.shop/a", &[][..], Ok("http://orders.shop/a")),
            ("http://Orders.shop:80/a", &["orders.shop"], Ok("http://orders.shop:80/a")),
            ("https://orders.shop/a", &["orders.shop:443"], Ok("https://orders.shop/a")),
            ("/a?b", &["Orders.shop"], Ok("http://orders.shop/a?b")),
            ("http://orders.shop/a", &["other"], Err(HostError::Mismatch)),
            ("http://u@orders.shop/a", &[], Err(HostError::Illegal)),
            ("/a", &[], Err(HostError::Missing)),
        ] {
            assert_eq!(
                settled(Version::HTTP_2, target, hosts).as_deref(),
                want.as_deref(),
                "{target} {hosts:?}"
            );
        }
    }

    #[test]
    fn the_target_of_connect_stays() {
        let mut parts = request(Version::HTTP_11, "orders.shop:80", &["orders.shop:80"]);
        parts.method = Method::CONNECT;
        settle(&mut parts).unwrap();
        assert_eq!(parts.uri, "orders.shop:80");
    }

    proptest! {
        #[test]
        fn a_spelling_is_its_own_spelling(text in "[A-Za-z0-9._-]{1,12}(:[0-9]{1,5})?|\\[[0-9a-fA-F:]{2,20}\\](:80)?") {
            if let Ok(host) = parse(&text) {
                let once = host.to_string();
                let again = parse(&once).unwrap();
                prop_assert_eq!(&again.to_string(), &once);
                prop_assert!(again.is(&once));
                prop_assert_eq!(host.is(&text), text == once, "{}", text);
            }
        }

        #[test]
        fn no_input_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
