//! What is sent again, where to, when, and how often.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::support::{
    Test,
    app::{Asked, Say},
    call::Call,
    farm::{Builder, Farm, Found, Stand, hold, with_and_without, with_and_without_of},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("retries_follow_a_status", by_status),
        Test::in_farm("retries_go_to_an_endpoint_that_was_not_tried", elsewhere),
        Test::in_farm("retries_follow_a_grpc_code", by_grpc_code),
        Test::in_farm("retries_follow_a_reset", by_reset),
        Test::in_farm("retries_follow_a_try_that_took_too_long", by_time),
        Test::in_farm("retries_of_unsafe_methods_need_a_key_or_the_policy", unsafe_methods),
        Test::in_farm("retries_replay_a_body_as_far_as_it_was_kept", replay),
        Test::in_farm("retries_wait_as_retry_after_says_up_to_a_cap", retry_after),
        Test::in_farm("retries_back_off", back_off),
        Test::in_farm("retries_stay_within_their_budget", budget),
        Test::in_farm("retries_of_what_was_never_sent_are_free_and_for_all_methods", never_sent),
        Test::in_farm("hedging_answers_in_time_when_an_endpoint_hangs", hedging),
        Test::in_farm("hedging_learns_its_delay", hedging_percentile),
    ]
}

/// No ejection in between: these are about retries alone.
const ALONE: &str = "  outlierEjection: {enabled: false}\n";

fn alone<'f>(farm: &'f Farm, hosts: usize, lines: &str) -> Builder<'f> {
    farm.stand(&(0..hosts).collect::<Vec<_>>()).policy(&format!("{ALONE}{lines}"))
}

/// Fails the first request in this way, whoever gets it, and answers the others.
fn first(fail: fn() -> Say) -> impl Fn(usize, &Asked) -> Say + Clone + Send + Sync {
    let asked = Arc::new(AtomicU64::new(0));
    move |_, _| if asked.fetch_add(1, Ordering::SeqCst) == 0 { fail() } else { Say::ok("good") }
}

/// Two attempts, and the good answer of the second.
fn repaired(stand: &Stand<'_>, call: &Call) -> Result<Found> {
    let told = stand.send(call)?;
    hold!(told.status == 200 && told.body == "good", "{told:?}");
    hold!(stand.total() == 2, "{:?} attempts", stand.counts());
    Ok(Ok(()))
}

fn by_status(farm: &Farm) -> Result<()> {
    // On by default, so it is turned off.
    with_and_without(
        "",
        "  retries: {attempts: 0}\n",
        |lines| alone(farm, 2, lines).apps(first(|| Say::status(503))),
        |stand| repaired(stand, &stand.get("/")),
    )?;
    // A status that is not among the default ones.
    with_and_without(
        "  retries: {on: {statuses: [\"404\"]}}\n",
        "",
        |lines| alone(farm, 2, lines).apps(first(|| Say::status(404))),
        |stand| repaired(stand, &stand.get("/")),
    )?;
    // As often as the policy says.
    with_and_without(
        "  retries: {attempts: 4}\n",
        "",
        |lines| alone(farm, 2, lines).apps(|_, _| Say::status(503)),
        |stand| {
            let told = stand.send(&stand.get("/"))?;
            hold!(told.status == 503 && stand.total() == 5, "{:?} attempts: {told:?}", stand.counts());
            Ok(Ok(()))
        },
    )
}

fn elsewhere(farm: &Farm) -> Result<()> {
    // Five endpoints, five attempts: each gets one. With keys that all go to one endpoint nothing but "not tried yet"
    // leads elsewhere.
    with_and_without(
        "  retries: {attempts: 4}\n",
        "  retries: {attempts: 3}\n",
        |lines| {
            let balancer = "  loadBalancer: {algorithm: maglev, hashOn: [{source: identity}]}\n";
            alone(farm, 5, &format!("{balancer}{lines}")).apps(|_, _| Say::status(502))
        },
        |stand| {
            let told = stand.send(&stand.get("/"))?;
            hold!(told.status == 502, "{told:?}");
            hold!(stand.counts() == [1; 5], "{:?} attempts", stand.counts());
            Ok(Ok(()))
        },
    )
}

