use proptest::prelude::*;

use super::*;
use crate::limits::{MAX_HEADER_BYTES, Sender};

const ROOM: Room = Sender::Program.http1_request();

fn requests(bytes: &[u8]) -> Result<State, FramingError> {
    let mut guard = Guard::new(Side::Requests, ROOM);
    guard.on_bytes(bytes).map(|()| guard.state)
}

fn response(asked: Asked, bytes: &[u8]) -> Result<State, FramingError> {
    let mut guard = Guard::new(Side::Responses, ROOM);
    guard.on_request(asked);
    guard.on_bytes(bytes).map(|()| guard.state)
}

#[test]
fn legal_requests_pass_and_the_next_head_is_found() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\ncontent-length:5\r\n\r\na\nb\n\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTRANSFER-ENCODING:\tChunked \r\n\r\nA;x=\"y\"\r\n\n\r\n3456789\r\n0\r\nX-Sum: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nX-Content-Length: no\r\nContent-Length-X: no\r\n\r\n",
        "GET / HTTP/1.0\r\nX: caf\u{e9} \t tab\r\nEmpty:\r\n!#$%&'*+-.^_`|~09: 1\r\n\r\n",
    ] {
        assert_eq!(requests(text.as_bytes()), Ok(State::Between), "{text:?}");
        let twice = text.repeat(2);
        assert_eq!(requests(twice.as_bytes()), Ok(State::Between), "{twice:?}");
    }
}

