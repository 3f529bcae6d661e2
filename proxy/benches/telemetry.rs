//! What a request pays for being counted, reported and logged, and what a scrape costs: CPU time of the thread.
//!
//! `cargo bench -p outrigger-proxy --bench telemetry`. CPU time, because wall time says more about the neighbours. The
//! budgets are 300 ns for metrics and report together, and 3 ms for a scrape of 2,000 series.

use std::{
    fs,
    hint::black_box,
    io::Write as _,
    num::{NonZeroU64, NonZeroU128},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_certs::SpiffeId;
use outrigger_core::trace::{SpanId, TraceId};
use outrigger_proxy::{
    access_log::AccessLog,
    metrics::{
        Format, Hall, Observed, Registry, SERIES_BUDGET, Shard, otlp,
        text::{Version, encode},
    },
    report,
    telemetry::{Direction, Handled, Protocol, RequestRecord, Telemetry, Traced},
};
use prost::Message as _;

const BURSTS: u64 = 100;
const RECORDS: u64 = 1_000;
const SCRAPES: u64 = 200;

fn main() {
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").expect("a legal identity");
    let record = &record(&peer);
    recording("metrics", |registry| {
        let mut shard = registry.shard();
        move || shard.request(black_box(record))
    });
    let sampled = &RequestRecord { trace: Some(traced(true)), ..record.clone() };
    recording("metrics, a sampled request", |registry| {
        let mut shard = registry.shard();
        move || shard.request(black_box(sampled))
    });
    recording("report", |_| {
        let mut table = report::Table::new(&report::Reports::new());
        move || table.request(black_box(record))
    });
    recording("metrics and report", |_| {
        let shard = Telemetry::new(AccessLog::off()).shard();
        move || shard.request(black_box(record))
    });
    let log = AccessLog::file(Path::new("/dev/null")).expect("/dev/null can be written");
    let telemetry = Telemetry::new(log);
    recording("metrics, report and access log", |_| {
        let shard = telemetry.shard();
        move || shard.request(black_box(record))
    });
    println!("{:32} {:>7} lines dropped", "", telemetry.access_log_dropped());
    scrapes(record);
}

/// CPU time of one call of what `make` makes.
fn recording<F: FnMut()>(name: &str, make: impl FnOnce(std::sync::Arc<Registry>) -> F) {
    let mut record = make(Registry::new(SERIES_BUDGET));
    let mut spent = 0;
    for burst in 0..=BURSTS {
        let before = cpu();
        for _ in 0..RECORDS {
            record();
        }
        // The pause lets the log be written, and the kernel bring its account up to date.
        thread::sleep(Duration::from_millis(12));
        // The first burst resolves labels and grows buffers.
        spent += if burst > 0 { cpu() - before } else { 0 };
    }
    println!("{name:32} {:>7} ns per request", spent / (BURSTS * RECORDS));
}

/// A page with as many series as there may be, from the counts of four workers to the bytes.
fn scrapes(record: &RequestRecord<'_>) {
    let registry = Registry::new(SERIES_BUDGET);
    let mut shards: Vec<Shard> = (0..4).map(|_| registry.shard()).collect();
    for n in 0..400 {
        let service = format!("shop/service-{n}:80");
        for (index, shard) in shards.iter_mut().enumerate() {
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
    println!("{lines} series, {} bytes as OpenMetrics", page.len());
    let show = |name: &str, scrape: &dyn Fn() -> usize| {
        let before = cpu();
        for _ in 0..SCRAPES {
            black_box(scrape());
        }
        // As above: the account is brought up to date.
        thread::sleep(Duration::from_millis(12));
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
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
