use clap::Parser;
use serde_json::json;

use super::*;
use crate::api::tests::{
    fixture,
    server::{Server, failed, ok},
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn stream(server: &Server, arguments: &[&str], room: Option<fn() -> usize>) -> Stream {
    let base = server.base();
    let all = ["events", "--control-plane-status", &base].into_iter().chain(arguments.iter().copied());
    let args = Command::try_parse_from(all).unwrap().args;
    // The fixture's events are of some minutes around 20:00.
    let since_ms = 1_795_291_265_000 - i64::try_from(args.since.as_millis()).unwrap();
    Stream { args, room, since_ms, after: 0, last_ms: i64::MIN, headed: false }
}

fn listed(arguments: &[&str], room: Option<fn() -> usize>) -> (String, String) {
    let server = Server::start(|path, _| match path {
        "/events?after=0&limit=1000&wait=0s" => ok(&fixture("events")),
        "/events?after=43&limit=1000&wait=0s" => ok(&json!({"events": [], "next": 43, "missed": 0})),
        other => failed("400 Bad Request", other),
    });
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    stream(&server, arguments, room).list(&mut out, &mut notes).unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
}

#[test]
fn a_file_gets_whole_times_and_lines() {
    assert_eq!(
        listed(&[], None).0,
        "\
TIME                  SEVERITY  KIND                   SUBJECT  MESSAGE
2026-11-21T20:00:00Z  info      configuration-taken    generation 7  4 files, 12 objects
2026-11-21T20:01:00Z  warning   circuit-opened         shop/payments:443  10.0.0.3:8443: 5 failures in a row (limit 5)
2026-11-21T20:01:04Z  error     capture-broken         spiffe://mesh.local/ns/shop/sa/web  the redirect rules are gone: traffic of this pod leaves in plaintext and nothing of it is counted or authorized
"
    );
}

#[test]
fn a_terminal_gets_no_line_that_is_too_long() {
    for room in [|| 40, || 60, || 80, || 200] as [fn() -> usize; 4] {
        let (out, _) = listed(&["--details"], Some(room));
        for line in out.lines() {
            assert!(line.chars().count() <= room(), "{}: {line:?}", room());
        }
        let words: Vec<_> = out.split_whitespace().collect();
        assert!(words.join(" ").contains("the redirect rules are gone: traffic of this pod"), "{out}");
    }
}

#[test]
fn only_what_was_asked_for() {
    let kinds = |arguments: &[&str]| {
        let (out, notes) = listed(arguments, None);
        let kinds: Vec<_> =
            out.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect();
        (kinds, notes)
    };
    for (arguments, expected) in [
        (&["--kind", "capture-broken"][..], &["capture-broken"][..]),
        (
            &["--kind", "capture-broken", "--kind", "configuration-taken"],
            &["configuration-taken", "capture-broken"],
        ),
        (&["--severity", "warning"], &["circuit-opened", "capture-broken"]),
        (&["--severity", "error"], &["capture-broken"]),
        (&["--since", "30s"], &["circuit-opened", "capture-broken"]),
    ] {
        assert_eq!(kinds(arguments).0, expected, "{arguments:?}");
    }
    let (none, notes) = kinds(&["--kind", "draining", "--since", "10m"]);
    assert!(none.is_empty());
    assert_eq!(notes, "no such event within 10 min (--since goes further)\n");
}

#[test]
fn details_are_lines_of_their_own() {
    let (out, _) = listed(&["--details", "--kind", "configuration-taken"], None);
    assert!(out.ends_with("12 objects\n    files: [\"orders.yaml\"]\n    generation: 7\n"), "{out}");
}

#[test]
fn programs_get_one_object() {
    let (out, _) = listed(&["-o", "json", "--severity", "error"], None);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["events"][0], fixture("events")["events"][2]);
    assert_eq!(
        (json["events"].as_array().unwrap().len(), &json["next"], &json["missed"]),
        (1, &json!(43), &json!(0))
    );
}

