//! A TCP relay that breaks the network to order.
//!
//! Faults are set per direction, count bytes per connection, and take hold at once, on open connections too.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use crate::server::Server;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What happens to the bytes of one direction. The counts are of bytes passed on a connection, in that direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Every piece comes this much later.
    Delay(Duration),
    /// Both sides get TCP's reset.
    ResetAfter(u64),
    /// Nothing more passes, and nothing is said, until the fault is lifted.
    StallAfter(u64),
    /// The receiver is told that nothing more will come; the sender is not.
    HalfCloseAfter(u64),
}

pub struct Relay {
    server: Server,
    faults: [watch::Sender<Fault>; 2],
    passed: Arc<[AtomicU64; 2]>,
}

impl Relay {
    /// Passes each connection on to `upstream`; one that cannot be made is reset.
    pub fn start(listen: SocketAddr, upstream: SocketAddr) -> Result<Self> {
        let faults = [watch::channel(Fault::None).0, watch::channel(Fault::None).0];
        let [to_server, to_client] = [faults[0].subscribe(), faults[1].subscribe()];
        let passed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let count = Arc::clone(&passed);
        let server = Server::start(listen, move |client, _| {
            let (to_server, to_client, count) = (to_server.clone(), to_client.clone(), Arc::clone(&count));
            async move { relay(client, upstream, [to_server, to_client], &count).await }
        })?;
        Ok(Self { server, faults, passed })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn connections(&self) -> u64 {
        self.server.accepted()
    }

    pub fn set(&self, direction: Direction, fault: Fault) {
        self.faults[direction as usize].send_replace(fault);
    }

    /// Bytes passed on so far, over all connections.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.passed[direction as usize].load(Ordering::SeqCst)
    }
}

async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    [to_server, to_client]: [watch::Receiver<Fault>; 2],
    passed: &[AtomicU64; 2],
) {
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        drop(client.set_zero_linger()); // the client is gone already, then
        return;
    };
    drop(server.set_nodelay(true));
    let ended = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let there = pump(client_read, server_write, to_server, &passed[Direction::ToServer as usize]);
        let back = pump(server_read, client_write, to_client, &passed[Direction::ToClient as usize]);
        tokio::try_join!(there, back)
    };
    if ended.is_err() {
        drop(client.set_zero_linger());
        drop(server.set_zero_linger());
    }
}

/// The connection is to be reset: by a fault, or because one side was.
struct Broken;

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: watch::Receiver<Fault>,
    total: &AtomicU64,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0_u64;
    let mut closed = false; // by Fault::HalfCloseAfter: what still comes is thrown away
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Broken)?;
        if read == 0 {
            if !closed {
                hold(&mut fault, passed).await?;
                to.shutdown().await.map_err(|_| Broken)?;
            }
            return Ok(());
        }
        let mut piece = &buffer[..read];
        while !piece.is_empty() && !closed {
            let set = *fault.borrow_and_update();
            let limit = match set {
                Fault::None => u64::MAX,
                Fault::Delay(time) => {
                    tokio::time::sleep(time).await;
                    u64::MAX
                }
                Fault::ResetAfter(limit) | Fault::StallAfter(limit) | Fault::HalfCloseAfter(limit) => limit,
            };
            let room = usize::try_from(limit.saturating_sub(passed)).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(piece.len().min(room));
            to.write_all(now).await.map_err(|_| Broken)?;
            passed += now.len() as u64;
            total.fetch_add(now.len() as u64, Ordering::SeqCst);
            piece = later;
            if passed < limit {
                continue;
            }
            match set {
                Fault::ResetAfter(_) => return Err(Broken),
                Fault::HalfCloseAfter(_) => {
                    to.shutdown().await.map_err(|_| Broken)?;
                    closed = true;
                }
                Fault::StallAfter(_) => hold(&mut fault, passed).await?,
                Fault::None | Fault::Delay(_) => {}
            }
        }
    }
}

/// Waits while a stall is in force.
async fn hold(fault: &mut watch::Receiver<Fault>, passed: u64) -> Result<(), Broken> {
    let stalled = |fault: &Fault| matches!(fault, Fault::StallAfter(limit) if *limit <= passed);
    fault.wait_for(|fault| !stalled(fault)).await.map_err(|_| Broken)?;
    Ok(())
}

#[cfg(test)]
mod tests;
