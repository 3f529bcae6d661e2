use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroU128},
    sync::{Condvar, mpsc},
    time::UNIX_EPOCH,
};

use outrigger_certs::SpiffeId;
use outrigger_core::{
    trace::{SpanId, TraceId},
    verdict::Reason,
};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::telemetry::{Direction, Ended, Handled, Protocol, Traced, Try};

mod filters;
mod formats;

fn record() -> RequestRecord<'static> {
    RequestRecord {
        direction: Direction::Inbound,
        protocol: Protocol::Http1,
        method: "GET",
        authority: "orders.shop",
        path: "/cart",
        status: 200,
        grpc_status: None,
        reason: None,
        detail: "",
        peer: None,
        caller: "10.0.0.1:40000".parse().unwrap(),
        service: ":8080",
        route: "",
        endpoint: None,
        received: 0,
        sent: 12,
        first_byte: Duration::from_micros(1500),
        duration: Duration::from_micros(2500),
        attempts: 1,
        tries: &[],
        security: "",
        trace: None,
        handled: Handled::default(),
        id: 0xabc,
    }
}

fn connection() -> ConnectionRecord<'static> {
    ConnectionRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Tls,
        reason: Some(Reason::ConnectFailed),
        detail: "10.0.0.9:443: refused",
        peer: None,
        caller: "10.0.0.1:40000".parse().unwrap(),
        service: "shop/db:5432",
        authority: "db.shop",
        endpoint: Some("10.0.0.9:443".parse().unwrap()),
        received: 1,
        sent: 2,
        connected: Duration::ZERO,
        duration: Duration::from_secs(1),
        attempts: 2,
        security: "",
        trace: None,
        id: 1,
    }
}

/// The example of the W3C's specification.
fn traced() -> Traced {
    Traced {
        trace: TraceId(NonZeroU128::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736).unwrap()),
        span: SpanId(NonZeroU64::new(0x00f0_67aa_0ba9_02b7).unwrap()),
        sampled: true,
    }
}

fn tries() -> [Try; 4] {
    let us = Duration::from_micros;
    let of = |endpoint: &str, began, connect, lasted, hedge, ended| Try {
        endpoint: endpoint.parse().unwrap(),
        began: us(began),
        connect: us(connect),
        lasted: us(lasted),
        hedge,
        ended,
    };
    [
        of("10.0.0.5:80", 0, 1200, 1200, false, Ended::Failed(Reason::ConnectFailed)),
        of("[fd00::6]:80", 1250, 0, 9000, false, Ended::Cancelled),
        of("10.0.0.7:80", 4000, 300, 400, true, Ended::Status(503)),
        of("10.0.0.8:80", 5000, 250, 700, true, Ended::Grpc(14)),
    ]
}

fn connection_line(record: &ConnectionRecord<'_>) -> String {
    let mut bytes = Vec::new();
    json::connection(&mut bytes, &mut encode::Clock::default(), UNIX_EPOCH, record);
    String::from_utf8(bytes).unwrap()
}

fn line(record: &RequestRecord<'_>, now: SystemTime) -> String {
    let mut bytes = Vec::new();
    json::request(&mut bytes, &mut encode::Clock::default(), now, record);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_line_has_what_is_known_and_nothing_else() {
    let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
    assert_eq!(
        line(&record(), at),
        "{\"time\":\"2023-11-14T22:13:20.042Z\",\"kind\":\"request\",\"direction\":\"inbound\",\"protocol\":\"http1\",\
         \"method\":\"GET\",\"authority\":\"orders.shop\",\"path\":\"/cart\",\"status\":200,\"caller\":\"10.0.0.1:40000\",\
         \"service\":\":8080\",\"received\":0,\"sent\":12,\"first_byte_us\":1500,\"duration_us\":2500,\"attempts\":1,\
         \"id\":\"0000000000000abc\"}\n"
    );
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    let full = RequestRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Grpc,
        grpc_status: Some(7),
        reason: Some(Reason::Denied),
        detail: "by shop/only-cart",
        peer: Some(&peer),
        endpoint: Some("[fd00::3]:8080".parse().unwrap()),
        route: "shop/r/0",
        id: u64::MAX,
        ..record()
    };
    let value: Value = serde_json::from_str(&line(&full, at)).unwrap();
    assert_eq!(value["grpc_status"], 7);
    assert_eq!(value["reason"], "denied");
    assert_eq!(value["detail"], "by shop/only-cart");
    assert_eq!(value["peer"], peer.as_str());
    assert_eq!(value["endpoint"], "[fd00::3]:8080");
    assert_eq!(value["id"], "ffffffffffffffff");
}

