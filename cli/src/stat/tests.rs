use std::io;

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::tests::{
        self as api, fixture,
        server::{Server, failed, ok},
    },
    figures::width,
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn parsed(arguments: &[&str]) -> Result<Args, String> {
    let all = ["stat"].iter().chain(arguments);
    Command::try_parse_from(all).map(|command| command.args).map_err(|error| error.to_string())
}

fn ask(by: By, sort: Sort) -> Ask {
    let control_plane = ControlPlane { base: "http://127.0.0.1:15014".to_owned() };
    Ask { control_plane, query: api::query(by), name: None, sort, output: Output::Table, security: false }
}

fn lines(ask: &Ask, fixtures: &[&str], room: Option<usize>) -> String {
    let mut stat = api::stat(fixtures[0]);
    let others = fixtures[1..].iter().flat_map(|name| api::stat(name).rows);
    stat.rows.extend(others.filter(|row| row.source.is_none()));
    order::sort(&mut stat.rows, ask.sort);
    table::lines(ask, &stat, None, room).join("\n")
}

#[test]
fn services_in_80_columns() {
    assert_eq!(
        lines(&ask(By::Service, Sort::Name), &["services"], Some(80)),
        "\
SERVICE                  RPS  SUCCESS    P50    P90    P99  P99.9    MAX  FAILED
external                 3.0    100 %   98ms  140ms  310ms  330ms  330ms       0
shop/ledge…abase:5432      -        -      -      -      -      -      -       0
shop/orders:80         1,234  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms       6
shop/payments:443        247  80.00 %   12ms   47ms  512ms  998ms   1.2s   1,480
shop/recom…tions:8080    0.1    100 %  870us  1.1ms  1.1ms  1.1ms  1.1ms       0"
    );
}

#[test]
fn a_file_gets_everything() {
    assert_eq!(
        lines(&ask(By::Service, Sort::Rps), &["services"], None),
        "\
SERVICE                      RPS  SUCCESS    P50    P90    P99  P99.9    MAX  CONNS  FAILED  MOSTLY
shop/orders:80             1,234  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms      0       6  upstream-reset 4
shop/payments:443            247  80.00 %   12ms   47ms  512ms  998ms   1.2s      0   1,480  circuit-open 1,180
external                     3.0    100 %   98ms  140ms  310ms  330ms  330ms      0       0
shop/recommendations:8080    0.1    100 %  870us  1.1ms  1.1ms  1.1ms  1.1ms      0       0
shop/ledger-database:5432      -        -      -      -      -      -      -     12       0"
    );
}

#[test]
fn routes_in_80_columns() {
    assert_eq!(
        lines(&ask(By::Route, Sort::Hurt), &["routes"], Some(80)),
        "\
ROUTE                    SERVICE              RPS  SUCCESS    P99    MAX  FAILED
-                        shop/payments:443    247  80.00 %  512ms   1.2s   1,480
shop/orders…plit/rule-1  shop/orders:80       134  99.90 %  9.9ms   46ms       4
shop/orders…plit/rule-0  shop/orders:80     1,100  99.99 %  9.7ms   40ms       2"
    );
}

#[test]
fn edges_in_80_columns() {
    assert_eq!(
        lines(&ask(By::Edge, Sort::P99), &["edges-outbound"], Some(80)),
        "\
SOURCE         SERVICE              RPS  SUCCESS    P50    P99    MAX  FAILED
shop/orders    shop/payments:443    247  80.00 %   12ms  512ms   1.2s   1,480
shop/payments  external             3.0    100 %   98ms  310ms  330ms       0
shop/web       shop/orders:80     1,234  99.98 %  1.9ms  9.8ms   46ms       6"
    );
}

