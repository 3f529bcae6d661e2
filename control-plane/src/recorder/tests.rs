use std::fs;

use outrigger_proto::spec::{Durations, EdgeKey, EdgeTraffic, OutcomeCount};

use super::*;

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
}

fn report(sequence: u64, requests: u64) -> TrafficReport {
    let mut durations = Durations::new();
    (0..requests).for_each(|_| durations.record(Duration::from_millis(3)));
    let key =
        EdgeKey { side: Side::Outbound, service: "shop/orders:80".into(), route: "".into(), peer: None };
    let outcome = OutcomeCount { status_class: 2, grpc_status: None, reason: "".into(), count: requests };
    let edge = EdgeTraffic { outcomes: vec![outcome], durations, ..EdgeTraffic::new(key) };
    let length = Duration::from_secs(1);
    TrafficReport { epoch: 3, sequence, length, ended_ago: Duration::ZERO, edges: vec![edge], events: vec![] }
}

fn open(dir: &Path, events: &Events) -> Arc<Recorder> {
    let recorder = Recorder::open(dir, 16 << 20, 16 << 20, events);
    recorder.load(events);
    Arc::new(recorder)
}

fn all() -> Ask {
    let now = wall();
    let span = Span::Between { from: now - 60_000, to: now + 60_000 };
    Ask { by: By::Service, side: Side::Outbound, span, namespace: None, service: None }
}

async fn requests(recorder: &Arc<Recorder>) -> u64 {
    let stat = recorder.ask(all(), || |_: &SpiffeId, port: &str| port.into()).await.unwrap();
    assert!(stat.complete, "{:?}", stat.incomplete);
    stat.rows.iter().map(|row| row.requests).sum()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill_and_the_rest_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::default();
    let recorder = open(dir.path(), &events);
    let (taken, round) = recorder.take(&id("web"), &report(1, 5));
    assert_eq!(taken, Taken::New);
    assert!(!round.is_kept(*recorder.kept().borrow()));
    recorder.save(&events);
    assert!(round.is_kept(*recorder.kept().borrow()));
    let (_, later) = recorder.take(&id("web"), &report(2, 7));
    assert!(!later.is_kept(*recorder.kept().borrow()));
    assert_eq!(requests(&recorder).await, 12);
    // Killed: nothing is written any more.
    drop(recorder);

    let recorder = open(dir.path(), &events);
    assert_eq!(requests(&recorder).await, 5);
    assert_eq!(recorder.take(&id("web"), &report(1, 5)).0, Taken::Duplicate);
    assert_eq!(recorder.take(&id("web"), &report(2, 7)).0, Taken::New);
    assert_eq!(requests(&recorder).await, 12);
    assert!(events.page(&crate::events::Wanted { limit: 10, ..Default::default() }).events.is_empty());
}

#[tokio::test]
async fn a_torn_file_is_told_and_the_rest_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::default();
    let recorder = open(dir.path(), &events);
    for sequence in 1..=3 {
        recorder.take(&id("web"), &report(sequence, 1));
        recorder.save(&events);
    }
    drop(recorder);
    let file = dir.path().join("0000000001.log");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    let recorder = open(dir.path(), &events);
    assert_eq!(requests(&recorder).await, 2);
    let told = events.page(&crate::events::Wanted { limit: 10, ..Default::default() }).events;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].kind, &*told[0].subject), (Kind::HistoryCut, "0000000001.log"));
}

#[tokio::test]
async fn without_a_place_on_disk_it_goes_on_in_memory_and_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("history");
    fs::write(&place, "a file in its place").unwrap();
    let events = Events::default();
    let recorder = open(&place, &events);
    let (_, round) = recorder.take(&id("web"), &report(1, 5));
    recorder.save(&events);
    recorder.save(&events);
    assert!(round.is_kept(*recorder.kept().borrow()), "a proxy could do nothing better with it");
    assert_eq!(requests(&recorder).await, 5);
    assert!(recorder.report().disk.error.is_some());
    let told = events.page(&crate::events::Wanted { limit: 10, ..Default::default() }).events;
    assert_eq!(told.iter().map(|event| event.kind).collect::<Vec<_>>(), [Kind::HistoryNotKept]);
}

#[tokio::test]
async fn a_disk_that_fails_and_comes_back_is_told_both_times() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("history");
    let events = Events::default();
    let recorder = open(&place, &events);
    fs::remove_dir(&place).unwrap();
    for sequence in 1..=2 {
        recorder.take(&id("web"), &report(sequence, 5));
        recorder.save(&events);
    }
    fs::create_dir(&place).unwrap();
    recorder.take(&id("web"), &report(3, 5));
    recorder.save(&events);
    let told = events.page(&crate::events::Wanted { limit: 10, ..Default::default() }).events;
    assert_eq!(
        told.iter().map(|event| event.kind).collect::<Vec<_>>(),
        [Kind::HistoryNotKept, Kind::HistoryKept]
    );
    assert_eq!(recorder.report().disk.error, None);
    assert_eq!(requests(&recorder).await, 15, "in memory is all");
    drop(recorder);
    let recorder = open(&place, &events);
    assert_eq!(requests(&recorder).await, 5);
    assert_eq!(
        recorder.take(&id("web"), &report(1, 5)).0,
        Taken::Duplicate,
        "acknowledged, so it does not count again"
    );
}

/// While somebody reports all the time and slots move, each answer is of one moment.
#[tokio::test(flavor = "multi_thread")]
async fn questions_and_reports_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let events = Arc::new(Events::default());
    let recorder = open(dir.path(), &events);
    let reporting = tokio::task::spawn_blocking({
        let recorder = recorder.clone();
        move || (1..=2_000).for_each(|sequence| _ = recorder.take(&id("web"), &report(sequence, 3)))
    });
    let mut last = 0;
    while !reporting.is_finished() {
        let now = requests(&recorder).await;
        assert!(now >= last && now % 3 == 0, "{last} then {now}");
        last = now;
    }
    reporting.await.unwrap();
    assert_eq!(requests(&recorder).await, 6_000);
    assert!(recorder.counts.questions.value() > 0);
}
