//! What a request pays for being counted and logged: CPU time of the worker's thread per record. The budget is 500 ns.
//!
//! `cargo bench -p outrigger-proxy --bench telemetry`. CPU time, because wall time says more about the neighbours.

use std::{fs, hint::black_box, path::Path, thread, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proxy::{
    access_log::AccessLog,
    telemetry::{Direction, Handled, Protocol, RequestRecord, Telemetry},
};

const BURSTS: u64 = 100;
const RECORDS: u64 = 1_000;

fn main() {
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").expect("a legal identity");
    let record = RequestRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Http1,
        method: "GET",
        authority: "orders.shop",
        path: "/api/v1/orders/12345",
        status: 200,
        grpc_status: None,
        reason: None,
        detail: "",
        peer: Some(&peer),
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
        security: "",
        trace: None,
        handled: Handled::default(),
        id: 0x1234_5678_9abc_def0,
    };
    let log = AccessLog::file(Path::new("/dev/null")).expect("/dev/null can be written");
    for (name, log) in [("metrics", AccessLog::off()), ("metrics and access log", log)] {
        let telemetry = Telemetry::new(log);
        let shard = telemetry.shard();
        let mut spent = 0;
        for burst in 0..=BURSTS {
            let before = cpu();
            for _ in 0..RECORDS {
                shard.request(black_box(&record));
            }
            // The pause lets the log be written, and the kernel bring its account up to date.
            thread::sleep(Duration::from_millis(12));
            // The first burst resolves labels and grows buffers.
            spent += if burst > 0 { cpu() - before } else { 0 };
        }
        let dropped = telemetry.access_log_dropped();
        println!("{name}: {} ns per request, {dropped} lines dropped", spent / (BURSTS * RECORDS));
    }
}

/// CPU time of this thread in nanoseconds.
fn cpu() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
