use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
};

use super::*;
use crate::api::tests::{
    query,
    server::{Server, failed, ok},
    stat,
};

const NOW: i64 = 1_795_291_265_400;

fn state(by: By) -> State {
    let mut state = State::new("http://127.0.0.1:15014", by, Sort::Hurt, Duration::from_secs(30), false);
    let mut answer = match by {
        By::Service => stat("services"),
        By::Route => stat("routes"),
        By::Edge => stat("edges-outbound"),
    };
    if by == By::Edge {
        answer.rows.extend(stat("edges-inbound").rows.into_iter().filter(|row| !row.meshed));
    }
    state.take((by, Ok(answer)), NOW);
    state.now_ms = NOW;
    state
}

fn drawn(state: &State, columns: u16, lines: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| view::draw(state, frame.area(), frame.buffer_mut())).unwrap();
    terminal.backend().buffer().clone()
}

/// As a person reads it.
fn shown(state: &State, columns: u16, lines: u16) -> String {
    let buffer = drawn(state, columns, lines);
    let lines = buffer.content().chunks(usize::from(columns)).map(|line| {
        let line: String = line.iter().map(Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

fn press(state: &mut State, keys: &str) {
    for c in keys.chars() {
        assert_eq!(state.press(key(KeyCode::Char(c))), Action::None, "{c}");
    }
}

#[test]
fn services_on_80_by_24() {
    assert_eq!(
        shown(&state(By::Service), 80, 24).trim_end(),
        "\
outrigger top  127.0.0.1:15014                               6 proxies  20:01:05
1,484 rps  96.66 %  50 failures/s  5 services, last 30 s
[services]  routes   edges   sorted by what hurts
SERVICE                  RPS  FAIL/S  SUCCESS    P50    P90    P99  P99.9    MAX
shop/payments:443        247      49  80.00 %   12ms   47ms  512ms  998ms   1.2s
shop/orders:80         1,234     0.2  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms
external                 3.0       0    100 %   98ms  140ms  310ms  330ms  330ms
shop/recom…tions:8080    0.1       0    100 %  870us  1.1ms  1.1ms  1.1ms  1.1ms
shop/ledge…abase:5432      -       0        -      -      -      -      -      -














q quit  s sort  / filter  Tab view  space pause  ? help"
    );
}

#[test]
fn services_on_60_by_10() {
    assert_eq!(
        shown(&state(By::Service), 60, 10),
        "\
outrigger top  127.0.0.1:15014           6 proxies  20:01:05
1,484 rps  96.66 %  50 failures/s  5 services, last 30 s
[services]  routes   edges   sorted by what hurts
SERVICE                   RPS  FAIL/S  SUCCESS    P99    MAX
shop/payments:443         247      49  80.00 %  512ms   1.2s
shop/orders:80          1,234     0.2  99.98 %  9.8ms   46ms
external                  3.0       0    100 %  310ms  330ms
shop/recom…ations:8080    0.1       0    100 %  1.1ms  1.1ms
shop/ledge…tabase:5432      -       0        -      -      -
q quit  s sort  / filter  Tab view  space pause  ? help"
    );
}

#[test]
fn services_on_200_by_50() {
    assert_eq!(
        shown(&state(By::Service), 200, 50).lines().take(10).collect::<Vec<_>>().join("\n"),
        "\
outrigger top  127.0.0.1:15014                                                                                                                                                       6 proxies  20:01:05
1,484 rps  96.66 %  50 failures/s  5 services, last 30 s
[services]  routes   edges   sorted by what hurts
SERVICE                      RPS  FAIL/S  SUCCESS    P50    P90    P99  P99.9    MAX  MOSTLY
shop/payments:443            247      49  80.00 %   12ms   47ms  512ms  998ms   1.2s  circuit-open 1,180
shop/orders:80             1,234     0.2  99.98 %  1.9ms  4.3ms  9.8ms   22ms   46ms  upstream-reset 4
external                     3.0       0    100 %   98ms  140ms  310ms  330ms  330ms
shop/recommendations:8080    0.1       0    100 %  870us  1.1ms  1.1ms  1.1ms  1.1ms
shop/ledger-database:5432      -       0        -      -      -      -      -      -
"
    );
}

#[test]
fn routes_and_edges_on_80_columns() {
    assert_eq!(
        shown(&state(By::Route), 80, 9),
        "\
outrigger top  127.0.0.1:15014                               6 proxies  20:01:05
1,481 rps  96.65 %  50 failures/s  3 routes, last 30 s
 services  [routes]  edges   sorted by what hurts
ROUTE                    SERVICE              RPS  FAIL/S  SUCCESS    P99    MAX
-                        shop/payments:443    247      49  80.00 %  512ms   1.2s
shop/orders…plit/rule-1  shop/orders:80       134     0.1  99.90 %  9.9ms   46ms
shop/orders…plit/rule-0  shop/orders:80     1,100     0.1  99.99 %  9.7ms   40ms

q quit  s sort  / filter  Tab view  space pause  ? help"
    );
    assert_eq!(
        shown(&state(By::Edge), 80, 9),
        "\
outrigger top  127.0.0.1:15014                               6 proxies  20:01:05
1,486 rps  96.66 %  50 failures/s  4 edges, last 30 s
 services   routes  [edges]  sorted by what hurts
SOURCE           SERVICE              RPS  FAIL/S  SUCCESS    P50    P99    MAX
shop/orders      shop/payments:443    247      49  80.00 %   12ms  512ms   1.2s
shop/web         shop/orders:80     1,234     0.2  99.98 %  1.9ms  9.8ms   46ms
! shop/payments  external             3.0       0    100 %   98ms  310ms  330ms
! -              shop/orders:80       2.0       0    100 %  1.5ms  2.3ms  2.3ms
q quit  s sort  / filter  Tab view  space pause  ? help"
    );
}

#[test]
fn any_size_is_drawn() {
    for by in [By::Service, By::Route, By::Edge] {
        let mut state = state(by);
        for _ in 0..3 {
            for columns in [1, 2, 3, 7, 12, 20, 40, 79, 80, 81, 132, 300] {
                for lines in [1, 2, 3, 4, 5, 8, 9, 24, 100] {
                    drawn(&state, columns, lines);
                }
            }
            state.help = !state.help;
            state.away = Some((NOW, "connection refused".repeat(20)));
            state.scroll = usize::MAX;
        }
    }
    drawn(&State::new("", By::Edge, Sort::Hurt, Duration::ZERO, true), 80, 24);
}

#[test]
fn colour_only_where_it_is_wanted() {
    let colours = |state: &State| {
        let buffer = drawn(state, 80, 24);
        let mut colours: Vec<_> = buffer.content().iter().flat_map(|cell| [cell.fg, cell.bg]).collect();
        colours.sort_by_key(|colour| format!("{colour:?}"));
        colours.dedup();
        colours
    };
    let mut state = state(By::Service);
    assert_eq!(colours(&state), [Color::Reset]);
    state.away = Some((NOW, "gone".to_owned()));
    assert_eq!(colours(&state), [Color::Reset]);
    state.colour = true;
    // p99 of 310 ms, success of 80 %.
    assert_eq!(colours(&state), [Color::Red, Color::Reset, Color::Yellow]);
}

#[test]
fn what_is_bad_stands_out_without_colour_too() {
    let state = state(By::Service);
    let buffer = drawn(&state, 80, 24);
    let text = shown(&state, 80, 24);
    let line = text.lines().position(|line| line.starts_with("shop/payments:443")).unwrap();
    let cells = &buffer.content()[line * 80..(line + 1) * 80];
    let bold: String =
        cells.iter().filter(|cell| cell.modifier.contains(Modifier::BOLD)).map(Cell::symbol).collect();
    assert_eq!(bold.trim(), "4980.00 %512ms");
}

#[test]
fn keys_do_what_the_help_says() {
    let mut state = state(By::Service);
    for quit in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(state.press(key(quit)), Action::Quit);
    }
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.press(interrupt), Action::Quit);

    let mut seen = vec![state.sort];
    for _ in 0..7 {
        press(&mut state, "s");
        seen.push(state.sort);
    }
    use Sort::{Hurt, Max, Name, P50, P99, Rps, Success};
    assert_eq!(seen, [Hurt, Rps, Success, P50, P99, Max, Name, Hurt]);

    press(&mut state, "?");
    assert!(shown(&state, 80, 24).contains("hold the figures still"));
    press(&mut state, "x");
    assert!(!state.help);

    for by in [By::Route, By::Edge, By::Service] {
        assert_eq!(state.press(key(KeyCode::Tab)), Action::Ask(by));
        assert!(shown(&state, 80, 24).contains("asking…"));
    }
    assert_eq!(state.press(key(KeyCode::BackTab)), Action::Ask(By::Edge));
}

#[test]
fn sorting_moves_the_rows_at_once() {
    let mut state = state(By::Service);
    let first = |state: &State| state.rows()[0].service.clone();
    assert_eq!(first(&state), "shop/payments:443");
    press(&mut state, "s");
    assert_eq!(first(&state), "shop/orders:80");
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut state = state(By::Service);
    press(&mut state, "/PAYs q?");
    assert_eq!((state.filter.as_str(), state.rows().len()), ("PAYs q?", 0));
    assert!(shown(&state, 80, 24).contains("nothing here contains \"PAYs q?\""));
    assert!(shown(&state, 80, 24).contains("/PAYs q?_"));
    for _ in 0..4 {
        state.press(key(KeyCode::Backspace));
    }
    assert_eq!(state.rows().len(), 1);
    state.press(key(KeyCode::Enter));
    assert!(!state.typing && shown(&state, 80, 24).contains("filter: PAY"));
    press(&mut state, "/");
    state.press(key(KeyCode::Esc));
    assert_eq!((state.filter.as_str(), state.rows().len()), ("", 5));
    press(&mut state, "/");
    press(&mut state, &"é".repeat(100));
    assert!(state.filter.len() <= 65);
}

#[test]
fn what_is_paused_stands_still_but_can_turn() {
    let mut state = state(By::Service);
    press(&mut state, " ");
    let mut other = stat("services");
    other.rows.clear();
    state.take((By::Service, Ok(other.clone())), NOW);
    assert_eq!(state.rows().len(), 5);
    assert!(shown(&state, 80, 24).contains("PAUSED"));
    state.press(key(KeyCode::Tab));
    state.take((By::Route, Ok(stat("routes"))), NOW);
    assert_eq!(state.rows().len(), 3);
    press(&mut state, " ");
    state.take((By::Route, Ok(other)), NOW);
    assert_eq!(state.rows().len(), 0);
}

#[test]
fn an_answer_to_an_earlier_question_is_dropped() {
    let mut state = state(By::Service);
    state.press(key(KeyCode::Tab));
    state.take((By::Service, Ok(stat("services"))), NOW);
    assert!(state.stat.is_none());
}

#[test]
fn figures_stay_while_the_control_plane_is_away() {
    let mut state = state(By::Service);
    state.take((By::Service, Err("connection refused".to_owned())), NOW + 1000);
    state.take((By::Service, Err("garbage".to_owned())), NOW + 2000);
    let text = shown(&state, 80, 24);
    assert!(text.contains("shop/payments:443"), "{text}");
    assert!(text.ends_with("control plane away since 20:01:06: garbage"), "{text}");
    state.take((By::Service, Ok(stat("services"))), NOW + 3000);
    assert!(shown(&state, 80, 24).ends_with("? help"));
}

#[test]
fn scrolling_ends_at_the_ends() {
    let mut state = state(By::Service);
    let first = |state: &State| {
        shown(state, 80, 8).lines().nth(4).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let mut seen = vec![first(&state)];
    for code in [
        KeyCode::Down,
        KeyCode::Char('j'),
        KeyCode::PageDown,
        KeyCode::Up,
        KeyCode::PageUp,
        KeyCode::End,
        KeyCode::Home,
    ] {
        state.press(key(code));
        seen.push(format!("{}", state.scroll));
    }
    assert_eq!(seen, ["shop/payments:443", "1", "2", "4", "3", "0", "4", "0"]);
}

#[test]
fn many_rows_say_which_part_is_shown() {
    let mut state = state(By::Service);
    let stat = state.stat.as_mut().unwrap();
    let row = stat.rows[0].clone();
    stat.rows = vec![row; 100];
    state.scroll = 10;
    assert!(shown(&state, 80, 24).contains("  11-29 of 100"), "{}", shown(&state, 80, 24));
}

/// The thread that asks: each second, at once after a key, and it ends with its listener.
#[test]
fn asking_goes_on_and_ends() {
    let server = Server::start(|path, turn| match (turn, path.contains("by=route")) {
        (1, _) => failed("500 Internal Server Error", "oh"),
        (_, true) => ok(&crate::api::tests::fixture("routes")),
        (_, false) => ok(&crate::api::tests::fixture("services")),
    });
    let (ask, asked) = channel();
    let (tell, told) = sync_channel(1);
    let control_plane = server.control_plane();
    let thread = thread::spawn(move || fetch(&control_plane, query(By::Service), &asked, &tell));
    let next = || told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(next(), (By::Service, Ok(stat)) if stat.rows.len() == 5));
    assert!(matches!(next(), (By::Service, Err(why)) if why.contains("500")));
    ask.send(query(By::Edge)).unwrap();
    ask.send(query(By::Route)).unwrap();
    loop {
        match next() {
            (By::Route, Ok(stat)) => break assert_eq!(stat.rows.len(), 3),
            // Whichever it was at when the keys were pressed.
            (By::Service | By::Edge | By::Route, _) => {}
        }
    }
    drop(ask);
    drop(told);
    thread.join().unwrap();
}
