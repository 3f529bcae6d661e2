//! Prometheus' own tool looks at our pages. Where it is not installed, the tests are reported ignored and say so.

use std::{
    fs,
    io::Write as _,
    num::{NonZeroU64, NonZeroU128},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libtest_mimic::{Arguments, Failed, Trial};
use outrigger_core::{
    trace::{SpanId, TraceId},
    verdict::Reason,
};
use outrigger_proxy::{
    access_log::AccessLog,
    metrics::{
        Event, Format, Hall, Observed, Timed, Upstream,
        text::{END, Version, encode},
    },
    telemetry::{ConnectionRecord, Direction, Handled, Protocol, RequestRecord, Telemetry, Traced},
};

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let installed = Command::new("promtool").arg("--version").output().is_ok();
    let kind = if installed { "" } else { "promtool is not installed" };
    let tests: [(&str, Test); 2] = [
        ("the_text_format_is_clean", text_is_clean),
        ("open_metrics_is_read_by_prometheus_itself", open_metrics_is_read),
    ];
    let trials =
        tests.map(|(name, test)| Trial::test(name, test).with_kind(kind).with_ignored_flag(!installed));
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// A proxy that has seen something of everything, with names that are hard to write.
fn page(format: Format) -> String {
    let telemetry = Telemetry::new(AccessLog::off());
    let (registry, shard) = (&telemetry.metrics, telemetry.shard());
    for n in 1..=300_u64 {
        let span = NonZeroU64::new(n).expect("not 0");
        let trace = TraceId(NonZeroU128::new(n.into()).expect("not 0"));
        let service = format!("shop/\"o\\r\nders{}:80", n % 30);
        shard.request(&RequestRecord {
            direction: Direction::Outbound,
            protocol: Protocol::Grpc,
            method: "GET",
            authority: "",
            path: "/",
            status: 200,
            grpc_status: Some((n % 20) as u16),
            reason: (n % 3 == 0).then_some(Reason::NoEndpoints),
            detail: "",
            peer: None,
            caller: ([10, 0, 0, 1], 1).into(),
            service: &service,
            route: "r",
            endpoint: None,
            received: n,
            sent: n,
            first_byte: Duration::ZERO,
            duration: Duration::from_micros(n * n * 100),
            attempts: 2,
            tries: &[],
            security: "",
            trace: Some(Traced { trace, span: SpanId(span), sampled: true }),
            handled: Handled { queued: Duration::from_micros(n), ..Handled::default() },
            id: 0,
        });
        shard.timed(Timed::Connect, &service, Duration::from_micros(n));
        for event in Event::ALL {
            shard.events(event, &service, ["one", "two"], n);
        }
    }
    shard.connection(&ConnectionRecord {
        direction: Direction::Inbound,
        protocol: Protocol::Tcp,
        reason: None,
        detail: "",
        peer: None,
        caller: ([10, 0, 0, 1], 1).into(),
        service: ":5432",
        authority: "",
        endpoint: None,
        received: 1,
        sent: 2,
        connected: Duration::ZERO,
        duration: Duration::ZERO,
        attempts: 1,
        security: "",
        trace: None,
        id: 0,
    });
    let observed = Observed {
        ejected: vec![("shop/orders:80".to_owned(), 1)],
        circuits: vec![("shop/orders:80".to_owned(), "open", 1)],
        halls: vec![Hall { name: "port/8080".to_owned(), in_flight: 3, limit: Some(4), queued: 5 }],
        upstreams: vec![Upstream { service: "shop/orders:80".to_owned(), ..Upstream::default() }],
        capture_holds: Some(true),
        ..Observed::default()
    };
    let mut page = encode(&registry.families(&observed), format);
    if format.is_open_metrics() {
        page.push_str(END);
    }
    page
}

fn text_is_clean() -> Result<(), Failed> {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let page = page(Format::Text);
    tool.stdin.take().ok_or("no pipe")?.write_all(page.as_bytes())?;
    judge(&tool.wait_with_output()?, &page).map(drop)
}

/// `check metrics` knows the other format only, but what fills a database from a file is the parser of a scrape. It wants
/// a time on each line.
fn open_metrics_is_read() -> Result<(), Failed> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let timed = |line: &str| match line.split_once(" # ") {
        _ if line.starts_with('#') => line.to_owned(),
        Some((value, exemplar)) => format!("{value} {now} # {exemplar}"),
        None => format!("{line} {now}"),
    };
    let page = page(Format::OpenMetrics(Version::V1_0_0));
    if page.matches("trace_id").count() < 10 {
        return Err(format!("no exemplars in\n{page}").into());
    }
    let page: String = page.lines().map(|line| timed(line) + "\n").collect();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("page");
    fs::write(&file, &page)?;
    let output = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&file, &directory.path().join("data")])
        .output()?;
    let said = judge(&output, &page)?;
    let series = page.lines().filter(|line| !line.starts_with('#')).count();
    // A table with one row for each block, all of them of now: the fourth column counts its series.
    let row = said.lines().last().ok_or("nothing was said")?;
    let counted = row.split_whitespace().any(|word| word.parse() == Ok(series));
    if counted { Ok(()) } else { Err(format!("{series} series are not {said}").into()) }
}

/// What it has said on standard output, if nothing is wrong.
fn judge(output: &Output, page: &str) -> Result<String, Failed> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let numbered = || -> String {
        page.lines().enumerate().map(|(number, line)| format!("{:4} {line}\n", number + 1)).collect()
    };
    match output.status.success() && complaint.is_empty() {
        true => Ok(said),
        false => Err(format!("{}\n{said}\n{complaint}\n{}", output.status, numbered()).into()),
    }
}