fn by_grpc_code(farm: &Farm) -> Result<()> {
    let call = |stand: &Stand<'_>, fields: &[(&str, &str)]| {
        let call = stand.post("/outrigger.test.Echo/Unary", "hello");
        let call = fields.iter().fold(call, |call, (name, value)| call.field(name, value));
        call.grpc(stand.web())
    };
    let check = |stand: &Stand<'_>| {
        let told = call(stand, &[])?;
        hold!(told.grpc == Some(0) && told.body == "good", "{told:?}");
        hold!(stand.total() == 2, "{:?} attempts", stand.counts());
        Ok(Ok(()))
    };
    let grpc = |lines: &str| alone(farm, 2, lines).protocol("grpc");
    with_and_without(
        "  retries: {unsafeMethods: true}\n",
        "  retries: {unsafeMethods: true, on: {grpc: []}}\n",
        |lines| grpc(lines).apps(first(|| Say::grpc(14))),
        check,
    )?;
    with_and_without(
        "  retries: {unsafeMethods: true, on: {grpc: [ABORTED]}}\n",
        "  retries: {unsafeMethods: true}\n",
        |lines| grpc(lines).apps(first(|| Say::grpc(10))),
        check,
    )
}

fn by_reset(farm: &Farm) -> Result<()> {
    with_and_without(
        "",
        "  retries: {on: {reset: false}}\n",
        |lines| alone(farm, 2, lines).apps(first(Say::reset)),
        |stand| repaired(stand, &stand.get("/")),
    )
}

fn by_time(farm: &Farm) -> Result<()> {
    with_and_without(
        "  timeouts: {perTry: 1s}\n",
        "  timeouts: {perTry: 1s}\n  retries: {on: {timeout: false}}\n",
        |lines| alone(farm, 2, lines).apps(first(Say::nothing)),
        |stand| repaired(stand, &stand.get("/")),
    )
}

fn unsafe_methods(farm: &Farm) -> Result<()> {
    let stand = |lines: &str| alone(farm, 2, lines).apps(first(|| Say::status(503)));
    with_and_without("  retries: {unsafeMethods: true}\n", "", stand, |stand| {
        repaired(stand, &stand.post("/", "order"))
    })?;
    with_and_without("", "  retries: {attempts: 0}\n", stand, |stand| {
        repaired(stand, &stand.post("/", "order").field("idempotency-key", "\"4711\""))
    })?;
    // Other idempotent methods need neither.
    for method in ["HEAD", "OPTIONS", "PUT", "DELETE"] {
        let stand = stand("")?;
        let told = stand.send(&Call::new(method, stand.target, "/"))?;
        ensure!(
            told.status == 200 && stand.total() == 2,
            "{method}: {:?} attempts: {told:?}",
            stand.counts()
        );
    }
    Ok(())
}

fn replay(farm: &Farm) -> Result<()> {
    const LARGE: usize = 100_000;
    let body: String = ('a'..='z').cycle().take(LARGE).collect();
    let check = |stand: &Stand<'_>| {
        let found = repaired(stand, &stand.post("/", body.as_str()).field("idempotency-key", "1"))?;
        if found.is_err() {
            let log = stand.farm.web.access_log();
            hold!(false, "{found:?}, {}", log.contains("body-too-large"));
        }
        let sent = stand.apps.iter().flat_map(crate::support::app::App::asked);
        for asked in sent {
            hold!(asked.body == body.as_bytes(), "attempt {} had {} bytes", asked.number, asked.body.len());
        }
        Ok(Ok(()))
    };
    with_and_without(
        "  retries: {bufferBytes: 200000}\n",
        "",
        |lines| alone(farm, 2, lines).apps(first(|| Say::status(503))),
        check,
    )?;
    // The access log says why not.
    let stand = alone(farm, 2, "").apps(first(|| Say::status(503)))?;
    let path = format!("/{}", stand.name);
    let told = stand.send(&stand.post(&path, body.as_str()).field("idempotency-key", "1"))?;
    ensure!(told.status == 503 && stand.total() == 1, "{:?}: {told:?}", stand.counts());
    outrigger_lab::wait_for(crate::support::SOON, "the reason in the access log", || {
        let log = farm.web.access_log();
        log.lines().any(|line| line.contains(&path) && line.contains("body-too-large"))
    })
}

/// Time between the first two requests that came.
fn pause(stand: &Stand<'_>) -> Duration {
    let mut times: Vec<_> =
        stand.apps.iter().flat_map(|app| app.asked().into_iter().map(|asked| asked.at)).collect();
    times.sort();
    match times[..] {
        [one, two, ..] => two - one,
        _ => Duration::ZERO,
    }
}

fn retry_after(farm: &Farm) -> Result<()> {
    let stand = |lines: &str| alone(farm, 2, lines).apps(first(|| Say::status(503).field("retry-after", 1)));
    with_and_without("", "  retries: {maxRetryAfter: 0s}\n", stand, |stand| {
        let found = repaired(stand, &stand.get("/"))?;
        let pause = pause(stand);
        // Whole seconds are not counted more exactly than that.
        hold!(pause >= Duration::from_millis(990), "again after {pause:?}; {found:?}");
        Ok(found)
    })
}

