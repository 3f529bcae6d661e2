//! Percentiles of a fleet: what `/stat` says is what comes out when every single duration is put together and sorted.
//!
//! ```text
//!   web-a ─▶ store ─▶ store-1, store-2, store-3        h2load in web-a and web-b, every latency written down
//!   web-b ─▶   (an answer takes as long as its path says, from nothing to a third of a second)
//! ```
//!
//! What may be lost: nothing when a control plane is killed (proxies send again what it has not acknowledged); of a proxy
//! that is killed what it had not sent, which is about a second.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for, wait_for_some};
use serde_json::Value;

use super::{many, requests, stat, stat_of};
use crate::support::{
    Need, SOON, Test, figure,
    load::{Kind, Plan},
    log::{self, quantile},
    meter::{self, Taken},
    origin::Origin,
    raw,
    yaml::Service,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("percentiles_of_the_fleet_are_those_of_all_durations_and_survive_a_control_plane", exact)
            .needs(&[Need::Program("h2load")]),
        Test::new("a_killed_proxy_loses_what_it_had_not_reported_and_no_more", killed)
            .needs(&[Need::Program("h2load")]),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
const SERVICE: &str = "shop/store:80";
const QUANTILES: [(&str, f64); 4] =
    [("p50_us", 0.50), ("p90_us", 0.90), ("p99_us", 0.99), ("p999_us", 0.999)];
/// What the histograms' two digits may be off by, and a microsecond for what is not whole ones.
const ERROR: f64 = 0.01;

struct Fleet {
    callers: Vec<Workload>,
    _origins: Vec<Origin>,
    stores: Vec<Workload>,
    mesh: Mesh,
}

fn fleet(lab: &Lab) -> Result<Fleet> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let (mut stores, mut origins, mut callers) = (Vec::new(), Vec::new(), Vec::new());
    for name in ["store-1", "store-2", "store-3"] {
        let store = mesh.workload(name).service_account("store").label("app", "store").start()?;
        origins.push(Origin::start(&store.pod, 8080, name)?);
        stores.push(store);
    }
    for name in ["web-a", "web-b"] {
        callers.push(mesh.workload(name).start()?);
    }
    let fleet = Fleet { callers, _origins: origins, stores, mesh };
    // Until every caller has had an answer of every instance: from now on nothing is new.
    for caller in &fleet.callers {
        for store in &fleet.stores {
            wait_for(SOON, &format!("an answer of {} for {}", store.name(), caller.name()), || {
                let request = b"GET /id HTTP/1.0\r\nhost: store.shop\r\n\r\n";
                raw::exchange(&caller.pod, SocketAddr::from(STORE), request)
                    .is_ok_and(|answer| answer.ends_with(store.name()))
            })?;
        }
    }
    Ok(fleet)
}

