//! What strangers can invent (paths, hosts, addresses to call, identities they claim) in numbers: the series stay within
//! their budget, in the proxies and in the control plane, and memory stays where it was.
//!
//! Addresses that its own program calls are what a proxy does remember: so many, for ten minutes. They come first, and in
//! such numbers that one which forgot none could not hide it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    ops::Range,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for};

use super::{many, stat};
use crate::support::{
    SOON, Test, figure,
    origin::Origin,
    prometheus::samples,
    raw,
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![Test::new("distinct_paths_hosts_and_callers_stay_within_the_series_budget_and_memory", distinct)]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
/// The default of `--metrics-series`, in lines of a scrape.
const BUDGET: usize = 2_000;
/// What a proxy may grow by in four rounds, once it has seen one.
const GROWTH: u64 = 1024 * 1024;
/// Destinations that a proxy remembers.
const DESTINATIONS: usize = 8_192;
/// What it may grow by for as many others, again and again: a third of what it would take to remember two times as many.
/// The table is copied with each answer, so what is resident depends on who still had the copies before.
const GROWTH_OF_DESTINATIONS: u64 = 8 * GROWTH;
const CONNECTIONS: usize = 6;
/// Each new address waits for the control plane, which answers many as fast as one.
const CALLS_TO_ADDRESSES: usize = 48;

fn distinct(lab: &Lab) -> Result<()> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let open = "  selector: {app: store}\n  ports: [{port: 8080, mtls: permissive}]\n";
    let mesh = Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("open.yaml", policy("ServerPolicy", "store", open))
        .start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    wait_for(SOON, "an answer", || {
        raw::exchange(&web.pod, SocketAddr::from(STORE), b"GET /id HTTP/1.0\r\nhost: store.shop\r\n\r\n")
            .is_ok_and(|answer| answer.contains(" 200 "))
    })?;
    let proxies = [&web, &store];
    // The switch has those addresses now and refuses each connection. What it says of addresses that nobody has, the kernel
    // limits to a word a second.
    let mut route = Command::new("ip");
    route.args(["route", "add", "local", "198.18.0.0/15", "dev", "lo"]);
    ensure!(lab.enter(|| route.status())??.success(), "{route:?}");
    let (full, last) = (DESTINATIONS * 9 / 8, DESTINATIONS * many(3, 15));
    addresses(&web, 0..full)?;
    let [before, _] = resident(&proxies)?;
    addresses(&web, full..last)?;
    let [after, _] = resident(&proxies)?;
    figure(&format!("{last} distinct addresses: resident {before} -> {after}"));
    ensure!(after <= before + GROWTH_OF_DESTINATIONS, "web grew from {before} to {after} bytes");

    let (rounds, total) = (5, many(50_000, 1_000_000));
    let (mut before, mut after) = ([0; 2], [0; 2]);
    for round in 0..rounds {
        let each = |number: usize| round * number..(round + 1) * number;
        words(&web, each(total / rounds * 19 / 20))?;
        callers(&store, each(total / rounds / 20))?;
        after = resident(&proxies)?;
        if round == 0 {
            before = after;
        }
    }
    figure(&format!("{total} distinct values: resident {before:?} -> {after:?}"));
    for (proxy, (before, after)) in proxies.iter().zip(before.into_iter().zip(after)) {
        ensure!(after <= before + GROWTH, "{} grew from {before} to {after} bytes", proxy.name());
    }

    for proxy in proxies {
        let page = proxy.status("/metrics")?.body;
        let series = samples(&page)?.len();
        ensure!(series <= BUDGET, "{} has {series} series", proxy.name());
        // Neither in a label nor anywhere else.
        for word in ["invented", "198.18."] {
            let line = page.lines().find(|line| line.contains(word));
            ensure!(line.is_none(), "{}: {line:?}", proxy.name());
        }
    }
    // And so in the control plane: what exceeds is told of as other.
    for side in ["outbound", "inbound"] {
        let told = stat(&mesh, "edge", side)?;
        let rows = told["rows"].as_array().context("rows")?;
        ensure!(!rows.is_empty() && rows.len() <= 600, "{} rows ({side})", rows.len());
    }
    Ok(())
}

