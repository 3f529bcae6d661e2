//! A TCP server that follows a script, byte for byte: for answers that no HTTP library would give.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::server::Server;

/// One thing a scripted connection does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Waits for this many more bytes.
    Read(usize),
    /// Waits until these bytes have come, e.g. `b"\r\n\r\n"`.
    ReadUntil(&'static [u8]),
    Write(Vec<u8>),
    Pause(Duration),
    /// Sends no more; goes on reading.
    HalfClose,
    /// Ends in good order. The end of a script does the same.
    Close,
    /// Ends with TCP's reset.
    Reset,
    /// Says nothing, reads until the other side ends, then closes.
    Hold,
}

pub type Script = Vec<Step>;

/// Where an HTTP/1.1 connection can be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Accepted,
    MidRequestHead,
    AfterRequestHead,
    MidResponseHead,
    AfterResponseHead,
    MidResponseBody,
    /// The answer is complete; the connection, which promised to stay, is not.
    AfterResponse,
}

impl Stage {
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::MidRequestHead,
        Self::AfterRequestHead,
        Self::MidResponseHead,
        Self::AfterResponseHead,
        Self::MidResponseBody,
        Self::AfterResponse,
    ];

    /// Answers `200` with a body of ten bytes, as far as it gets before the reset.
    pub fn reset(self) -> Script {
        let asked = Step::ReadUntil(b"\r\n\r\n");
        let write = |text: &str| Step::Write(text.into());
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
        let mut script = match self {
            Self::Accepted => vec![],
            Self::MidRequestHead => vec![Step::Read(10)],
            Self::AfterRequestHead => vec![asked],
            Self::MidResponseHead => vec![asked, write(&head[..20])],
            Self::AfterResponseHead => vec![asked, write(head)],
            Self::MidResponseBody => vec![asked, write(head), write("01234")],
            Self::AfterResponse => vec![asked, write(head), write("0123456789")],
        };
        // A reset overtakes what was written just before it; this lets the bytes arrive.
        if script.len() > 1 {
            script.push(Step::Pause(Duration::from_millis(50)));
        }
        script.push(Step::Reset);
        script
    }
}

/// Runs a script on each connection.
pub struct RawServer {
    server: Server,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawServer {
    /// The first connection runs the first script and so on; the last script is for all that follow.
    pub fn start(address: SocketAddr, scripts: Vec<Script>) -> Result<Self> {
        let received = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&received);
        let server = Server::start(address, move |stream, number| {
            let index = usize::try_from(number).unwrap_or(usize::MAX).min(scripts.len().saturating_sub(1));
            let script = scripts.get(index).cloned().unwrap_or_default();
            let received = Arc::clone(&record);
            let slot = {
                let mut all = received.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Vec::new());
                all.len() - 1
            };
            async move {
                let mut connection = Connection { stream, received, slot, seen: 0 };
                // A connection that the other side ended early has no more steps.
                drop(connection.run(script).await);
            }
        })?;
        Ok(Self { server, received })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn connections(&self) -> u64 {
        self.server.accepted()
    }

    /// What each connection has sent so far, in the order they came. A script that does not read sees nothing.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Connection {
    stream: TcpStream,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    slot: usize,
    /// How much of what was received the steps have consumed.
    seen: usize,
}

impl Connection {
    async fn run(&mut self, script: Script) -> std::io::Result<()> {
        for step in script {
            match step {
                Step::Read(more) => {
                    while self.unseen(<[u8]>::len) < more {
                        self.read_some().await?;
                    }
                    self.seen += more;
                }
                Step::ReadUntil(end) => {
                    let find = |bytes: &[u8]| bytes.windows(end.len()).position(|window| window == end);
                    let found = loop {
                        match self.unseen(find) {
                            Some(at) => break at,
                            None => self.read_some().await?,
                        }
                    };
                    self.seen += found + end.len();
                }
                Step::Write(bytes) => self.stream.write_all(&bytes).await?,
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::HalfClose => self.stream.shutdown().await?,
                Step::Close => break,
                Step::Reset => {
                    self.stream.set_zero_linger()?;
                    return Ok(());
                }
                Step::Hold => while self.read_some().await.is_ok() {},
            }
        }
        self.stream.shutdown().await
    }

    fn unseen<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.received.lock().unwrap_or_else(PoisonError::into_inner)[self.slot][self.seen..])
    }

    async fn read_some(&mut self) -> std::io::Result<()> {
        let mut buffer = Vec::with_capacity(16 * 1024);
        if self.stream.read_buf(&mut buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.received.lock().unwrap_or_else(PoisonError::into_inner)[self.slot].append(&mut buffer);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
