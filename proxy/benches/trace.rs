//! What a request pays for its place in a trace, and for its span: CPU time of the thread per request.
//!
//! `cargo bench -p outrigger-proxy --bench trace`. CPU time, because wall time says more about the neighbours.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use nix::time::{ClockId, clock_gettime};
use outrigger_certs::SpiffeId;
use outrigger_proxy::{
    config::cli::{Wanted, read},
    telemetry::{Direction, Ended, Handled, Protocol, RequestRecord, Try},
    trace::{Extra, Tracer, Tracing},
};

const BURSTS: u64 = 100;
const REQUESTS: u64 = 1_000;

fn main() {
    let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";
    for (name, sampler, keep, parent) in [
        ("no backend", "", "", None),
        ("no backend, a parent", "", "", Some("1")),
        ("not sampled", "always_off", "", None),
        ("not sampled, a parent", "parentbased_always_off", "", Some("0")),
        ("not sampled, errors are kept", "always_off", "errors", None),
        ("1 % sampled", "traceidratio", "", None),
        ("all sampled", "always_on", "", None),
        ("all sampled, a parent", "parentbased_always_on", "", Some("1")),
    ] {
        let parent = parent.map(|flag| format!("{told}{flag}"));
        println!("{name:32} {:>7} ns per request", measure(sampler, keep, parent.as_deref()));
    }
}

fn tracing(sampler: &str, keep: &str) -> Arc<Tracing> {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut variables = vec![set("OTEL_TRACES_SAMPLER", sampler), set("OTEL_TRACES_SAMPLER_ARG", "0.01")];
    variables.push(set("OUTRIGGER_TRACE_KEEP", keep));
    variables.push(set("OUTRIGGER_TRACE_MAX_PER_SECOND", "1000000"));
    variables.push(set("OTEL_BSP_MAX_QUEUE_SIZE", "2048"));
    if !sampler.is_empty() {
        variables.push(set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"));
    }
    let line = "outrigger-proxy run --control-plane cp:1 --token-file /token";
    let arguments = line.split(' ').map(Into::into).collect();
    match read(arguments, variables.into_iter().collect(), 1) {
        Ok(Wanted::Run(config)) => Tracing::new(&config),
        other => panic!("{other:?}"),
    }
}

/// From the fields of the request to its record at the end. What is queued is taken out between the bursts.
fn measure(sampler: &str, keep: &str, parent: Option<&str>) -> u64 {
    let tracing = tracing(sampler, keep);
    let tracer = Tracer::new(&tracing, Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").expect("a legal identity");
    let tries = [attempt()];
    let extra = Extra { http2: false, policy: None, ejected: 0 };
    let mut fields = HeaderMap::new();
    for name in ["host", "user-agent", "accept", "accept-encoding", "x-request-id", "cookie", "referer"] {
        fields.insert(name, "value".parse().expect("a legal value"));
    }
    if let Some(parent) = parent {
        fields.insert("traceparent", parent.parse().expect("a legal value"));
    }
    // A cheap source of numbers, so that it is not what is measured.
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    };
    let (mut spent, mut empty) = (0, 0);
    for burst in 0..=BURSTS {
        let copies = || -> Vec<HeaderMap> { (0..REQUESTS).map(|_| received(&fields)).collect() };
        let (requests, now) = (copies(), Instant::now());
        let before = cpu();
        for mut fields in requests {
            let place = tracer.enter(black_box(&mut fields), true, random(), &mut random, now);
            let mut record = record(&peer, &tries);
            if let Some(place) = place {
                tracer.request(|| None, &place, &mut record, &extra, now);
            }
            black_box((record.trace, fields));
        }
        let with = cpu() - before;
        let requests = copies();
        let before = cpu();
        for mut fields in requests {
            let mut record = record(&peer, &tries);
            black_box(random());
            black_box((&mut record, &mut fields));
        }
        // The first burst grows buffers.
        if burst > 0 {
            spent += with;
            empty += cpu() - before;
        }
        if let Some(on) = tracing.on() {
            while !runtime.block_on(on.spans.batch(Duration::ZERO)).is_empty() {}
        }
    }
    spent.saturating_sub(empty) / (BURSTS * REQUESTS)
}

/// As hyper makes it, with room by the number of fields. A clone has none, and what is measured would be its growth.
fn received(fields: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(fields.len());
    copy.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    copy
}

fn attempt() -> Try {
    Try {
        endpoint: ([10, 77, 0, 3], 8080).into(),
        began: Duration::from_micros(20),
        connect: Duration::ZERO,
        lasted: Duration::from_micros(300),
        hedge: false,
        ended: Ended::Status(200),
    }
}

fn record<'a>(peer: &'a SpiffeId, tries: &'a [Try]) -> RequestRecord<'a> {
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
        tries,
        security: "TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519MLKEM768",
        trace: None,
        handled: Handled::default(),
        id: 0x1234_5678_9abc_def0,
    }
}

/// CPU time of this thread in nanoseconds.
fn cpu() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock");
    time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
}
