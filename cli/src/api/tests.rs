//! Canned answers (`fixtures/`, written by hand from docs/control-plane.md), and a server that gives them.

pub(crate) mod server;

use serde_json::json;

use self::server::{Server, failed, ok};
use super::*;

pub(crate) fn fixture(name: &str) -> Value {
    let text = match name {
        "services" => include_str!("fixtures/services.json"),
        "routes" => include_str!("fixtures/routes.json"),
        "edges-outbound" => include_str!("fixtures/edges-outbound.json"),
        "edges-inbound" => include_str!("fixtures/edges-inbound.json"),
        "events" => include_str!("fixtures/events.json"),
        other => panic!("no fixture {other}"),
    };
    serde_json::from_str(text).unwrap()
}

pub(crate) fn stat(name: &str) -> Stat {
    Stat::read(Object::of(&fixture(name)).unwrap()).unwrap()
}

pub(crate) fn query(by: By) -> Query {
    let span = Span::Window(Duration::from_secs(30));
    Query { by, side: None, namespace: None, service: None, span }
}

fn told(answer: Vec<u8>) -> String {
    let server = Server::start(move |_, _| answer.clone());
    let told = format!("{:#}", server.control_plane().stat(&query(By::Service)).err().unwrap());
    told.replace(&server.base(), "BASE")
}

#[test]
fn answers_are_understood() {
    let stat = stat("services");
    assert_eq!((stat.seconds(), stat.proxies, stat.rows.len()), (30.0, 6, 5));
    assert!(stat.incomplete.is_empty());
    let [orders, payments, .., external] = stat.rows.as_slice() else { panic!() };
    assert_eq!((orders.requests, orders.failures, orders.p999_us), (37_020, 6, Some(21_500)));
    assert_eq!(
        (orders.why(), payments.why(), external.why()),
        ("upstream-reset 4".into(), "circuit-open 1,180".into(), String::new())
    );
    let events = Events::read(Object::of(&fixture("events")).unwrap()).unwrap();
    assert_eq!(events.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [41, 42, 43]);
    assert_eq!(events.events[2].severity, Severity::Error);
}

#[test]
fn why_tells_codes_where_no_proxy_gave_a_reason() {
    let outcome = |status: &str, grpc_status, reason: Option<&str>, count, failed| Outcome {
        status: status.to_owned(),
        grpc_status,
        reason: reason.map(str::to_owned),
        count,
        failed,
    };
    let mut row = stat("services").rows.remove(0);
    for (outcomes, told) in [
        (vec![outcome("5xx", None, None, 3, true), outcome("2xx", Some(0), None, 50, false)], "5xx 3"),
        (
            vec![outcome("2xx", Some(14), None, 7, true), outcome("2xx", Some(5), None, 50, false)],
            "grpc 14 7",
        ),
        (vec![outcome("2xx", Some(4), Some("deadline"), 1, true)], "deadline 1"),
        // Of an answer that was cut short.
        (vec![outcome("2xx", None, Some("stream-idle"), 2, true)], "stream-idle 2"),
        (vec![outcome("4xx", None, Some("denied"), 9, false), outcome("none", None, None, 9, false)], ""),
        (vec![], ""),
    ] {
        row.outcomes = outcomes;
        assert_eq!(row.why(), told);
    }
}

/// Of every field that is read: missing and of another type are errors with its name, more of them are none.
#[test]
fn a_field_that_is_missing_or_wrong_is_named() {
    let check = |read: &dyn Fn(&Value) -> Result<(), String>,
                 whole: &Value,
                 at: &str,
                 prefix: &str,
                 fields: &[&str]| {
        assert_eq!(read(whole), Ok(()));
        for field in fields {
            let mut broken = whole.clone();
            broken.pointer_mut(at).unwrap().as_object_mut().unwrap().remove(*field);
            assert_eq!(read(&broken), Err(format!("{prefix}{field} is missing")));
            broken.pointer_mut(at).unwrap()[field] = json!([[]]);
            let told = read(&broken).unwrap_err();
            let told = told.strip_prefix(prefix).unwrap_or_else(|| panic!("{told}"));
            assert!(told.starts_with(field), "{field}: {told}");
            broken.pointer_mut(at).unwrap()[field] = whole.pointer(at).unwrap()[field].clone();
            broken.pointer_mut(at).unwrap()["something_newer"] = json!({"a": 1});
            assert_eq!(read(&broken), Ok(()));
        }
    };
    let stat = |json: &Value| Stat::read(Object::of(json)?).map(drop);
    let events = |json: &Value| Events::read(Object::of(json)?).map(drop);
    let services = fixture("services");
    check(
        &stat,
        &services,
        "",
        "",
        &["from_ms", "to_ms", "proxies", "connected", "incomplete", "begins_ms", "rows_cut", "rows"],
    );
    let fields = [
        "side",
        "service",
        "route",
        "source",
        "target",
        "security",
        "meshed",
        "requests",
        "failures",
        "rate",
        "success",
        "p50_us",
        "p90_us",
        "p99_us",
        "p999_us",
        "max_us",
        "connections",
        "connections_failed",
        "outcomes",
    ];
    check(&stat, &services, "/rows/1", "rows[1].", &fields);
    let fields = ["status", "grpc_status", "reason", "count", "failed"];
    check(&stat, &services, "/rows/1/outcomes/2", "rows[1].outcomes[2].", &fields);
    check(&events, &fixture("events"), "", "", &["events", "next", "missed"]);
    let fields = ["seq", "at_ms", "kind", "severity", "subject", "message", "details"];
    check(&events, &fixture("events"), "/events/2", "events[2].", &fields);
}