#[test]
fn what_is_no_kind_is_refused() {
    let refused = |arguments: &[&str]| Command::try_parse_from(arguments).err().unwrap().to_string();
    let told = refused(&["events", "--kind", "circuit-opend"]);
    assert!(
        told.contains("'circuit-opend' for '--kind <KIND>'") && told.contains("circuit-opened"),
        "{told}"
    );
    assert!(refused(&["events", "--since", "lately"]).contains("want a duration such as"));
    assert!(refused(&["events", "--severity", "bad"]).contains("info, warning, error"));
}

/// What a new event looks like.
fn page(numbers: std::ops::RangeInclusive<u64>, at_ms: i64, missed: u64) -> Value {
    let events = numbers.clone().map(|seq| {
        json!({"seq": seq, "at_ms": at_ms, "kind": "draining", "severity": "info", "subject": format!("number {seq}"),
               "reporter": null, "message": "m", "details": {}})
    });
    json!({"events": events.collect::<Vec<_>>(), "next": numbers.end(), "missed": missed})
}

/// What `--watch` says to these answers, one after the other, and what it asks.
fn watched(answers: Vec<Vec<u8>>) -> (Vec<String>, String, Vec<String>) {
    let turns = answers.len();
    let server = Server::start(move |_, turn| answers[turn].clone());
    let mut stream = stream(&server, &["--watch"], None);
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut turn = 0;
    let go_on = || {
        turn += 1;
        turn < turns
    };
    stream.watch(&mut out, &mut notes, (Duration::from_secs(2), Duration::ZERO), go_on).unwrap();
    let out = String::from_utf8(out).unwrap();
    let told = out
        .lines()
        .skip(1)
        .map(|line| line.split("number ").nth(1).unwrap().trim_end_matches("  m").to_owned());
    let notes = String::from_utf8(notes).unwrap().replace(&server.base(), "BASE");
    let asked =
        server.asked().iter().map(|path| path.replace("/events?", "").replace("&limit=1000", "")).collect();
    (told.collect(), notes, asked)
}

const AT: i64 = 1_795_291_265_000;

#[test]
fn watching_goes_on_where_it_was() {
    let (told, notes, asked) = watched(vec![
        // What is gone before the first question was never promised.
        ok(&page(7..=8, AT, 6)),
        ok(&page(9..=9, AT, 0)),
        ok(&json!({"events": [], "next": 9, "missed": 0})),
        ok(&page(13..=14, AT, 3)),
    ]);
    assert_eq!(told, ["7", "8", "9", "13", "14"]);
    assert_eq!(notes, "events 10..12 missed\n");
    assert_eq!(asked, ["after=0&wait=0s", "after=8&wait=2s", "after=9&wait=2s", "after=9&wait=2s"]);
}

