//! What the history costs: `cargo bench -p outrigger-control-plane`. CPU time of this process, in each line of a second's
//! worth of reports; of questions; and memory as the kernel counts it, beside what the history thinks it has. Nothing here
//! asserts a time; under `cargo test` it runs once with little, to see that it runs.

use std::{fs, io::Write as _, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use outrigger_certs::SpiffeId;
use outrigger_control_plane::history::{
    History,
    query::{By, Query, Sum},
    record::Encoder,
};
use outrigger_proto::{
    convert, pb,
    spec::{Durations, EdgeKey, EdgeTraffic, OutcomeCount, Side, TrafficReport},
};
use prost::Message as _;

const DAY: u64 = 1_767_225_600_000;

/// Reproducible, and spread enough.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// As services answer: around a median, with a long tail.
    fn latency(&mut self, median: f64) -> Duration {
        let (u, v) = (self.next().max(1e-12), self.next());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        Duration::from_micros((median * (0.6 * normal).exp()) as u64)
    }
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}"))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn edge(random: &mut Random, number: usize, requests: u64) -> EdgeTraffic {
    let mut durations = Durations::new();
    for _ in 0..requests {
        durations.record(random.latency(2_000.0 + 3_000.0 * number as f64));
    }
    let (side, service) = match number.is_multiple_of(2) {
        true => (Side::Outbound, format!("shop/service-{number}:80")),
        false => (Side::Inbound, ":8080".to_owned()),
    };
    let peer = Some(id(&format!("peer-{number}")));
    let key = EdgeKey { side, service: service.into(), route: format!("shop/route-{number}").into(), peer };
    let failed = requests / 100;
    let outcome =
        |status_class, count| OutcomeCount { status_class, grpc_status: None, reason: "".into(), count };
    let outcomes = [outcome(2, requests - failed), outcome(5, failed)];
    EdgeTraffic {
        security: Some("TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768".into()),
        outcomes: outcomes.into_iter().filter(|outcome| outcome.count > 0).collect(),
        durations,
        received: 100 * requests,
        sent: 1_000 * requests,
        ..EdgeTraffic::new(key)
    }
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap_or_else(|error| panic!("{error}"));
    let time = |time: TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64);
    time(usage.user_time()) + time(usage.system_time())
}

/// Memory of this process, in MiB.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4 / 1024
}

/// `identities`: how many the proxies share. `requests`: of an edge in a second.
fn merge(proxies: usize, identities: usize, requests: u64, seconds: u64, cap: usize) {
    let mut random = Random(7);
    let mut reports: Vec<(SpiffeId, pb::TrafficReport)> = (0..proxies)
        .map(|proxy| {
            let edges = (0..10).map(|number| edge(&mut random, number, requests)).collect();
            let (length, ended_ago) = (Duration::from_secs(1), Duration::from_millis(3));
            let epoch = 1 + proxy as u64;
            let report = TrafficReport { epoch, sequence: 1, length, ended_ago, edges, events: Vec::new() };
            (id(&format!("w{}", proxy % identities)), convert::report_to_pb(&report))
        })
        .collect();
    let bytes: usize = reports.iter().map(|(_, report)| report.encoded_len()).sum();
    let mut history = History::new(cap, true, DAY);
    let (mut encoder, mut written) = (Encoder::default(), 0);
    let dir = std::env::temp_dir().join(format!("outrigger-bench-{}", std::process::id()));
    let mut file = fs::File::create(&dir).unwrap_or_else(|error| panic!("{error}"));
    let [mut decoding, mut taking, mut saving, mut longest] = [Duration::ZERO; 4];
    for second in 1..=seconds {
        let mut all = Vec::with_capacity(proxies);
        for (_, report) in &mut reports {
            report.sequence = second;
            all.push(report.encode_to_vec());
        }
        let begun = cpu();
        let mut decoded = Vec::with_capacity(proxies);
        for bytes in &all {
            let report = pb::TrafficReport::decode(&bytes[..]).unwrap_or_else(|error| panic!("{error}"));
            decoded.push(convert::report(report).unwrap_or_else(|error| panic!("{error}")));
        }
        let was_decoded = cpu();
        let mut was_taken = was_decoded;
        for ((reporter, _), report) in reports.iter().zip(&decoded) {
            history.take(reporter, report, DAY + 1_000 * second);
            let before = std::mem::replace(&mut was_taken, cpu());
            longest = longest.max(was_taken - before);
        }
        if let Some(batch) = history.take_unsaved(second == 1) {
            let record = encoder.encode(batch, 0);
            written += record.len();
            file.write_all(&record).unwrap_or_else(|error| panic!("{error}"));
        }
        decoding += was_decoded - begun;
        taking += was_taken - was_decoded;
        saving += cpu() - was_taken;
    }
    let _ = fs::remove_file(&dir);
    let each = |time: Duration| time.as_secs_f64() * 1e3 / seconds as f64;
    println!(
        "{proxies} proxies of {identities} identities, 10 edges of {requests}/s, {seconds} s: {:.1} ms of CPU a second \
         (decode {:.1}, merge {:.1}, save {:.1}), the longest report {:.1} ms; {} KiB in, {} KiB to disk a second; {:?}",
        each(decoding + taking + saving),
        each(decoding),
        each(taking),
        each(saving),
        longest.as_secs_f64() * 1e3,
        bytes / 1024,
        written / 1024 / seconds as usize,
        history.size()
    );
    ask(&history, DAY + 1_000 * seconds);
}

