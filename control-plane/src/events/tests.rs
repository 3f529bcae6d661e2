use std::{fs, sync::Arc, time::Duration};

use outrigger_proto::spec::{Cause, Circuit, Outcome};

use super::*;

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
}

fn happened(kind: Kind, number: usize) -> Happened {
    Happened::new(kind, format!("s{number}"), format!("m{number}"))
}

fn page(events: &Events, after: u64, limit: usize) -> Page {
    events.page(&Wanted { after, limit, ..Wanted::default() })
}

fn seqs(page: &Page) -> Vec<u64> {
    page.events.iter().map(|event| event.seq).collect()
}

fn transition(endpoint: u16, to: Circuit, at: u64) -> Transition {
    let evidence = Outcome {
        ago: Duration::from_millis(20),
        what: "503".into(),
        failed: true,
        latency: Duration::from_micros(1_500),
    };
    Transition {
        backend: "shop/orders:80".parse().unwrap(),
        endpoint: ([10, 0, 0, 1], endpoint).into(),
        to,
        cause: Cause::ConsecutiveFailures,
        at,
        lasts: Some(Duration::from_secs(30)),
        times: 1,
        why: "5 failures in a row (limit 5)".into(),
        evidence: vec![evidence],
    }
}

#[test]
fn kinds_are_written_as_they_are_read() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::json!(kind), kind.name());
        assert_eq!(Kind::parse(kind.name()), Some(kind));
    }
    assert_eq!(Kind::parse("else"), None);
}

#[test]
fn pages_follow_each_other() {
    let events = Events::default();
    for number in 0..7 {
        events.tell(happened(Kind::ProxyJoined, number));
    }
    let first = page(&events, 0, 3);
    assert_eq!((seqs(&first), first.next, first.missed), (vec![1, 2, 3], 3, 0));
    let rest = page(&events, first.next, 10);
    assert_eq!((seqs(&rest), rest.next), (vec![4, 5, 6, 7], 7));
    assert_eq!(page(&events, 7, 10), Page { events: vec![], next: 7, missed: 0 });
    // Of another life of the control plane: whoever asks learns that it is behind.
    assert_eq!(page(&events, 900, 10), Page { events: vec![], next: 7, missed: 0 });
}

#[test]
fn filters_leave_out_and_go_on_behind() {
    let events = Events::default();
    events.tell(happened(Kind::ProxyJoined, 0).at(100));
    events.tell(happened(Kind::ProxyLeft, 1).at(200));
    events.tell(happened(Kind::ProxyJoined, 2).at(300));
    let ask = |kinds: &[Kind], since_ms| {
        let page = events.page(&Wanted { after: 0, limit: 10, kinds: kinds.to_vec(), since_ms });
        assert_eq!(page.next, 3);
        seqs(&page)
    };
    assert_eq!(ask(&[Kind::ProxyJoined], 0), [1, 3]);
    assert_eq!(ask(&[], 200), [2, 3]);
    assert_eq!(ask(&[Kind::ProxyLeft, Kind::Draining], 201), [0; 0]);
}

#[test]
fn the_oldest_go_and_that_is_counted() {
    let events = Events::default();
    let start = Instant::now();
    for number in 0..KEPT + 50 {
        // One a second is no flood.
        events.tell_at(happened(Kind::ProxyJoined, number), start + Duration::from_secs(number as u64));
    }
    let all = page(&events, 10, 1);
    assert_eq!((seqs(&all), all.next, all.missed), (vec![51], 51, 40));
    assert_eq!(page(&events, 0, 1).missed, 0, "who begins has missed nothing");
    assert_eq!(events.report().held, KEPT);
}

#[test]
fn a_flood_of_one_kind_is_a_sum_and_leaves_others_alone() {
    let events = Events::default();
    let start = Instant::now();
    for number in 0..1_000 {
        events.tell_at(happened(Kind::CircuitOpened, number), start);
    }
    events.tell_at(happened(Kind::ProxyLeft, 0), start);
    assert_eq!(page(&events, 0, 10_000).events.len(), 101);
    events.tell_at(happened(Kind::CircuitOpened, 1_000), start + FLOOD_TIME);
    let all = page(&events, 0, 10_000).events;
    assert_eq!(all.len(), 103);
    let sum = &all[101];
    assert_eq!((sum.kind, &*sum.subject, &sum.details["count"]), (Kind::CircuitOpened, "many", &900.into()));
    assert_eq!(sum.message, "900 more within a second; the last: s999: m999");
    assert_eq!(all[102].subject, "s1000");
    assert!(events.counts().contains(&(Kind::CircuitOpened, 1_001)), "all are counted");
}

