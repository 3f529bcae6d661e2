//! Any sequence of reports, duplicates, orders and times: totals and percentiles are those of a list of all raw values.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

/// What one report says, small enough to shrink well.
#[derive(Clone, Debug)]
struct Told {
    reporter: u8,
    epoch: u64,
    sequence: u64,
    /// Since the report before it.
    later: u64,
    ended_ago: u64,
    edges: Vec<(u8, u8, Vec<u64>)>,
}

/// One request.
#[derive(Clone, Debug)]
struct Raw {
    second: u64,
    reporter: u8,
    service: u8,
    failed: bool,
    micros: u64,
}

fn micros() -> impl Strategy<Value = u64> {
    // All powers of ten alike, up to ten minutes.
    (1..8u32, 10..100u64).prop_map(|(power, digits)| (digits * 10u64.pow(power) / 10).clamp(10, 600_000_000))
}

fn told() -> impl Strategy<Value = Told> {
    let edges =
        prop::collection::btree_map(0..4u8, (prop::bool::ANY, prop::collection::vec(micros(), 1..30)), 0..4);
    let edges = edges.prop_map(|edges| {
        edges.into_iter().map(|(service, (failed, micros))| (service, u8::from(failed), micros)).collect()
    });
    let later = prop_oneof![6 => 0..1_500u64, 1 => 0..400_000u64];
    let ago = prop_oneof![6 => 0..2_000u64, 1 => 0..900_000u64];
    (0..3u8, 1..3u64, 1..40u64, later, ago, edges).prop_map(
        |(reporter, epoch, sequence, later, ended_ago, edges)| Told {
            reporter,
            epoch,
            sequence,
            later,
            ended_ago,
            edges,
        },
    )
}

fn service(number: u8) -> String {
    format!("shop/s{number}:80")
}

fn exact(all: &[u64], quantile: f64) -> u64 {
    let rank = ((quantile * all.len() as f64).ceil() as usize).clamp(1, all.len());
    all[rank - 1]
}

/// Rows of a question to the model, by service and whoever reported (where that is asked).
fn expected(raw: &[Raw], window: (u64, u64), by: By) -> BTreeMap<(String, Option<u8>), Vec<Raw>> {
    let mut rows: BTreeMap<_, Vec<Raw>> = BTreeMap::new();
    for raw in raw.iter().filter(|raw| raw.second >= window.0 && raw.second < window.1) {
        let reporter = (by == By::Edge).then_some(raw.reporter);
        rows.entry((service(raw.service), reporter)).or_default().push(raw.clone());
    }
    rows
}

fn check(history: &History, raw: &[Raw], from: u64, to: u64, by: By) -> Result<(), TestCaseError> {
    let window = history.window(from, to);
    let (rows, incomplete) = ask(history, by, Side::Outbound, from, to);
    prop_assert!(!incomplete);
    let expected = expected(raw, (window.from, window.to), by);
    prop_assert_eq!(rows.len(), expected.len());
    for row in rows {
        let reporter =
            row.source.as_deref().map(|source| source.rsplit('/').next().unwrap()[1..].parse().unwrap());
        let raw = &expected[&(row.service.to_string(), reporter)];
        prop_assert_eq!(row.requests, raw.len() as u64);
        prop_assert_eq!(row.failures, raw.iter().filter(|raw| raw.failed).count() as u64);
        prop_assert_eq!(row.outcomes.iter().map(|outcome| outcome.count).sum::<u64>(), row.requests);
        prop_assert_eq!(row.received, 10 * row.requests);
        let mut all: Vec<_> = raw.iter().map(|raw| raw.micros).collect();
        all.sort_unstable();
        let quantiles = [
            (row.p50_us, 0.5),
            (row.p90_us, 0.9),
            (row.p99_us, 0.99),
            (row.p999_us, 0.999),
            (row.max_us, 1.0),
        ];
        for (told, quantile) in quantiles {
            let (told, exact) = (told.unwrap() as f64, exact(&all, quantile) as f64);
            prop_assert!((told - exact).abs() <= exact / 100.0, "{quantile}: {told} in place of {exact}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_history_is_what_was_reported(
        all in prop::collection::vec(told(), 1..60),
        windows in prop::collection::vec((0..1_500_000u64, 1..900_000u64), 1..5),
        saved_after in 0..60usize,
    ) {
        let mut now = DAY;
        let mut history = History::new(1 << 30, true, now);
        let (mut raw, mut taken) = (Vec::new(), HashSet::new());
        // The same again through records, over a restart at some point.
        let (mut encoder, mut records) = (record::Encoder::default(), Vec::new());
        for (index, told) in all.iter().enumerate() {
            now += told.later;
            let edges = told.edges.iter().map(|(number, failed, micros)| {
                edge(&service(*number), "", Some("x"), micros, if *failed > 0 { 5 } else { 2 })
            });
            let report = report(told.epoch, told.sequence, told.ended_ago, edges.collect());
            let reporter = id(&format!("r{}", told.reporter));
            let is_new = taken.insert((told.reporter, told.epoch, told.sequence));
            prop_assert_eq!(history.take(&reporter, &report, now), if is_new { Taken::New } else { Taken::Duplicate });
            prop_assert_eq!(history.take(&reporter, &report, now), Taken::Duplicate, "again at once");
            if is_new {
                let second = (now - told.ended_ago - 500) / 1000;
                raw.extend(told.edges.iter().flat_map(|(service, failed, micros)| micros.iter().map(move |micros| Raw {
                    second,
                    reporter: told.reporter,
                    service: *service,
                    failed: *failed > 0,
                    micros: *micros,
                })));
            }
            if index % 7 == 6 || index == saved_after {
                records.extend(history.take_unsaved(false).map(|batch| encoder.encode(batch, 0)));
            }
            if index == saved_after {
                let mut decoder = record::Decoder::default();
                history = History::new(1 << 30, true, now);
                for record in &records {
                    let saved = decoder.decode(record).unwrap();
                    history.restore(&saved, &decoder);
                }
            }
            prop_assert_eq!(history.size().bytes, history.recount());
        }
        for (ago, length) in windows {
            let from = now.saturating_sub(ago);
            for by in [By::Service, By::Edge] {
                check(&history, &raw, from, from + length, by)?;
            }
        }
        check(&history, &raw, DAY - 2_000_000, now + 10_000, By::Service)?;
    }
}