fn back_off(farm: &Farm) -> Result<()> {
    with_and_without(
        "  retries: {backoff: {base: 1s, max: 2s}}\n",
        "",
        |lines| alone(farm, 2, lines).apps(first(|| Say::status(503))),
        |stand| {
            let found = repaired(stand, &stand.get("/"))?;
            let pause = pause(stand);
            hold!(pause >= Duration::from_secs(1), "again after {pause:?}; {found:?}");
            Ok(found)
        },
    )
}

fn budget(farm: &Farm) -> Result<()> {
    const CALLS: usize = 20;
    // Of 20 calls at the same time 20 per cent may be repeated, or one in each second; the default admits 10 in each.
    with_and_without(
        "  retries: {attempts: 5, budget: {percent: 20, minPerSecond: 1}}\n",
        "  retries: {attempts: 5}\n",
        |lines| alone(farm, 2, lines).apps(|_, _| Say::status(503)),
        |stand| {
            let told = stand.get("/").at_once(stand.web(), CALLS)?;
            hold!(told.iter().all(|told| told.status == 503), "{told:?}");
            let retries = stand.total() - CALLS as u64;
            hold!((1..=8).contains(&retries), "{retries} retries");
            Ok(Ok(()))
        },
    )
}

fn never_sent(farm: &Farm) -> Result<()> {
    // Nobody accepts connections at the second endpoint: half of the calls begin there, POST like any other. That cannot
    // be turned off; where there is no other endpoint the same check fails.
    let nobody = IpAddr::V4(farm.mesh.control_plane_pod(0).ipv4());
    let lines = format!("{ALONE}  retries: {{attempts: 0}}\n  loadBalancer: {{algorithm: round-robin}}\n");
    with_and_without_of(
        &[&[0][..], &[][..]],
        |hosts| farm.stand(hosts).stranger(nobody).policy(&lines).apps(|_, _| Say::ok("good")),
        |stand| {
            let told = stand.post("/", "order").in_turn(stand.web(), 10)?;
            hold!(told.iter().all(|told| told.status == 200), "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn hedging(farm: &Farm) -> Result<()> {
    const HANGS: Duration = Duration::from_secs(2);
    let stand = |lines: &str| {
        alone(farm, 2, &format!("  loadBalancer: {{algorithm: round-robin}}\n{lines}")).apps(|place, _| {
            match place {
                0 => Say::ok("late").after(HANGS),
                _ => Say::ok("good"),
            }
        })
    };
    with_and_without("  hedging: {delay: 100ms, budgetPercent: 100}\n", "", stand, |stand| {
        let told = stand.get("/").at_once(stand.web(), 6)?;
        hold!(told.iter().all(|told| told.body == "good"), "{told:?}");
        hold!(stand.apps[0].count() >= 1, "{:?}", stand.counts());
        // Those that lost are cancelled, not waited for.
        let slow = &stand.apps[0];
        outrigger_lab::wait_for(crate::support::SOON, "the losers' end", || slow.running() == 0)?;
        hold!(slow.cancelled() == slow.count(), "{} of {} cancelled", slow.cancelled(), slow.count());
        Ok(Ok(()))
    })?;
    // Not beyond the budget, and nothing that is not idempotent.
    with_and_without(
        "  hedging: {delay: 100ms, budgetPercent: 100}\n",
        "  hedging: {delay: 100ms, budgetPercent: 5}\n",
        stand,
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 2)?;
            hold!(told.iter().all(|told| told.body == "good"), "{told:?}");
            Ok(Ok(()))
        },
    )?;
    let stand = stand("  hedging: {delay: 100ms, budgetPercent: 100}\n")?;
    let told = stand.post("/", "order").at_once(stand.web(), 2)?;
    ensure!(told.iter().any(|told| told.body == "late") && stand.total() == 2, "{told:?}");
    Ok(())
}

fn hedging_percentile(farm: &Farm) -> Result<()> {
    const WARM: u64 = 200;
    let asked = |asked: &Asked| asked.path == "/slow";
    with_and_without(
        "  hedging: {budgetPercent: 100}\n",
        "",
        |lines| {
            alone(farm, 2, lines).apps(move |_, one| {
                if asked(one) && one.headers.contains_key("x-first") {
                    Say::ok("late").after(Duration::from_secs(3))
                } else {
                    Say::ok("good")
                }
            })
        },
        |stand| {
            let warm = stand.get("/").in_turn(stand.web(), usize::try_from(WARM)?)?;
            hold!(warm.iter().all(|told| told.body == "good"), "{warm:?}");
            let before = stand.total();
            drop(stand.send(&stand.get("/slow").field("x-first", "1"))?);
            let sent = stand.total() - before;
            hold!(sent == 2, "{sent} instead of a request and its hedge");
            Ok(Ok(()))
        },
    )
}