#[test]
fn names_are_harmless_when_they_come_in() {
    let mut json = fixture("services");
    json["rows"][0]["service"] = "shop/\u{1b}[31morders\r\n:80".into();
    let stat = Stat::read(Object::of(&json).unwrap()).unwrap();
    assert_eq!(stat.rows[0].service, "shop/\u{fffd}[31morders\u{fffd}\u{fffd}:80");
}

#[test]
fn a_question_says_all_that_was_asked() {
    let mut query = query(By::Route);
    assert_eq!(query.path(Side::Inbound), "/stat?by=route&side=inbound&window=30s");
    query.namespace = Some("a b&c=é".to_owned());
    query.service = Some("shop/orders:80".to_owned());
    query.span = Span::Between { from_ms: 1, to_ms: 2 };
    assert_eq!(
        query.path(Side::Outbound),
        "/stat?by=route&side=outbound&from=1&to=2&namespace=a%20b%26c%3D%C3%A9&service=shop%2Forders%3A80"
    );
}

#[test]
fn edges_without_a_proxy_at_their_source_come_from_the_called_side() {
    let server = Server::start(|path, _| {
        let inbound = path.contains("side=inbound");
        let mut json = fixture(if inbound { "edges-inbound" } else { "edges-outbound" });
        json["rows_cut"] = if inbound { 7 } else { 5 }.into();
        ok(&json)
    });
    let mut answer = server.control_plane().stat(&query(By::Edge)).unwrap();
    assert_eq!((answer.read.rows_cut, &answer.json["rows_cut"]), (12, &json!(12)));
    let rows: Vec<_> = answer.read.rows.iter().map(|row| (row.side.as_str(), row.meshed)).collect();
    assert_eq!(rows, [("outbound", true), ("outbound", true), ("outbound", false), ("inbound", false)]);
    assert_eq!(answer.json["rows"].as_array().unwrap().len(), 4);
    answer.pick(|row| !row.meshed, <[_]>::reverse);
    assert_eq!((answer.read.rows.len(), answer.json["rows"].as_array().unwrap().len()), (2, 2));
    assert_eq!(answer.json["rows"][0]["side"], "inbound");
    assert_eq!(answer.read.rows[0].side, "inbound");

    let one = Query { side: Some(Side::Inbound), ..query(By::Edge) };
    assert_eq!(server.control_plane().stat(&one).unwrap().read.rows.len(), 2);
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn answers_that_are_none_are_told_with_their_address() {
    for (answer, expected) in [
        (
            ok(&json!([])),
            "what BASE/stat?by=service&side=outbound&window=30s says is of another version or broken: it is a list, not an object",
        ),
        (
            ok(&json!({"rows": []})),
            "what BASE/stat?by=service&side=outbound&window=30s says is of another version or broken: from_ms is missing",
        ),
        (
            failed("500 Internal Server Error", ""),
            "the control plane at BASE answers 500 Internal Server Error",
        ),
        (
            b"HTTP/1.1 302 Found\r\nlocation: https://login.example/\xff\x9b?to=/stat\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "the control plane at BASE answers 302 Found, to https://login.example/\u{fffd}\u{fffd}?to=/stat: not followed (--control-plane-status names its status port)",
        ),
        (
            failed("400 Bad Request", "window: \u{1b}[1mno\nside: no\n"),
            "the control plane at BASE answers 400 Bad Request: window: \u{fffd}[1mno; side: no",
        ),
        (
            failed("404 Not Found", "here is /status\n"),
            "the control plane at BASE has no /stat?by=service&side=outbound&window=30s: is it older than this command? It says: here is /status",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<!--".to_vec(),
            "what BASE/stat?by=service&side=outbound&window=30s says is not JSON: expected value at line 1 column 1",
        ),
    ] {
        assert_eq!(told(answer), expected);
    }
    for (answer, part) in [
        (b"220 mail.example ESMTP\r\n".to_vec(), "no answer from the control plane at BASE: "),
        (Vec::new(), "no answer from the control plane at BASE: "),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"from".to_vec(),
            "no answer from the control plane at BASE: the answer broke off: ",
        ),
    ] {
        let told = told(answer);
        assert!(
            told.starts_with(part) && told.ends_with("(--control-plane-status names its status port)"),
            "{told}"
        );
    }
}

#[test]
fn who_knows_the_address_is_told_the_reason_alone() {
    let gone = ControlPlane { base: "http://a:1/".to_owned() };
    for (error, reason) in [
        (
            "cannot reach the control plane at http://a:1: connection refused; is it running? (--control-plane-status names its status port)",
            "connection refused; is it running?",
        ),
        (
            "no answer from the control plane at http://a:1: the answer broke off (--control-plane-status names its status port)",
            "the answer broke off",
        ),
        (
            "the control plane at http://a:1 answers 500 Internal Server Error: oh",
            "answers 500 Internal Server Error: oh",
        ),
        (
            "the control plane at http://a:1 does not answer within 10 s (--control-plane-status names its status port)",
            "does not answer within 10 s",
        ),
        ("what http://a:1/stat says is not JSON: no", "what http://a:1/stat says is not JSON: no"),
    ] {
        assert_eq!(gone.reason(&anyhow!("{error}")), reason);
    }
}

#[test]
fn large_answers_are_taken() {
    let mut json = fixture("services");
    let row = json["rows"][0].clone();
    json["rows"] = "ROWS".into();
    let rows = format!("[{}]", vec![row.to_string(); 18_000].join(","));
    let body = json.to_string().replace("\"ROWS\"", &rows);
    assert!(body.len() > 10_000_000, "{}", body.len());
    let server = Server::start(move |_, _| failed("200 OK", &body));
    assert_eq!(server.control_plane().stat(&query(By::Service)).unwrap().read.rows.len(), 18_000);
}
