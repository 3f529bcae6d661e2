//! Each broken field of an observation or of guidance gives its own error.

use super::super::{guidance, observations};
use crate::pb;

fn seen() -> pb::Observations {
    pb::Observations {
        transitions: vec![pb::Transition {
            backend: "backend/shop/orders:80".into(),
            endpoint: "10.0.0.1:80".into(),
            to: pb::Circuit::Open.into(),
            cause: pb::Cause::Latency.into(),
            at_ms: 1,
            lasts_ms: 1,
            times: 1,
            why: "5 failures in a row (limit 5)".into(),
            evidence: vec![pb::Outcome { ago_us: 1, what: "503".into(), failed: true, latency_us: 1 }],
        }],
        demands: vec![pb::Demand { limit: "a".into(), thousandths_per_second: 1 }],
        calling: vec!["backend/shop/orders:80".into()],
    }
}

#[test]
fn every_broken_observation_gives_its_own_error() {
    observations(seen()).unwrap();
    let check = |field: &str, reason: &str, break_it: fn(&mut pb::Observations)| {
        let mut from = seen();
        break_it(&mut from);
        let errors = observations(from).expect_err(field).0;
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    };
    check("transitions", "at most 4096", |it| it.transitions = vec![it.transitions[0].clone(); 4_097]);
    check("transitions[0].backend", "not the key", |it| it.transitions[0].backend = "trust".into());
    check("transitions[0].endpoint", "cannot be dialled", |it| {
        it.transitions[0].endpoint = "10.0.0.1:0".into();
    });
    check("transitions[0].to", "missing", |it| it.transitions[0].to = 0);
    check("transitions[0].cause", "unknown", |it| it.transitions[0].cause = 99);
    check("transitions[0].lasts_ms", "longer", |it| it.transitions[0].lasts_ms = u64::MAX);
    check("transitions[0].why", "1025 bytes", |it| it.transitions[0].why = "x".repeat(1_025));
    check("transitions[0].evidence", "at most 10", |it| {
        it.transitions[0].evidence = vec![Default::default(); 11];
    });
    check("transitions[0].evidence[0].what", "1025 bytes", |it| {
        it.transitions[0].evidence[0].what = "x".repeat(1_025);
    });
    check("transitions[0].evidence[0].ago_us", "longer", |it| {
        it.transitions[0].evidence[0].ago_us = u64::MAX;
    });
    check("demands", "at most 4096", |it| it.demands = vec![Default::default(); 4_097]);
    check("demands[0].limit", "empty", |it| it.demands[0].limit.clear());
    check("calling", "at most 65536", |it| it.calling = vec![String::new(); 65_537]);
    check("calling[0]", "not the key", |it| it.calling[0] = "self".into());
}

#[test]
fn every_broken_guidance_gives_its_own_error() {
    let good = || pb::Guidance {
        shares: vec![pb::Share { limit: "a".into(), parts_per_million: 1, holders: 1, valid_for_ms: 1 }],
        fleets: vec![pb::Fleet {
            backend: "backend/shop/orders:80".into(),
            callers: 2,
            ejected: vec![pb::EjectedBy { endpoint: "10.0.0.1:80".into(), callers: 1 }],
        }],
    };
    guidance(good()).unwrap();
    let check = |field: &str, reason: &str, break_it: fn(&mut pb::Guidance)| {
        let mut from = good();
        break_it(&mut from);
        let errors = guidance(from).expect_err(field).0;
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    };
    check("shares", "at most 4096", |it| it.shares = vec![Default::default(); 4_097]);
    check("shares[0].limit", "empty", |it| it.shares[0].limit.clear());
    check("shares[0].parts_per_million", "1000001", |it| it.shares[0].parts_per_million = 1_000_001);
    check("shares[0].holders", "is 0", |it| it.shares[0].holders = 0);
    check("shares[0].valid_for_ms", "is 0", |it| it.shares[0].valid_for_ms = 0);
    check("fleets", "at most 65536", |it| it.fleets = vec![Default::default(); 65_537]);
    check("fleets[0].backend", "unknown kind", |it| it.fleets[0].backend.clear());
    check("fleets[0].ejected[0].endpoint", "invalid socket", |it| it.fleets[0].ejected[0].endpoint.clear());
    check("fleets[0].ejected[0].callers", "is 0", |it| it.fleets[0].ejected[0].callers = 0);
}
