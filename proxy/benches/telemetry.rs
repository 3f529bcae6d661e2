//! What a request pays for being counted, reported and logged, and what a report and a scrape cost: CPU time of the
//! thread.
//!
//! `cargo bench -p outrigger-proxy --bench telemetry`. CPU time, because wall time says more about the neighbours; and
//! both the median of many bursts and the least, because neighbours share the caches too. The budgets are 300 ns for
//! metrics and report together, and 3 ms for a scrape of 2,000 series.
//!
//! A burst begins after a pause, with caches that others have used. Its requests go round the edges, so the next one is
//! never the one that was just counted.

use std::{
    hint::black_box,
    io::Write as _,
    num::{NonZeroU64, NonZeroU128},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use nix::time::{ClockId, clock_gettime};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_certs::SpiffeId;
use outrigger_core::{
    trace::{SpanId, TraceId},
    verdict::Reason,
};
use outrigger_proxy::{
    access_log::AccessLog,
    metrics::{
        Format, Hall, Observed, SERIES_BUDGET, otlp,
        text::{Version, encode},
    },
    report::Given,
    telemetry::{Direction, Handled, Protocol, RequestRecord, Shard, Telemetry, Traced},
};
use prost::Message as _;
use tokio::sync::mpsc;

const BURSTS: usize = 100;
const RECORDS: usize = 1_000;
const SCRAPES: u64 = 200;
/// Between bursts: the log is written.
const PAUSE: Duration = Duration::from_millis(12);

fn main() {
    let peers = [1, 4, 16].map(peers);
    let [one, few, many] = peers.each_ref().map(|peers| records(peers));
    let off = Telemetry::new(AccessLog::off());
    recording("one edge", &off.shard(), &one);
    recording("4 edges, 12 outcomes", &off.shard(), &few);
    recording("16 edges, 48 outcomes", &off.shard(), &many);
    let sampled: Vec<_> =
        few.iter().map(|record| RequestRecord { trace: Some(traced(true)), ..record.clone() }).collect();
    recording("4 edges, sampled requests", &off.shard(), &sampled);
    let log = AccessLog::file(Path::new("/dev/null")).expect("/dev/null can be written");
    let telemetry = Telemetry::new(log);
    recording("4 edges, with access log", &telemetry.shard(), &few);
    println!("{:32} {:>7} lines dropped", "", telemetry.access_log_dropped());
    for per_second in [2_500, 10_000, 25_000] {
        writing(per_second, &few);
    }
    reporting(&off.shard(), &many);
    scrapes(&one[0]);
}

/// CPU time of one record.
fn recording(name: &str, shard: &Shard, records: &[RequestRecord<'_>]) {
    let mut bursts: Vec<_> = (0..=BURSTS)
        .map(|_| {
            thread::sleep(PAUSE);
            let before = cpu();
            records.iter().cycle().take(RECORDS).for_each(|record| shard.request(black_box(record)));
            (cpu() - before) / RECORDS as u64
        })
        // The first burst resolves labels and grows buffers.
        .skip(1)
        .collect();
    bursts.sort_unstable();
    println!("{name:32} {:>7} ns per request ({} at least)", bursts[BURSTS / 2], bursts[0]);
}

/// CPU time of the thread that writes the log, per line, when they come evenly.
fn writing(per_second: u64, records: &[RequestRecord<'_>]) {
    const SECONDS: u64 = 3;
    const STEP: Duration = Duration::from_millis(1);
    // Nobody's input: without a place for the log there is nothing to measure, and the benchmark ends with the reason.
    let directory = tempfile::tempdir().expect("a directory for the log");
    let log = AccessLog::file(&directory.path().join("log")).expect("a file for the log");
    let telemetry = Telemetry::new(log);
    let shard = telemetry.shard();
    let others = || cpu_of(ClockId::CLOCK_PROCESS_CPUTIME_ID) - cpu();
    let (start, before) = (Instant::now(), others());
    let mut lines = 0;
    for record in records.iter().cycle().take((per_second * SECONDS) as usize) {
        while u128::from(lines) * 1_000_000 > start.elapsed().as_micros() * u128::from(per_second) {
            thread::sleep(STEP);
        }
        shard.request(record);
        lines += 1;
    }
    telemetry.flush(Duration::from_secs(1));
    let name = format!("its writer, {per_second} lines/s");
    println!("{name:32} {:>7} ns per line", (others() - before) / lines);
}

/// CPU time that a worker needs once a second, in which no request moves.
fn reporting(shard: &Shard, records: &[RequestRecord<'_>]) {
    let (give, mut given) = mpsc::channel::<Given>(1);
    let (mut spent, mut edges) = (0, 0);
    for _ in 0..BURSTS {
        records.iter().for_each(|record| shard.request(record));
        let before = cpu();
        shard.report(0, &give);
        spent += cpu() - before;
        edges += given.try_recv().expect("it was given").1.len();
    }
    println!("a report of {:3} edges {:17} us per second", edges / BURSTS, spent / BURSTS as u64 / 1_000);
}

/// A page with as many series as there may be, from the counts of four workers to the bytes.
fn scrapes(record: &RequestRecord<'_>) {
    let telemetry = Telemetry::new(AccessLog::off());
    let registry = &telemetry.metrics;
    let shards: Vec<Shard> = (0..4).map(|_| telemetry.shard()).collect();
    for n in 0..400 {
        let service = format!("shop/service-{n}:80");
        for (index, shard) in shards.iter().enumerate() {
            for millis in [1, 20, 300] {
                let trace = Some(traced(index == 0));
                let duration = Duration::from_millis(millis);
                shard.request(&RequestRecord { service: &service, duration, trace, ..record.clone() });
            }
        }
    }
    let halls = (0..400).map(|n| Hall { name: format!("upstream/shop/{n}"), ..Hall::default() });
    let observed = Observed { halls: halls.collect(), ..Observed::default() };
    let lines = registry.families(&observed).lines();
    let open_metrics = Format::OpenMetrics(Version::V1_0_0);
    let page = encode(&registry.families(&observed), open_metrics);
    println!("{lines} series of {SERIES_BUDGET}, {} bytes as OpenMetrics", page.len());
    let show = |name: &str, scrape: &dyn Fn() -> usize| {
        let before = cpu();
        for _ in 0..SCRAPES {
            black_box(scrape());
        }
        println!("{name:32} {:>7} us per scrape", (cpu() - before) / SCRAPES / 1_000);
    };
    show("scrape, collected only", &|| registry.families(&observed).lines());
    show("scrape, Prometheus text", &|| encode(&registry.families(&observed), Format::Text).len());
    show("scrape, OpenMetrics", &|| encode(&registry.families(&observed), open_metrics).len());
    show("scrape, OTLP", &|| {
        let families = registry.families(&observed);
        otlp::encode(&families, registry.started(), SystemTime::now(), Resource::default()).encoded_len()
    });
    show("gzip of a page", &|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        let written = encoder.write_all(page.as_bytes()).and_then(|()| encoder.finish());
        written.expect("memory can be written").len()
    });
}

fn peers(number: usize) -> Vec<(SpiffeId, String)> {
    let peer = |n| {
        let id = SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/orders-{n}"));
        (id.expect("a legal identity"), format!("shop/orders-{n}:80"))
    };
    (0..number).map(peer).collect()
}

/// Three ways to end for each, in a row of durations from 0.1 ms to 1 s.
fn records(peers: &[(SpiffeId, String)]) -> Vec<RequestRecord<'_>> {
    let ways = [(200, None), (404, None), (503, Some(Reason::UpstreamReset))];
    let ended = |n: usize| if n % 16 < 14 { ways[0] } else { ways[n % 16 - 13] };
    (0..16 * peers.len())
        .map(|n| {
            let (peer, service) = &peers[n % peers.len()];
            let (status, reason) = ended(n / peers.len());
            let duration = Duration::from_micros(100 + (n as u64 * 7_919) % 1_000_000);
            RequestRecord { service, status, reason, duration, ..record(peer) }
        })
        .collect()
}

fn record(peer: &SpiffeId) -> RequestRecord<'_> {
    RequestRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Http1,
        method: "GET",
        authority: "orders.shop",
        path: "/api/v1/orders/12345",
        status: 200,
        grpc_status: None,
        reason: None,
        detail: "",
        peer: Some(peer),
        caller: ([10, 77, 0, 2], 45678).into(),
        service: "shop/orders:80",
        route: "shop/orders/0",
        endpoint: Some(([10, 77, 0, 3], 8080).into()),
        received: 0,
        sent: 1234,
        first_byte: Duration::from_micros(321),
        duration: Duration::from_micros(456),
        attempts: 1,
        tries: &[],
        security: "TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519MLKEM768",
        trace: Some(traced(false)),
        handled: Handled::default(),
        id: 0x1234_5678_9abc_def0,
    }
}

fn traced(sampled: bool) -> Traced {
    Traced { trace: TraceId(NonZeroU128::MAX), span: SpanId(NonZeroU64::MAX), sampled }
}

/// CPU time of this thread in nanoseconds.
fn cpu() -> u64 {
    cpu_of(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn cpu_of(clock: ClockId) -> u64 {
    // Linux has both clocks for every process since 2.6.12, and one's own need no permission.
    let time = clock_gettime(clock).expect("every thread and process has this clock");
    time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
}
