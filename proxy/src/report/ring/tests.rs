use std::{collections::HashMap, sync::Arc};

use outrigger_proto::spec::{EdgeKey, OutcomeCount, ProxyEventKind, Side};
use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// One request to one service.
fn unit(number: usize) -> EdgeTraffic {
    let key = EdgeKey {
        side: Side::Outbound,
        service: format!("u{number}").into(),
        route: Arc::default(),
        peer: None,
    };
    let outcome = OutcomeCount { status_class: 2, grpc_status: None, reason: Arc::default(), count: 1 };
    let mut edge = EdgeTraffic { outcomes: vec![outcome], ..EdgeTraffic::new(key) };
    edge.durations.record(Duration::from_millis(number as u64));
    edge
}

/// The units of a report.
fn units(report: &pb::TrafficReport) -> Vec<usize> {
    let report = convert::report(report.clone()).unwrap();
    let number = |edge: &EdgeTraffic| edge.key.service[1..].parse().unwrap();
    report.edges.iter().flat_map(|edge| vec![number(edge); edge.requests() as usize]).collect()
}

/// All that a new stream would be sent.
fn rest(ring: &mut Ring, plane: usize, now: Instant) -> Vec<pb::TrafficReport> {
    let mut cursor = 0;
    std::iter::from_fn(|| {
        let report = ring.after(plane, cursor, now)?;
        cursor = report.sequence;
        Some(report)
    })
    .collect()
}

/// Pushes a unit in each of so many seconds.
fn push(ring: &mut Ring, numbers: impl IntoIterator<Item = usize>, now: &mut Instant) {
    for number in numbers {
        ring.push(vec![unit(number)], vec![], *now, *now + SECOND);
        *now += SECOND;
    }
}

#[test]
fn a_report_leaves_when_all_that_are_wanted_have_it() {
    let (mut ring, mut now) = (Ring::new(7), Instant::now());
    push(&mut ring, 0..3, &mut now);
    ring.on_connected(0);
    ring.on_connected(2);
    ring.on_ack(0, 2, now);
    assert_eq!((ring.len(), ring.is_owed()), (3, true), "the other one has nothing");
    ring.on_ack(2, 3, now);
    assert_eq!((ring.len(), ring.is_owed()), (1, true));
    ring.on_ack(0, 99, now);
    assert_eq!((ring.len(), ring.is_owed(), ring.counts().acknowledged), (0, false, 3));
    // The one that is away is waited for, for a while.
    ring.on_lost(2, now);
    push(&mut ring, 3..5, &mut now);
    ring.on_ack(0, 5, now);
    assert_eq!((ring.len(), ring.is_owed()), (2, false));
    assert_eq!(rest(&mut ring, 2, now).iter().flat_map(units).collect::<Vec<_>>(), [3, 4]);
    ring.on_ack(0, 5, now + AWAY);
    assert_eq!(ring.len(), 0);
    // An acknowledgement that comes late takes nothing back.
    let (mut late, mut then) = (Ring::new(7), now);
    push(&mut late, 0..3, &mut then);
    late.on_connected(0);
    late.on_connected(1);
    late.on_ack(0, 3, then);
    late.on_ack(0, 1, then);
    late.on_ack(1, 3, then);
    assert_eq!(late.len(), 0);
    // One that knows no reports is not.
    ring.on_connected(2);
    ring.on_unable(2);
    push(&mut ring, 5..6, &mut now);
    ring.on_ack(0, 6, now);
    assert_eq!(ring.len(), 0);
}

#[test]
fn with_nobody_there_resolution_is_lost_and_no_number() {
    let (mut ring, mut now) = (Ring::new(7), Instant::now());
    push(&mut ring, (0..900).map(|number| number % 50), &mut now);
    assert_eq!((ring.len(), ring.counts().merged, ring.counts().dropped), (MAX_REPORTS, 780, 0));
    let reports = rest(&mut ring, 0, now);
    let mut counts = [0; 50];
    reports.iter().flat_map(units).for_each(|number| counts[number] += 1);
    assert_eq!(counts, [18; 50]);
    // Evenly: nothing is told of a time that is much longer than others'.
    let lengths: Vec<_> = reports.iter().map(|report| report.length_ms / 1_000).collect();
    assert_eq!(lengths.iter().sum::<u32>(), 900);
    assert!(lengths.iter().all(|length| *length <= 16), "{lengths:?}");
    assert!(reports.windows(2).all(|two| two[0].sequence < two[1].sequence));
    assert_eq!(reports.last().unwrap().sequence, 900);
}

