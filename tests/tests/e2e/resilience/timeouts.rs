//! Every timeout, deadlines over several hops, and one retrying layer per call graph.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::wait_for;
use outrigger_testkit::raw::{RawServer, Step};

use crate::support::{
    SOON, Test,
    app::{Asked, Say},
    call::{Call, Line},
    farm::{Builder, Farm, Found, Stand, hold, with_and_without, with_and_without_of},
    raw,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("timeouts_connect", connect),
        Test::in_farm("timeouts_request", request),
        Test::in_farm("timeouts_per_try", per_try),
        Test::in_farm("timeouts_response_header_begins_with_the_end_of_the_request", response_header),
        Test::in_farm("timeouts_stream_idle", stream_idle),
        Test::in_farm("timeouts_idle_of_opaque_connections", idle),
        Test::in_farm("timeouts_max_connection_age", max_connection_age),
        Test::in_farm("deadlines_are_passed_on_and_only_shrink", deadlines),
        Test::in_farm("deadlines_that_have_passed_never_reach_the_application", expired),
        Test::in_farm("deadlines_end_a_chain_of_three_hops", chain_deadline),
        Test::in_farm("retries_do_not_multiply_over_three_hops", chain_retries),
    ]
}

/// What takes so long has taken longer than every timeout here, by far.
const LONG: Duration = Duration::from_secs(4);

fn alone<'f>(farm: &'f Farm, hosts: &[usize], lines: &str) -> Builder<'f> {
    let alone = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n";
    farm.stand(hosts).policy(&format!("{alone}{lines}"))
}

/// Answers after [`LONG`].
fn slow(_: usize, _: &Asked) -> Say {
    Say::ok("good").after(LONG)
}

/// Refused for this reason before [`LONG`].
fn refused(stand: &Stand<'_>, call: &Call, status: u16, reason: &str) -> Result<Found> {
    let told = stand.send(call)?;
    hold!(told.status == status && told.reason() == reason, "{told:?}");
    hold!(told.took < LONG, "only after {:?}", told.took);
    Ok(Ok(()))
}

fn connect(farm: &Farm) -> Result<()> {
    // Accepts connections and never says a word, so TLS does not come about.
    let pod = farm.lab().pod("silent")?;
    with_and_without(
        "  timeouts: {connect: 200ms}\n",
        "",
        |lines| {
            let builder = alone(farm, &[], lines).stranger(IpAddr::V4(pod.ipv4()));
            let address = SocketAddr::from(([0, 0, 0, 0], builder.port()));
            let silent = pod.enter(|| RawServer::start(address, vec![vec![Step::Hold]]))??;
            // For as long as the test runs.
            std::mem::forget(silent);
            builder.empty()
        },
        |stand| refused(stand, &stand.get("/"), 504, "connect-timeout"),
    )
}

fn request(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {request: 300ms}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(slow),
        |stand| refused(stand, &stand.get("/"), 504, "request-timeout"),
    )
}

fn per_try(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {perTry: 300ms}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(slow),
        |stand| refused(stand, &stand.get("/"), 504, "response-timeout"),
    )
}

fn response_header(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {responseHeader: 300ms}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(slow),
        |stand| refused(stand, &stand.get("/"), 504, "response-timeout"),
    )?;
    // An upload that takes longer is not what it is about; it is for `perTry`.
    with_and_without(
        "  timeouts: {responseHeader: 1s}\n",
        "  timeouts: {perTry: 1s}\n",
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("good")),
        |stand| {
            let mut stream = raw::connect(stand.web(), stand.target)?;
            stream.write_all(
                b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nconnection: close\r\n\r\n01234",
            )?;
            thread::sleep(Duration::from_millis(1500)); // the upload's own time
            drop(stream.write_all(b"56789"));
            let answer = raw::read_to_end(&mut stream)?;
            hold!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(Ok(()))
        },
    )
}

fn stream_idle(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {streamIdle: 2s}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("0123456789").stalling(LONG)),
        |stand| {
            // Seen at the caller's own connection: it ends before the body does.
            let told = stand.send(&stand.get("/"))?;
            hold!(told.status == 200 && !told.whole && told.took < LONG, "{told:?}");
            hold!(told.body.len() < 10, "{told:?}");
            Ok(Ok(()))
        },
    )?;
    // Before the head the caller is told why.
    with_and_without(
        "  timeouts: {streamIdle: 300ms}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(slow),
        |stand| refused(stand, &stand.get("/"), 504, "stream-idle"),
    )
}

