//! The rows of the comparison: what is run, and which figures come out.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::{
    closed_loop,
    load::Load,
    open_loop::{self, Plan},
    origin, stream,
    subject::{Cpu, Subject},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Row {
    /// HTTP/1.1, 64 connections
    H1,
    /// HTTP/1.1, 1 connection
    H1Single,
    /// HTTP/2, 8 connections of 16 streams
    H2,
    /// HTTP/2, 1 connection, 1 stream
    H2Single,
    /// HTTP/1.1 at a fixed rate
    Rate,
    /// HTTP/1.1, a new connection for every request
    Connect,
    /// HTTP/1.1, 64 connections, every policy of resilience on
    Policies,
    /// opaque TCP, new connections: a handshake of the mesh each
    Handshake,
    /// HTTP/1.1, bodies of 1 MiB
    Large,
    /// opaque TCP, one stream of bytes
    Tcp,
    /// resident memory, idle and per idle connection
    Memory,
    /// HTTP/1.1, 64 connections: metrics, access log and one trace in a hundred, against as little as can be
    Telemetry,
    /// the page with the metrics, as many as there can be
    Scrape,
}

/// A figure and how to judge it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Option<Goal>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// Ours is at most this share of Envoy's.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// Ours, in the metric's unit.
    AtMost(f64),
}

pub(crate) type Figures = Vec<(Metric, f64)>;

/// What a row counts by.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Requests,
    FixedRate,
    Connections,
    Bytes,
}

const MOST_CPU: Goal = Goal::RatioAtMost(0.75);
const LEAST_RATE: Goal = Goal::RatioAtLeast(1.4);
/// All policies on may cost a tenth more than none.
const POLICIES_COST: Goal = Goal::AtMost(1.1);
const IDLE_MIB: Goal = Goal::AtMost(12.0);
/// All that is told may cost so much more than nothing.
const TELEMETRY_COST: Goal = Goal::AtMost(1.08);
const SCRAPE_MS: Goal = Goal::AtMost(3.0);

/// Requests per second of [`Row::Rate`], well below what any pair can do.
const RATE: u32 = 1_000;
const RATE_CONNECTIONS: u32 = 16;
const IDLE_CONNECTIONS: usize = 1_000;

impl Row {
    /// Runs the row once and works out its figures.
    pub(crate) fn measure(self, subject: &Subject, duration: Duration) -> Result<Figures> {
        if self == Self::Memory {
            memory(subject)
        } else if self == Self::Policies && subject.has_sidecars() {
            self.beside_none(subject, duration)
        } else {
            self.measure_once(subject, duration)
        }
    }

    /// Rows whose subjects are pairs: one that tells as little as it can, and one that tells all.
    pub(crate) fn is_of_pairs(self) -> bool {
        matches!(self, Self::Telemetry | Self::Scrape)
    }

    /// Such a row, once. Which of the pair goes first alternates with `swap`.
    pub(crate) fn measure_pair(self, pair: &[Subject; 2], swap: bool, duration: Duration) -> Result<Figures> {
        let [off, on] = pair;
        if self == Self::Scrape {
            return scrape(on);
        }
        let measure = |subject: &Subject| Self::H1.measure_once(subject, duration);
        let (off, mut on) = if swap {
            let on = measure(on)?;
            (measure(off)?, on)
        } else {
            (measure(off)?, measure(on)?)
        };
        // What is judged here is the cost, not the whole.
        on.iter_mut().for_each(|(metric, _)| metric.goal = None);
        let names = [("CPU client", "CPU client, on / off"), ("CPU server", "CPU server, on / off")];
        add_ratios(&mut on, &off, names, TELEMETRY_COST);
        Ok(on)
    }

    /// The same load without policies right before it, so that their cost is known and not only the whole.
    fn beside_none(self, subject: &Subject, duration: Duration) -> Result<Figures> {
        let none = Self::H1.measure_once(subject, duration)?;
        let mut figures = self.measure_once(subject, duration)?;
        let names =
            [("CPU client", "CPU client with / without"), ("CPU server", "CPU server with / without")];
        add_ratios(&mut figures, &none, names, POLICIES_COST);
        Ok(figures)
    }