#[test]
fn security_in_80_columns() {
    let ask = Ask { security: true, ..ask(By::Edge, Sort::Name) };
    assert_eq!(
        lines(&ask, &["edges-outbound", "edges-inbound"], Some(80)),
        "\
SOURCE         TARGET         SECURITY                      RPS  SUCCESS    P99
shop/payments  (external)     ! PLAINTEXT                   3.0    100 %  310ms
-              shop/orders    ! PLAINTEXT                   2.0    100 %  2.3ms
shop/web       shop/orders    AES-128-GCM X25519MLKEM768  1,234  99.98 %  9.8ms
shop/orders    shop/payments  AES-128-GCM X25519MLKEM768    247  80.00 %  512ms"
    );
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for (by, fixtures) in [
        (By::Service, &["services"][..]),
        (By::Route, &["routes"]),
        (By::Edge, &["edges-outbound", "edges-inbound"]),
    ] {
        for security in [false, true] {
            let ask = Ask { security, ..ask(by, Sort::Name) };
            for room in 1..200 {
                for line in lines(&ask, fixtures, Some(room)).lines() {
                    assert!(width(line) <= room, "{by:?} {room}: {line:?}");
                }
            }
        }
    }
}

#[test]
fn rows_stand_in_the_order_that_was_asked_for() {
    let first = |sort| {
        let mut rows = api::stat("services").rows;
        order::sort(&mut rows, sort);
        rows.iter()
            .map(|row| {
                row.service.split([':', '/']).rfind(|part| part.parse::<u16>().is_err()).unwrap().to_owned()
            })
            .collect::<Vec<_>>()
    };
    for (sort, names) in [
        (Sort::Name, ["external", "ledger-database", "orders", "payments", "recommendations"]),
        (Sort::Hurt, ["payments", "orders", "external", "recommendations", "ledger-database"]),
        (Sort::Rps, ["orders", "payments", "external", "recommendations", "ledger-database"]),
        (Sort::Success, ["payments", "orders", "external", "recommendations", "ledger-database"]),
        (Sort::P50, ["external", "payments", "orders", "recommendations", "ledger-database"]),
        (Sort::P99, ["payments", "external", "orders", "recommendations", "ledger-database"]),
        (Sort::Max, ["payments", "external", "orders", "recommendations", "ledger-database"]),
    ] {
        assert_eq!(first(sort), names, "{sort:?}");
    }
}

#[test]
fn names_may_be_said_in_short() {
    let rows = api::stat("edges-outbound").rows;
    let found = |by, name: &str| rows.iter().filter(|row| order::is_called(row, by, name)).count();
    for name in ["shop/orders:80", "shop/orders", "orders:80", "orders"] {
        assert_eq!(found(By::Service, name), 1, "{name}");
    }
    for name in ["", "order", "orders:", "shop", "shop/", "80", "spiffe://mesh.local/ns/shop/sa/web"] {
        assert_eq!(found(By::Service, name), 0, "{name}");
    }
    for (name, count) in
        [("shop/web", 1), ("web", 1), ("orders", 2), ("spiffe://mesh.local/ns/shop/sa/payments", 2)]
    {
        assert_eq!(found(By::Edge, name), count, "{name}");
    }
}

#[test]
fn what_is_incomplete_says_so() {
    let mut stat = api::stat("services");
    assert_eq!(remarks(&stat), [""; 0]);
    stat.begins_ms = stat.from_ms + 10_000;
    stat.rows_cut = 7;
    stat.connected = 8;
    stat.incomplete = vec!["the oldest of it had to go".to_owned()];
    stat.rows.clear();
    let lines = table::lines(&ask(By::Service, Sort::Name), &stat, None, None);
    assert_eq!(
        lines,
        [
            "nothing (services, last 30 s; 6 of 8 proxies reporting)",
            "incomplete: the oldest of it had to go",
            "incomplete: nothing is known from before 20:00:45",
            "incomplete: 7 more rows; --namespace asks for fewer",
            "6 of 8 proxies reporting; the others had no traffic, or are late",
        ]
    );
}

