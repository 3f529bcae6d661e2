//! Which format and encoding a scraper gets, by its `Accept` and `Accept-Encoding` with their q-values.
//!
//! Who accepts nothing that there is gets Prometheus' text all the same: it can be read by everybody, and an error in its
//! place helps nobody.

use http::{
    HeaderMap,
    header::{ACCEPT, ACCEPT_ENCODING, AsHeaderName},
};

use crate::metrics::{Format, text::Version};

/// What can be had, in the order of preference among those that a scraper likes equally.
const OFFERS: [Format; 3] =
    [Format::Text, Format::OpenMetrics(Version::V1_0_0), Format::OpenMetrics(Version::V0_0_1)];

/// One part of a header: what it names, its parameters but `q`, and that in thousandths.
struct Part<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: u16,
}

pub(super) fn format(headers: &HeaderMap) -> Format {
    let wanted = parts(headers, ACCEPT);
    let mut best = (0, 0, Format::Text);
    for offer in OFFERS {
        // The most specific part decides about an offer.
        let decides = wanted.iter().filter_map(|part| Some((specific(part, offer)?, part.quality)));
        let Some((precision, quality)) = decides.max() else { continue };
        // Among equals, who is named beats who is only meant by a star.
        if (quality, precision) > (best.0, best.1) {
            best = (quality, precision, offer);
        }
    }
    best.2
}

pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let wanted = parts(headers, ACCEPT_ENCODING);
    let of = |name: &str| wanted.iter().find(|part| part.name.eq_ignore_ascii_case(name));
    let gzip = of("gzip").or_else(|| of("x-gzip")).or_else(|| of("*")).map_or(0, |part| part.quality);
    let identity = of("identity").map_or(0, |part| part.quality);
    gzip > 0 && gzip >= identity
}

/// How specifically a part means this format: 0 for `*/*`; `None`: not at all.
fn specific(part: &Part<'_>, format: Format) -> Option<u8> {
    let (name, versions): (&str, &[&str]) = match format {
        Format::Text => ("text/plain", &["0.0.4"]),
        Format::OpenMetrics(Version::V1_0_0) => ("application/openmetrics-text", &["1.0.0", "1.0"]),
        Format::OpenMetrics(Version::V0_0_1) => ("application/openmetrics-text", &["0.0.1"]),
    };
    let version = part.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("version"));
    match part.name {
        "*/*" => Some(0),
        "text/*" | "application/*" => name.starts_with(part.name.trim_end_matches('*')).then_some(1),
        named if named.eq_ignore_ascii_case(name) => match version {
            Some((_, version)) => versions.contains(version).then_some(3),
            None => Some(2),
        },
        _ => None,
    }
}

/// What cannot be read is left out.
fn parts(headers: &HeaderMap, name: impl AsHeaderName) -> Vec<Part<'_>> {
    let texts = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).filter_map(part).collect()
}

fn part(text: &str) -> Option<Part<'_>> {
    let mut pieces = text.split(';').map(str::trim);
    let name = pieces.next().filter(|name| !name.is_empty())?;
    let mut part = Part { name, parameters: Vec::new(), quality: 1_000 };
    for piece in pieces {
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        if key.eq_ignore_ascii_case("q") {
            let quality: f32 = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
            part.quality = (quality * 1e3).round() as u16;
        } else {
            part.parameters.push((key, value));
        }
    }
    Some(part)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: http::HeaderName, text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(text).unwrap());
        headers
    }

    #[test]
    fn the_format_that_is_liked_best() {
        const NEW: Format = Format::OpenMetrics(Version::V1_0_0);
        const OLD: Format = Format::OpenMetrics(Version::V0_0_1);
        // As Prometheus 2.42 and 3.5 ask.
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,\
                            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
             application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            (prometheus_2, NEW),
            (prometheus_3, NEW),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html,*/*;q=0.8", Format::Text),
            ("application/json", Format::Text),
            ("application/openmetrics-text", NEW),
            ("application/openmetrics-text; version=\"0.0.1\"", OLD),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            (
                "application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=0.0.1;q=0.1",
                OLD,
            ),
            ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;q=0.5", Format::Text),
            ("application/openmetrics-text;version=1.0.0;q=0,*/*", Format::Text),
            ("text/plain;q=0,*/*;q=0.5", NEW),
            ("text/plain;q=0.5,application/openmetrics-text;q=0.5", Format::Text),
            ("application/*", NEW),
            ("APPLICATION/OpenMetrics-Text;VERSION=1.0.0", NEW),
            (";;;,,q=,application/openmetrics-text;q=nan", Format::Text),
        ] {
            assert_eq!(format(&headers(ACCEPT, accept)), expected, "{accept}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (accept, gzip) in [
            ("gzip", true),
            ("GZIP", true),
            ("deflate, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("gzip;q=0.1, identity;q=0.9", false),
            ("br", false),
            ("", false),
        ] {
            assert_eq!(takes_gzip(&headers(ACCEPT_ENCODING, accept)), gzip, "{accept}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