    fn measure_once(self, subject: &Subject, duration: Duration) -> Result<Figures> {
        let before = subject.cpu()?;
        let load = self.load(subject, duration)?;
        let after = subject.cpu()?;
        ensure!(load.done > 0, "nothing got through ({} failed)", load.failed);
        Ok(self.figures(subject, &load, before, after))
    }

    fn load(self, subject: &Subject, duration: Duration) -> Result<Load> {
        let pod = &subject.client;
        let (h1, h2) = (subject.url(origin::H1_PORT, "/1k"), subject.url(origin::H2_PORT, "/1k"));
        let tcp = subject.target(origin::TCP_PORT);
        match self {
            Self::H1 => closed_loop::wrk(pod, &h1, 64, &[], duration),
            Self::H1Single => closed_loop::wrk(pod, &h1, 1, &[], duration),
            Self::H2 => closed_loop::h2load(pod, &h2, 8, 16, duration),
            Self::H2Single => closed_loop::h2load(pod, &h2, 1, 1, duration),
            Self::Rate => {
                let target = subject.target(origin::H1_PORT);
                open_loop::run(
                    pod,
                    Plan { target, path: "/1k", connections: RATE_CONNECTIONS, rate: RATE, duration },
                )
            }
            Self::Policies => {
                closed_loop::wrk(pod, &subject.url(origin::POLICIES_PORT, "/1k"), 64, &[], duration)
            }
            Self::Connect => closed_loop::wrk(pod, &h1, 16, &["Connection: close"], duration),
            Self::Handshake => stream::connects(pod, tcp, 4, duration),
            Self::Large => {
                let url = subject.url(origin::H1_PORT, "/1m");
                closed_loop::wrk(pod, &url, 8, &[], duration)
            }
            Self::Tcp => stream::throughput(pod, tcp, duration),
            Self::Memory | Self::Telemetry | Self::Scrape => bail!("not one load"),
        }
    }

    fn figures(self, subject: &Subject, load: &Load, before: Cpu, after: Cpu) -> Figures {
        let shape = self.shape();
        let mut figures = Vec::new();
        let mut add = |name, unit, goal, value| figures.push((Metric { name, unit, goal }, value));
        let (done, cpu_unit, cpu_units) = match shape {
            Shape::Requests => (Some(("rate", "req/s")), "us/req", load.done as f64 * 1e3),
            Shape::FixedRate => (None, "us/req", load.done as f64 * 1e3),
            Shape::Connections => (Some(("rate", "conn/s")), "us/conn", load.done as f64 * 1e3),
            Shape::Bytes => (None, "ns/kB", load.bytes as f64 / 1e3),
        };
        if let Some((name, unit)) = done {
            add(name, unit, self.is_judged().then_some(LEAST_RATE), load.per_second());
        }
        if shape == Shape::Bytes {
            add("throughput", "MB/s", None, load.megabytes_per_second());
        }
        if subject.has_sidecars() {
            let goal = self.is_judged().then_some(MOST_CPU);
            for (name, spent) in
                [("CPU client", after.client - before.client), ("CPU server", after.server - before.server)]
            {
                add(name, cpu_unit, goal, spent.as_nanos() as f64 / cpu_units);
            }
        }
        if matches!(shape, Shape::Requests | Shape::FixedRate) {
            for (name, value) in [("p50", load.p50_us), ("p99", load.p99_us), ("p99.9", load.p999_us)] {
                if let Some(value) = value {
                    add(name, "us", None, value);
                }
            }
        }
        if load.failed > 0 {
            add("failed", "", Some(Goal::AtMost(0.0)), load.failed as f64);
        }
        figures
    }

    fn shape(self) -> Shape {
        match self {
            Self::H1 | Self::H1Single | Self::H2 | Self::H2Single | Self::Policies | Self::Telemetry => {
                Shape::Requests
            }
            Self::Rate => Shape::FixedRate,
            Self::Connect | Self::Handshake => Shape::Connections,
            Self::Large | Self::Tcp | Self::Memory | Self::Scrape => Shape::Bytes,
        }
    }

