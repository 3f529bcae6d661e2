//! The governor: never more lines than the budget, nothing lost or counted twice, and room given back.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::metrics::families::Value;

const IDLE: Duration = Duration::from_secs(600);

fn start() -> Instant {
    crate::worker::now()
}

/// Requests counted under each incarnation of each label set.
fn requests(registry: &Registry) -> Vec<((String, Option<SystemTime>), u64)> {
    let families = registry.families(&Observed::default());
    let family = families.0.into_iter().find(|family| family.name == "outrigger_requests").unwrap();
    let one = |series: families::Series| {
        let Value::Whole(value) = series.value else { panic!("{series:?}") };
        ((series.labels.text.to_string(), series.created), value)
    };
    family.series.into_iter().map(one).collect()
}

fn total(registry: &Registry) -> u64 {
    requests(registry).iter().map(|(_, count)| count).sum()
}

#[test]
fn label_sets_beyond_the_budget_are_folded_counted_and_listed() {
    let registry = Registry::new(LEAST_SERIES);
    let shard = shard(&registry);
    let services: Vec<String> = (0..1000).map(|n| format!("s{n}")).collect();
    for _ in 0..2 {
        for service in &services {
            shard.request(&record(service, ""));
        }
    }
    assert_eq!(total(&registry), 2000, "nothing is lost");
    let page = registry.render(&Observed::default());
    let other = "direction=\"outbound\",protocol=\"http2\",service=\"other\",route=\"other\",status=\"2xx\"";
    let folded: u64 = value(&page, &format!("outrigger_requests_total{{{other}}}")).parse().unwrap();
    assert!((1900..2000).contains(&folded), "{folded}");
    assert!(value(&page, "outrigger_metrics_folded_total").parse::<u64>().unwrap() > 1000);
    let standing = registry.standing();
    assert!(standing.own <= standing.own_most && standing.other <= standing.other_most, "{standing:?}");
    assert!(standing.folded.len() <= 100);
    let last = &standing.folded[0];
    assert!(last.labels.contains("service=\"s999\""), "the latest first: {last:?}");
    assert!(last.times >= 1 && last.last_ms > 0);
}

/// Whatever is counted and observed, a scrape keeps to the budget; and with nothing counted it is as large as is said.
#[test]
fn the_budget_holds() {
    let everything = |n: usize| Observed {
        ejected: (0..n).map(|n| (format!("s{n}"), 1)).collect(),
        circuits: (0..n).map(|n| (format!("s{n}"), "open", 1)).collect(),
        halls: (0..n)
            .map(|n| Hall { name: format!("h{n}"), in_flight: 1, limit: Some(2), queued: 3 })
            .collect(),
        upstreams: (0..n).map(|n| Upstream { service: format!("s{n}"), ..Upstream::default() }).collect(),
        merges: merges(),
        capture_holds: Some(true),
        ..Observed::default()
    };
    let bare = Registry::new(SERIES_BUDGET).families(&everything(0)).lines();
    assert!(bare <= governor::FIXED_LINES, "{bare} lines are always there");
    assert!(bare + 20 > governor::FIXED_LINES, "no more is kept back than is needed: {bare}");
    for budget in [LEAST_SERIES, SERIES_BUDGET, 10_000] {
        let registry = Registry::new(budget);
        let shard = shard(&registry);
        for n in 0..budget {
            let (service, status) = (format!("s{n}"), [0, 100, 200, 300, 400, 500][n % 6]);
            for direction in [Direction::Inbound, Direction::Outbound] {
                let reason = Some(Reason::ALL[n % Reason::ALL.len()]);
                let queued = Duration::from_millis(1);
                shard.request(&RequestRecord {
                    direction,
                    status,
                    reason,
                    grpc_status: Some(n as u16),
                    peer: Some(&SpiffeId::parse("spiffe://mesh.local/ns/a/sa/b").unwrap()),
                    handled: Handled {
                        queued,
                        hedged: Some("won"),
                        cache: Some("hit"),
                        ..Handled::default()
                    },
                    attempts: 4,
                    ..record(&service, &service)
                });
                shard.connection(&ConnectionRecord { direction, reason, ..connection(&service) });
            }
            for event in Event::ALL {
                shard.event(event, &service, ["one", "two"]);
            }
            shard.timed(Timed::Connect, &service, Duration::from_millis(1));
        }
        let families = registry.families(&everything(budget));
        let lines = families.lines();
        assert!(lines <= budget, "{lines} of {budget}");
        assert!(lines > budget * 8 / 10, "{lines} of {budget}: the budget is used");
        let page = registry.render(&everything(budget));
        assert_eq!(page.lines().filter(|line| !line.starts_with('#')).count(), lines);
        assert!(value(&page, "outrigger_bulkhead_in_flight{name=\"other\"}").parse::<u64>().unwrap() > 0);
    }
}