#[test]
fn times_are_checked_before_anybody_is_asked() {
    let now = 1_795_291_265_000;
    let span =
        |arguments: &[&str]| parsed(arguments).unwrap().which.span(now).map_err(|error| error.to_string());
    assert!(matches!(span(&[]), Ok(Span::Window(window)) if window.as_secs() == 30));
    assert!(matches!(span(&["--window", "10m"]), Ok(Span::Window(window)) if window.as_secs() == 600));
    let between = |arguments: &[&str]| match span(arguments) {
        Ok(Span::Between { from_ms, to_ms }) => (from_ms - now, to_ms - now),
        other => panic!("{other:?}"),
    };
    assert_eq!(between(&["--from", "-10m"]), (-600_000, 0));
    assert_eq!(between(&["--from", "-10m", "--to", "-5m"]), (-600_000, -300_000));
    assert_eq!(between(&["--from", "1795291200", "--to", "now"]), (-65_000, 0));
    for (arguments, reason) in [
        (
            &["--from", "-5m", "--to", "-10m"][..],
            "--from 2026-11-21T19:56:05Z is not before --to 2026-11-21T19:51:05Z",
        ),
        (&["--from", "1895291200"], "--from 2030-01-22T05:46:40Z is in the future"),
    ] {
        assert_eq!(span(arguments).unwrap_err(), reason);
    }
    for (arguments, reason) in [
        (&["--from", "-10m", "--watch"][..], "cannot be used with"),
        (&["--from", "-10m", "--window", "30s"], "cannot be used with"),
        (&["--to", "-10m"], "--from"),
        (&["--from", "soon"], "want a time such as"),
        (&["--window", "1500ms"], "want whole seconds"),
        (&["--sort", "worst"], "possible values"),
    ] {
        let told = parsed(arguments).err().unwrap();
        assert!(told.contains(reason), "{arguments:?}: {told}");
    }
}

