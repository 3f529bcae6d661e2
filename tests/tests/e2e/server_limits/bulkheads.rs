//! Bulkheads of a port: in all, of each caller, the queue, turns, and the limit that follows latency.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Pod, wait_for};

use super::{FULL, admitted};
use crate::support::{
    SOON,
    ask::{Asked, Loops, at_once, reasons},
    booth::Booth,
    figure,
    guarded::{Guarded, VIRTUAL},
    raw,
};

pub(super) fn most_requests(lab: &Lab) -> Result<()> {
    let shop = Guarded::open(lab, &["web"], &["bulkhead: {total: {maxRequests: 3}}"])?;
    let pod = &shop.callers[0].pod;
    // Over HTTP/1.1, and as streams of one connection between the proxies.
    for (port, room, grpc) in [(1, 3, false), (0, 6, false), (1, 3, true), (0, 6, true)] {
        let came = shop.booths[port].requests();
        let ask = shop.ask(port, "/hold");
        let asked = at_once(pod, vec![if grpc { ask.grpc() } else { ask }; 6])?;
        shop.wait_inside(port, room)?;
        asked.wait_answered(6 - room as usize)?;
        // Who is one too many is told so while the others are still under way, in the words of its protocol.
        let told = shop.ask(port, "/outrigger.test.Any/Call").grpc().once(pod)?;
        ensure!(told.status == 200 && told.is_good() == (port == 0), "{told:?}");
        if port == 1 {
            ensure!(told.field("grpc-status") == Some("8") && told.reason() == FULL, "{told:?}");
            ensure!(shop.booths[port].requests() == came + 3, "a refused request reached the application");
        }
        shop.booths[port].let_out(room as usize);
        ensure!(admitted(&asked.wait()?, FULL, 503)? == room as usize);
        // A place is given back with the end of the answer.
        wait_for(SOON, "places to be free again", || {
            shop.ask(port, "/").once(pod).is_ok_and(|told| told.is_good())
        })?;
    }
    ensure!(shop.booths[1].take_most() == 3 && shop.booths[0].take_most() >= 6);
    ensure!(shop.metric("outrigger_bulkhead_shed_total{name=\"port/8081\",reason=\"bulkhead-full\"}")? >= 4);
    Ok(())
}

pub(super) fn most_connections(lab: &Lab) -> Result<()> {
    let sections = [
        "bulkhead: {total: {maxConnections: 2}}",
        "bulkhead: {perCaller: {maxConnections: 1}}",
        "protocol: tcp, bulkhead: {total: {maxConnections: 2}}",
        "protocol: tcp, bulkhead: {perCaller: {maxConnections: 2}}",
        "protocol: tcp",
    ];
    let shop = Guarded::open(lab, &["web", "app"], &sections)?;
    // HTTP/1.1: as many connections as requests at once.
    for (port, room, each) in [(1, 2, None), (2, 2, Some(1)), (0, 4, Some(2))] {
        let before = shop.booths[port].arrivals().len();
        let mut asked = Vec::new();
        for caller in &shop.callers {
            asked.push(at_once(&caller.pod, vec![shop.ask(port, "/hold"); 2])?);
        }
        shop.wait_inside(port, room)?;
        wait_for(SOON, "the others to be refused", || {
            asked.iter().map(|asked| asked.answered() as u64).sum::<u64>() == 4 - room
        })?;
        let arrivals = shop.booths[port].arrivals();
        let of = |name: &str| arrivals[before..].iter().filter(|arrival| arrival.caller() == name).count();
        ensure!(each.is_none_or(|each| of("web") == each && of("app") == each), "{arrivals:?}");
        shop.booths[port].let_out(room as usize);
        let told = asked.into_iter().map(Asked::wait).collect::<Result<Vec<_>>>()?.concat();
        ensure!(admitted(&told, FULL, 503)? == room as usize);
    }
    // Bytes: a connection each, and nothing to tell the caller with but its end.
    for (port, of_web, of_app) in [(3, 2, 0), (4, 2, 2), (5, 3, 3)] {
        let mut open = Vec::new();
        for (caller, wanted) in shop.callers.iter().zip([of_web, of_app]) {
            let held: Vec<_> =
                (0..3).filter_map(|_| talk(&caller.pod, port).transpose()).collect::<Result<_>>()?;
            ensure!(held.len() == wanted, "port {port}: {} of {} were served", caller.name(), held.len());
            open.push(held);
        }
        if port == 3 {
            open[0].pop();
            let mut again = None;
            wait_for(SOON, "room for another connection", || {
                again = talk(&shop.callers[1].pod, port).ok().flatten();
                again.is_some()
            })?;
        }
    }
    Ok(())
}