fn merges() -> Vec<merge::Standing> {
    let sources = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", "http://127.0.0.1:4"];
    let sources = sources.map(|source| merge::Source::parse(source).unwrap());
    merge::Merges::new(&sources, None).standing()
}

/// `tests/cardinality.rs` looks at the memory of the process.
#[test]
fn the_way_to_cells_is_bounded_too() {
    let registry = Registry::new(LEAST_SERIES);
    let shard = shard(&registry);
    for n in 0..5 * LEAST_SERIES {
        shard.request(&record(&format!("s{n}"), ""));
        shard.connection(&connection(&format!("s{n}")));
        shard.event(Event::Retry, &format!("s{n}"), ["", ""]);
    }
    assert!(shard.ways() <= 3 * LEAST_SERIES, "{}", shard.ways());
}

#[test]
fn idle_series_leave_and_come_back_anew() {
    let registry = Registry::with(SERIES_BUDGET, Some(IDLE));
    let (one, two) = (shard(&registry), shard(&registry));
    let now = start();
    one.request(&record("idle", ""));
    two.request(&record("idle", ""));
    one.request(&record("busy", ""));
    let (born, _) = requests(&registry)[1].0.clone();
    assert!(born.contains("idle"));
    let taken = registry.standing().own;
    assert!(!registry.sweep(now));
    one.request(&record("busy", ""));
    assert!(registry.sweep(now + IDLE), "it is time to let go");
    assert_eq!(requests(&registry).len(), 2, "until everybody has, it is shown");
    one.let_go();
    assert!(registry.sweep(now + IDLE), "the other has not");
    assert_eq!(requests(&registry).len(), 2);
    two.let_go();
    // That it is gone is a reason to look for room again.
    registry.sweep(now + IDLE);
    let left = requests(&registry);
    assert_eq!((left.len(), left[0].1), (1, 2), "{left:?}");
    assert!(registry.standing().own < taken, "its room is given back");
    let page = registry.render(&Observed::default());
    assert_eq!(value(&page, "outrigger_metrics_evicted_total"), "2", "requests, and what they took");

    let before = SystemTime::now();
    two.request(&record("idle", ""));
    let again = requests(&registry);
    let ((_, created), count) = &again[1];
    assert_eq!(*count, 1, "it begins at 0");
    assert!(created.unwrap() >= before);
    assert_eq!(registry.standing().own, taken);
}

#[test]
fn what_is_counted_while_a_series_leaves_is_not_lost() {
    let registry = Registry::with(SERIES_BUDGET, Some(IDLE));
    let (one, two) = (shard(&registry), shard(&registry));
    let now = start();
    one.request(&record("s", ""));
    two.request(&record("s", ""));
    registry.sweep(now);
    assert!(registry.sweep(now + IDLE));
    // One has let go and asks again; the other never noticed.
    one.request(&record("s", ""));
    for n in 0..4 {
        registry.sweep(now + IDLE + Duration::from_secs(n));
    }
    assert_eq!(total(&registry), 3);
    two.request(&record("s", ""));
    assert_eq!(total(&registry), 4);
    // A worker that has ended is not waited for, and what it counted stays as long as others count.
    drop(two);
    let mut late = now + 2 * IDLE;
    registry.sweep(late);
    assert_eq!(total(&registry), 4);
    for _ in 0..4 {
        late += IDLE;
        registry.sweep(late);
        one.let_go();
    }
    assert_eq!(total(&registry), 0);
}