#[test]
fn what_was_sent_never_changes_and_makes_room_as_the_oldest() {
    let (mut ring, mut now) = (Ring::new(7), Instant::now());
    push(&mut ring, 0..MAX_REPORTS, &mut now);
    rest(&mut ring, 0, now);
    push(&mut ring, [0, 1, 2], &mut now);
    assert_eq!((ring.len(), ring.counts().dropped, ring.counts().merged), (MAX_REPORTS, 1, 2));
    let numbers: Vec<_> = rest(&mut ring, 0, now).iter().map(|report| report.sequence).collect();
    let unchanged = 2..=MAX_REPORTS as u64;
    assert_eq!(numbers, unchanged.chain([MAX_REPORTS as u64 + 3]).collect::<Vec<_>>());
}

#[test]
fn a_report_of_more_than_ten_minutes_is_not_made() {
    let (mut ring, start) = (Ring::new(7), Instant::now());
    for number in 0..=MAX_REPORTS as u32 {
        let ended = start + (number + 1) * Duration::from_secs(400);
        ring.push(vec![unit(1)], vec![], start + number * Duration::from_secs(400), ended);
    }
    assert_eq!((ring.len(), ring.counts().merged, ring.counts().dropped), (MAX_REPORTS, 0, 1));
}

#[test]
fn bytes_are_limited() {
    let (mut ring, mut now) = (Ring::new(7), Instant::now());
    let long = "x".repeat(1_000);
    for _ in 0..30 {
        let edges = (0..500).map(|number| {
            let mut edge = unit(number);
            edge.key.route = long.clone().into();
            edge
        });
        ring.push(edges.collect(), vec![], now, now + SECOND);
        now += SECOND;
        assert!(ring.bytes <= MAX_BYTES);
        assert_eq!(ring.bytes, ring.reports.iter().map(|kept| kept.encoded.len()).sum::<usize>());
    }
    assert_eq!(ring.counts().dropped, 30 - ring.len() as u64);
    assert!((10..20).contains(&ring.len()), "{}", ring.len());
}

#[test]
fn times_are_told_from_when_it_is_sent() {
    let (mut ring, start) = (Ring::new(7), Instant::now());
    let event = |seconds| ProxyEvent {
        ago: Duration::from_secs(seconds),
        kind: ProxyEventKind::Draining,
        message: format!("{seconds}").into(),
    };
    ring.push(vec![unit(1)], vec![event(1)], start, start + 2 * SECOND);
    ring.push(vec![unit(2)], vec![event(0)], start + 2 * SECOND, start + 3 * SECOND);
    assert!(ring.merge());
    let report = ring.after(0, 0, start + 10 * SECOND).unwrap();
    assert_eq!((report.epoch, report.sequence), (7, 2));
    assert_eq!((report.length_ms, report.ended_ago_ms), (3_000, 7_000));
    let events: Vec<_> = report.events.iter().map(|event| (event.message.as_str(), event.ago_ms)).collect();
    assert_eq!(events, [("1", 9_000), ("0", 7_000)]);
    let again = ring.after(0, 0, start + 11 * SECOND).unwrap();
    assert_eq!((again.ended_ago_ms, again.events[0].ago_ms), (8_000, 10_000));
}

#[test]
fn a_report_that_was_refused_is_left_out() {
    let (mut ring, mut now) = (Ring::new(7), Instant::now());
    push(&mut ring, 0..3, &mut now);
    ring.on_connected(0);
    ring.on_connected(1);
    ring.on_refused(0, 1, now);
    assert_eq!(ring.counts().refused, 1);
    let numbers = |ring: &mut Ring, plane| -> Vec<u64> {
        rest(ring, plane, now).iter().map(|report| report.sequence).collect()
    };
    assert_eq!(numbers(&mut ring, 0), [2, 3]);
    assert_eq!(numbers(&mut ring, 1), [1, 2, 3]);
}

// ---- whatever happens -----------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Op {
    /// So many reports, one a second.
    Push(usize),
    Open(usize),
    Send(usize, usize),
    /// Of what is on the way, so many reports arrive.
    Arrive(usize, usize),
    /// What it has counted is on disk; whether the acknowledgement gets through.
    Keep(usize, bool),
    Break(usize),
    /// It is killed and goes on with what is on its disk.
    Restart(usize),
    Wait(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let plane = || 0..3usize;
    prop_oneof![
        4 => (1..20usize).prop_map(Op::Push),
        3 => plane().prop_map(Op::Open),
        6 => (plane(), 1..20usize).prop_map(|(plane, most)| Op::Send(plane, most)),
        6 => (plane(), 1..20usize).prop_map(|(plane, most)| Op::Arrive(plane, most)),
        4 => (plane(), any::<bool>()).prop_map(|(plane, heard)| Op::Keep(plane, heard)),
        2 => plane().prop_map(Op::Break),
        1 => plane().prop_map(Op::Restart),
        1 => (1..100u32).prop_map(Op::Wait),
    ]
}