#[test]
fn a_service_may_be_named_without_saying_that_it_is_one() {
    let what = |arguments: &[&str]| {
        let Args { what, name, .. } = parsed(arguments).unwrap();
        what.with(name).map_err(|error| error.to_string())
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(what(&[]), Ok((By::Service, None)));
    assert_eq!(what(&["edges"]), Ok((By::Edge, None)));
    assert_eq!(what(&["route", "orders"]), Ok((By::Route, named("orders"))));
    assert_eq!(what(&["shop/orders"]), Ok((By::Service, named("shop/orders"))));
    assert_eq!(
        what(&["edgs", "orders"]),
        Err("want services, routes or edges before \"orders\", not \"edgs\"".to_owned())
    );
}

/// The fixture with another rate for its first row.
fn moved(rate: f64) -> Value {
    let mut json = fixture("services");
    json["rows"][0]["rate"] = rate.into();
    json["rows"].as_array_mut().unwrap().truncate(2);
    json
}

fn watched(paper: Paper, answers: Vec<Vec<u8>>) -> (String, String) {
    let turns = answers.len();
    let server = Server::start(move |_, turn| answers[turn].clone());
    let mut ask = ask(By::Service, Sort::Name);
    ask.control_plane = server.control_plane();
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut turn = 0;
    let go_on = || {
        turn += 1;
        turn < turns
    };
    Watch::new(&ask, paper, Duration::ZERO).run(&mut out, &mut notes, go_on).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(&server.base(), "BASE");
    (text(out), text(notes))
}

#[test]
fn without_a_terminal_each_answer_is_a_block() {
    let (out, notes) = watched(Paper::Blocks, vec![ok(&moved(100.0)), ok(&moved(88.0)), ok(&moved(88.1))]);
    assert_eq!(
        out,
        "\
2026-11-21T20:01:05Z  services, last 30 s  6 proxies reporting
SERVICE              RPS    +/-  SUCCESS    P50    P90    P99  P99.9    MAX  FAILED  MOSTLY
shop/orders:80       100         99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms       6  upstream-reset 4
shop/payments:443    247         80.00 %   12ms   47ms  512ms  998ms   1.2s   1,480  circuit-open 1,180

2026-11-21T20:01:05Z  services, last 30 s  6 proxies reporting
SERVICE              RPS    +/-  SUCCESS    P50    P90    P99  P99.9    MAX  FAILED  MOSTLY
shop/orders:80        88    -12  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms       6  upstream-reset 4
shop/payments:443    247      =  80.00 %   12ms   47ms  512ms  998ms   1.2s   1,480  circuit-open 1,180

2026-11-21T20:01:05Z  services, last 30 s  6 proxies reporting
SERVICE              RPS    +/-  SUCCESS    P50    P90    P99  P99.9    MAX  FAILED  MOSTLY
shop/orders:80        88      =  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms       6  upstream-reset 4
shop/payments:443    247      =  80.00 %   12ms   47ms  512ms  998ms   1.2s   1,480  circuit-open 1,180
"
    );
    assert_eq!(notes, "");
}

#[test]
fn json_is_a_line_per_answer() {
    let (out, _) = watched(Paper::Lines, vec![ok(&moved(1.0)), ok(&moved(2.0))]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [moved(1.0), moved(2.0)]);
}

#[test]
fn a_control_plane_that_is_away_is_told_once_and_waited_for() {
    let answers = || {
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec();
        vec![
            ok(&moved(1.0)),
            failed("500 Internal Server Error", "oh"),
            Vec::new(),
            half,
            ok(&json!({})),
            ok(&moved(3.0)),
        ]
    };
    for paper in [Paper::Blocks, Paper::Lines] {
        let (out, notes) = watched(paper, answers());
        assert_eq!(
            notes,
            "control plane away: answers 500 Internal Server Error: oh; trying on\n\
             control plane back after 0 s\n"
        );
        let blocks = if matches!(paper, Paper::Blocks) {
            out.matches("SERVICE ").count()
        } else {
            out.lines().count()
        };
        assert_eq!(blocks, 2, "{out}");
    }
    let (out, notes) = watched(Paper::Screen(|| (80, 24)), answers());
    assert_eq!(notes, "");
    assert_eq!(out.matches("control plane away since ").count(), 4);
    assert!(out.contains("500 Internal Server Error: oh"), "{out}");
    let last = out.rsplit("\x1b[H").next().unwrap();
    assert!(!last.contains("away"), "{last}");
}

#[test]
fn a_screen_is_never_overfull() {
    for (columns, lines) in [(80, 24), (60, 4), (20, 3), (10, 2), (1, 1)] {
        let sizes = [(80usize, 24usize), (60, 4), (20, 3), (10, 2), (1, 1)];
        let paper = Paper::Screen(match sizes.iter().position(|size| *size == (columns, lines)).unwrap() {
            0 => || (80, 24),
            1 => || (60, 4),
            2 => || (20, 3),
            3 => || (10, 2),
            _ => || (1, 1),
        });
        let (out, _) =
            watched(paper, vec![ok(&fixture("services")), failed("500 Oh", ""), ok(&fixture("services"))]);
        for page in out.split("\x1b[H").skip(1) {
            let page = page.strip_suffix("\x1b[J").unwrap();
            let shown: Vec<_> = page.lines().map(|line| line.strip_suffix("\x1b[K").unwrap()).collect();
            // On one line the cursor has none of its own.
            assert!(shown.len() <= (lines - 1).max(2), "{columns}x{lines}: {shown:?}");
            assert!(shown.iter().all(|line| width(line) <= columns), "{columns}x{lines}: {shown:?}");
        }
    }
}

#[test]
fn watching_survives_a_restart() {
    let first = Server::start(|_, _| ok(&moved(1.0)));
    let mut ask = ask(By::Service, Sort::Name);
    ask.control_plane = first.control_plane();
    let address = first.address();
    let mut servers = vec![first];
    let mut turn = 0;
    let go_on = || {
        turn += 1;
        match turn {
            1 => servers.clear(),
            3 => servers.push(Server::start_at(address, |_, _| ok(&moved(2.0)))),
            _ => {}
        }
        turn < 4
    };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    Watch::new(&ask, Paper::Lines, Duration::ZERO).run(&mut out, &mut notes, go_on).unwrap();
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    let notes = String::from_utf8(notes).unwrap();
    assert!(
        notes.starts_with("control plane away: connection refused; is it running?; trying on\n"),
        "{notes}"
    );
    assert_eq!(notes.lines().count(), 2, "{notes}");
}

#[test]
fn one_that_was_never_there_is_an_error() {
    let mut ask = ask(By::Service, Sort::Name);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ask.control_plane.base = format!("http://{free}");
    let told = Watch::new(&ask, Paper::Blocks, Duration::ZERO).run(&mut Vec::new(), &mut Vec::new(), || true);
    assert_eq!(
        told.unwrap_err().to_string(),
        format!(
            "cannot reach the control plane at http://{free}: connection refused; is it running? \
             (--control-plane-status names its status port)"
        )
    );
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    struct Gone;
    impl io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let server = Server::start(|_, _| ok(&moved(1.0)));
    let mut ask = ask(By::Service, Sort::Name);
    ask.control_plane = server.control_plane();
    let ended = Watch::new(&ask, Paper::Blocks, Duration::ZERO).run(&mut Gone, &mut Vec::new(), || true);
    assert!(ended.unwrap_err().is::<crate::output::ReaderGone>());
}
