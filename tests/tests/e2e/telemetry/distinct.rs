//! What strangers can invent (paths, hosts, addresses to call, identities they claim) in numbers: the series stay within
//! their budget, in the proxies and in the control plane, and memory stays where it was.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
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
/// What a proxy may grow by, once it has seen a fifth of what is to come.
const GROWTH: u64 = 1024 * 1024;
const CONNECTIONS: usize = 6;

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
    let total = many(50_000, 1_000_000);
    round(&web, &store, 0, total / 5)?;
    let before = resident(&proxies)?;
    let mut after = before;
    for part in 1..5 {
        round(&web, &store, part * total / 5, total / 5)?;
        after = resident(&proxies)?;
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
    }
    figure(&format!("{total} distinct values: resident {before:?} -> {after:?}"));
    for (proxy, (before, after)) in proxies.iter().zip(before.into_iter().zip(after)) {
        ensure!(after <= before + GROWTH, "{} grew from {before} to {after} bytes", proxy.name());
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

/// Of all values: nine tenths paths and hosts, the others addresses to call and callers without a sidecar.
fn round(web: &Workload, store: &Workload, first: usize, number: usize) -> Result<()> {
    let words = number * 9 / 10;
    let next = AtomicUsize::new(0);
    web.pod.enter(|| -> Result<()> {
        thread::scope(|scope| {
            let loops: Vec<_> =
                (0..CONNECTIONS).map(|_| scope.spawn(|| ask_for_words(first, words, &next))).collect();
            loops.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a loop panicked"))?)
        })?;
        // Nobody has these: the switch says so at once.
        for value in first + words..first + words + number / 20 {
            let address = from_number([198, 18, 0, 0], value);
            drop(TcpStream::connect_timeout(&SocketAddr::from((address, 80)), Duration::from_secs(5)));
        }
        Ok(())
    })??;
    let target = SocketAddr::from((store.pod.ipv4(), 8080));
    web.pod.lab().enter(|| {
        for value in first + words..first + words + number / 20 {
            call_as(value, target).with_context(|| format!("caller {value}"))?;
        }
        Ok(())
    })?
}

fn from_number(network: [u8; 4], number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(network)) + number as u32 % (1 << 17))
}

/// One connection, request after request, each with a path and a host that nobody has had.
fn ask_for_words(first: usize, number: usize, next: &AtomicUsize) -> Result<()> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from(STORE), raw::PATIENCE)?;
        stream.set_read_timeout(Some(raw::PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let mut stream = connect()?;
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if at >= number {
            return Ok(());
        }
        let value = first + at;
        let request = format!(
            "GET /invented/{value} HTTP/1.1\r\nhost: invented-{value}.example\r\nuser-agent: invented \"{value}\\\"\r\n\
             traceparent: 00-{value:032x}-{value:016x}-00\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let (head, _) = raw::read_answer(&mut stream)?;
        ensure!(head.starts_with("http/1.1 200"), "{head}");
        if head.contains("connection: close") {
            stream = connect()?;
        }
    }
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
