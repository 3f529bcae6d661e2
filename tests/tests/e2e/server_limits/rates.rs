//! Rate limits of a port: both algorithms, what callers are told, keys, trials, and what is kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, wait_for};

use super::{LIMITED, admitted, bulkheads::talk};
use crate::support::{
    SOON,
    ask::{Loops, Told, in_turn, reasons},
    figure,
    guarded::{Guarded, full_name},
};

pub(super) fn token_bucket(lab: &Lab) -> Result<()> {
    let sections = [
        "rateLimit: [{name: burst, requests: 1, per: 1000s, burst: 5}]",
        "rateLimit: [{name: plain, requests: 3, per: 1000s}]",
        "rateLimit: [{name: slow, requests: 1, per: 1s}]",
        "rateLimit: [{name: steady, requests: 30, per: 1s, burst: 3}]",
        "rateLimit: [{name: one, requests: 2, per: 1000s}, {name: other, requests: 3, per: 1000s}]",
    ];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    let pod = &shop.callers[0].pod;
    for (port, room) in [(1, 5), (2, 3), (5, 2), (0, 8)] {
        let told = in_turn(pod, vec![shop.ask(port, "/"); 8])?;
        ensure!(admitted(&told, LIMITED, 429)? == room, "port {port}: {:?}", reasons(&told));
        ensure!(told[..room].iter().all(Told::is_good), "not the first ones: {told:?}");
    }
    ensure!(shop.booths[1].requests() == 5, "a refused request reached the application");

    let told = shop.ask(1, "/").once(pod)?;
    let name = full_name("burst");
    ensure!(told.field("ratelimit-policy") == Some(&*format!("\"{name}\";q=1;w=1000")), "{told:?}");
    let state = told.field("ratelimit").and_then(|field| field.strip_prefix(&format!("\"{name}\";r=0;t=")));
    let seconds: u64 = state.with_context(|| format!("{told:?}"))?.parse()?;
    ensure!((1..=1000).contains(&seconds), "{told:?}");
    let wait: u64 = told.field("retry-after").with_context(|| format!("{told:?}"))?.parse()?;
    ensure!((1..=1000).contains(&wait), "{told:?}");
    let told = shop.ask(0, "/").once(pod)?;
    ensure!(told.is_good() && told.field("ratelimit").is_none(), "{told:?}");

    let told = shop.ask(1, "/outrigger.test.Any/Call").grpc().once(pod)?;
    ensure!(told.status == 200 && told.field("grpc-status") == Some("8"), "{told:?}");
    ensure!(told.reason() == LIMITED, "{told:?}");
    ensure!(
        told.field("grpc-retry-pushback-ms").is_some_and(|wait| wait.parse().is_ok_and(|ms: u64| ms > 0))
    );
    let told = shop.ask(0, "/outrigger.test.Any/Call").grpc().once(pod)?;
    ensure!(told.is_good(), "{told:?}");

    // Whoever comes back when told is admitted.
    ensure!(shop.ask(3, "/").once(pod)?.is_good());
    let told = shop.ask(3, "/").once(pod)?;
    ensure!(told.field("retry-after") == Some("1"), "{told:?}");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(shop.ask(3, "/").once(pod)?.is_good());

    // Under pressure: what the rate says, and the burst once.
    let loops = Loops::new(shop.ask(4, "/"), 6).at_rate(120).start(pod)?;
    loops.wait_for_more(360)?;
    let outcome = loops.stop()?;
    outcome.expect_only(&[LIMITED])?;
    let arrivals = shop.booths[4].arrivals();
    let (first, last) = (arrivals[0].at, arrivals[arrivals.len() - 1].at);
    let most = (last - first).as_secs_f64() * 30.0 + 3.0;
    let came = arrivals.len() as f64;
    figure(&format!("30/s and burst 3 under 120/s: {came} in {:?}", last - first));
    // One more for what was admitted between the first one's admission and its arrival.
    ensure!(came <= most + 1.0 && came >= most * 0.8, "{came} came where {most} may");
    Ok(())
}

