//! A million names of services, routes and callers: as many series and edges as ever, and memory that stays where it was. A
//! process of its own, because its memory is looked at.

use std::{fs, net::SocketAddr, ops::Range, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::EdgeTraffic;
use outrigger_proxy::{
    access_log::AccessLog,
    metrics::{Observed, SERIES_BUDGET},
    report::Given,
    telemetry::{Direction, Handled, Protocol, RequestRecord, Shard, Telemetry},
};
use tokio::sync::mpsc;

const NAMES: u32 = 1_000_000;

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is what is resident") * 4096
}

/// Says how many requests were reported.
fn count(shard: &Shard, names: Range<u32>) -> u64 {
    let (give, mut given) = mpsc::channel::<Given>(1);
    let mut reported = 0;
    for n in names {
        let caller = format!("spiffe://mesh.local/ns/shop/sa/c{n}");
        let (service, route) = (format!("shop/s{n}:80"), format!("r{n}"));
        shard.request(&RequestRecord {
            direction: Direction::Outbound,
            protocol: Protocol::Http2,
            method: "GET",
            authority: &service,
            path: &route,
            status: 200,
            grpc_status: None,
            reason: None,
            detail: "",
            peer: Some(&SpiffeId::parse(&caller).expect("a legal identity")),
            caller: SocketAddr::from((n.to_be_bytes(), 1)),
            service: &service,
            route: &route,
            endpoint: None,
            received: 1,
            sent: 2,
            first_byte: Duration::ZERO,
            duration: Duration::from_millis(3),
            attempts: 1,
            tries: &[],
            security: "",
            trace: None,
            handled: Handled::default(),
            id: 0,
        });
        // As in a proxy that is busy.
        if n % 10_000 == 9_999 {
            shard.report(0, &give);
            let (_, edges) = given.try_recv().expect("what is asked for is given");
            assert!(edges.len() <= 502, "{} edges", edges.len());
            reported += edges.iter().map(EdgeTraffic::requests).sum::<u64>();
        }
    }
    reported
}

#[test]
fn a_million_names_keep_within_the_budget_and_the_memory_flat() {
    let telemetry = Telemetry::new(AccessLog::off());
    let (registry, shard) = (&telemetry.metrics, telemetry.shard());
    let mut reported = 0;
    let tenths: Vec<_> = (0..10)
        .map(|tenth| {
            reported += count(&shard, tenth * NAMES / 10..(tenth + 1) * NAMES / 10);
            resident()
        })
        .collect();
    // What the allocator gives back comes and goes by as much as a report is large: the most of each half is compared.
    let most = |tenths: &[u64]| tenths.iter().copied().max();
    assert!(most(&tenths[5..]) < most(&tenths[..5]).map(|most| most + (1 << 20)), "resident: {tenths:?}");
    let page = registry.render(&Observed::default());
    let lines = page.lines().filter(|line| !line.starts_with('#')).count();
    assert!(lines <= SERIES_BUDGET, "{lines}");
    let counted = page.lines().filter(|line| line.starts_with("outrigger_requests_total{"));
    let counted: u64 = counted.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(counted, u64::from(NAMES), "nothing is lost");
    assert_eq!(reported, u64::from(NAMES), "nor of the reports");
    let standing = registry.standing();
    assert!(standing.folded.len() <= 100 && standing.folded_total > u64::from(NAMES));
}