#[test]
fn what_resilience_did_is_told() {
    let handled = Handled {
        queued: Duration::from_millis(3),
        gave_up: Some("body-too-large"),
        hedged: Some("lost"),
        fallback: Some("answer"),
        cache: Some("hit"),
        limit: "ServerPolicy/shop/orders/per-caller",
    };
    let value: Value =
        serde_json::from_str(&line(&RequestRecord { handled, ..record() }, UNIX_EPOCH)).unwrap();
    assert_eq!(value["queued_us"], 3000);
    assert_eq!(value["gave_up"], "body-too-large");
    assert_eq!(value["hedged"], "lost");
    assert_eq!(value["fallback"], "answer");
    assert_eq!(value["cache"], "hit");
    assert_eq!(value["limit"], "ServerPolicy/shop/orders/per-caller");
}

#[test]
fn connections_have_lines_too() {
    assert_eq!(
        connection_line(&connection()),
        "{\"time\":\"1970-01-01T00:00:00.000Z\",\"kind\":\"connection\",\"direction\":\"outbound\",\"protocol\":\"tls\",\
         \"authority\":\"db.shop\",\"reason\":\"connect-failed\",\"detail\":\"10.0.0.9:443: refused\",\
         \"caller\":\"10.0.0.1:40000\",\"service\":\"shop/db:5432\",\"endpoint\":\"10.0.0.9:443\",\"received\":1,\"sent\":2,\
         \"connected_us\":0,\"duration_us\":1000000,\"attempts\":2,\"id\":\"0000000000000001\"}\n"
    );
    let security = "TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768";
    let text = connection_line(&ConnectionRecord { security, trace: Some(traced()), ..connection() });
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["security"], security);
    assert_eq!(value["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[test]
fn a_trace_is_named() {
    let mut record = RequestRecord { trace: Some(traced()), ..record() };
    let value: Value = serde_json::from_str(&line(&record, UNIX_EPOCH)).unwrap();
    assert_eq!(value["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(value["span"], "00f067aa0ba902b7");
    assert_eq!(value["sampled"], true);
    record.trace = Some(Traced { sampled: false, ..traced() });
    let value: Value = serde_json::from_str(&line(&record, UNIX_EPOCH)).unwrap();
    assert_eq!((value["trace"].is_string(), value.get("sampled")), (true, None));
}

#[test]
fn tries_are_listed_when_there_is_more_than_one() {
    let all = tries();
    let one = RequestRecord { tries: &all[2..3], ..record() };
    let value: Value = serde_json::from_str(&line(&one, UNIX_EPOCH)).unwrap();
    assert_eq!((&value["connect_us"], value.get("tries")), (&Value::from(300), None));
    let pooled = [Try { connect: Duration::ZERO, ..all[0] }];
    let value: Value =
        serde_json::from_str(&line(&RequestRecord { tries: &pooled, ..record() }, UNIX_EPOCH)).unwrap();
    assert_eq!(value.get("connect_us"), None, "a connection was there");
    let value: Value =
        serde_json::from_str(&line(&RequestRecord { attempts: 5, tries: &all, ..record() }, UNIX_EPOCH))
            .unwrap();
    assert_eq!(value["connect_us"], 250, "of the last one");
    assert_eq!(
        value["tries"],
        serde_json::json!([
            { "endpoint": "10.0.0.5:80", "began_us": 0, "connect_us": 1200, "lasted_us": 1200, "ended": "connect-failed" },
            { "endpoint": "[fd00::6]:80", "began_us": 1250, "lasted_us": 9000, "ended": "cancelled" },
            { "endpoint": "10.0.0.7:80", "began_us": 4000, "connect_us": 300, "lasted_us": 400, "hedge": true, "ended": "503" },
            { "endpoint": "10.0.0.8:80", "began_us": 5000, "connect_us": 250, "lasted_us": 700, "hedge": true, "ended": "grpc-14" },
        ])
    );
}

#[test]
fn addresses_are_written_as_the_standard_library_does() {
    for text in ["0.0.0.0:0", "9.10.99.100:1", "255.255.255.255:65535", "[::1]:80", "[fd00::9%3]:443"] {
        let caller: SocketAddr = text.parse().unwrap();
        let value: Value =
            serde_json::from_str(&line(&RequestRecord { caller, ..record() }, UNIX_EPOCH)).unwrap();
        assert_eq!(value["caller"], caller.to_string());
    }
}

#[test]
fn what_follows_a_question_mark_is_not_logged() {
    let text = line(&RequestRecord { path: "/login?password=hunter2", ..record() }, UNIX_EPOCH);
    assert!(text.contains("\"/login\"") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_long_text_is_cut_at_a_character() {
    let path = format!("/{}", "ü".repeat(2000));
    let value: Value =
        serde_json::from_str(&line(&RequestRecord { path: &path, ..record() }, UNIX_EPOCH)).unwrap();
    let logged = value["path"].as_str().unwrap();
    assert!(logged.ends_with("ü…") && logged.len() < 1100, "{}", logged.len());
}

#[test]
fn days_are_counted_as_calendars_do() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_709_164_800, "2024-02-29T00:00:00.000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        let value: Value =
            serde_json::from_str(&line(&record(), UNIX_EPOCH + Duration::from_secs(seconds))).unwrap();
        assert_eq!(value["time"], text);
    }
}

proptest! {
    /// Whatever a caller sends: one line, valid JSON, the text itself, and nothing a terminal would obey.
    #[test]
    fn no_text_forges_a_line(path in "[^?]{0,300}", authority in any::<String>(), detail in any::<String>()) {
        let record = RequestRecord { path: &path, authority: &authority, detail: &detail, ..record() };
        let text = line(&record, UNIX_EPOCH);
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert!(!text.trim_end().chars().any(char::is_control));
        let value: Value = serde_json::from_str(&text).unwrap();
        for (name, expected) in [("path", &path), ("authority", &authority), ("detail", &detail)] {
            if !expected.is_empty() && expected.len() <= 1024 {

                prop_assert_eq!(value[name].as_str(), Some(expected.as_str()));
            }
        }
    }
}

/// Each byte that must not stand as it is, at each place of an otherwise plain text of each small length.
#[test]
fn no_place_in_a_text_is_overlooked() {
    for special in ["\"", "\\", "\n", "\u{0}", "\u{1f}", "\u{7f}", "\u{85}", "\u{9b}", "\u{2028}", "\u{202e}"]
    {
        for length in 0..20 {
            for at in 0..=length {
                let path = format!("{}{special}{}", "p".repeat(at), "~".repeat(length - at));
                let text = line(&RequestRecord { path: &path, ..record() }, UNIX_EPOCH);
                let value: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value["path"], path.as_str());
                let as_it_is = format!("\"{path}\"");
                assert!(!text.contains(&as_it_is), "{path:?} stands as it is in {text}");
            }
        }
    }
}

// ---- the queue ------------------------------------------------------------------------------------------------------

/// A file that hands over what is written, and can be made to stand still.
struct Pipe {
    written: mpsc::Sender<Vec<u8>>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut open = lock(&self.gate.0);
        while !*open {
            open = self.gate.1.wait(open).unwrap();
        }
        self.written.send(bytes.to_vec()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log(open: bool) -> (AccessLog, mpsc::Receiver<Vec<u8>>, impl Fn()) {
    let (written, read) = mpsc::channel();
    let gate = Arc::new((Mutex::new(open), Condvar::new()));
    let pipe = Pipe { written, gate: Arc::clone(&gate) };
    let release = move || {
        *lock(&gate.0) = true;
        gate.1.notify_all();
    };
    (AccessLog::to(pipe).unwrap(), read, release)
}

#[test]
fn lines_of_all_workers_arrive_whole() {
    let (log, read, _) = log(true);
    thread::scope(|scope| {
        for worker in 0..4_u64 {
            let mut lane = log.lane();
            scope.spawn(move || {
                for n in 0..500 {
                    let caller = SocketAddr::from(([10, 0, 0, worker as u8], 1));
                    lane.request(&RequestRecord { id: n, caller, ..record() });
                }
            });
        }
    });
    log.flush(Duration::from_secs(10));
    let text = String::from_utf8(read.try_iter().flatten().collect()).unwrap();
    assert_eq!((text.lines().count(), log.dropped()), (2000, 0));
    for worker in 0..4 {
        let caller = format!("10.0.0.{worker}:1");
        let ids: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|value| value["caller"] == caller.as_str())
            .map(|value| value["id"].as_str().unwrap().to_owned())
            .collect();
        assert!(ids.is_sorted() && !ids.is_empty(), "worker {worker} is in order");
    }
}

#[test]
fn lines_gather_under_load_and_none_waits_for_the_next() {
    let (log, read, _) = log(true);
    let mut lane = log.lane();
    // What comes first is written without anybody asking for it, whatever the writer was about to do.
    for pause in (0..20).map(|n| 5 * n) {
        thread::sleep(Duration::from_millis(pause));
        lane.request(&record());
        // Less than the writer's own patience, which would hide that nobody has woken it.
        read.recv_timeout(Duration::from_secs(4)).unwrap();
    }
    let began = Instant::now();
    for _ in 0..100 {
        lane.request(&record());
        thread::sleep(Duration::from_millis(1));
    }
    log.flush(Duration::from_secs(10));
    let gathered = began.elapsed().div_duration_f64(GATHER);
    let writes = read.try_iter().count();
    assert!(writes as f64 <= gathered + 3.0, "{writes} writes within {gathered} times to gather");
}

#[test]
fn what_lines_have_gathered_in_is_given_back() {
    let (log, _read, _) = log(true);
    let mut lane = log.lane();
    let queue = Arc::clone(&lane.0.as_ref().unwrap().queue);
    let one = line(&record(), SystemTime::now()).len();
    for _ in 0..ENOUGH_BYTES / one {
        lane.request(&record());
    }
    log.flush(Duration::from_secs(10));
    assert_eq!(log.dropped(), 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    let kept = || {
        let spare = queue.spare.take();
        let bytes = spare.as_ref().map_or(0, |batch| batch.0.capacity());
        queue.spare.store(spare);
        bytes
    };
    while kept() > KEEP_IDLE_BYTES {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    lane.request(&record());
    log.flush(Duration::from_secs(10));
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_reader_that_stands_still_costs_lines_and_nothing_else() {
    let (log, read, release) = log(false);
    let mut lane = log.lane();
    let one = line(&record(), SystemTime::now()).len();
    // The writer may have taken one lane full out before it stood still.
    let sent = 3 * LANE_BYTES / one;
    for _ in 0..sent {
        lane.request(&record());
    }
    let dropped = log.dropped() as usize;
    assert!(dropped >= sent / 3 - 10 && dropped < sent, "{dropped} of {sent}");
    release();
    log.flush(Duration::from_secs(10));
    let text = String::from_utf8(read.try_iter().flatten().collect()).unwrap();
    assert_eq!(text.lines().count() + dropped, sent);
    lane.request(&record());
    log.flush(Duration::from_secs(10));
    assert_eq!(read.try_iter().flatten().filter(|byte| *byte == b'\n').count(), 1, "it goes on");
}

#[test]
fn a_file_that_cannot_be_written_counts_as_dropped() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = AccessLog::to(Full).unwrap();
    let mut lane = log.lane();
    for _ in 0..3 {
        lane.request(&record());
    }
    log.flush(Duration::from_secs(10));
    assert_eq!(log.dropped(), 3);
}

/// A disk that is full within a line, and has room again: no line is made of parts of two.
#[test]
fn a_line_that_was_torn_stays_alone() {
    struct Disk {
        room: usize,
        text: Arc<Mutex<Vec<u8>>>,
    }
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            lock(&self.text).extend_from_slice(&bytes[..taken]);
            match taken {
                0 => {
                    // Somebody makes room after it was refused.
                    self.room = usize::MAX;
                    Err(ErrorKind::StorageFull.into())
                }
                taken => Ok(taken),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let one = line(&record(), SystemTime::now()).len();
    for room in [0, 1, one - 1, one, one + 1, one + 20, 2 * one] {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let log = AccessLog::to(Disk { room, text: Arc::clone(&text) }).unwrap();
        let mut lane = log.lane();
        for _ in 0..6 {
            lane.request(&record());
            log.flush(Duration::from_secs(10));
        }
        let text = String::from_utf8(lock(&text).clone()).unwrap();
        let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
        let lost = usize::from(room % one < one - 1);
        let torn = lost * usize::from(room % one > 0);
        assert_eq!((whole, log.dropped()), (6 - lost, lost as u64), "{room}: {text}");
        assert_eq!((text.lines().count(), text.ends_with('\n')), (whole + torn, true), "{room}: {text}");
    }
}

/// A pipe that another process has made one that does not block.
#[test]
fn a_pipe_that_is_full_for_a_moment_loses_nothing() {
    struct Now(mpsc::Sender<Vec<u8>>, usize);
    impl Write for Now {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 3 {
                0 => Err(ErrorKind::WouldBlock.into()),
                1 => Err(ErrorKind::Interrupted.into()),
                _ => self
                    .0
                    .send(bytes[..1.max(bytes.len() / 2)].to_vec())
                    .map_err(io::Error::other)
                    .map(|()| 1.max(bytes.len() / 2)),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (written, read) = mpsc::channel();
    let log = AccessLog::to(Now(written, 0)).unwrap();
    log.lane().request(&record());
    log.flush(Duration::from_secs(10));
    let text: Vec<u8> = read.try_iter().flatten().collect();
    assert!(serde_json::from_slice::<Value>(&text).is_ok() && log.dropped() == 0);
}

#[test]
fn a_named_pipe_without_a_reader_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (tell, told) = mpsc::channel();
    let opened = path.clone();
    thread::spawn(move || {
        let log = AccessLog::file(&opened).unwrap();
        let mut lane = log.lane();
        lane.request(&record());
        log.flush(Duration::from_secs(10));
        tell.send(log).unwrap();
    });
    let log = told.recv_timeout(Duration::from_secs(30)).expect("it does not wait for a reader");
    // What was written before somebody read is there.
    let mut lines = io::BufRead::lines(io::BufReader::new(File::open(&path).unwrap()));
    assert!(serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).is_ok());
    assert_eq!(log.dropped(), 0);
}

#[test]
fn off_is_off() {
    let log = AccessLog::off();
    log.lane().request(&record());
    log.flush(Duration::from_secs(10));
    assert_eq!(log.dropped(), 0);
}

#[test]
fn what_is_held_back_is_counted_apart() {
    let (log, read, _) = log(true);
    let log = log.shaped(Some(Format::parse("%{status} %{kind}").unwrap()), Only::parse("errors").unwrap());
    let (mut one, mut two) = (log.lane(), log.lane());
    for status in [200, 404, 503] {
        one.request(&RequestRecord { status, ..record() });
        two.request(&RequestRecord { status, ..record() });
    }
    two.connection(&connection());
    two.connection(&ConnectionRecord { reason: None, ..connection() });
    log.flush(Duration::from_secs(10));
    let text = String::from_utf8(read.try_iter().flatten().collect()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["- connection", "503 request", "503 request"]);
    assert_eq!((log.filtered(), log.dropped()), (5, 0));
}
