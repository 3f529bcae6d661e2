//! The cap: what goes first, that it is said, and that it is kept.

use super::*;

const SECOND: u64 = 1_000;

/// Requests of many durations, so that slots have some size.
fn spread(seed: u64, count: u64) -> Vec<u64> {
    (0..count).map(|n| 500 + (seed * 7_919 + n * 104_729) % 50_000).collect()
}

#[test]
fn tens_go_first_and_the_last_ten_minutes_are_whole() {
    let mut history = History::new(1 << 20, false, DAY);
    let mut now = DAY;
    for sequence in 1..5_000 {
        now += SECOND;
        let edges = (0..12).map(|n| edge(&format!("shop/s{n}:80"), "", None, &spread(sequence + n, 20), 2));
        history.take(&id("web"), &report(1, sequence, 0, edges.collect()), now);
        assert!(history.size().bytes <= 1 << 20);
    }
    assert_eq!(history.size().bytes, history.recount());
    let size = history.size();
    assert!(size.bytes > 700_000, "no more than needed goes: {size:?}");
    assert_eq!(size.fine_seconds, 609, "seconds are all there");
    assert!(size.kept_seconds > 700, "{size:?}");
    assert!(history.counts().evicted > 0);
    let (rows, incomplete) = ask(&history, By::Service, Side::Outbound, now - 600 * SECOND, now);
    assert!(!incomplete);
    assert_eq!(rows.iter().map(|row| row.requests).collect::<Vec<_>>(), [600 * 20; 12]);
    assert!(ask(&history, By::Service, Side::Outbound, DAY, now).1, "that the oldest are gone is said");
}

#[test]
fn then_the_grain_and_little_series_only_at_last() {
    let mut history = History::new(1 << 20, false, DAY);
    let mut now = DAY;
    for sequence in 1..400 {
        now += SECOND;
        for workload in 0..10 {
            let edges =
                (0..12).map(|n| edge(&format!("shop/s{n}:80"), "", None, &spread(sequence + n, 8), 2));
            history.take(&id(&format!("w{workload}")), &report(1, sequence, 0, edges.collect()), now);
            assert!(history.size().bytes <= 1 << 20);
        }
    }
    let size = history.size();
    assert_eq!((size.folded, size.series), (0, 120), "who talks to whom is worth more than the grain");
    assert!(size.fine_seconds < 600, "{size:?}");
    assert_eq!(history.size().bytes, history.recount());
    let (rows, _) = ask(&history, By::Edge, Side::Outbound, now - 20 * SECOND, now);
    assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), 20 * 10 * 12 * 8);
}

#[test]
fn too_many_names_are_folded_with_their_numbers_and_come_back() {
    let mut history = History::new(1 << 20, false, DAY);
    let mut now = DAY;
    let mut total = 0;
    for sequence in 1..=30u64 {
        now += SECOND;
        for workload in 0..40 {
            // One of each is busy, the others are not.
            let edges = (0..40).map(|n| {
                edge(&format!("shop/s{n}:80"), "", None, &spread(n, if n == 0 { 20 } else { 1 }), 2)
            });
            total += 20 + 39;
            history.take(&id(&format!("w{workload}")), &report(1, sequence, 0, edges.collect()), now);
            assert!(history.size().bytes <= 1 << 20, "{:?}", history.size());
        }
    }
    assert_eq!(history.size().bytes, history.recount());
    let size = history.size();
    assert!(size.folded > 400 && size.series < 1_300, "{size:?}");
    let (rows, incomplete) = ask(&history, By::Service, Side::Outbound, DAY - SECOND, now);
    assert!(incomplete);
    assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), total, "no request is lost");
    assert!(rows.iter().any(|row| &*row.service == "other"));
    let busy = rows.iter().find(|row| &*row.service == "shop/s0:80").unwrap();
    assert_eq!(busy.requests, 40 * 30 * 20, "those with much traffic stay apart");

    // When traffic is over, the room comes back, and with it the names.
    now += KEPT * SECOND + 20 * SECOND;
    history.advance(now);
    assert_eq!((history.size().folded, history.size().series, history.size().bytes), (0, 0, 0));
    history.take(&id("w1"), &report(1, 100, 0, vec![edge("shop/s7:80", "", None, &[10], 2)]), now);
    assert_eq!(&*one(&history, now - 5 * SECOND, now).service, "shop/s7:80");
}

/// What is remembered of folded names has a bound too: beside it there is always room for traffic.
#[test]
fn names_alone_cannot_fill_it() {
    const CAP: usize = 1 << 20;
    let mut history = History::new(CAP, false, DAY);
    let mut now = DAY;
    for sequence in 1..=5u64 {
        now += SECOND;
        for workload in 0..100 {
            let edges = (0..100).map(|n| edge(&format!("shop/s{n}:80"), "", None, &[1_000], 2));
            history.take(&id(&format!("w{workload}")), &report(1, sequence, 0, edges.collect()), now);
            assert!(history.size().bytes <= CAP, "{:?}", history.size());
        }
    }
    assert_eq!(history.size().bytes, history.recount());
    let (rows, incomplete) = ask(&history, By::Service, Side::Outbound, DAY, now);
    assert!(incomplete);
    assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), 5 * 100 * 100, "no request is lost");
    assert_eq!(history.counts().evicted, 0);
}

#[test]
fn one_workload_cannot_have_names_without_end() {
    let mut history = History::new(1 << 30, false, DAY);
    for sequence in 1..=20u64 {
        let edges = (0..500).map(|n| edge(&format!("shop/s{sequence}-{n}:80"), "", None, &[10], 2));
        history.take(&id("mad"), &report(1, sequence, 0, edges.collect()), DAY);
    }
    assert_eq!(history.size().series, 5_001);
    let (rows, incomplete) = ask(&history, By::Service, Side::Outbound, DAY - 5 * SECOND, DAY);
    assert!(incomplete);
    assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), 10_000);
}