fn idle(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {idle: 300ms}\n",
        "",
        |lines| {
            let policy = format!("  outlierEjection: {{enabled: false}}\n{lines}");
            let builder = farm.stand(&[0]).policy(&policy).protocol("tcp");
            let address = SocketAddr::from(([0, 0, 0, 0], builder.port()));
            let greet = vec![Step::Write(b"hello".into()), Step::Hold];
            let server = farm.hosts[0].pod.enter(|| RawServer::start(address, vec![greet]))??;
            std::mem::forget(server);
            builder.empty()
        },
        |stand| {
            let mut stream = raw::connect(stand.web(), stand.target)?;
            let mut greeting = [0; 5];
            stream.read_exact(&mut greeting).context("greeting")?;
            stream.set_read_timeout(Some(LONG))?;
            match stream.read(&mut greeting) {
                Ok(0) => Ok(Ok(())),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Ok(())),
                other => Ok(Err(format!("the connection is still open: {other:?}"))),
            }
        },
    )
}

/// Own ports of connections that are open in this pod to that address: who reused one shows only one.
fn open_connections(stand: &Stand<'_>) -> Result<BTreeSet<String>> {
    let tables = stand.web().enter(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let octets = stand.host(0).pod.ipv4().octets();
    let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(octets), stand.port);
    let open = tables.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_open = fields.get(2) == Some(&remote.as_str()) && fields.get(3) == Some(&"01");
        is_open.then(|| fields[1].to_owned())
    });
    Ok(open.collect())
}

fn max_connection_age(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {maxConnectionAge: 500ms}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("good")),
        |stand| {
            let mut seen = BTreeSet::new();
            let mut line = Line::open(stand.web(), stand.target)?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) && seen.len() < 2 {
                let told = line.send(&stand.get("/"))?;
                hold!(told.status == 200, "{told:?}");
                seen.extend(open_connections(stand)?);
                thread::sleep(Duration::from_millis(20)); // not to keep the machine busy for nothing
            }
            hold!(seen.len() >= 2, "all went over {seen:?}");
            Ok(Ok(()))
        },
    )
}

/// What a field says in milliseconds.
fn millis(asked: &Asked, name: &str) -> Option<u64> {
    asked.headers.get(name)?.to_str().ok()?.parse().ok()
}

fn deadlines(farm: &Farm) -> Result<()> {
    // Each proxy tells what is left of its own limit ...
    with_and_without(
        "  timeouts: {request: 5s}\n",
        "  timeouts: {request: 0s}\n",
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("good")),
        |stand| {
            stand.send(&stand.get("/"))?;
            let left = stand.apps[0].asked().first().and_then(|asked| millis(asked, "x-outrigger-deadline"));
            hold!(left.is_some_and(|left| (1..=5000).contains(&left)), "{left:?} ms left of 5 s");
            Ok(Ok(()))
        },
    )?;
    // ... or of the caller's, whichever is less.
    let stand = alone(farm, &[0], "").apps(|_, _| Say::ok("good"))?;
    for (sent, most) in [("700", 700), ("60000", 30_000), ("nonsense", 30_000)] {
        stand.send(&stand.get("/").field("x-outrigger-deadline", sent))?;
        let left = stand.apps[0].asked().last().and_then(|asked| millis(asked, "x-outrigger-deadline"));
        ensure!(left.is_some_and(|left| left > 0 && left <= most), "{left:?} ms left of {sent}");
    }
    let grpc = alone(farm, &[0], "").protocol("grpc").apps(|_, _| Say::ok("good"))?;
    let told = grpc.post("/outrigger.test.Echo/Unary", "x").field("grpc-timeout", "2S").grpc(grpc.web())?;
    ensure!(told.grpc == Some(0), "{told:?}");
    let asked = grpc.apps[0].asked();
    let left = asked[0].headers.get("grpc-timeout").context("no grpc-timeout")?.to_str()?;
    ensure!(left != "2S", "grpc-timeout went on as it came");
    let left = asked.first().and_then(|asked| millis(asked, "x-outrigger-deadline"));
    ensure!(left.is_some_and(|left| left > 0 && left <= 2000), "{left:?} ms left of 2 s");
    Ok(())
}

