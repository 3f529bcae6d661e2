//! Requests at a fixed rate, whatever the answers do: latency as the callers of a steady service see it.
//!
//! Every connection has its own thread, its own schedule and blocking IO, so nothing waits for a timer of an event
//! loop. A request is due at a planned moment. If its connection is free then, latency counts from the moment of
//! sending (waking up late is this program's fault, not the proxy's); if the connection is still busy with an earlier
//! request, latency counts from the moment it was due. So a stall is charged to every request that it delayed
//! (no coordinated omission).

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use outrigger_lab::Pod;

use crate::load::Load;

/// A request that gets no answer for this long has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) path: &'static str,
    pub(crate) connections: u32,
    /// Requests per second over all connections.
    pub(crate) rate: u32,
    pub(crate) duration: Duration,
}

struct Tally {
    latencies: Histogram<u64>,
    failed: u64,
}

/// Runs the plan from inside the pod.
pub(crate) fn run(pod: &Pod, plan: Plan) -> Result<Load> {
    pod.enter(|| run_here(plan))?
}

fn run_here(plan: Plan) -> Result<Load> {
    let start = Instant::now() + Duration::from_millis(20);
    let workers: Vec<_> =
        (0..plan.connections).map(|number| thread::spawn(move || drive(plan, number, start))).collect();
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut failed = 0;
    for worker in workers {
        let tally = worker.join().map_err(|_| anyhow!("a load thread panicked"))??;
        latencies.add(&tally.latencies)?;
        failed += tally.failed;
    }
    let micros = |quantile| Some(latencies.value_at_quantile(quantile) as f64 / 1000.0);
    Ok(Load {
        done: latencies.len(),
        failed,
        bytes: 0,
        elapsed: start.elapsed(),
        p50_us: micros(0.50),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
    })
}

/// One connection's share: every `connections`-th request of the whole schedule.
fn drive(plan: Plan, number: u32, start: Instant) -> Result<Tally> {
    let mut tally = Tally { latencies: Histogram::new(3)?, failed: 0 };
    let interval = Duration::from_secs(1) / plan.rate;
    let request = format!("GET {} HTTP/1.1\r\nHost: server.bench\r\n\r\n", plan.path);
    let mut connection = None;
    let mut due = start + interval * number;
    while due < start + plan.duration {
        let now = Instant::now();
        let counted_from = if now < due {
            thread::sleep(due - now);
            Instant::now()
        } else {
            due
        };
        match exchange(&mut connection, plan.target, request.as_bytes()) {
            Ok(()) => tally.latencies.record(counted_from.elapsed().as_nanos() as u64)?,
            Err(_) => {
                tally.failed += 1;
                connection = None;
            }
        }
        due += interval * plan.connections;
    }
    Ok(tally)
}

/// Sends a request and reads its answer, which must be a 200 with a length.
pub(crate) fn exchange(
    connection: &mut Option<TcpStream>,
    target: SocketAddr,
    request: &[u8],
) -> io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(connect(target)?),
    };
    stream.write_all(request)?;
    let mut answer = [0; 4096];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut answer[filled..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some(whole) = whole_length(&answer[..filled])? {
            return if filled == whole { Ok(()) } else { read_rest(stream, whole.saturating_sub(filled)) };
        }
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Length of head and body together, once the head is there.
fn whole_length(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head_end) = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
        let too_long = answer.len() == 4096;
        return if too_long { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(&answer[..head_end]);
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match length {
        Some(length) if head.starts_with("HTTP/1.1 200 ") => Ok(Some(head_end + length)),
        Some(_) | None => Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned())),
    }
}

fn read_rest(stream: &mut TcpStream, mut missing: usize) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while missing > 0 {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        missing = missing.saturating_sub(read);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_complete_or_an_error() {
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap(), None);
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").unwrap(), Some(43));
        assert!(whole_length(b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\n").is_err());
        assert!(whole_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn a_stall_is_charged_to_every_request_it_delays() {
        const STALL: Duration = Duration::from_millis(200);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            let mut stalled = false;
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                if !stalled {
                    thread::sleep(STALL);
                    stalled = true;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            }
        });
        let plan =
            Plan { target, path: "/", connections: 1, rate: 1000, duration: Duration::from_millis(400) };
        let load = run_here(plan).unwrap();
        assert_eq!((load.done, load.failed), (400, 0));
        // Half of the requests were due during the stall and waited 100 ms on average; a generator that omits them
        // would report one slow request in 400.
        assert!(load.p50_us.unwrap() < STALL.as_micros() as f64);
        let slow = load.p99_us.unwrap();
        assert!(slow > STALL.as_micros() as f64 / 2.0, "p99 {slow}");
    }

    #[test]
    fn refused_connections_are_failures() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plan = Plan { target, path: "/", connections: 2, rate: 100, duration: Duration::from_millis(50) };
        let load = run_here(plan).unwrap();
        assert_eq!((load.done, load.failed), (0, 5));
    }
}