/// A control plane and the proxy's stream to it.
#[derive(Clone, Default)]
struct World {
    open: bool,
    cursor: u64,
    on_the_way: VecDeque<pb::TrafficReport>,
    memory: Counted,
    disk: Counted,
    away: Option<Instant>,
    /// It was away for longer than anybody waits.
    missed: bool,
}

#[derive(Clone, Default)]
struct Counted {
    last: u64,
    units: HashMap<usize, u32>,
}

impl World {
    fn breaks(&mut self, plane: usize, ring: &mut Ring, now: Instant) {
        if std::mem::replace(&mut self.open, false) {
            self.on_the_way.clear();
            self.away = Some(now);
            ring.on_lost(plane, now);
        }
    }

    fn opens(&mut self, plane: usize, ring: &mut Ring, now: Instant) {
        self.breaks(plane, ring, now);
        self.missed |= self.away.take().is_some_and(|since| now - since >= AWAY);
        (self.open, self.cursor) = (true, 0);
        ring.on_connected(plane);
    }

    /// By its number a control plane knows whether it has counted a report.
    fn arrives(&mut self, report: &pb::TrafficReport) {
        if report.sequence > self.memory.last {
            self.memory.last = report.sequence;
            units(report).into_iter().for_each(|unit| *self.memory.units.entry(unit).or_default() += 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Acknowledgements get lost, streams break, control planes are killed: whoever was never away for too long has
    /// counted everything exactly once in the end, and nobody has counted anything twice.
    #[test]
    fn everything_is_counted_once(ops in vec(op(), 1..150)) {
        let (mut ring, mut now, mut pushed) = (Ring::new(7), Instant::now(), 0);
        let mut planes = vec![World::default(); 3];
        let mut contents = HashMap::new();
        // All of them are there before the first report.
        for (index, plane) in planes.iter_mut().enumerate() {
            plane.opens(index, &mut ring, now);
        }
        for op in ops {
            match op {
                Op::Push(count) => {
                    // Few enough for one report to tell them apart.
                    let count = count.min(900 - pushed);
                    push(&mut ring, pushed..pushed + count, &mut now);
                    pushed += count;
                }
                Op::Open(plane) => planes[plane].opens(plane, &mut ring, now),
                Op::Send(plane, most) => {
                    let world = &mut planes[plane];
                    for _ in 0..most {
                        if !world.open || world.on_the_way.len() >= 16 {
                            break;
                        }
                        let Some(report) = ring.after(plane, world.cursor, now) else { break };
                        prop_assert!(report.sequence > world.cursor);
                        let known = contents.entry(report.sequence).or_insert_with(|| report.edges.clone());
                        prop_assert_eq!(&*known, &report.edges, "it changed after it was sent");
                        world.cursor = report.sequence;
                        world.on_the_way.push_back(report);
                    }
                }
                Op::Arrive(plane, most) => {
                    let world = &mut planes[plane];
                    let count = most.min(world.on_the_way.len());
                    let arrived: Vec<_> = world.on_the_way.drain(..count).collect();
                    arrived.iter().for_each(|report| world.arrives(report));
                }
                Op::Keep(plane, heard) => {
                    let world = &mut planes[plane];
                    world.disk = world.memory.clone();
                    if world.open && heard {
                        ring.on_ack(plane, world.disk.last.min(world.cursor), now);
                    }
                }
                Op::Break(plane) => planes[plane].breaks(plane, &mut ring, now),
                Op::Restart(plane) => {
                    planes[plane].breaks(plane, &mut ring, now);
                    planes[plane].memory = planes[plane].disk.clone();
                }
                Op::Wait(seconds) => now += seconds * SECOND,
            }
            prop_assert!(ring.len() <= MAX_REPORTS);
        }
        for (index, plane) in planes.iter_mut().enumerate() {
            if !plane.open {
                plane.opens(index, &mut ring, now);
            }
            let late: Vec<_> = plane.on_the_way.drain(..).collect();
            late.iter().for_each(|report| plane.arrives(report));
            while let Some(report) = ring.after(index, plane.cursor, now) {
                plane.cursor = report.sequence;
                plane.arrives(&report);
            }
            prop_assert!(plane.memory.units.values().all(|times| *times == 1), "counted twice");
            if !plane.missed && ring.counts().dropped == 0 {
                prop_assert_eq!(plane.memory.units.len(), pushed);
            }
        }
        for (index, plane) in planes.iter().enumerate() {
            ring.on_ack(index, plane.cursor, now);
        }
        prop_assert!(!ring.is_owed());
        prop_assert_eq!(ring.len(), 0);
    }
}
