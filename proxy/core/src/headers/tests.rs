use http::{Request, Response};
use outrigger_certs::TrustDomain;

use super::*;
use crate::{
    deadline::{Deadline, Told},
    limits::{MAX_HEADER_BYTES, MAX_HEADER_FIELDS, OWN_HEADER_BYTES, OWN_REQUEST_FIELDS},
    retry::field::Received,
    trace::{Decision, Extracted, Mint, Origin, SpanId, TraceId},
};

fn request(version: Version, fields: &[(&str, &str)]) -> request::Parts {
    let mut builder = Request::builder().version(version);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn cleaned(fields: &[(&str, &str)]) -> Result<(Vec<String>, Hop), HeaderError> {
    let mut parts = request(Version::HTTP_11, fields);
    let seen = inspect_request(&parts, Sender::Program)?;
    let hop = remove_hop_by_hop(&mut parts.headers, seen)?;
    remove_spoofed(&mut parts.headers, seen);
    let mut names: Vec<_> = parts.headers.keys().map(ToString::to_string).collect();
    names.sort();
    Ok((names, hop))
}

#[test]
fn framing_fields_are_read_in_one_way_only() {
    for (fields, error) in [
        (&[("content-length", "5"), ("transfer-encoding", "chunked")][..], HeaderError::LengthAndEncoding),
        (&[("content-length", "5"), ("content-length", "5")], HeaderError::ContentLength),
        (&[("content-length", "5,5")], HeaderError::ContentLength),
        (&[("content-length", "+5")], HeaderError::ContentLength),
        (&[("content-length", "-5")], HeaderError::ContentLength),
        (&[("content-length", "5_0")], HeaderError::ContentLength),
        (&[("content-length", "0x5")], HeaderError::ContentLength),
        (&[("content-length", "")], HeaderError::ContentLength),
        (&[("content-length", "18446744073709551621")], HeaderError::ContentLength),
        (&[("transfer-encoding", "gzip, chunked")], HeaderError::TransferEncoding),
        (&[("transfer-encoding", "chunked, chunked")], HeaderError::TransferEncoding),
        (
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            HeaderError::TransferEncoding,
        ),
        (&[("transfer-encoding", "xchunked")], HeaderError::TransferEncoding),
        (&[("transfer-encoding", "identity")], HeaderError::TransferEncoding),
        (&[("transfer-encoding", "chunked,")], HeaderError::TransferEncoding),
        (&[("transfer-encoding", "")], HeaderError::TransferEncoding),
    ] {
        assert_eq!(
            inspect_request(&request(Version::HTTP_11, fields), Sender::Program),
            Err(error),
            "{fields:?}"
        );
    }
    for (fields, body) in [
        (&[("content-length", "5")][..], true),
        (&[("content-length", "0")], false),
        (&[("content-length", "0000")], false),
        (&[("transfer-encoding", "Chunked")], true),
        (&[], false),
    ] {
        let seen = inspect_request(&request(Version::HTTP_11, fields), Sender::Program).unwrap();
        assert_eq!(seen.declares_body(), body, "{fields:?}");
    }
}

#[test]
fn fields_of_connections_are_refused_in_http2() {
    for field in [
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
    ] {
        let refused = inspect_request(&request(Version::HTTP_2, &[field]), Sender::Program);
        assert_eq!(refused, Err(HeaderError::ForbiddenInHttp2), "{field:?}");
    }
    assert!(inspect_request(&request(Version::HTTP_2, &[("te", "trailers")]), Sender::Program).is_ok());
}

#[test]
fn count_and_size_include_crumbs_and_what_is_removed_later() {
    for name in ["cookie", "x-forwarded-client-cert", "keep-alive", "x"] {
        let fields = vec![(name, ""); MAX_HEADER_FIELDS + 1];
        let refused = inspect_request(&request(Version::HTTP_11, &fields), Sender::Program);
        assert_eq!(refused, Err(HeaderError::TooMany(MAX_HEADER_FIELDS)), "{name}");
        assert!(inspect_request(&request(Version::HTTP_11, &fields[1..]), Sender::Program).is_ok(), "{name}");
    }
    let fits = "v".repeat(MAX_HEADER_BYTES - 33);
    assert!(inspect_request(&request(Version::HTTP_11, &[("x", &fits)]), Sender::Program).is_ok());
    let over = fits + "v";
    assert_eq!(
        inspect_request(&request(Version::HTTP_11, &[("x", &over)]), Sender::Program),
        Err(HeaderError::TooLarge(MAX_HEADER_BYTES))
    );
    let mut trailers = HeaderMap::new();
    trailers.insert("x", over.parse().unwrap());
    assert_eq!(inspect_trailers(&trailers), Err(HeaderError::TooLarge(MAX_HEADER_BYTES)));
    trailers.clear();
    for _ in 0..=MAX_HEADER_FIELDS {
        trailers.append("x", HeaderValue::from_static(""));
    }
    assert_eq!(inspect_trailers(&trailers), Err(HeaderError::TooMany(MAX_HEADER_FIELDS)));
}

/// What a request has when the proxy of its sender is done with it, at its largest.
fn with_all_of_ours(mut request: request::Parts) -> request::Parts {
    let fields = &mut request.headers;
    let now = crate::testing::start();
    let extracted = Extracted::of(fields, "tracecontext,b3,b3multi".parse().unwrap());
    let trace = TraceId::from_random(u64::MAX, 1);
    let place = Origin::default().child(trace, SpanId::from_random(u64::MAX), Decision::Record);
    Mint::new().inject(&place, &extracted, fields);
    let limit = Some(std::time::Duration::from_millis(9_999_999_999));
    Deadline::new(Told::default(), limit, now).pass_on(None, fields, now);
    Received::Absent.pass_on(std::num::NonZeroU32::new(99_999), fields);
    fields.insert(header::HOST, HeaderValue::try_from("h".repeat(255)).unwrap());
    fields.insert(header::IF_NONE_MATCH, HeaderValue::try_from("e".repeat(125)).unwrap());
    fields.insert(header::IF_MODIFIED_SINCE, HeaderValue::from_static("Tue, 15 Nov 1994 08:14:11 GMT"));
    request
}

#[test]
fn what_a_proxy_adds_has_room_at_the_next() {
    let size = |request: &request::Parts| -> usize {
        request.headers.iter().map(|(name, value)| field_size(name, value)).sum()
    };
    let ours = with_all_of_ours(request(Version::HTTP_2, &[]));
    assert_eq!(ours.headers.len(), OWN_REQUEST_FIELDS);
    assert!(size(&ours) <= OWN_HEADER_BYTES, "{}", size(&ours));
    let value = "v".repeat(MAX_HEADER_BYTES / MAX_HEADER_FIELDS - 33);
    let full = request(Version::HTTP_2, &vec![("x", &*value); MAX_HEADER_FIELDS]);
    assert_eq!(size(&full), MAX_HEADER_BYTES);
    assert!(inspect_request(&full, Sender::Program).is_ok());
    let full = with_all_of_ours(full);
    assert_eq!(inspect_request(&full, Sender::Program), Err(HeaderError::TooMany(MAX_HEADER_FIELDS)));
    assert!(inspect_request(&full, Sender::Proxy).is_ok());
    let (program, proxy) = (Sender::Program, Sender::Proxy);
    assert_eq!(program.http1_request().fields + OWN_REQUEST_FIELDS, proxy.http1_request().fields);
}

#[test]
fn hop_by_hop_fields_go_and_others_stay() {
    let (names, hop) = cleaned(&[
        ("host", "a"),
        ("connection", "keep-alive, X-Trace"),
        ("connection", "x-other,,"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("x-trace", "1"),
        ("x-trace", "2"),
        ("x-other", "3"),
        ("te", "trailers, deflate"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x-sum"),
        ("http2-settings", "AAMAAABk"),
        ("authorization", "secret"),
    ])
    .unwrap();
    assert_eq!(names, ["authorization", "host", "trailer"]);
    assert_eq!(hop, Hop { close: false, upgrade: None, te_trailers: true, chunked: true });
    let (names, hop) = cleaned(&[("connection", "Close")]).unwrap();
    assert!(names.is_empty() && hop.close);
}

#[test]
fn connection_cannot_remove_what_decides() {
    for name in [
        "Host",
        "authorization",
        "Content-Length",
        "transfer-encoding",
        "X-Forwarded-Client-Cert",
        "outrigger-reason",
        "x-outrigger-deadline",
        "cookie",
    ] {
        assert_eq!(cleaned(&[("connection", name)]), Err(HeaderError::Nominated), "{name}");
        assert_eq!(
            cleaned(&[("connection", &format!("close, {name}"))]),
            Err(HeaderError::Nominated),
            "{name}"
        );
    }
    for value in ["a b", "x-a;q=1", "\"close\""] {
        assert_eq!(cleaned(&[("connection", value)]), Err(HeaderError::Connection), "{value}");
    }
}

#[test]
fn upgrade_is_one_protocol_without_a_body_and_never_h2c() {
    let upgrade = |fields: &[(&str, &str)]| cleaned(fields).map(|(_, hop)| hop.upgrade);
    let websocket = Some(HeaderValue::from_static("websocket"));
    assert_eq!(upgrade(&[("connection", "Upgrade"), ("upgrade", "websocket")]), Ok(websocket.clone()));
    let empty_body =
        [("connection", "keep-alive, upgrade"), ("upgrade", "websocket"), ("content-length", "0")];
    assert_eq!(upgrade(&empty_body), Ok(websocket));
    assert_eq!(
        upgrade(&[("upgrade", "websocket")]),
        Ok(None),
        "without Connection: upgrade it is only noise"
    );
    assert_eq!(upgrade(&[("connection", "upgrade")]), Ok(None));
    let h2c = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
    assert_eq!(cleaned(&h2c).unwrap(), (Vec::new(), Hop::default()));
    for body in [("content-length", "5"), ("transfer-encoding", "chunked")] {
        let refused = upgrade(&[("connection", "upgrade"), ("upgrade", "websocket"), body]);
        assert_eq!(refused, Err(HeaderError::UpgradeWithBody), "{body:?}");
    }
    for value in ["", "websocket, h2c", "web socket"] {
        assert_eq!(
            upgrade(&[("connection", "upgrade"), ("upgrade", value)]),
            Err(HeaderError::Upgrade),
            "{value:?}"
        );
    }
}

#[test]
fn forged_fields_go_in_every_number_and_spelling() {
    let (names, _) = cleaned(&[
        ("X-Forwarded-Client-Cert", "URI=spiffe://mesh.local/ns/admin/sa/root"),
        ("x-forwarded-client-cert", "again"),
        ("Outrigger-Reason", "denied"),
        ("outrigger-id", "0"),
        ("x-outrigger-something", "1"),
        ("x-outrigger-attempt", "1"),
        ("x-outrigger-deadline", "1"),
        ("x-forwarded-for", "10.0.0.1"),
    ])
    .unwrap();
    assert_eq!(names, ["x-forwarded-for", "x-outrigger-attempt", "x-outrigger-deadline"]);
}

#[test]
fn responses_are_checked_too() {
    let response = |status: u16, field: (&str, &str)| {
        inspect_response(
            &Response::builder().status(status).header(field.0, field.1).body(()).unwrap().into_parts().0,
            Sender::Program,
        )
    };
    assert!(response(200, ("transfer-encoding", "chunked")).is_ok());
    assert_eq!(response(204, ("transfer-encoding", "chunked")), Err(HeaderError::TransferEncoding));
    assert_eq!(response(200, ("transfer-encoding", "gzip")), Err(HeaderError::TransferEncoding));
    assert_eq!(response(200, ("content-length", "5, 5")), Err(HeaderError::ContentLength));
}

#[test]
fn trailers_lose_what_belongs_in_a_head() {
    let mut trailers = HeaderMap::new();
    for name in
        ["content-length", "host", "authorization", "x-forwarded-client-cert", "set-cookie", "connection"]
    {
        trailers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        trailers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
    }
    trailers.append("grpc-status", HeaderValue::from_static("0"));
    assert!(remove_forbidden_trailers(&mut trailers));
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["grpc-status"]);
    assert!(!remove_forbidden_trailers(&mut trailers));
}

#[test]
fn the_identity_header_has_its_documented_form() {
    let domain = TrustDomain::parse("mesh.local").unwrap();
    let server = SpiffeId::new(&domain, "shop", "orders").unwrap();
    let caller = SpiffeId::new(&domain, "shop", "web").unwrap();
    let mut hash = [0xab; 32];
    hash[0] = 1;
    assert_eq!(
        forwarded_client_cert(&server, &hash, &caller),
        format!(
            "By=spiffe://mesh.local/ns/shop/sa/orders;Hash=01{};URI=spiffe://mesh.local/ns/shop/sa/web",
            "ab".repeat(31)
        )
    );
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (value, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/gRPC; charset=x", true),
        ("application/grpc-web", false),
        ("application/json", false),
        ("application/grp", false),
    ] {
        assert_eq!(is_grpc(&request(Version::HTTP_2, &[("content-type", value)]).headers), grpc, "{value}");
    }
    assert!(!is_grpc(&HeaderMap::new()));
}