#[test]
fn a_control_plane_that_is_away_is_told_once() {
    let (told, notes, asked) = watched(vec![
        ok(&page(1..=1, AT, 0)),
        Vec::new(),
        failed("503 Service Unavailable", "not yet"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_vec(),
        ok(&page(2..=2, AT, 0)),
        ok(&page(3..=3, AT, 0)),
    ]);
    assert_eq!(told, ["1", "2", "3"]);
    let lines: Vec<_> = notes.lines().collect();
    assert!(lines[0].starts_with("control plane away: ") && lines[0].ends_with("; trying on"), "{notes}");
    assert_eq!(lines[1..], ["control plane back after 0 s"], "{notes}");
    assert_eq!(asked[4..], ["after=1&wait=0s", "after=2&wait=2s"]);
}

#[test]
fn numbers_that_begin_again_hide_and_repeat_nothing() {
    let (told, notes, asked) = watched(vec![
        ok(&page(98..=99, AT, 0)),
        // It has lost its state and knows three.
        ok(&json!({"events": [], "next": 3, "missed": 0})),
        ok(
            &json!({"events": [page(2..=2, AT, 0)["events"][0], page(3..=3, AT + 5, 0)["events"][0]], "next": 3, "missed": 0}),
        ),
        ok(&page(4..=4, AT + 9, 0)),
    ]);
    assert_eq!(told, ["98", "99", "3", "4"]);
    assert_eq!(notes, "event numbers have begun again: the control plane is at 3, not 99\n");
    assert_eq!(asked, ["after=0&wait=0s", "after=99&wait=2s", "after=0&wait=2s", "after=3&wait=2s"]);
}

/// However many it tells of: it ends, and numbers that are none do not overflow.
#[test]
fn a_list_ends_whatever_is_said() {
    let server = Server::start(|_, turn| {
        let mut page = page(turn as u64 + 1..=turn as u64 + 1, AT, u64::MAX);
        page["events"][0]["message"] = "\u{9b}2J\u{1b}]0;gone\u{7}".into();
        ok(&page)
    });
    for (arguments, escaped) in
        [(&[][..], "\u{fffd}2J\u{fffd}]0;gone\u{fffd}"), (&["-o", "json"], "\\u009b2J\\u001b]0;gone\\u0007")]
    {
        let before = server.asked().len();
        let mut out = Vec::new();
        stream(&server, arguments, None).list(&mut out, &mut Vec::new()).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!((server.asked().len() - before, out.matches(escaped).count()), (ANSWERS, ANSWERS));
    }
}

/// One that never says anything new is asked once a second, not in a circle.
#[test]
fn a_number_that_stands_still_is_waited_for() {
    let server = Server::start(|_, turn| ok(&page(3..=3, AT, if turn > 1 { u64::MAX } else { 0 })));
    let (mut out, mut notes, mut turn) = (Vec::new(), Vec::new(), 0);
    let pause = Duration::from_millis(50);
    let begun = Instant::now();
    let go_on = || {
        turn += 1;
        turn < 5
    };
    stream(&server, &["--watch"], None).watch(&mut out, &mut notes, (WAIT, pause), go_on).unwrap();
    assert!(begun.elapsed() >= 4 * pause, "{:?}", begun.elapsed());
    assert_eq!(String::from_utf8(out).unwrap().matches("number 3").count(), 1);
}

#[test]
fn one_that_was_never_there_is_an_error() {
    let server = Server::start(|_, _| failed("500 Internal Server Error", ""));
    let mut stream = stream(&server, &["--watch"], None);
    let ended = stream.watch(&mut Vec::new(), &mut Vec::new(), (Duration::ZERO, Duration::ZERO), || true);
    assert!(ended.unwrap_err().to_string().contains("500 Internal Server Error"));
}

#[test]
fn watching_survives_a_restart() {
    let first = Server::start(|_, _| ok(&page(1..=1, AT, 0)));
    let address = first.address();
    let mut stream = stream(&first, &["--watch", "-o", "json"], None);
    let mut servers = vec![first];
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut turn = 0;
    let go_on = || {
        turn += 1;
        match turn {
            1 => servers.clear(),
            3 => servers.push(Server::start_at(address, |path, _| match path.contains("after=1&") {
                true => ok(&page(2..=2, AT, 0)),
                false => failed("400 Bad Request", path),
            })),
            _ => {}
        }
        turn < 4
    };
    stream.watch(&mut out, &mut notes, (Duration::from_secs(2), Duration::ZERO), go_on).unwrap();
    let numbers = String::from_utf8(out).unwrap();
    let numbers: Vec<_> =
        numbers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(2)]);
    let notes = String::from_utf8(notes).unwrap();
    assert_eq!(notes.matches("control plane away: connection refused").count(), 1, "{notes}");
    assert_eq!(notes.matches("control plane back").count(), 1, "{notes}");
}

/// A reader that leaves after the first line, as `head -1`.
struct Head(usize);

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += 1;
        if self.0 > 1 { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let server = Server::start(|_, turn| ok(&page(turn as u64 + 1..=turn as u64 + 1, AT, 0)));
    let mut stream = stream(&server, &["--watch"], None);
    let ended = stream.watch(&mut Head(0), &mut Vec::new(), (Duration::ZERO, Duration::ZERO), || true);
    assert!(ended.unwrap_err().is::<crate::output::ReaderGone>());
}