fn resident(proxies: &[&Workload; 2]) -> Result<[u64; 2]> {
    Ok([proxies[0].proxy.resident_bytes()?, proxies[1].proxy.resident_bytes()?])
}

fn words(web: &Workload, numbers: Range<usize>) -> Result<()> {
    at_once(web, CONNECTIONS, numbers, |next| {
        let mut stream = None;
        while let Some(value) = next() {
            let open = stream.take().map_or_else(connect, Ok)?;
            stream = ask_for_words(open, value)?;
        }
        Ok(())
    })
}

fn ask_nobody(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, raw::PATIENCE)?;
    stream.set_read_timeout(Some(raw::PATIENCE))?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Nobody listens there: the switch says so at once, and then the proxy does.
fn addresses(web: &Workload, numbers: Range<usize>) -> Result<()> {
    at_once(web, CALLS_TO_ADDRESSES, numbers, |next| {
        while let Some(value) = next() {
            let address = SocketAddr::from((from_number([198, 18, 0, 0], value), 80));
            let answer = ask_nobody(address);
            // The reset may come before or after anything.
            let reset = [ErrorKind::ConnectionReset, ErrorKind::NotConnected];
            match answer {
                Err(error) if !reset.contains(&error.kind()) => Err(error).context(address)?,
                Err(_) => {}
                Ok(answer) => ensure!(answer.is_empty(), "{address} answers {answer:?}"),
            }
        }
        Ok(())
    })
}

/// Without a sidecar.
fn callers(store: &Workload, numbers: Range<usize>) -> Result<()> {
    let target = SocketAddr::from((store.pod.ipv4(), 8080));
    store.pod.lab().enter(|| {
        for value in numbers {
            call_as(value, target).with_context(|| format!("caller {value}"))?;
        }
        Ok(())
    })?
}

/// In so many threads of a pod; `run` is given where the next number comes from.
fn at_once(
    workload: &Workload,
    threads: usize,
    numbers: Range<usize>,
    run: impl Fn(&dyn Fn() -> Option<usize>) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(numbers.start);
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < numbers.end);
    workload.pod.enter(|| {
        thread::scope(|scope| {
            let loops: Vec<_> = (0..threads).map(|_| scope.spawn(|| run(&take))).collect();
            loops.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a loop panicked"))?)
        })
    })?
}

fn from_number(network: [u8; 4], number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(network)) + number as u32 % (1 << 17))
}

fn connect() -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(STORE), raw::PATIENCE)?;
    stream.set_read_timeout(Some(raw::PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A request with a path and a host that nobody has had. Gives the connection back if it can be used again.
fn ask_for_words(mut stream: TcpStream, value: usize) -> Result<Option<TcpStream>> {
    let request = format!(
        "GET /invented/{value} HTTP/1.1\r\nhost: invented-{value}.example\r\nuser-agent: invented \"{value}\\\"\r\n\
         traceparent: 00-{:032x}-{:016x}-00\r\n\r\n",
        value + 1,
        value + 1
    );
    stream.write_all(request.as_bytes())?;
    let (head, _) = raw::read_answer(&mut stream)?;
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    Ok((!head.contains("connection: close")).then_some(stream))
}

/// A connection of a caller without a sidecar, who says that it is somebody.
fn call_as(value: usize, target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, raw::PATIENCE)?;
    stream.set_read_timeout(Some(raw::PATIENCE))?;
    let request = format!(
        "GET /invented HTTP/1.0\r\nhost: store.shop\r\nx-forwarded-for: invented-{value}\r\n\
         x-forwarded-client-cert: URI=spiffe://mesh.local/ns/shop/sa/invented-{value}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}