impl Fleet {
    /// Both callers at once: most requests at once, some that take a while.
    fn load(&self, number: usize) -> Result<Vec<Taken>> {
        thread::scope(|scope| {
            let mut loads = Vec::new();
            for caller in &self.callers {
                // In thousands: no quantile that is asked for falls between two of them.
                for (path, share) in [("/id", 955), ("/slow/20", 30), ("/slow/300", 15)] {
                    let number = number / self.callers.len() * share / 1000;
                    loads.push(scope.spawn(move || {
                        let name = path.replace('/', "-");
                        meter::requests(&caller.pod, SocketAddr::from(STORE), path, number, 8, &name)
                    }));
                }
            }
            let loads = loads.into_iter().map(|load| load.join().map_err(|_| anyhow!("a load panicked"))?);
            Ok(loads.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    /// The one row of the service, and all durations of that side in order, once both are of as many requests; `number`: at
    /// least how many there have to be. Log and report each come when they come.
    fn agreed(&self, direction: &str, number: usize) -> Result<(Value, Vec<u64>)> {
        let mut last = String::new();
        let found = wait_for_some(SOON, &format!("{number} requests in log and /stat ({direction})"), || {
            let sorted = self.logged(direction, number);
            let row = stat(&self.mesh, "service", direction).and_then(|told| row(&told).cloned());
            last = format!("{:?} are logged, told is {row:?}", sorted.as_ref().map(Vec::len));
            let (sorted, row) = (sorted.ok()?, row.ok()?);
            (row["requests"] == sorted.len()).then_some((row, sorted))
        });
        found.context(last)
    }

    /// All durations of one side as the access logs have them, in order. `number`: how many there have to be.
    fn logged(&self, direction: &str, number: usize) -> Result<Vec<u64>> {
        let workloads = if direction == "outbound" { &self.callers } else { &self.stores };
        let mut durations = Vec::new();
        wait_for(SOON, &format!("{number} {direction} requests in the access logs"), || {
            durations.clear();
            for workload in workloads {
                let lines = log::lines(workload).unwrap_or_default();
                durations
                    .extend(log::requests(&lines, direction).filter_map(|line| line["duration_us"].as_u64()));
            }
            durations.len() >= number
        })
        .with_context(|| format!("{} are there", durations.len()))?;
        durations.sort_unstable();
        Ok(durations)
    }
}

/// The one row of the service.
fn row(told: &Value) -> Result<&Value> {
    let rows = told["rows"].as_array().context("rows")?;
    let mut rows = rows.iter().filter(|row| row["service"] == SERVICE);
    let row = rows.next().with_context(|| told.to_string())?;
    ensure!(rows.next().is_none(), "{SERVICE} has two rows: {told}");
    Ok(row)
}

/// Every quantile and the maximum, against the sorted durations.
fn same(row: &Value, sorted: &[u64]) -> Result<()> {
    let near = |what: &str, told: &Value, wanted: u64| -> Result<()> {
        let told = told.as_f64().with_context(|| format!("{what} of {row}"))?;
        // What is shorter than the shortest that is told apart counts as that.
        let wanted = wanted.max(1) as f64;
        ensure!((told - wanted).abs() <= wanted * ERROR + 1.0, "{what}: told {told} us, it is {wanted} us");
        Ok(())
    };
    for (name, share) in QUANTILES {
        near(name, &row[name], quantile(sorted, share))?;
    }
    near("max_us", &row["max_us"], sorted.last().copied().unwrap_or(0))
}

fn exact(lab: &Lab) -> Result<()> {
    let fleet = fleet(lab)?;
    let number = many(20_000, 1_000_000);
    let mut taken = fleet.load(number / 2)?;
    // The control plane dies in the middle of the second half and comes back before its end.
    taken.extend(thread::scope(|scope| {
        let load = scope.spawn(|| fleet.load(number / 2));
        thread::sleep(Duration::from_secs(2));
        fleet.mesh.kill_control_plane(0);
        thread::sleep(Duration::from_secs(3));
        let back = fleet.mesh.start_control_plane(0);
        let taken = load.join().map_err(|_| anyhow!("the load panicked"))?;
        back?;
        taken
    })?);
    ensure!(taken.iter().all(|one| one.status == 200), "not every answer was 200");
    for side in ["outbound", "inbound"] {
        // Nothing is lost, and nothing counts twice.
        let (row, sorted) = fleet.agreed(side, taken.len())?;
        ensure!(row["failures"] == 0 && row["success"] == 1.0, "{row}");
        figure(&format!("{side}: {} durations, p99 {} us: {row}", sorted.len(), quantile(&sorted, 0.99)));
        same(&row, &sorted).with_context(|| format!("{side}: {row}"))?;
    }
    ensure!(stat(&fleet.mesh, "service", "outbound")?["proxies"].as_u64() >= Some(2));
    // Whoever asks waits at least as long as the proxy beside it: the same requests, from one step further away.
    let mut micros: Vec<_> = taken.iter().map(|one| one.micros).collect();
    micros.sort_unstable();
    let told = stat(&fleet.mesh, "service", "outbound")?;
    let row = row(&told)?;
    for (name, share) in QUANTILES {
        let (told, callers) = (row[name].as_f64().context("a quantile")?, quantile(&micros, share) as f64);
        ensure!(
            told <= callers * 1.02 + 20.0,
            "{name}: {told} us by the proxies, {callers} us by their callers"
        );
    }
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let mut fleet = fleet(lab)?;
    let number = many(4_000, 100_000);
    let load = |fleet: &Fleet| -> Result<()> {
        for caller in &fleet.callers {
            meter::requests(&caller.pod, SocketAddr::from(STORE), "/id", number / 2, 8, "all")?;
        }
        Ok(())
    };
    load(&fleet)?;
    // So much is safe: it has been told before.
    let before = fleet.logged("outbound", number)?.len() as u64;
    stat_of(&fleet.mesh, "service", "outbound", SERVICE, before)?;
    // A caller's proxy dies while it is at work.
    let running = Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
        .loops(4, Duration::from_millis(1))
        .start(&fleet.callers[1].pod)?;
    running.wait_for_more(1000, SOON)?;
    fleet.callers[1].proxy.kill();
    drop(running);
    // What the log has of the last two seconds before the end may be missing, and only that. The log itself may lack what
    // was not written yet, which is less than that: its thread writes every line at once.
    let lines = log::lines(&fleet.callers[1])?;
    let last = log::requests(&lines, "outbound").map(log::ended).collect::<Result<Vec<_>>>()?;
    let end = *last.iter().max().context("nothing was logged")?;
    let within = last.iter().filter(|at| **at + Duration::from_secs(2) >= end).count() as u64;
    let logged = (log::requests(&log::lines(&fleet.callers[0])?, "outbound").count() + last.len()) as u64;
    // Longer than the report of a living proxy takes.
    let told = stat_of(&fleet.mesh, "service", "outbound", SERVICE, logged - within)?;
    let told = requests(&told, SERVICE);
    figure(&format!("killed: {logged} logged, {told} told, {within} within its last two seconds"));
    ensure!(within > 0, "it was idle when it died: the test shows nothing");
    // Back, it begins anew, and what comes now counts once.
    fleet.callers[1].restart_proxy()?;
    fleet.callers[1].wait_ready()?;
    wait_for(SOON, "an answer", || {
        raw::exchange(
            &fleet.callers[1].pod,
            SocketAddr::from(STORE),
            b"GET /id HTTP/1.0\r\nhost: store.shop\r\n\r\n",
        )
        .is_ok_and(|answer| answer.contains(" 200 "))
    })?;
    let told = {
        // Until it stands still: all that was there is told.
        let mut last = 0;
        wait_for(SOON, "reports to come to rest", || {
            thread::sleep(Duration::from_secs(2));
            let now = stat(&fleet.mesh, "service", "outbound").map_or(0, |told| requests(&told, SERVICE));
            std::mem::replace(&mut last, now) == now && now > 0
        })?;
        last
    };
    load(&fleet)?;
    let after = stat_of(&fleet.mesh, "service", "outbound", SERVICE, told + number as u64)?;
    ensure!(
        requests(&after, SERVICE) == told + number as u64,
        "{} after {told} and {number}",
        requests(&after, SERVICE)
    );
    Ok(())
}
