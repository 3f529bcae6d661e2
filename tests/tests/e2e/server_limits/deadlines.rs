//! Deadlines at the server: what is over does not reach the application, and what is left is told to it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_lab::Lab;

use crate::support::{
    ask::{Told, at_once},
    guarded::Guarded,
};

pub(super) fn deadlines(lab: &Lab) -> Result<()> {
    let sections = ["bulkhead: {total: {maxRequests: 1}, queue: {size: 10, timeout: 60s}}"];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    // Past any caller's proxy, so that it is the server's that keeps the time.
    let stranger = lab.pod("stranger")?;
    let ask = |port, path: &str| shop.ask_directly(port, path);
    let late = |told: &Told| told.status == 504 && told.reason() == "deadline-exceeded";
    let late_grpc =
        |told: &Told| told.field("grpc-status") == Some("4") && told.reason() == "deadline-exceeded";

    // Over before it came: it does not reach the application.
    let came = shop.booths[0].requests();
    let told = ask(0, "/").field("x-outrigger-deadline", "0").once(&stranger)?;
    ensure!(late(&told), "{told:?}");
    let told = ask(0, "/").grpc().field("grpc-timeout", "900u").once(&stranger)?;
    ensure!(late_grpc(&told), "{told:?}");
    ensure!(shop.booths[0].requests() == came, "expired work reached the application");
    for own in [ask(0, "/"), ask(0, "/").grpc()] {
        ensure!(own.once(&stranger)?.is_good());
    }
    ensure!(shop.booths[0].requests() == came + 2);

    // Over while it is at the application: told so, and the application sees its caller go.
    let told = ask(0, "/hold").field("x-outrigger-deadline", "300").once(&stranger)?;
    ensure!(late(&told) && told.took >= Duration::from_millis(250), "{told:?}");
    shop.wait_inside(0, 0)?;

    // Over while it waits for its turn: it does not reach the application, also when there is room at last.
    let first = at_once(&stranger, vec![ask(1, "/hold")])?;
    shop.wait_inside(1, 1)?;
    let told = ask(1, "/").field("x-outrigger-deadline", "300").once(&stranger)?;
    ensure!(late(&told), "{told:?}");
    let told = ask(1, "/").grpc().field("grpc-timeout", "300m").once(&stranger)?;
    ensure!(late_grpc(&told), "{told:?}");
    shop.wait_queued(1, 0)?;
    // Those with time are served after a wait, and told that there is less of it.
    let with_time = [
        ask(1, "/patient").field("x-outrigger-deadline", "20000"),
        ask(1, "/patient").grpc().field("grpc-timeout", "20S"),
        ask(1, "/patient"),
    ];
    let waiting = at_once(&stranger, with_time.into())?;
    shop.wait_queued(1, 3)?;
    let since = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    let waited = since.elapsed();
    shop.booths[1].let_out(1);
    for told in [first.wait()?, waiting.wait()?].concat() {
        ensure!(told.is_good(), "{told:?}");
    }
    let arrivals = shop.booths[1].arrivals();
    ensure!(arrivals.len() == 4, "expired work reached the application: {arrivals:?}");
    let most = Duration::from_secs(20).checked_sub(waited).context("too long")?;
    let mesh = arrivals
        .iter()
        .filter(|arrival| arrival.path == "/patient")
        .find_map(|a| a.field("x-outrigger-deadline"));
    let left = Duration::from_millis(mesh.context("no deadline at the application")?.parse()?);
    ensure!(!left.is_zero() && left <= most, "{left:?} of 20 s left after {waited:?}");
    let grpc =
        arrivals.iter().find_map(|arrival| arrival.field("grpc-timeout")).context("no grpc-timeout")?;
    let left = grpc_timeout(grpc)?;
    ensure!(!left.is_zero() && left <= most, "{grpc} of 20 s left after {waited:?}");

    // Over two hops: the caller's proxy tells what is left of its own, the server's passes on less.
    let seen = |told: Option<&str>| -> Result<Option<u64>> {
        let request = shop.ask(0, "/hops");
        let request = told.into_iter().fold(request, |ask, told| ask.field("x-outrigger-deadline", told));
        ensure!(request.once(&shop.callers[0].pod)?.is_good());
        let arrivals = shop.booths[0].arrivals();
        let last = arrivals.last().context("no arrival")?.field("x-outrigger-deadline");
        last.map(|value| value.parse().context("a number")).transpose()
    };
    ensure!(seen(Some("5000"))?.is_some_and(|left| (1..=5000).contains(&left)));
    ensure!(
        seen(Some("99000"))?.is_some_and(|left| (1..=30_000).contains(&left)),
        "the request timeout is less"
    );
    Ok(())
}

fn grpc_timeout(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().with_context(|| text.to_owned())?;
    Ok(match unit {
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => Duration::from_secs(number * if unit == "M" { 60 } else { 3600 }),
    })
}