pub(super) fn sliding_window(lab: &Lab) -> Result<()> {
    let sections = [
        "rateLimit: [{name: window, requests: 20, per: 1s, algorithm: sliding-window}]",
        "rateLimit: [{name: bucket, requests: 20, per: 1s, algorithm: token-bucket}]",
        "rateLimit: [{name: long, requests: 4, per: 1000s, algorithm: sliding-window}]",
    ];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    let pod = &shop.callers[0].pod;
    // All that is admitted within less than one window.
    let within_a_window = |port: usize| {
        let begin = Instant::now();
        let loops = Loops::new(shop.ask(port, "/"), 4).start(pod)?;
        wait_for(SOON, "0.8 seconds", || begin.elapsed() >= Duration::from_millis(800))?;
        let outcome = loops.take();
        // No answer of these was begun after they were taken.
        let span = begin.elapsed();
        loops.stop()?.expect_only(&[LIMITED])?;
        outcome.expect_only(&[LIMITED])?;
        let good = outcome.told.iter().filter(|told| told.is_good()).count();
        figure(&format!("port {port}: {good} of {} within {span:?}", outcome.told.len()));
        Ok::<_, anyhow::Error>((good, span))
    };
    for port in [1, 2] {
        let mut tries = 0;
        // Only what was seen within a window says anything; the machine may have been busy.
        let good = loop {
            let (good, span) = within_a_window(port)?;
            if span < Duration::from_secs(1) {
                break good;
            }
            tries += 1;
            ensure!(tries < 5, "the machine is too slow to see within a second: {span:?}");
            std::thread::sleep(Duration::from_secs(1));
        };
        // Both have the same rate, but a bucket fills up while it is drawn from.
        let bounded = good <= 20;
        ensure!(good >= 20 && bounded == (port == 1), "port {port}: {good}");
    }
    let told = in_turn(pod, vec![shop.ask(3, "/"); 6])?;
    ensure!(admitted(&told, LIMITED, 429)? == 4);
    let policy = told[5].field("ratelimit-policy").map(str::to_owned);
    ensure!(policy == Some(format!("\"{}\";q=4;w=1000", full_name("long"))), "{told:?}");
    Ok(())
}

pub(super) fn keys(lab: &Lab) -> Result<()> {
    let keys = [
        ("", [false, false, false, false]),
        (", key: [{caller: identity}]", [true, false, false, false]),
        (", key: [{client: address}]", [true, true, false, false]),
        (", key: [{path: {}}]", [false, false, true, false]),
        (", key: [{header: x-user}]", [false, false, false, true]),
        (", key: [{caller: identity}, {header: x-user}]", [true, false, false, true]),
    ];
    let sections: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, (key, _))| {
            format!("rateLimit: [{{name: k{number}, requests: 1, per: 1000s, burst: 2{key}}}]")
        })
        .collect();
    let sections: Vec<_> = sections.iter().map(String::as_str).collect();
    // The twin has the identity of web, and another address.
    let shop = Guarded::open(lab, &["web", "app", "twin:web"], &sections)?;
    let [web, app, twin] = [0, 1, 2].map(|caller| &shop.callers[caller].pod);
    for (port, (key, wanted)) in (1..).zip(keys) {
        let ask = |path: &str, user: &str| shop.ask(port, path).field("x-user", user);
        let told = in_turn(web, vec![ask("/a?q=1", "u"), ask("/a?q=2", "u"), ask("/a", "u")])?;
        ensure!(admitted(&told, LIMITED, 429)? == 2 && !told[2].is_good(), "{key}: {told:?}");
        let others = [
            ask("/a", "u").once(app)?,
            ask("/a", "u").once(twin)?,
            ask("/b", "u").once(web)?,
            ask("/a", "v").once(web)?,
        ];
        admitted(&others, LIMITED, 429)?;
        let seen = others.each_ref().map(Told::is_good);
        ensure!(seen == wanted, "{key:?}: admitted with another caller, address, path, user: {seen:?}");
    }
    Ok(())
}