/// Over all that there is.
fn ask(history: &History, now: u64) {
    for (name, by) in [("service", By::Service), ("edge", By::Edge)] {
        let begun = cpu();
        let window = history.window(now - 6 * 3_600_000, now);
        let query = Query { by, side: Side::Outbound, window, namespace: None, service: None };
        let (groups, _) = query.groups(history.list(Side::Outbound, window), |_, port| port.into());
        let mut sum = Sum::default();
        let mut requests = 0;
        for group in &groups {
            group.series().iter().for_each(|listed| history.add_up(listed, window, &mut sum));
            requests += history.row(group, &query, &mut sum).map_or(0, |row| row.requests);
        }
        let took = (cpu() - begun).as_secs_f64() * 1e3;
        println!("  6 h by {name}: {took:.1} ms for {} rows of {requests} requests", groups.len());
    }
}

/// Hours of `identities` with ten edges each, all with so many requests in ten seconds.
fn keep(hours: u64, identities: usize, requests: u64, cap: usize) {
    let mut random = Random(9);
    let made: Vec<_> = (0..50).map(|number| edge(&mut random, 2 * (number % 5), requests)).collect();
    let names: Vec<_> = (0..identities).map(|number| id(&format!("w{number}"))).collect();
    let before = resident();
    let mut history = History::new(cap, false, DAY);
    let slots = hours * 360;
    for slot in 1..=slots {
        for (number, name) in names.iter().enumerate() {
            let edges = (0..10).map(|edge| {
                let made = &made[(number + edge + slot as usize) % 50];
                let service = format!("shop/service-{edge}:80").into();
                EdgeTraffic { key: EdgeKey { service, ..made.key.clone() }, ..made.clone() }
            });
            let (length, ended_ago) = (Duration::from_secs(1), Duration::ZERO);
            let (edges, events) = (edges.collect(), Vec::new());
            let report = TrafficReport { epoch: 1, sequence: slot, length, ended_ago, edges, events };
            history.take(name, &report, DAY + slot * 10_000);
        }
    }
    println!(
        "{hours} h of {identities} identities, 10 edges of {requests} in 10 s: {} MiB more resident; {:?}",
        resident().saturating_sub(before),
        history.size()
    );
    ask(&history, DAY + slots * 10_000);
}

fn main() {
    // `cargo test --benches` says nothing, `cargo bench` says --bench.
    if std::env::args().any(|argument| argument == "--bench") {
        // First, while the allocator has nothing to give.
        keep(6, 100, 200, 512 << 20);
        keep(6, 1_000, 200, 64 << 20);
        for (identities, requests) in [(1_000, 20), (1_000, 100), (100, 20), (100, 100)] {
            merge(1_000, identities, requests, 60, 64 << 20);
        }
        // When seconds become tens, and memory is full.
        merge(1_000, 1_000, 20, 180, 64 << 20);
        merge(1_000, 100, 20, 660, 64 << 20);
    } else {
        merge(3, 2, 20, 3, 64 << 20);
        keep(1, 1, 20, 1 << 20);
    }
}
