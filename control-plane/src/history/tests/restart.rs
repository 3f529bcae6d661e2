//! What is saved and read back.

use super::*;
use crate::history::record::{Decoder, Encoder};

fn restored(records: &[Vec<u8>], cap: usize, now: u64) -> History {
    let mut history = History::new(cap, true, now);
    let mut decoder = Decoder::default();
    for record in records {
        let saved = decoder.decode(record).unwrap();
        history.restore(&saved, &decoder);
    }
    history
}

#[test]
fn a_restart_loses_nothing_that_was_saved_and_counts_nothing_twice() {
    let mut history = History::new(1 << 30, true, DAY);
    let (mut encoder, mut records) = (Encoder::default(), Vec::new());
    let mut now = DAY;
    let all: Vec<_> = (1..=50u64)
        .map(|sequence| {
            let mut one = edge("shop/orders:80", "r", Some("orders"), &[sequence * 1_000; 3], 2);
            one.security = (sequence > 20).then(|| "TLSv1_3 A B".into());
            report(9, sequence, 0, vec![one, edge(":8080", "", None, &[77], 5)])
        })
        .collect();
    for report in &all {
        now += 1_000;
        // Two replicas of one identity: one entry on disk.
        history.take(&id("web"), report, now);
        let twin = TrafficReport { epoch: 10, ..report.clone() };
        history.take(&id("web"), &twin, now);
        records.extend(history.take_unsaved(false).map(|batch| encoder.encode(batch, now)));
    }
    assert!(history.take_unsaved(false).is_none(), "nothing is saved twice");
    let long = records.iter().filter(|record| record.len() > 400).count();
    assert!(long <= 2, "names are said once, and again when the connection is secured: {long}");

    let mut again = restored(&records, 1 << 30, now);
    for side in [Side::Outbound, Side::Inbound] {
        for by in [By::Service, By::Route, By::Edge] {
            let window = (DAY - 10_000, now + 10_000);
            assert_eq!(
                ask(&again, by, side, window.0, window.1),
                ask(&history, by, side, window.0, window.1)
            );
        }
    }
    for report in &all {
        assert_eq!(again.take(&id("web"), report, now), Taken::Duplicate);
    }
    assert!(again.take_unsaved(false).is_some(), "only the marks");
    let next = report(9, 51, 0, vec![]);
    assert_eq!(again.take(&id("web"), &next, now), Taken::New);
    assert_eq!(again.reporters(again.window(DAY, now)), 2);
}

/// On disk too it is under `other`: names that there was no room for would be as many there.
#[test]
fn what_was_folded_is_folded_after_a_restart_and_says_so() {
    let mut history = History::new(1 << 30, true, DAY);
    let mut encoder = Encoder::default();
    let mut records = Vec::new();
    for sequence in 1..=3u64 {
        let edges = (0..5_000).map(|n| edge(&format!("shop/s{sequence}-{n}:80"), "", None, &[10], 2));
        history.take(&id("mad"), &report(1, sequence, 0, edges.collect()), DAY);
        records.extend(history.take_unsaved(false).map(|batch| encoder.encode(batch, DAY)));
    }
    assert!(records[2].len() < 1_000, "{}", records[2].len());
    let again = restored(&records, 1 << 30, DAY);
    let asked = |history: &History| ask(history, By::Service, Side::Outbound, DAY - 5_000, DAY);
    assert_eq!(asked(&again), asked(&history));
    assert!(asked(&again).1, "incomplete");
}

#[test]
fn a_file_can_begin_at_any_record_if_it_says_all_marks() {
    let mut history = History::new(1 << 30, true, DAY);
    history.take(&id("web"), &report(9, 1, 0, vec![edge("shop/a:80", "", None, &[10], 2)]), DAY);
    history.take(&id("old"), &report(8, 5, 0, vec![]), DAY);
    history.take_unsaved(false);
    history.take(&id("web"), &report(9, 2, 0, vec![edge("shop/a:80", "", None, &[10], 4)]), DAY);
    let record = Encoder::default().encode(history.take_unsaved(true).unwrap(), DAY);
    let mut again = restored(&[record], 1 << 30, DAY);
    assert_eq!(again.take(&id("old"), &report(8, 5, 0, vec![]), DAY), Taken::Duplicate);
    assert_eq!(again.take(&id("web"), &report(9, 1, 0, vec![]), DAY), Taken::Duplicate);
    assert_eq!(one(&again, DAY - 5_000, DAY).outcomes[0].status, "4xx");
}

#[test]
fn what_is_older_than_six_hours_stays_on_disk_and_a_smaller_cap_is_kept() {
    let mut history = History::new(1 << 30, true, DAY);
    let mut encoder = Encoder::default();
    let mut records = Vec::new();
    for sequence in 1..2_000u64 {
        let now = DAY + sequence * 10_000;
        let micros: Vec<_> = (0..50).map(|n| 1_000 + (n * sequence * 37) % 90_000).collect();
        history.take(&id("web"), &report(9, sequence, 0, vec![edge("shop/a:80", "", None, &micros, 2)]), now);
        records.extend(history.take_unsaved(false).map(|batch| encoder.encode(batch, now)));
    }
    let now = DAY + KEPT * 1000 + 10_000_000;
    let again = restored(&records, 200_000, now);
    assert!(again.size().bytes <= 200_000 && again.size().bytes > 100_000, "{:?}", again.size());
    assert_eq!(again.size().bytes, again.recount());
    assert!(again.counts().late > 500, "{:?}", again.counts());
}

#[test]
fn records_that_are_none_are_errors() {
    assert!(Decoder::default().decode(b"\xff\xff").is_err());
    let mut history = History::new(1 << 30, true, DAY);
    let mut encoder = Encoder::default();
    let mut record = || {
        let edges = vec![edge("shop/a:80", "", None, &[10], 2)];
        let next = history.counts().reports + 1;
        history.take(&id("web"), &report(9, next, 0, edges), DAY);
        encoder.encode(history.take_unsaved(false).unwrap(), DAY)
    };
    record();
    // The second says nothing of the series that the first has named.
    assert!(matches!(Decoder::default().decode(&record()), Err(record::RecordError::Unknown)));
}
