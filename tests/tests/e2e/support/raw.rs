//! Bytes on sockets: for what no well-behaved client would send, and for programs that only count.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use outrigger_lab::Pod;

/// For a single read or connect; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A connection out of a pod, with deadlines on everything.
pub(crate) fn connect(pod: &Pod, target: SocketAddr) -> Result<TcpStream> {
    let stream = pod.enter(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let stream = stream.with_context(|| format!("connect to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends, then reads to the end. A reset after some bytes ends the answer; a deadline is an error.
pub(crate) fn exchange(pod: &Pod, target: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(pod, target)?;
    // The other side may refuse before it has read all.
    drop(stream.write_all(bytes));
    read_to_end(&mut stream)
}

/// All that comes until the other side closes or resets.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => {
                let so_far = String::from_utf8_lossy(&answer).into_owned();
                return Err(error).with_context(|| format!("still open after {so_far:?}"));
            }
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Reads one HTTP/1.1 answer with a content-length off a connection that stays open: head and body.
pub(crate) fn read_answer(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream
            .read_exact(&mut byte)
            .with_context(|| format!("after {:?}", String::from_utf8_lossy(&head)))?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

/// A program that accepts connections and counts what arrives: none of it should, where callers are refused.
pub(crate) struct Sink {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Sink {
    pub(crate) fn start(pod: &Pod, port: u16) -> Result<Self> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let listener = pod.enter(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        thread::spawn(move || {
            while !counted.stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        counted.connections.fetch_add(1, Ordering::Relaxed);
                        let counted = Arc::clone(&counted);
                        thread::spawn(move || count(stream, &counted));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { counts })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
    }
}

fn count(mut stream: TcpStream, counts: &Counts) {
    let mut buffer = [0; 16 * 1024];
    drop(stream.set_nonblocking(false));
    drop(stream.set_read_timeout(Some(PATIENCE)));
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        counts.bytes.fetch_add(length as u64, Ordering::SeqCst);
        // Answers in kind, so that a caller who got through would see it.
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nreached").is_err() {
            break;
        }
    }
}