    /// Whether the project's goals for rate and processor time are about this row.
    fn is_judged(self) -> bool {
        matches!(self, Self::H1 | Self::H2 | Self::Policies)
    }

    pub(crate) fn title(self) -> String {
        let value = self.to_possible_value();
        let title = value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default();
        if self == Self::Rate {
            format!("{title}: {RATE} requests/s on {RATE_CONNECTIONS} connections, open loop")
        } else {
            title
        }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Adds what figures are of those of another run.
fn add_ratios(figures: &mut Figures, other: &Figures, names: [(&str, &'static str); 2], goal: Goal) {
    let value = |figures: &Figures, name| {
        figures.iter().find_map(|(metric, value)| (metric.name == name).then_some(*value))
    };
    for (name, ratio) in names {
        if let (Some(with), Some(without)) = (value(figures, name), value(other, name)) {
            figures.push((Metric { name: ratio, unit: "x", goal: Some(goal) }, with / without));
        }
    }
}

/// How long the metrics of a caller's sidecar take, from connecting to the last byte: the median of some.
fn scrape(subject: &Subject) -> Result<Figures> {
    const SCRAPES: usize = 51;
    let Some((address, path)) = subject.metrics_page() else { bail!("no sidecar, no metrics") };
    subject.ask_many()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let (mut times, mut page) = (Vec::new(), String::new());
    subject.client.enter(|| -> Result<()> {
        for _ in 0..SCRAPES {
            let start = Instant::now();
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(request.as_bytes())?;
            page.clear();
            stream.read_to_string(&mut page)?;
            times.push(start.elapsed());
        }
        Ok(())
    })??;
    times.sort_unstable();
    let series =
        page.lines().filter(|line| line.starts_with("outrigger_") || line.starts_with("envoy_")).count();
    ensure!(series > 0, "no metrics in {:?}", page.lines().next());
    let metric = |name, unit, goal| Metric { name, unit, goal };
    Ok(vec![
        (metric("series", "", None), series as f64),
        (metric("page", "ms", Some(SCRAPE_MS)), times[SCRAPES / 2].as_secs_f64() * 1e3),
        (metric("page, per series", "us", None), times[SCRAPES / 2].as_secs_f64() * 1e6 / series as f64),
    ])
}

/// On a subject that has just been started.
fn memory(subject: &Subject) -> Result<Figures> {
    const MIB: f64 = 1024.0 * 1024.0;
    let metric = |name, unit, goal| Metric { name, unit, goal };
    let mut figures = Vec::new();
    let idle = subject.memory()?;
    figures.push((metric("idle, client", "MiB", Some(IDLE_MIB)), idle.client / MIB));
    figures.push((metric("idle, server", "MiB", Some(IDLE_MIB)), idle.server / MIB));

    let http = hold_http(subject)?;
    let with_http = subject.memory()?;
    let per_connection = |more: f64, less: f64| (more - less).max(0.0) / 1024.0 / IDLE_CONNECTIONS as f64;
    figures.push((
        metric("per idle HTTP/1.1 connection, client", "KiB", None),
        per_connection(with_http.client, idle.client),
    ));
    let tcp = stream::hold(&subject.client, subject.target(origin::TCP_PORT), IDLE_CONNECTIONS)?;
    let with_tcp = subject.memory()?;
    figures.push((
        metric("per idle TCP connection, client", "KiB", None),
        per_connection(with_tcp.client, with_http.client),
    ));
    figures.push((
        metric("per idle TCP connection, server", "KiB", None),
        per_connection(with_tcp.server, with_http.server),
    ));
    drop((http, tcp));
    Ok(figures)
}

/// Connections that have carried one request each.
fn hold_http(subject: &Subject) -> Result<Vec<TcpStream>> {
    let target = subject.target(origin::H1_PORT);
    let request = b"GET /1k HTTP/1.1\r\nHost: server.bench\r\n\r\n";
    subject.client.enter(|| {
        (0..IDLE_CONNECTIONS)
            .map(|number| {
                let mut connection = None;
                open_loop::exchange(&mut connection, target, request)
                    .ok()
                    .and(connection)
                    .with_context(|| format!("idle connection {number} of {IDLE_CONNECTIONS}"))
            })
            .collect()
    })?
}