#[test]
fn ambiguous_requests_do_not() {
    let post = "POST / HTTP/1.1\r\n";
    for (rest, error) in [
        ("Host: a\n\r\n", FramingError::BareLf),
        ("Host: a\r\n\n", FramingError::BareLf),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", FramingError::LengthAndEncoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", FramingError::LengthAndEncoding),
        ("Content-Length: 5\r\nContent-Length: 5\r\n\r\n", FramingError::SeveralLengths),
        ("Content-Length: 5\r\nContent-Length: 6\r\n\r\n", FramingError::SeveralLengths),
        ("Content-Length: 5, 5\r\n\r\n", FramingError::BadLength),
        ("Content-Length: +5\r\n\r\n", FramingError::BadLength),
        ("Content-Length: 0x5\r\n\r\n", FramingError::BadLength),
        ("Content-Length:\r\n\r\n", FramingError::BadLength),
        ("Content-Length: 18446744073709551621\r\n\r\n", FramingError::BadLength),
        ("Transfer-Encoding: xchunked\r\n\r\n", FramingError::BadEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n", FramingError::BadEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", FramingError::BadEncoding),
        ("Transfer-Encoding: \x0bchunked\r\n\r\n", FramingError::BadField),
        ("Transfer-Encoding: chunked;q=1\r\n\r\n", FramingError::BadEncoding),
    ] {
        assert_eq!(requests(format!("{post}{rest}").as_bytes()), Err(error), "{rest:?}");
    }
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (rest, error) in [
        ("5\nhello\r\n0\r\n\r\n", FramingError::BareLf),
        ("5\r\nhello\n0\r\n\r\n", FramingError::BareLf),
        ("0\r\n\n", FramingError::BareLf),
        ("0\r\nX: 1\n\r\n", FramingError::BareLf),
        ("5\r\nhelloo\r\n", FramingError::BadChunk),
        ("\r\n", FramingError::BadChunk),
        ("0x5\r\n", FramingError::BadChunk),
        ("-5\r\n", FramingError::BadChunk),
        ("5_0\r\n", FramingError::BadChunk),
        (" 5\r\n", FramingError::BadChunk),
        ("5 ;x\r\n", FramingError::BadChunk),
        ("0000000000000005\r\n", FramingError::BadChunk),
        ("10000000000000000\r\n", FramingError::BadChunk),
    ] {
        assert_eq!(requests(format!("{chunked}{rest}").as_bytes()), Err(error), "{rest:?}");
    }
    assert_eq!(requests(b"GET /a#b HTTP/1.1\r\n"), Err(FramingError::Fragment));
    for line in [
        "GET / HTTP/1.32",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /a b HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "G(T / HTTP/1.1",
        "/ HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
    ] {
        assert_eq!(requests(format!("{line}\r\n").as_bytes()), Err(FramingError::BadFirstLine), "{line:?}");
    }
    for (line, error) in [
        (" folded: 1", FramingError::Folded),
        ("\tfolded: 1", FramingError::Folded),
        ("X : 1", FramingError::BadField),
        ("Content-Length : 1", FramingError::BadField),
        (": 1", FramingError::BadField),
        ("X", FramingError::BadField),
        ("X(: 1", FramingError::BadField),
        ("X\x00: 1", FramingError::BadField),
        ("X: \x00", FramingError::BadField),
        ("X: a\rb", FramingError::BadField),
        ("X: \x7f", FramingError::BadField),
        ("caf\u{e9}: 1", FramingError::BadField),
    ] {
        assert_eq!(requests(format!("{post}{line}\r\n").as_bytes()), Err(error), "{line:?}");
        assert_eq!(requests(format!("{chunked}0\r\n{line}\r\n").as_bytes()), Err(error), "trailer {line:?}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(requests(old), Err(FramingError::BadEncoding));
    assert_eq!(requests(b"\r\n\r\n\r\n"), Err(FramingError::Unasked));
}

#[test]
fn what_is_too_much_is_cut() {
    let line = "GET / HTTP/1.1\r\n";
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let value = |bytes: usize| format!("X:{}", "v".repeat(bytes - 2));
    let target = |bytes: usize| format!("GET /{} HTTP/1.1", "p".repeat(bytes - 1));
    for (text, result) in [
        (format!("{line}{}\r\n", value(MAX_HEADER_BYTES - 1)), Ok(State::Head)),
        (format!("{line}{}", value(MAX_HEADER_BYTES + 1)), Err(FramingError::TooLarge(ROOM))),
        (format!("{line}X: 1\r\n{}\r\n", value(MAX_HEADER_BYTES - 3)), Err(FramingError::TooLarge(ROOM))),
        (format!("{line}{}", "X: 1\r\n".repeat(ROOM.fields)), Ok(State::Head)),
        (format!("{line}{}", "X: 1\r\n".repeat(ROOM.fields + 1)), Err(FramingError::TooLarge(ROOM))),
        (format!("{}\r\n", target(MAX_URI_BYTES)), Ok(State::Head)),
        (target(MAX_URI_BYTES + 64), Err(FramingError::TargetTooLong)),
        (format!("{chunked}0\r\n{}", "X: 1\r\n".repeat(ROOM.fields)), Ok(State::Trailers)),
        (format!("{chunked}0\r\n{}", "X: 1\r\n".repeat(ROOM.fields + 1)), Err(FramingError::TooLarge(ROOM))),
        (format!("{chunked}5;{}", "x".repeat(MAX_CHUNK_LINE_BYTES)), Err(FramingError::BadChunk)),
    ] {
        assert_eq!(requests(text.as_bytes()), result, "{:?}, {} bytes", &text[..40], text.len());
    }
    let slow = format!("HTTP/1.1 200 {}", "x".repeat(MAX_FIRST_LINE_BYTES));
    assert_eq!(response(Asked::Other, slow.as_bytes()), Err(FramingError::TooLarge(ROOM)));
}

#[test]
fn answers_end_where_their_request_says() {
    let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(response(Asked::Other, sized), Ok(State::Body(5)));
    assert_eq!(response(Asked::Head, sized), Ok(State::Between));
    assert_eq!(response(Asked::Connect, b"HTTP/1.1 200 OK\r\n\r\n\n\n"), Ok(State::Raw));
    assert_eq!(response(Asked::Connect, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"), Ok(State::Between));
    assert_eq!(response(Asked::Other, b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n\n\n"), Ok(State::Raw));
    assert_eq!(response(Asked::Other, b"HTTP/1.0 200 OK\r\n\r\nuntil\nthe\nend"), Ok(State::Raw));
    assert_eq!(response(Asked::Other, b"HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n"), Ok(State::Between));
    let informed =
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", &sized[..], b"hello"]
            .concat();
    assert_eq!(response(Asked::Other, &informed), Ok(State::Between));
}

#[test]
fn answers_begin_with_a_status() {
    for (line, good) in [
        ("HTTP/1.1 200 OK", true),
        ("HTTP/1.0 200 ", true),
        ("HTTP/1.1 200", true),
        ("HTTP/1.1 599 Non\u{e9} sense", true),
        ("HTTP/1.1 20", false),
        ("HTTP/1.1 2000", false),
        ("HTTP/1.1 099 X", false),
        ("HTTP/1.1  200 OK", false),
        ("HTTP/2 200 OK", false),
        ("HTTP/1.1\t200 OK", false),
        ("HTTP/1.1 200 O\x00K", false),
        ("ICY 200 OK", false),
        ("", true),
    ] {
        let result = response(Asked::Other, format!("{line}\r\n").as_bytes());
        assert_eq!(result.is_ok(), good, "{line:?}: {result:?}");
    }
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(Guard::new(Side::Responses, ROOM).on_bytes(b"H"), Err(FramingError::Unasked));
    let twice = [&answer[..], answer].concat();
    assert_eq!(response(Asked::Other, &twice), Err(FramingError::Unasked));
    assert_eq!(response(Asked::Head, answer), Err(FramingError::Unasked));
    let mut guard = Guard::new(Side::Responses, ROOM);
    for _ in 0..2 {
        guard.on_request(Asked::Other);
        assert_eq!(guard.on_bytes(answer), Ok(()));
    }
    let both = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response(Asked::Other, both), Err(FramingError::LengthAndEncoding));
}

#[test]
fn after_an_upgrade_everything_passes() {
    let mut guard = Guard::new(Side::Requests, ROOM);
    guard.on_bytes(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n").unwrap();
    guard.on_upgraded();
    assert_eq!(guard.on_bytes(b"\x81\x05\n\n\n\0"), Ok(()));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "X: y\r\n",
        "\r\n",
        "\n",
        "3\r\n",
        "abc",
        "0\r\n",
        "a\r\n",
        "1234567890",
        "#",
        "\r",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn controls_are_found_wherever_they_are(text in prop::collection::vec(prop_oneof![
        8 => 0x20..=0xff_u8, 1 => prop::sample::select(vec![b'\t', 0x7e, 0x80]), 1 => any::<u8>(),
    ], 0..40)) {
        let want = text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
        prop_assert_eq!(has_controls(&text), want);
    }

    #[test]
    fn how_the_bytes_are_cut_does_not_matter(bytes in bytes(), cuts in prop::collection::vec(1..9_usize, 1..40)) {
        let whole = requests(&bytes);
        let mut guard = Guard::new(Side::Requests, ROOM);
        let mut rest = &bytes[..];
        let mut cuts = cuts.into_iter().cycle();
        let mut result = Ok(());
        while !rest.is_empty() && result.is_ok() {
            let (piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            result = guard.on_bytes(piece);
            rest = after;
        }
        prop_assert_eq!(result.map(|()| guard.state), whole);
    }
}
