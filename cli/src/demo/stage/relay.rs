//! A TCP relay that can record what it carries: the wire of the stage without namespaces.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};

/// What is kept at most; a demo of a minute stays far below.
const MOST_KEPT: usize = 512 * 1024 * 1024;

/// Relays until the program ends.
pub(crate) struct Relay {
    tape: Tape,
}

pub(crate) struct Recording {
    tape: Tape,
}

/// Bytes of one direction of one connection stay together, so nothing is missed for being cut in two.
#[derive(Default)]
pub(crate) struct Recorded {
    streams: Vec<Vec<u8>>,
    pub(crate) pieces: u64,
}

/// Empty while nothing is recorded.
type Tape = Arc<Mutex<Option<Recorded>>>;

impl Relay {
    pub(crate) fn start(from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(from).with_context(|| format!("relay on {from}"))?;
        let tape = Tape::default();
        let mut streams = 0;
        let recorder = Arc::clone(&tape);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A target that is gone is told to the caller by the end of its connection.
                drop(relay(stream, to, &recorder, streams));
                streams += 2;
            }
        });
        Ok(Self { tape })
    }

    pub(crate) fn record(&self) -> Recording {
        *self.tape.lock().unwrap_or_else(PoisonError::into_inner) = Some(Recorded::default());
        Recording { tape: Arc::clone(&self.tape) }
    }
}

impl Recording {
    pub(crate) fn stop(self) -> Recorded {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }
}

impl Recorded {
    pub(crate) fn bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.len() as u64).sum()
    }

    pub(crate) fn count(&self, needle: &[u8]) -> usize {
        self.streams
            .iter()
            .map(|stream| stream.windows(needle.len()).filter(|window| *window == needle).count())
            .sum()
    }

    fn add(&mut self, stream: usize, bytes: &[u8]) {
        self.pieces += 1;
        if self.streams.len() <= stream {
            self.streams.resize(stream + 1, Vec::new());
        }
        if self.bytes() + bytes.len() as u64 <= MOST_KEPT as u64 {
            self.streams[stream].extend_from_slice(bytes);
        }
    }
}

fn relay(caller: TcpStream, to: SocketAddr, tape: &Tape, stream: usize) -> io::Result<()> {
    let callee = TcpStream::connect(to)?;
    for socket in [&caller, &callee] {
        socket.set_nodelay(true)?;
    }
    let ways = [(caller.try_clone()?, callee.try_clone()?, stream), (callee, caller, stream + 1)];
    for (from, to, stream) in ways {
        let tape = Arc::clone(tape);
        thread::spawn(move || pump(from, to, &tape, stream));
    }
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, tape: &Tape, stream: usize) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if let Some(recorded) = tape.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            recorded.add(stream, &buffer[..read]);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Either may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_while_it_is_asked_to() {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = echo.local_addr().unwrap();
        thread::spawn(move || {
            for stream in echo.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = stream.try_clone().unwrap();
                thread::spawn(move || io::copy(&mut reader, &mut stream));
            }
        });
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let relay = Relay::start(free, to).unwrap();
        let mut caller = TcpStream::connect(free).unwrap();
        let mut say = |text: &str| {
            caller.write_all(text.as_bytes()).unwrap();
            let mut echoed = vec![0; text.len()];
            caller.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, text.as_bytes());
        };
        say("before");
        let recording = relay.record();
        say("sec");
        say("ret");
        let recorded = recording.stop();
        say("after");
        assert_eq!(
            (recorded.count(b"secret"), recorded.count(b"before"), recorded.count(b"after")),
            (2, 0, 0)
        );
        assert_eq!((recorded.bytes(), recorded.pieces), (12, 4));
    }
}