#[test]
fn a_transition_that_is_told_again_is_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let events = Events::open(&path).unwrap();
    events.tell_transition(&id("web"), &transition(8080, Circuit::Open, 1_000));
    events.tell_transition(&id("web"), &transition(8080, Circuit::Open, 1_000));
    events.tell_transition(&id("web"), &transition(8081, Circuit::Open, 1_000));
    events.tell_transition(&id("shop"), &transition(8080, Circuit::Open, 1_000));
    events.tell_transition(&id("web"), &transition(8080, Circuit::HalfOpen, 1_001));
    events.tell_transition(&id("web"), &transition(8080, Circuit::Open, 1_002));
    assert_eq!(page(&events, 0, 100).events.len(), 5);
    events.save();

    let events = Events::open(&path).unwrap();
    events.tell_transition(&id("web"), &transition(8080, Circuit::Open, 1_002));
    assert_eq!(page(&events, 0, 100).events.len(), 5, "nor after a restart");
    events.tell_transition(&id("web"), &transition(8080, Circuit::Closed, 1_003));
    let all = page(&events, 0, 100).events;
    assert_eq!(all.len(), 6);
    assert_eq!((all[0].kind, all[0].severity, all[0].at_ms), (Kind::CircuitOpened, Severity::Warning, 1_000));
    assert_eq!(all[0].subject, "shop/orders:80 10.0.0.1:8080");
    assert_eq!(all[0].message, "opened for shop/web: 5 failures in a row (limit 5)");
    assert_eq!(all[0].reporter.as_deref(), Some(id("web").as_str()));
    assert_eq!(all[0].details["evidence"][0]["latency_us"], 1_500);
    assert_eq!(all[0].details["lasts_ms"], 30_000);
    assert_eq!((all[5].seq, all[5].kind), (6, Kind::CircuitClosed));
}

#[test]
fn numbers_go_on_over_a_restart_and_half_a_line_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let events = Events::open(&path).unwrap();
    for number in 0..3 {
        events.tell(happened(Kind::ProxyJoined, number).by(&id("web")).with("n", number));
    }
    events.save();
    let before = page(&events, 0, 10).events;
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"seq\":4,\"at_");
    fs::write(&path, bytes).unwrap();

    let events = Events::open(&path).unwrap();
    assert_eq!(page(&events, 0, 10).events, before);
    events.tell(happened(Kind::ProxyLeft, 9));
    events.save();
    let events = Events::open(&path).unwrap();
    assert_eq!(seqs(&page(&events, 0, 10)), [1, 2, 3, 4]);
}

#[test]
fn files_are_rotated_and_one_old_one_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let events = Events::open(&path).unwrap();
    events.file.lock().unwrap().as_mut().unwrap().limit(1_000);
    for number in 0..30 {
        events.tell(happened(Kind::ProxyJoined, number));
        events.save();
    }
    let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
    assert!(size("events.jsonl") <= 1_000 && size("events.jsonl.1") <= 1_000);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let again = page(&Events::open(&path).unwrap(), 0, 100);
    assert_eq!(again.next, 30);
    assert!(again.events.len() > 5, "both files are read: {}", again.events.len());
    assert!(seqs(&again).is_sorted());
}

#[tokio::test]
async fn whoever_waits_is_told_at_once() {
    let events = Arc::new(Events::default());
    let wanted = Wanted { after: 0, limit: 10, kinds: vec![Kind::ProxyLeft], since_ms: 0 };
    let nothing = events.wait(&wanted, Duration::from_millis(10)).await;
    assert_eq!(nothing, Page { events: vec![], next: 0, missed: 0 });
    let waiting = tokio::spawn({
        let (events, wanted) = (events.clone(), wanted.clone());
        async move { events.wait(&wanted, Duration::from_secs(60)).await }
    });
    // Not what is waited for.
    events.tell(happened(Kind::ProxyJoined, 1));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    events.tell(happened(Kind::ProxyLeft, 2));
    let told = waiting.await.unwrap();
    assert_eq!((seqs(&told), told.next, told.missed), (vec![2], 2, 0));
    let ahead = events.wait(&Wanted { after: 50, ..wanted }, Duration::from_secs(60)).await;
    assert_eq!(ahead.next, 2, "who is ahead of us does not wait for us");
}