fn expired(farm: &Farm) -> Result<()> {
    let stand = |_: &str| alone(farm, &[0], "").apps(|_, _| Say::ok("good"));
    for (fields, grpc) in
        [(["x-outrigger-deadline", "0", "5000"], false), (["grpc-timeout", "1n", "5S"], true)]
    {
        let [name, over, good] = fields;
        with_and_without_of(
            &[over, good],
            |value| Ok((stand(value)?, value.to_owned())),
            |(stand, value)| {
                let told = if grpc {
                    let call = stand.post("/outrigger.test.Echo/Unary", "x").field(name, value);
                    let told = call.grpc(stand.web())?;
                    hold!(told.grpc == Some(4), "{told:?}");
                    told
                } else {
                    let told = stand.send(&stand.get("/").field(name, value))?;
                    hold!(told.status == 504, "{told:?}");
                    told
                };
                hold!(told.reason() == "deadline-exceeded", "{told:?}");
                hold!(stand.total() == 0, "it reached the application {} times", stand.total());
                Ok(Ok(()))
            },
        )?;
    }
    // Waiting in a queue takes time, too: what was in time when it came is not when its turn comes.
    let lines = "  bulkhead: {upstream: {maxRequests: 1}, queue: {size: 10, timeout: 10s}}\n";
    let stand = alone(farm, &[0], lines).apps(|_, asked| {
        if asked.path == "/slow" { Say::ok("good").after(Duration::from_secs(1)) } else { Say::ok("good") }
    })?;
    thread::scope(|scope| {
        let slow = scope.spawn(|| stand.send(&stand.get("/slow")));
        wait_for(SOON, "the first call", || stand.apps[0].running() == 1)?;
        let told = stand.send(&stand.get("/late").field("x-outrigger-deadline", 200))?;
        ensure!(told.status == 504, "{told:?}");
        let first = slow.join().expect("slow")?;
        ensure!(first.status == 200, "{first:?}");
        let paths: Vec<_> = stand.apps[0].asked().into_iter().map(|asked| asked.path).collect();
        ensure!(paths == ["/slow"], "reached the application: {paths:?}");
        Ok(())
    })
}

/// A program in the middle: calls `leaf` for each request, after a while, and passes on the fields of the mesh or not.
fn middle<'f>(
    farm: &'f Farm,
    lines: &str,
    leaf: SocketAddr,
    work: Duration,
    passes: bool,
) -> Result<Stand<'f>> {
    let pod = farm.hosts[0].pod.clone();
    let stand = farm.stand(&[0]).policy(lines).apps(move |_, asked| {
        let start = Instant::now();
        thread::sleep(work);
        let mut call = Call::get(leaf, "/");
        if passes {
            if let Some(attempt) = asked.headers.get("x-outrigger-attempt") {
                call = call.field("x-outrigger-attempt", attempt.to_str().unwrap_or_default());
            }
            if let Some(left) = millis(asked, "x-outrigger-deadline") {
                let used = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                call = call.field("x-outrigger-deadline", left.saturating_sub(used));
            }
        }
        match call.send(&pod) {
            Ok(told) => Say::status(told.status),
            Err(_) => Say::status(500),
        }
    })?;
    Ok(stand)
}

fn chain_retries(farm: &Farm) -> Result<()> {
    // Each hop would try four times: sixteen in all, and twelve more for each further hop.
    let policy = "  outlierEjection: {enabled: false}\n  retries: {attempts: 3, budget: {percent: 100, minPerSecond: 100}}\n";
    with_and_without_of(
        &[&true, &false],
        |passes| {
            let leaf = farm.stand(&[1]).policy(policy).apps(|_, _| Say::status(503))?;
            leaf.wait_known(&farm.hosts[0])?;
            let middle = middle(farm, policy, leaf.target, Duration::ZERO, *passes)?;
            Ok((middle, leaf))
        },
        |(middle, leaf)| {
            let told = middle.send(&middle.get("/"))?;
            hold!(told.status == 503, "{told:?}");
            hold!(leaf.total() <= 4, "the leaf saw {} attempts", leaf.total());
            Ok(Ok(()))
        },
    )
}

fn chain_deadline(farm: &Farm) -> Result<()> {
    const WORK: Duration = Duration::from_millis(800);
    let quiet = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n";
    with_and_without_of(
        &[&true, &false],
        |passes| {
            let leaf = farm.stand(&[1]).policy(quiet).apps(|_, _| Say::ok("good"))?;
            leaf.wait_known(&farm.hosts[0])?;
            let lines = format!("{quiet}  timeouts: {{request: 400ms}}\n");
            let middle = middle(farm, &lines, leaf.target, WORK, *passes)?;
            Ok((middle, leaf))
        },
        |(middle, leaf)| {
            let told = middle.send(&middle.get("/"))?;
            hold!(told.status == 504 && told.reason() == "request-timeout", "{told:?}");
            // The program in the middle goes on until it has had its answer.
            let log = &farm.hosts[0];
            let path = leaf.key();
            wait_for(SOON, "the call of the program in the middle", || {
                leaf.total() > 0
                    || log.access_log().lines().any(|line| line.contains(&path) && line.contains("504"))
            })?;
            hold!(leaf.total() == 0, "the leaf saw a request whose deadline had passed");
            Ok(Ok(()))
        },
    )
}