pub(super) fn dry_run(lab: &Lab) -> Result<()> {
    let sections = [
        "rateLimit: [{name: dry, requests: 1, per: 1000s, burst: 2, dryRun: true}]",
        "rateLimit: [{name: wet, requests: 1, per: 1000s, burst: 2}]",
    ];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    let pod = &shop.callers[0].pod;
    for (port, name, dry, room) in [(1, "dry", true, 6), (2, "wet", false, 2)] {
        let told = in_turn(pod, vec![shop.ask(port, "/"); 6])?;
        ensure!(admitted(&told, LIMITED, 429)? == room, "{name}: {:?}", reasons(&told));
        ensure!(told.iter().all(|told| told.field("ratelimit").is_none() == told.is_good()), "{told:?}");
        let name = full_name(name);
        let sample = format!("outrigger_rate_limited_total{{limit=\"{name}\",dry_run=\"{dry}\"}}");
        ensure!(shop.metric(&sample)? == 4, "{sample} {}", shop.metric(&sample)?);
        let status = if dry { "\"status\":200" } else { "\"status\":429" };
        let mut lines = 0;
        wait_for(SOON, "four lines in the access log that name the limit", || {
            let log = shop.store.access_log();
            let of = |line: &&str| line.contains(&format!("\"limit\":\"{name}\"")) && line.contains(status);
            lines = log.lines().filter(of).count();
            lines >= 4
        })
        .with_context(|| format!("{name}: {lines} lines"))?;
        ensure!(lines == 4, "{name}: {lines} lines");
    }
    Ok(())
}

pub(super) fn max_keys(lab: &Lab) -> Result<()> {
    let key = "requests: 1, per: 1000s, burst: 1, key: [{header: x-user}]";
    let sections = [
        format!("rateLimit: [{{name: few, {key}, maxKeys: 500}}]"),
        format!("rateLimit: [{{name: many, {key}, maxKeys: 1000000}}]"),
    ];
    let shop = Guarded::open(lab, &[], &[&sections[0], &sections[1]])?;
    let stranger = lab.pod("stranger")?;
    wait_for(SOON, "an answer", || {
        shop.ask_directly(0, "/").once(&stranger).is_ok_and(|told| told.is_good())
    })?;
    let users = |port: usize, numbers: std::ops::Range<usize>| -> Result<Vec<Told>> {
        let ask = |number: usize| shop.ask_directly(port, "/").field("x-user", &format!("user-{number}"));
        in_turn(&stranger, numbers.map(ask).collect())
    };
    for (port, name, kept) in [(1, "few", 500), (2, "many", 3000)] {
        let told = users(port, 0..1000)?;
        ensure!(admitted(&told, LIMITED, 429)? == 1000, "{name}: everybody may once");
        let before = shop.store.proxy.resident_bytes()?;
        let told = users(port, 1000..3000)?;
        ensure!(admitted(&told, LIMITED, 429)? == 2000, "{name}: everybody may once");
        let grown = shop.store.proxy.resident_bytes()?.saturating_sub(before);
        let keys = shop.rate_limit(name)?["keys"].as_u64().context("keys")?;
        figure(&format!("{name}: {keys} keys after 3,000; memory grew by {grown} bytes over the last 2,000"));
        ensure!(keys == kept, "{name}: {keys} keys");
        ensure!(grown < 4 << 20, "{name}: memory grew by {grown} bytes");
        // The last one is known, and the first one only where there was room.
        ensure!(!users(port, 2999..3000)?[0].is_good(), "{name}: the last one was forgotten");
        let forgotten = users(port, 0..1)?[0].is_good();
        ensure!(forgotten == (port == 1), "{name}: the first one was forgotten: {forgotten}");
    }
    Ok(())
}

pub(super) fn opaque(lab: &Lab) -> Result<()> {
    let sections =
        ["protocol: tcp, rateLimit: [{name: dials, requests: 1, per: 1000s, burst: 2}]", "protocol: tcp"];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    for (port, room) in [(1, 2), (2, 4)] {
        let pod = &shop.callers[0].pod;
        let served: Vec<_> = (0..4).filter_map(|_| talk(pod, port).transpose()).collect::<Result<_>>()?;
        ensure!(served.len() == room, "port {port}: {} of 4", served.len());
    }
    ensure!(shop.booths[1].requests() == 2);
    Ok(())
}
