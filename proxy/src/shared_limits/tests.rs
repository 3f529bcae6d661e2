use std::{future::Future, num::NonZeroU32};

use futures_util::{FutureExt as _, future::join_all};
use outrigger_core::verdict::Reason;
use outrigger_proto::spec::{
    Adaptive, Body, Inbound, InboundPort, Limits, PortLimits, Queue, Resource, ServerBulkhead, Update,
};
use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::{access_log::AccessLog, rig::identity, telemetry::Telemetry};

fn config(total: u32, queue: u32) -> Config {
    let timeout = Duration::from_millis(100);
    Config {
        total: NonZeroU32::new(total),
        queue: NonZeroU32::new(queue).map(|size| Queue { size, timeout }),
        ..Config::default()
    }
}

fn shard() -> Shard {
    Telemetry::new(AccessLog::off()).shard()
}

fn hall(config: Config) -> Arc<Hall> {
    SharedLimits::default().hall(Name::Port(80), config)
}

fn who(name: &str) -> Who {
    Some(identity(name))
}

fn reason(admitted: Result<Permit, Error>) -> Reason {
    admitted.map(|_| ()).unwrap_err().reason()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("nothing happens")
}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_for_all_who_found_it_by_its_name() {
    let (limits, shard) = (SharedLimits::default(), shard());
    let one = limits.hall(Name::Port(80), config(2, 0));
    let same = limits.hall(Name::Port(80), config(2, 0));
    let other = limits.hall(Name::Port(81), config(2, 0));
    let first = one.admit(&None, &shard).await.unwrap();
    let second = same.admit(&None, &shard).await.unwrap();
    assert_eq!(reason(one.admit(&None, &shard).await), Reason::BulkheadFull);
    assert!(other.admit(&None, &shard).await.is_ok());
    drop(first);
    assert!(same.try_admit(&None).is_some());
    drop(second);
    assert_eq!(limits.numbers()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_admitted_when_a_place_is_free() {
    let (hall, shard) = (hall(config(1, 1)), shard());
    let first = hall.admit(&None, &shard).await.unwrap();
    let mut second = Box::pin(hall.admit(&None, &shard));
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(hall.numbers().queued, 1);
    assert_eq!(reason(hall.admit(&None, &shard).await), Reason::BulkheadFull, "the queue is full");
    advance(Duration::from_millis(40)).await;
    drop(first);
    let second = soon(second).await.unwrap();
    assert_eq!(second.queued, Duration::from_millis(40));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_so() {
    let (hall, shard) = (hall(config(1, 1)), shard());
    let _first = hall.admit(&None, &shard).await.unwrap();
    let began = now();
    let error = soon(hall.admit(&None, &shard)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), Reason::QueueTimeout);
    assert_eq!(now() - began, Duration::from_millis(100));
    assert_eq!(hall.numbers().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_takes_no_place() {
    let (hall, shard) = (hall(config(1, 2)), shard());
    let first = hall.admit(&None, &shard).await.unwrap();
    let mut gone = Box::pin(hall.admit(&None, &shard));
    assert!((&mut gone).now_or_never().is_none());
    // Granted, but gone before it has heard of it.
    let mut deaf = Box::pin(hall.admit(&None, &shard));
    assert!((&mut deaf).now_or_never().is_none());
    drop(gone);
    drop(first);
    assert_eq!((hall.numbers().in_flight, hall.numbers().queued), (1, 0));
    drop(deaf);
    assert_eq!((hall.numbers().in_flight, hall.numbers().queued), (0, 0));
    assert!(hall.try_admit(&None).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_many_requests_does_not_starve_one_with_few() {
    let (hall, shard) = (hall(config(2, 40)), shard());
    let (loud, quiet) = (who("loud"), who("quiet"));
    let work = async |caller: &Who| {
        let permit = hall.admit(caller, &shard).await?;
        sleep(Duration::from_millis(5)).await;
        Ok::<_, Error>(permit.queued)
    };
    // Ten times as many at any time.
    let flood = join_all((0..20).map(async |_| {
        let mut done = 0;
        for _ in 0..20 {
            match work(&loud).await {
                Ok(_) => done += 1,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
        done
    }));
    let few = async {
        let mut longest = Duration::ZERO;
        sleep(Duration::from_millis(20)).await;
        for _ in 0..20 {
            longest = longest.max(work(&quiet).await.expect("the quiet caller is never refused"));
        }
        longest
    };
    let (done, longest) = soon(async { tokio::join!(flood, few) }).await;
    assert!(done.iter().sum::<i32>() > 100, "the loud one gets what is left");
    // Its turn comes after at most one other's.
    assert!(longest <= Duration::from_millis(10), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_policy_applies_to_who_is_there() {
    let (limits, shard) = (SharedLimits::default(), shard());
    let hall = limits.hall(Name::Port(80), config(1, 1));
    let _first = hall.admit(&None, &shard).await.unwrap();
    let mut second = Box::pin(hall.admit(&None, &shard));
    assert!((&mut second).now_or_never().is_none());
    limits.hall(Name::Port(80), config(2, 1));
    assert!(soon(second).await.is_ok());
    limits.prune(&Snapshot::default());
    assert_eq!(limits.numbers().len(), 1, "in use");
    drop((_first, hall));
    limits.prune(&Snapshot::default());
    assert!(limits.numbers().is_empty());
}

/// A configuration with a bulkhead for port 80, or none.
fn configuration(total: Option<u32>) -> Snapshot {
    let port = total.map(|total| {
        let Config { total, queue, .. } = config(total, 5);
        let total = Limits { requests: total, ..Limits::default() };
        let bulkhead = Some(ServerBulkhead { total, queue, ..ServerBulkhead::default() });
        let limits = Some(Arc::new(PortLimits { bulkhead, ..PortLimits::default() }));
        (80.try_into().unwrap(), InboundPort { limits, ..InboundPort::default() })
    });
    let inbound = Inbound { ports: port.into_iter().collect(), ..Inbound::default() };
    let resources = vec![Resource { version: "1".into(), body: Body::Inbound(Arc::new(inbound)) }];
    Snapshot::default().apply(Update { nonce: 1, resources, removed: Vec::new() }).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_is_for_who_waits_also_when_nobody_else_comes() {
    let (limits, shard) = (SharedLimits::default(), shard());
    let hall = limits.hall(Name::Port(80), config(1, 5));
    let _first = hall.admit(&None, &shard).await.unwrap();
    let [mut second, mut third] = [Box::pin(hall.admit(&None, &shard)), Box::pin(hall.admit(&None, &shard))];
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    limits.adopt(&configuration(Some(2)));
    let _second = soon(second).await.unwrap();
    assert!((&mut third).now_or_never().is_none());
    limits.adopt(&configuration(None));
    assert!(soon(third).await.is_ok(), "nothing limits it any more");
    assert_eq!(hall.numbers().limit, None);
}

#[tokio::test]
async fn the_limit_holds_between_threads() {
    let hall = hall(config(3, 100));
    let most = AtomicU32::new(0);
    let within = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let shard = shard();
                runtime.block_on(join_all((0..20).map(|_| async {
                    for _ in 0..20 {
                        let Ok(permit) = hall.admit(&None, &shard).await else { continue };
                        most.fetch_max(within.fetch_add(1, Relaxed) + 1, Relaxed);
                        tokio::task::yield_now().await;
                        within.fetch_sub(1, Relaxed);
                        drop(permit);
                    }
                })));
            });
        }
    });
    assert!((1..=3).contains(&most.load(Relaxed)), "{most:?}");
    assert_eq!((hall.numbers().in_flight, hall.numbers().queued), (0, 0));
}

#[test]
fn an_endpoint_has_so_many_places() {
    let limits = SharedLimits::default();
    let backend = "shop/orders:80".parse().unwrap();
    let places = || limits.places(&backend, "10.0.0.1:80".parse().unwrap());
    let first = places().enter(Kind::Request, Some(1));
    assert!(first.is_some() && places().enter(Kind::Request, Some(1)).is_none());
    assert!(places().enter(Kind::Connection, Some(1)).is_some());
    drop(first);
    assert_eq!(places().taken(Kind::Request), 0);
    assert!(places().enter(Kind::Request, None).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_learns_from_the_answers_heads() {
    let adaptive = Adaptive {
        min: NonZeroU32::new(1).unwrap(),
        max: NonZeroU32::new(1000).unwrap(),
        tolerance_percent: 150,
    };
    let config = Config { adaptive: Some(adaptive), ..Config::default() };
    let limit = async |answered: bool| {
        let hall = hall(config);
        let first = hall.numbers().limit.unwrap();
        for _ in 0..30 {
            let mut permits: Vec<_> = std::iter::from_fn(|| hall.try_admit(&None)).collect();
            advance(Duration::from_millis(10)).await;
            if answered {
                permits.iter_mut().for_each(|permit| permit.answered(now()));
            }
            // The bodies take longer, which says nothing.
            advance(Duration::from_millis(90)).await;
        }
        (first, hall.numbers().limit.unwrap())
    };
    let (first, after) = limit(true).await;
    assert!(after > first, "{first} {after}");
    let (first, after) = limit(false).await;
    assert_eq!(first, after, "nothing was answered");
}