#[test]
fn who_was_folded_has_its_own_when_there_is_room() {
    let registry = Registry::with(LEAST_SERIES, Some(IDLE));
    let shard = shard(&registry);
    let now = start();
    for n in 0..100 {
        shard.request(&record(&format!("s{n}"), ""));
    }
    let own = |registry: &Registry| requests(registry).iter().any(|((labels, _), _)| labels.contains("late"));
    shard.request(&record("late", ""));
    assert!(!own(&registry));
    for step in 0..4 {
        registry.sweep(now + step * IDLE);
        shard.request(&record("late", ""));
    }
    assert!(own(&registry), "{:?}", requests(&registry));
}

#[test]
fn without_an_idle_time_everything_stays() {
    let registry = Registry::with(SERIES_BUDGET, None);
    let shard = shard(&registry);
    shard.request(&record("s", ""));
    for n in 0..10 {
        assert!(!registry.sweep(start() + n * IDLE));
    }
    assert_eq!(total(&registry), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Request { worker: usize, service: usize, route: usize },
    Sweep { after: u64 },
    LetGo { worker: usize },
    Restart { worker: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = || 0..3_usize;
    let step = prop_oneof![
        8 => (worker(), 0..30_usize, 0..2_usize)
            .prop_map(|(worker, service, route)| Step::Request { worker, service, route }),
        3 => (0..700_u64).prop_map(|after| Step::Sweep { after }),
        2 => worker().prop_map(|worker| Step::LetGo { worker }),
        1 => worker().prop_map(|worker| Step::Restart { worker }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What scrapes have seen of all series, also of those that are gone, is what was recorded: to the request.
    #[test]
    fn nothing_is_lost_or_counted_twice(steps in steps()) {
        let registry = Registry::with(LEAST_SERIES, Some(IDLE));
        let mut shards: Vec<Shard> = (0..3).map(|_| shard(&registry)).collect();
        let (mut now, mut recorded) = (start(), 0);
        let mut seen: HashMap<(String, Option<SystemTime>), u64> = HashMap::new();
        for step in steps {
            match step {
                Step::Request { worker, service, route } => {
                    let (service, route) = (format!("s{service}"), format!("r{route}"));
                    shards[worker].request(&record(&service, &route));
                    recorded += 1;
                }
                Step::Sweep { after } => {
                    now += Duration::from_secs(after);
                    registry.sweep(now);
                }
                Step::LetGo { worker } => shards[worker].let_go(),
                Step::Restart { worker } => shards[worker] = shard(&registry),
            }
            for (series, count) in requests(&registry) {
                let known = seen.entry(series).or_default();
                prop_assert!(*known <= count, "a count never falls");
                *known = count;
            }
            prop_assert_eq!(seen.values().sum::<u64>(), recorded);
            let lines = registry.families(&Observed::default()).lines();
            prop_assert!(lines <= LEAST_SERIES, "{} lines", lines);
        }
    }
}

/// Workers count on threads of their own while series are marked, taken out and come back.
#[test]
fn nothing_is_lost_while_workers_count() {
    const EACH: u64 = 60_000;
    let registry = Registry::with(LEAST_SERIES, Some(Duration::from_secs(1)));
    let counting: Vec<_> = (0..3)
        .map(|worker| {
            let registry = Arc::clone(&registry);
            std::thread::spawn(move || {
                let shard = shard(&registry);
                for n in 0..EACH {
                    // Some names rest for a while, so that they leave.
                    let service = format!("s{}", (n / 3_000 + worker as u64) % 7);
                    shard.request(&record(&service, ""));
                }
            })
        })
        .collect();
    let (mut now, mut seen) = (start(), HashMap::new());
    let mut scrape = |registry: &Registry| {
        for (series, count) in requests(registry) {
            seen.insert(series, count);
        }
        seen.values().sum::<u64>()
    };
    while counting.iter().any(|worker| !worker.is_finished()) {
        scrape(&registry);
        now += Duration::from_secs(2);
        registry.sweep(now);
    }
    for worker in counting {
        worker.join().unwrap();
    }
    // What leaves has rested since the sweep before, so a scrape between two sweeps has seen the last of it.
    assert_eq!(scrape(&registry), 3 * EACH);
    assert!(registry.governor.evicted() > 0, "some have left");
}
