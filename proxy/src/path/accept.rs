//! First step: a connection arrives at one of a worker's listeners.
//!
//! Every worker has its own socket on every listening address (`SO_REUSEPORT`), so the kernel deals connections out and
//! workers share no queue. A connection needs a permit of the process-wide cap, taken *before* it is accepted: at the
//! cap, callers wait in the kernel's backlog and nothing spins. The cap is derived from the limit of file descriptors
//! and leaves a reserve for health, admin and the control plane.
//!
//! On a drain the queue is emptied before the socket is closed, because the kernel resets what is left in it.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use nix::libc;
use outrigger_proto::spec::DestinationKey;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::{
    dial,
    original_dst::{self, canonical},
};
use crate::{context::Ctx, inbound, outbound, telemetry::Direction, worker::Worker};

/// A connection, and what its listener or the redirect says it wants.
pub struct Accepted {
    pub stream: TcpStream,
    /// Canonical: an IPv4 caller of a dual-stack listener has an IPv4 address.
    pub peer: SocketAddr,
    pub target: Target,
    /// Counts the connection as open until it is dropped; keep it as long as the connection lives.
    pub open: Open,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Captured: the address that the caller dialled, canonical.
    Original(SocketAddr),
    /// A `--forward` listener.
    Forward(DestinationKey),
    /// A `--serve` listener: the application behind it. Policy knows the port by the application's number.
    Serve { application: SocketAddr },
    /// Our own capture port was dialled, directly or through the redirect: to be refused as `loop`.
    Itself(SocketAddr),
}

/// A place in the cap and in the gauge of open connections.
pub struct Open {
    ctx: Arc<Ctx>,
    direction: Direction,
    _permit: OwnedSemaphorePermit,
}

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    CaptureOutbound,
    CaptureInbound,
    Forward(DestinationKey),
    Serve { application: SocketAddr },
}

/// The connections that the process may have open at once; clones share the number.
#[derive(Clone)]
pub struct Cap(Arc<Semaphore>);

/// Accepts until the drain closes the listener. Run on the worker's runtime.
pub async fn run(worker: Rc<Worker>, listener: TcpListener, duty: Duty) {
    let direction = duty.direction();
    let mut going = worker.drain.going(direction);
    let mut trouble = Trouble::default();
    loop {
        let permit = tokio::select! {
            biased;
            () = &mut going => break,
            permit = worker.ctx.cap.permit() => permit,
        };
        let accepted = tokio::select! {
            biased;
            () = &mut going => break,
            accepted = listener.accept() => accepted,
        };
        let accepted = accepted.and_then(|(stream, peer)| {
            dial::leaves_reserve(&stream)?;
            Ok((stream, peer))
        });
        match accepted {
            Ok((stream, peer)) => {
                trouble = Trouble::default();
                begin(&worker, &duty, stream, peer, permit);
            }
            Err(error) => trouble.wait(&error).await,
        }
    }
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        let Some(permit) = worker.ctx.cap.permit().now_or_never() else { break };
        begin(&worker, &duty, stream, peer, permit);
    }
}

/// Starts the recipe of a connection as a task of its own: a panic ends that connection and no other.
fn begin(
    worker: &Rc<Worker>,
    duty: &Duty,
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
) {
    let peer = canonical(peer);
    // An error here means that the caller is gone already.
    let Ok(target) = duty.target(&worker.ctx, &stream, peer) else { return };
    let direction = duty.direction();
    if direction == Direction::Outbound && worker.ctx.capture_check.arrived(peer, &target) {
        return;
    }
    let open = Open::new(Arc::clone(&worker.ctx), direction, permit);
    let accepted = Accepted { stream, peer, target, open };
    let worker = Rc::clone(worker);
    match direction {
        Direction::Inbound => task::spawn_local(inbound::serve(worker, accepted)),
        Direction::Outbound => task::spawn_local(outbound::serve(worker, accepted)),
    };
}

// === impl Duty ===

impl Duty {
    pub fn direction(&self) -> Direction {
        match self {
            Self::CaptureOutbound | Self::Forward(_) => Direction::Outbound,
            Self::CaptureInbound | Self::Serve { .. } => Direction::Inbound,
        }
    }

    fn target(&self, ctx: &Ctx, stream: &TcpStream, peer: SocketAddr) -> io::Result<Target> {
        match (self, ctx.config.capture) {
            (Self::Forward(destination), _) => Ok(Target::Forward(destination.clone())),
            (Self::Serve { application }, _) => Ok(Target::Serve { application: *application }),
            (Self::CaptureOutbound | Self::CaptureInbound, Some(capture)) => {
                original_dst::target(stream, peer, self.direction(), capture, &ctx.config.addresses)
            }
            // Without capture there is no such listener; were there one, it could only have been dialled directly.
            (Self::CaptureOutbound | Self::CaptureInbound, None) => Ok(Target::Itself(stream.local_addr()?)),
        }
    }
}

// === impl Open ===

impl Open {
    fn new(ctx: Arc<Ctx>, direction: Direction, permit: OwnedSemaphorePermit) -> Self {
        ctx.telemetry.metrics.connection_opened(direction);
        Self { ctx, direction, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ctx.telemetry.metrics.connection_closed(self.direction);
    }
}

// === impl Cap ===

impl Cap {
    /// Descriptors kept back: listeners, health, admin, control plane, logs, files.
    const RESERVE: u64 = 96;
    /// A proxied connection has two ends.
    const PER_CONNECTION: u64 = 2;

    pub fn from_descriptor_limit(limit: u64) -> Self {
        let connections = limit.saturating_sub(Self::RESERVE) / Self::PER_CONNECTION;
        let most = Semaphore::MAX_PERMITS as u64;
        Self(Arc::new(Semaphore::new(connections.clamp(8, most) as usize)))
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.0).acquire_owned().await {
            Ok(permit) => permit,
            // Never closed; waiting for ever is what a closed cap would mean.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Consecutive failures of `accept`.
#[derive(Default)]
struct Trouble {
    times: u32,
    told: Option<Instant>,
}

impl Trouble {
    /// A connection that died in the queue costs nothing; anything else (no descriptors, no memory) needs time to pass.
    async fn wait(&mut self, error: &io::Error) {
        if matches!(
            error.raw_os_error(),
            Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EINTR | libc::EPROTO | libc::EPERM)
        ) {
            return;
        }
        if self.told.is_none_or(|told| told.elapsed() > Duration::from_secs(10)) {
            tracing::warn!(%error, "cannot accept connections; trying again with pauses");
            self.told = Some(Instant::now());
        }
        tokio::time::sleep(self.pause()).await;
    }

    fn pause(&mut self) -> Duration {
        let pause = Duration::from_millis(10 << self.times.min(4)).min(Duration::from_millis(100));
        self.times += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_tenth_of_a_second() {
        let mut trouble = Trouble::default();
        let pauses: Vec<_> = (0..6).map(|_| trouble.pause().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 100, 100]);
    }

    #[test]
    fn the_cap_leaves_a_reserve() {
        for (limit, connections) in [(1024, 464), (256, 80), (100, 8), (0, 8)] {
            assert_eq!(Cap::from_descriptor_limit(limit).0.available_permits(), connections, "{limit}");
        }
    }
}
