//! Records the packets on the bridge, to search them for what must not be readable there.
//!
//! A packet is seen where it enters the bridge and again where it leaves, so counts are of sightings, good for "none"
//! and "some". A needle that is split over two packets is not found: send it often, or make it short.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use memchr::memmem::Finder;
use socket2::{Domain, Protocol, Socket, Type};

/// A recording that is going on.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    recorder: JoinHandle<Captured>,
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    pub packets: u64,
    pub bytes: u64,
    kept: Vec<u8>,
    /// Ends of the packets in `kept`.
    ends: Vec<usize>,
}

/// All protocols (`ETH_P_ALL` of linux/if_ether.h).
const ETH_P_ALL: u16 = 0x0003;
/// Offloading makes packets of up to 64 KiB on virtual links, and headers come on top.
const LONGEST_PACKET: usize = 80 * 1024;
/// What is kept for searching; packets beyond it are counted only.
const MOST_KEPT: usize = 512 * 1024 * 1024;

impl Capture {
    /// Records in the network namespace of the calling thread.
    pub(crate) fn start() -> Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("packet socket")?;
        // As large as the kernel lets it be: the recorder shares two cores with the load.
        drop(socket.set_recv_buffer_size(8 * 1024 * 1024));
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let recorder =
            thread::Builder::new().name("capture".into()).spawn(move || record(&socket, &stopped))?;
        Ok(Self { stop, recorder })
    }

    /// Ends the recording; packets that have arrived so far are all in it.
    pub fn stop(self) -> Result<Captured> {
        self.stop.store(true, Ordering::Release);
        self.recorder.join().map_err(|_| anyhow!("the recorder panicked"))
    }
}

fn record(socket: &Socket, stop: &AtomicBool) -> Captured {
    let mut captured = Captured::default();
    let mut packet = vec![0; LONGEST_PACKET];
    let mut reader = socket;
    let mut stopping = false;
    loop {
        // From here on the first moment of an empty queue ends it: traffic may never pause for longer, and what had come
        // before the end was asked for has been read by then.
        if !stopping && stop.load(Ordering::Acquire) {
            stopping = true;
            drop(socket.set_nonblocking(true));
        }
        match reader.read(&mut packet) {
            Ok(length) => captured.add(&packet[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stopping {
                    return captured;
                }
            }
            Err(_) => {}
        }
    }
}

impl Captured {
    fn add(&mut self, packet: &[u8]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
        if self.kept.len() + packet.len() <= MOST_KEPT {
            self.kept.extend_from_slice(packet);
            self.ends.push(self.kept.len());
        }
    }

    /// Packets that are counted but were too many to be kept for searching.
    pub fn unsearched(&self) -> u64 {
        self.packets - self.ends.len() as u64
    }

    /// In how many packets the bytes occur.
    pub fn count(&self, needle: &[u8]) -> usize {
        if needle.is_empty() {
            return 0;
        }
        let finder = Finder::new(needle);
        let mut start = 0;
        let mut found = 0;
        for &end in &self.ends {
            found += usize::from(finder.find(&self.kept[start..end]).is_some());
            start = end;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_bytes_within_a_packet_only() {
        let mut captured = Captured::default();
        for packet in [&b"the secret"[..], b"", b"sec", b"ret", b"ssecrets", b"secre"] {
            // Neighbours must not be joined to a find.
            captured.add(packet);
        }
        assert_eq!(captured.count(b"secret"), 2);
        assert_eq!(captured.count(b"none"), 0);
        assert_eq!(captured.count(b""), 0);
        assert_eq!((captured.packets, captured.bytes, captured.unsearched()), (6, 29, 0));
    }
}
