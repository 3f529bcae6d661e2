use std::num::{NonZeroU32, NonZeroU64};

use outrigger_proto::spec::{Cause, Circuit, Demand, RateAlgorithm, Scope};

use super::*;

fn limit(requests: u64) -> SharedLimit {
    let limit = RateLimit {
        name: "ServerPolicy/shop/orders/all".into(),
        algorithm: RateAlgorithm::TokenBucket,
        requests: NonZeroU64::new(requests).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZeroU64::MIN,
        key: Vec::new(),
        scope: Scope::Shared,
        dry_run: false,
        max_keys: NonZeroU32::MIN,
    };
    SharedLimit { limit, live: 0 }
}

fn known(name: &str) -> Option<SharedLimit> {
    (name == "ServerPolicy/shop/orders/all").then(|| limit(100))
}

fn demand(per_second: u64) -> Observations {
    let limit = "ServerPolicy/shop/orders/all".into();
    Observations {
        demands: vec![Demand { limit, thousandths_per_second: per_second * 1000 }],
        ..Observations::default()
    }
}

fn open(observatory: &Observatory) -> (Observer, mpsc::Receiver<Guidance>) {
    let identity = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    observatory.on_open(identity, ([10, 0, 0, 9], 4000).into())
}

/// The share of the last guidance.
fn share(guidance: &mut mpsc::Receiver<Guidance>) -> Option<u32> {
    let mut last = None;
    while let Ok(Guidance { shares, .. }) = guidance.try_recv() {
        last = shares.first().map(|share| share.parts_per_million).or(last);
    }
    last
}

#[test]
fn whoever_reports_a_shared_limit_gets_a_share_that_follows_demand() {
    let observatory = Observatory::default();
    let mut now = Instant::now();
    let ((one, mut to_one), (two, mut to_two)) = (open(&observatory), open(&observatory));
    let mut shares = |one_asks: u64, two_asks: u64| {
        for _ in 0..8 {
            observatory.on_observations(one, demand(one_asks), known);
            observatory.on_observations(two, demand(two_asks), known);
            observatory.on_tick(known, now);
            now += TICK;
        }
        (share(&mut to_one).unwrap(), share(&mut to_two).unwrap())
    };
    let (busy, idle) = shares(300, 0);
    assert!(busy > 950_000 && idle > 0 && busy + idle <= 1_000_000, "{busy} {idle}");
    let (busy, idle) = shares(0, 300);
    assert!(idle > 950_000 && busy > 0 && busy + idle <= 1_000_000, "{busy} {idle}");
    assert_eq!(observatory.shares()[0].holders.len(), 2);
}

#[test]
fn a_limit_that_nobody_configured_is_nobodys() {
    let observatory = Observatory::default();
    let (one, mut to_one) = open(&observatory);
    observatory.on_observations(one, demand(10), |_| None);
    observatory.on_tick(|_| None, Instant::now());
    assert_eq!((share(&mut to_one), observatory.shares().len()), (None, 0));
    // And one that is dropped from the configuration is let go of.
    observatory.on_observations(one, demand(10), known);
    observatory.on_tick(known, Instant::now());
    assert!(share(&mut to_one).is_some());
    observatory.on_tick(|_| None, Instant::now());
    assert_eq!((share(&mut to_one), observatory.shares().len()), (None, 0));
}

#[test]
fn all_callers_of_a_backend_hear_how_many_have_ejected_an_endpoint() {
    let observatory = Observatory::default();
    let ((one, mut to_one), (two, mut to_two)) = (open(&observatory), open(&observatory));
    let backend: BackendKey = "shop/orders:80".parse().unwrap();
    let transition = Transition {
        backend: backend.clone(),
        endpoint: ([10, 0, 0, 1], 8080).into(),
        to: Circuit::Open,
        cause: Cause::ConsecutiveFailures,
        at: 1,
        lasts: Some(Duration::from_secs(30)),
        times: 1,
        why: "5 failures in a row (limit 5)".into(),
        evidence: Vec::new(),
    };
    let calling = vec![backend.clone()];
    let seen = Observations { calling: calling.clone(), transitions: vec![transition], demands: Vec::new() };
    observatory.on_observations(one, seen, |_| None);
    observatory.on_observations(two, Observations { calling, ..Observations::default() }, |_| None);
    observatory.on_tick(|_| None, Instant::now());
    for guidance in [to_one.try_recv().unwrap(), to_two.try_recv().unwrap()] {
        assert_eq!(guidance.fleets[0].callers, 2);
        assert_eq!(guidance.fleets[0].ejected, [(([10, 0, 0, 1], 8080).into(), 1)]);
    }
    let circuits = observatory.circuits(&backend);
    assert_eq!((circuits[0].callers, circuits[0].opened_by.len()), (2, 1));
    assert!(circuits[0].opened_by[0].transition.why.contains("5 failures"));
    // Its caller leaves, and its opinion with it.
    observatory.on_closed(one);
    observatory.on_tick(|_| None, Instant::now());
    assert!(to_two.try_recv().unwrap().fleets[0].ejected.is_empty());
    assert!(observatory.circuits(&backend).is_empty());
}