fn is_reset(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// A connection to an opaque port over which the application has answered; `None` if it was closed without a byte.
pub(super) fn talk(pod: &Pod, port: u16) -> Result<Option<TcpStream>> {
    let mut stream = match raw::connect(pod, SocketAddr::from((VIRTUAL, 80 + port))) {
        Ok(stream) => stream,
        // The refusal may be there before the connection is.
        Err(error) if is_reset(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    drop(stream.write_all(b"GET / HTTP/1.1\r\nhost: store.shop\r\n\r\n"));
    match raw::read_answer(&mut stream) {
        Ok((head, _)) => {
            ensure!(head.starts_with("http/1.1 200"), "{head}");
            Ok(Some(stream))
        }
        Err(error) => {
            ensure!(format!("{error:#}").contains("after \"\""), "{error:#}");
            Ok(None)
        }
    }
}

pub(super) fn per_caller(lab: &Lab) -> Result<()> {
    let sections = [
        "bulkhead: {total: {maxRequests: 3}, perCaller: {maxRequests: 2}}",
        "bulkhead: {total: {maxRequests: 3}}",
    ];
    let shop = Guarded::open(lab, &["web", "app"], &sections)?;
    // What a caller gets that comes second, after one that takes what it can.
    for (port, of_web, of_app) in [(1, 2, 1), (2, 3, 0), (0, 4, 4)] {
        let mut asked = Vec::new();
        let mut inside = 0;
        for (caller, room) in shop.callers.iter().zip([of_web, of_app]) {
            let all = at_once(&caller.pod, vec![shop.ask(port, "/hold"); 4])?;
            inside += room;
            shop.wait_inside(port, inside)?;
            all.wait_answered(4 - room as usize)?;
            asked.push(all);
        }
        shop.booths[port].let_out(inside as usize);
        for (asked, room) in asked.into_iter().zip([of_web, of_app]) {
            ensure!(admitted(&asked.wait()?, FULL, 503)? == room as usize, "port {port}");
        }
    }
    Ok(())
}

pub(super) fn queue(lab: &Lab) -> Result<()> {
    let sections = [
        "bulkhead: {total: {maxRequests: 1}, queue: {size: 1, timeout: 60s}}",
        "bulkhead: {total: {maxRequests: 1}}",
        "bulkhead: {total: {maxRequests: 1}, queue: {size: 1, timeout: 300ms}}",
    ];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    let pod = &shop.callers[0].pod;
    let first = |port| {
        let first = at_once(pod, vec![shop.ask(port, "/hold")])?;
        shop.wait_inside(port, 1)?;
        Ok::<_, anyhow::Error>(first)
    };

    // One waits, and is served when its turn comes; the next has no room to wait.
    let served = first(1)?;
    let waiting = at_once(pod, vec![shop.ask(1, "/waiting")])?;
    shop.wait_queued(1, 1)?;
    let told = shop.ask(1, "/").once(pod)?;
    ensure!(told.status == 503 && told.reason() == FULL, "{told:?}");
    ensure!(waiting.answered() == 0 && shop.booths[1].requests() == 1);
    shop.booths[1].let_out(1);
    for told in [served.wait()?, waiting.wait()?].concat() {
        ensure!(told.is_good(), "{told:?}");
    }
    wait_for(SOON, "the wait in the access log", || {
        let log = shop.store.access_log();
        log.lines().any(|line| line.contains("\"path\":\"/waiting\"") && line.contains("\"queued_us\":"))
    })?;

    // Without a queue the second is refused at once.
    let served = first(2)?;
    let told = shop.ask(2, "/").once(pod)?;
    ensure!(told.status == 503 && told.reason() == FULL, "{told:?}");
    shop.booths[2].let_out(1);
    ensure!(served.wait()?[0].is_good());

    // Whose time in the queue is over is told another reason, and not before.
    let served = first(3)?;
    let told = shop.ask(3, "/").once(pod)?;
    ensure!(told.status == 503 && told.reason() == "queue-timeout", "{told:?}");
    ensure!(told.took >= Duration::from_millis(300), "{told:?}");
    let told = shop.ask(3, "/outrigger.test.Any/Call").grpc().once(pod)?;
    ensure!(told.field("grpc-status") == Some("8") && told.reason() == "queue-timeout", "{told:?}");
    ensure!(shop.booths[3].requests() == 1, "it reached the application all the same");
    shop.booths[3].let_out(1);
    ensure!(served.wait()?[0].is_good());
    Ok(())
}

pub(super) fn turns(lab: &Lab) -> Result<()> {
    let sections = ["bulkhead: {total: {maxRequests: 1}, queue: {size: 20, timeout: 60s}}"];
    let shop = Guarded::open(lab, &["greedy", "modest"], &sections)?;
    for (port, queued) in [(1, true), (0, false)] {
        let came = shop.booths[port].arrivals().len();
        let come = |waiting, inside| match queued {
            true => shop.wait_queued(port, waiting),
            false => shop.wait_inside(port, inside),
        };
        let greedy = at_once(&shop.callers[0].pod, vec![shop.ask(port, "/hold"); 8])?;
        come(7, 8)?;
        let modest = at_once(&shop.callers[1].pod, vec![shop.ask(port, "/hold")])?;
        come(8, 9)?;
        for done in 1..=9 {
            shop.booths[port].let_out(1);
            wait_for(SOON, "one more answer", || greedy.answered() + modest.answered() >= done)?;
        }
        let told = [greedy.wait()?, modest.wait()?].concat();
        ensure!(admitted(&told, FULL, 503)? == 9);
        let arrivals = shop.booths[port].arrivals();
        let place = arrivals[came..].iter().position(|arrival| arrival.caller() == "modest");
        // One of the greedy was inside already, and one of them may be next.
        let in_turn = place.context("it never came")? <= 2;
        ensure!(in_turn == queued, "port {port}: served at place {place:?}");
    }
    ensure!(shop.booths[1].take_most() == 1);
    Ok(())
}

/// The application serves four at a time. One caller keeps ten times that under way; what does another wait for?
pub(super) fn fairness(lab: &Lab) -> Result<()> {
    let work = Duration::from_millis(50);
    let sections = [
        "bulkhead: {total: {maxRequests: 4}, perCaller: {maxRequests: 3}, queue: {size: 200, timeout: 30s}}",
        "bulkhead: {total: {maxRequests: 4}, queue: {size: 200, timeout: 30s}}",
    ];
    let booth = |pod: &Pod, port| Booth::with_work(pod, port, "store", 4, work);
    let shop = Guarded::with_booths(lab, &["modest", "greedy"], &sections, booth)?;
    let measure = |port: usize| -> Result<f64> {
        let modest = || Loops::new(shop.ask(port, "/"), 1).start(&shop.callers[0].pod);
        let ask = |number| {
            let modest = modest()?;
            modest.wait_for_more(number)?;
            let outcome = modest.stop()?;
            outcome.expect_only(&[])?;
            outcome.percentile(99)
        };
        let alone = ask(40)?;
        let flood = Loops::new(shop.ask(port, "/"), 40).start(&shop.callers[1].pod)?;
        flood.wait_for_more(40)?;
        let beside = ask(if port == 0 { 6 } else { 40 })?;
        let flood = flood.stop()?;
        flood.expect_only(&[])?;
        figure(&format!("fairness, port {port}: p99 {alone:?} alone, {beside:?} beside a flood"));
        Ok(beside.as_secs_f64() / alone.as_secs_f64())
    };
    // Others use the machine too: a tail may be theirs.
    let mut ratios = Vec::new();
    for _ in 0..3 {
        ratios.push(measure(1)?);
        if ratios.last().is_some_and(|ratio| *ratio <= 2.0) {
            break;
        }
    }
    ensure!(
        ratios.last().is_some_and(|ratio| *ratio <= 2.0),
        "p99 beside a flood, times that alone: {ratios:?}"
    );
    let without = measure(0)?;
    ensure!(without > 2.0, "also without a bulkhead it was only {without} times as long");
    // Taking turns alone, without a place of its own: no bound is promised for one wait, only for the number ahead.
    figure(&format!(
        "fairness by turns alone: {:.2}; with perCaller: {ratios:.2?}; without: {without:.2}",
        measure(2)?
    ));
    Ok(())
}

pub(super) fn adaptive(lab: &Lab) -> Result<()> {
    let sections = [
        "bulkhead: {adaptive: {minRequests: 2, maxRequests: 200}}",
        "bulkhead: {adaptive: {minRequests: 14, maxRequests: 200}}",
    ];
    let booth = |pod: &Pod, port| Booth::with_work(pod, port, "store", 4, Duration::from_millis(20));
    let shop = Guarded::with_booths(lab, &["web"], &sections, booth)?;
    let pod = &shop.callers[0].pod;
    let limit = |port| shop.hall(port)?["limit"].as_u64().context("a limit");
    let flood = |port| Loops::new(shop.ask(port, "/"), 60).resting(Duration::from_millis(200)).start(pod);
    for (port, floor) in [(1, 2), (2, 14)] {
        // Latency's own floor is learned while there is room.
        let calm = Loops::new(shop.ask(port, "/"), 2).start(pod)?;
        calm.wait_for_more(60)?;
        calm.stop()?.expect_only(&[])?;
        ensure!(limit(port)? == 20, "the first limit is {}", limit(port)?);
        let flood = flood(port)?;
        let mut least = u64::MAX;
        wait_for(SOON, "the limit to follow latency", || {
            least = least.min(limit(port).unwrap_or(u64::MAX));
            least <= if port == 1 { 13 } else { 14 }
        })
        .with_context(|| format!("least limit {least}"))?;
        shop.booths[port].take_most();
        flood.wait_for_more(200)?;
        let most = shop.booths[port].take_most();
        let outcome = flood.stop()?;
        outcome.expect_only(&[FULL])?;
        ensure!(most <= 25, "{most} at the application at once");
        ensure!(limit(port)? >= floor, "below its range: {}", limit(port)?);
        ensure!(reasons(&outcome.told).contains_key(FULL), "nobody was refused");
    }
    // All of the flood is inside where nothing limits it.
    let flood = flood(0)?;
    shop.wait_inside(0, 60)?;
    flood.stop()?.expect_only(&[])
}
