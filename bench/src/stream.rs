//! Opaque bytes: a server that reads until the end and says how much it got, and clients for throughput, for new
//! connections and for connections that stay idle.
//!
//! The first byte of a connection has no meaning: it only keeps the protocol unlike HTTP and TLS.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use outrigger_lab::Pod;

use crate::{load::Load, origin};

const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 * 1024;

/// Serves on [`origin::TCP_PORT`] of the pod until the program ends.
pub(crate) fn serve(pod: &Pod) -> Result<()> {
    let listener = pod.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, origin::TCP_PORT)))??;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A failed client is the client's to count.
            thread::spawn(move || drop(swallow(stream)));
        }
    });
    Ok(())
}

/// Answers the first byte at once and the end of the stream with the number of bytes read.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0_u64;
    loop {
        let read = stream.read(&mut buffer)?;
        if total == 0 && read > 0 {
            stream.write_all(b"!")?;
        }
        if read == 0 {
            return stream.write_all(&total.to_be_bytes());
        }
        total += read as u64;
    }
}

/// One connection, as many bytes as go through in the time; what counts is what arrived.
pub(crate) fn throughput(pod: &Pod, target: SocketAddr, duration: Duration) -> Result<Load> {
    pod.enter(|| {
        let mut stream = open(target)?;
        let chunk = vec![0x5a; CHUNK];
        let start = Instant::now();
        let mut sent = 1;
        while start.elapsed() < duration {
            stream.write_all(&chunk)?;
            sent += chunk.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut arrived = [0; 8];
        stream.read_exact(&mut arrived)?;
        let arrived = u64::from_be_bytes(arrived);
        let failed = u64::from(arrived != sent);
        Ok(Load {
            done: 1,
            failed,
            bytes: arrived,
            elapsed: start.elapsed(),
            p50_us: None,
            p99_us: None,
            p999_us: None,
        })
    })?
}

/// Opens connections one after the other on several threads, a byte there and back on each.
pub(crate) fn connects(pod: &Pod, target: SocketAddr, threads: u32, duration: Duration) -> Result<Load> {
    pod.enter(|| {
        let start = Instant::now();
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                thread::spawn(move || {
                    let (mut done, mut failed) = (0, 0);
                    while start.elapsed() < duration {
                        match open(target) {
                            Ok(_) => done += 1,
                            Err(_) => failed += 1,
                        }
                    }
                    (done, failed)
                })
            })
            .collect();
        let (mut done, mut failed) = (0, 0);
        for worker in workers {
            let (more_done, more_failed) = worker.join().map_err(|_| anyhow!("a load thread panicked"))?;
            done += more_done;
            failed += more_failed;
        }
        Ok(Load {
            done,
            failed,
            bytes: 0,
            elapsed: start.elapsed(),
            p50_us: None,
            p99_us: None,
            p999_us: None,
        })
    })?
}

/// Connections that have carried a byte each way and now do nothing; closed when dropped.
pub(crate) fn hold(pod: &Pod, target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    pod.enter(|| {
        (0..count)
            .map(|number| open(target).with_context(|| format!("idle connection {number} of {count}")))
            .collect()
    })?
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"\0")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_counts_what_arrived() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        thread::spawn(move || swallow(listener.accept().unwrap().0));
        let mut stream = open(target).unwrap();
        stream.write_all(&[7; 99]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut count = Vec::new();
        stream.read_to_end(&mut count).unwrap();
        assert_eq!(count, 100_u64.to_be_bytes());
    }
}
